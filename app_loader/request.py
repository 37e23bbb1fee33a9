"""What a request asks for, decided from its method, target and headers alone. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from app_loader.answers import Refused
from app_loader.limits import MAX_HEADER_BYTES, MAX_HEADERS, MAX_PAYLOAD_HEAD
from keep_protocol.constants import MAX_PAYLOAD_JSON_FACTOR
from keep_protocol.errors import ErrorKind, KeepfleetError


class Wish(Enum):
    """What a client wants of the door."""

    BANNER = "banner"
    PAYLOAD = "payload"
    WORKLOAD = "workload"


ROUTES: dict[bytes, tuple[bytes, Wish]] = {
    b"/": (b"GET", Wish.BANNER),
    b"/payload": (b"POST", Wish.PAYLOAD),
    b"/workload": (b"PUT", Wish.WORKLOAD),
}
"""Each path with its one method. All are for clients with a certificate, see `access`."""

_MEDIA_TYPES = {Wish.PAYLOAD: b"application/json", Wish.WORKLOAD: b"application/wasm"}
_SHOWN = 60


def _headers_of(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """The headers by lower-case name; those that frame or describe the body may stand once."""
    found: dict[bytes, bytes] = {}
    room = MAX_HEADER_BYTES
    for count, (name, value) in enumerate(headers, 1):
        room -= len(name) + len(value)
        if count > MAX_HEADERS or room < 0:
            raise Refused(
                ErrorKind.TOO_LARGE,
                431,
                f"cannot read the request: it has over {MAX_HEADERS} headers, or {MAX_HEADER_BYTES >> 10} KiB of them",
            )
        key = name.lower()
        if key in found and key in (b"content-length", b"transfer-encoding", b"content-type", b"content-encoding"):
            raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read the request: {key.decode()} stands twice")
        found[key] = value
    return found


def _check_type(wish: Wish, found: dict[bytes, bytes]) -> None:
    """The original's clients may leave out the type of a payload; a raw upload must name its own."""
    if found.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        raise KeepfleetError(
            ErrorKind.UNSUPPORTED_MEDIA,
            "cannot take the upload: a Content-Encoding is refused; send the bytes as they are",
        )
    wanted = _MEDIA_TYPES[wish]
    given = found.get(b"content-type", wanted if wish is Wish.PAYLOAD else b"").split(b";", 1)[0].strip().lower()
    if given != wanted:
        shown = given[:_SHOWN].decode("ascii", "backslashreplace") or "missing"
        raise KeepfleetError(
            ErrorKind.UNSUPPORTED_MEDIA,
            f"cannot take the upload: its Content-Type is {shown}, and must be {wanted.decode()}",
        )


def body_limit(wish: Wish, max_workload: int) -> int:
    """The bytes the body of an upload may have."""
    return max_workload if wish is Wish.WORKLOAD else max_workload * MAX_PAYLOAD_JSON_FACTOR + MAX_PAYLOAD_HEAD


def too_large(max_workload: int) -> KeepfleetError:
    """The refusal of a body, announced or arrived, that is over the limit."""
    return KeepfleetError(ErrorKind.TOO_LARGE, f"cannot take the upload: a module may have {max_workload} bytes here")


def decide(method: bytes, target: bytes, headers: Iterable[tuple[bytes, bytes]], max_workload: int) -> Wish:
    """What the client wants. Raises KeepfleetError, or Refused, for anything the door does not do."""
    found = _headers_of(headers)
    if target not in ROUTES:
        shown = target[:_SHOWN].decode("ascii", "backslashreplace")
        raise KeepfleetError(
            ErrorKind.NOT_FOUND, f"cannot find {shown}: a keep has PUT /workload, POST /payload and GET /"
        )
    allowed, wish = ROUTES[target]
    if method != allowed:
        shown = method[:_SHOWN].decode("ascii", "backslashreplace")
        raise Refused(
            ErrorKind.BAD_REQUEST,
            405,
            f"cannot {shown} {target.decode()}: it takes {allowed.decode()}",
            ("Allow", allowed.decode()),
        )
    length, transfer = found.get(b"content-length"), found.get(b"transfer-encoding")
    if length is not None and transfer is not None:
        raise KeepfleetError(
            ErrorKind.BAD_REQUEST, "cannot read the request: it has both Content-Length and Transfer-Encoding"
        )
    if wish is Wish.BANNER:
        if transfer is not None or int(length or b"0"):
            raise KeepfleetError(ErrorKind.BAD_REQUEST, "cannot read the request: GET / takes no body")
        return wish
    _check_type(wish, found)
    if length is None and transfer is None:
        raise Refused(ErrorKind.BAD_REQUEST, 411, "cannot take the upload: it has neither Content-Length nor chunks")
    if length is not None and int(length) > body_limit(wish, max_workload):
        raise too_large(max_workload)
    return wish
