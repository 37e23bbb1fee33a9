"""What a request asks for, decided from its method, target and headers alone, and the bytes of the answers. Pure."""

from __future__ import annotations

from app_loader.limits import MAX_PAYLOAD_HEAD
from app_loader.receive.http1 import Head, Refused, response, shown
from keep_protocol import strict_json
from keep_protocol.constants import MAX_PAYLOAD_JSON_FACTOR
from keep_protocol.enumeration import Enum
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record

STATUS_OF: dict[ErrorKind, int] = {
    ErrorKind.BAD_REQUEST: 400,
    ErrorKind.FORBIDDEN: 403,
    ErrorKind.NOT_FOUND: 404,
    ErrorKind.TOO_SLOW: 408,
    ErrorKind.CONFLICT: 409,
    ErrorKind.TOO_LARGE: 413,
    ErrorKind.UNSUPPORTED_MEDIA: 415,
    ErrorKind.INVALID_MODULE: 422,
    ErrorKind.TOO_COMPLEX: 422,
    ErrorKind.UNAVAILABLE: 503,
    ErrorKind.NO_SPACE: 507,
}
"""Any other kind is a fault of the keep itself: 500."""


class Answer(Record):
    """status, headers and body of one response; every answer is the last on its connection."""

    status: int
    body: bytes
    content_type: str
    more: tuple[tuple[str, str], ...] = ()

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """The header lines, in order."""
        length = ("Content-Length", str(len(self.body)))
        return (("Content-Type", self.content_type), length, ("Connection", "close"), *self.more)

    def to_bytes(self, *, with_body: bool = True) -> bytes:
        """The response on the wire; the answer to HEAD says how long its body would be, and has none."""
        return response(self.status, self.headers, self.body if with_body else b"")


def text_answer(text: str) -> Answer:
    """200 with plain text."""
    return Answer(200, text.encode(), "text/plain; charset=utf-8")


def json_answer(value: dict[str, object]) -> Answer:
    """200 with a JSON object."""
    return Answer(200, strict_json.dumps(value) + b"\n", "application/json")


def error_answer(error: KeepfleetError) -> Answer:
    """The answer to a refused request, in the one error shape."""
    status = error.status if isinstance(error, Refused) else STATUS_OF.get(error.kind, 500)
    more = (error.header,) if isinstance(error, Refused) and error.header is not None else ()
    return Answer(status, strict_json.dumps({"error": error.to_wire()}) + b"\n", "application/json", more)


class Route(Enum):
    """What a client may ask of the endpoint."""

    BANNER = "banner"
    PAYLOAD = "payload"
    WORKLOAD = "workload"


ROUTES: dict[bytes, tuple[bytes, Route]] = {
    b"/": (b"GET", Route.BANNER),
    b"/payload": (b"POST", Route.PAYLOAD),
    b"/workload": (b"PUT", Route.WORKLOAD),
}
"""Each path with its one method. All are for clients with a certificate, see `access`."""

_MEDIA_TYPES = {Route.PAYLOAD: b"application/json", Route.WORKLOAD: b"application/wasm"}
MODULE_NAME = b"x-module-name"
"""The header with which a client names its module; UTF-8."""
MAX_MODULE_NAME = 255
"""The longest name of a file on Linux."""
_ONCE = (b"content-type", b"content-encoding", MODULE_NAME)


class Request(Record):
    """One request. module_name: what the client calls the module it uploads, or empty."""

    route: Route
    module_name: str = ""


def _headers_of(head: Head) -> dict[bytes, bytes]:
    """The headers by name; those that describe the body may stand once."""
    found: dict[bytes, bytes] = {}
    for name, value in head.headers:
        if name in found and name in _ONCE:
            raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read the request: {name.decode()} is given twice")
        found[name] = value
    return found


def _check_type(route: Route, found: dict[bytes, bytes]) -> None:
    """The original's clients may leave out the type of a payload; a raw upload must name its own."""
    if found.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        raise KeepfleetError(
            ErrorKind.UNSUPPORTED_MEDIA,
            "cannot take the upload: a Content-Encoding is refused; send the bytes as they are",
        )
    wanted = _MEDIA_TYPES[route]
    given = found.get(b"content-type", wanted if route is Route.PAYLOAD else b"").split(b";", 1)[0].strip().lower()
    if given != wanted:
        raise KeepfleetError(
            ErrorKind.UNSUPPORTED_MEDIA,
            f"cannot take the upload: its Content-Type is {shown(given) or 'missing'}, and must be {wanted.decode()}",
        )


def body_limit(route: Route, max_workload: int) -> int:
    """The bytes the body of an upload may have."""
    return max_workload if route is Route.WORKLOAD else max_workload * MAX_PAYLOAD_JSON_FACTOR + MAX_PAYLOAD_HEAD


def too_large(max_workload: int) -> KeepfleetError:
    """The refusal of a body, announced or arrived, that is over the limit."""
    return KeepfleetError(ErrorKind.TOO_LARGE, f"cannot take the upload: a module may have {max_workload} bytes here")


def _module_name(found: dict[bytes, bytes]) -> str:
    """What the client calls its module, or "". It is shown to people, so that nothing unprintable may be in it."""
    try:
        name = found.get(MODULE_NAME, b"").decode()
    except UnicodeDecodeError:
        name = "\0"
    if len(name) > MAX_MODULE_NAME or not name.isprintable() or "/" in name:
        raise KeepfleetError(
            ErrorKind.BAD_REQUEST,
            f"cannot take the upload: X-Module-Name must be at most {MAX_MODULE_NAME} printable characters in UTF-8, "
            "none of them a slash",
        )
    return name


def read_request(head: Head, max_workload: int) -> Request:
    """What the client asks for. Raises KeepfleetError, or Refused, for anything the endpoint does not do."""
    found = _headers_of(head)
    if head.target not in ROUTES:
        raise KeepfleetError(
            ErrorKind.NOT_FOUND,
            f"cannot find {shown(head.target)}: a keep has PUT /workload, POST /payload and GET /",
        )
    allowed, route = ROUTES[head.target]
    if head.method != allowed:
        raise Refused(
            ErrorKind.BAD_REQUEST,
            405,
            f"cannot {shown(head.method)} {head.target.decode()}: it takes {allowed.decode()}",
            ("Allow", allowed.decode()),
        )
    if route is Route.BANNER:
        if head.chunked or head.length:
            raise KeepfleetError(ErrorKind.BAD_REQUEST, "cannot read the request: GET / takes no body")
        return Request(route)
    _check_type(route, found)
    if head.length is None and not head.chunked:
        raise Refused(ErrorKind.BAD_REQUEST, 411, "cannot take the upload: it has neither Content-Length nor chunks")
    if head.length is not None and head.length > body_limit(route, max_workload):
        raise too_large(max_workload)
    return Request(route, _module_name(found))
