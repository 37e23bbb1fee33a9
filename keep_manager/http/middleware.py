"""Around every handler: who may be served first, and the line a refusal leaves in the log; one error shape last, by the
one table from error kinds to HTTP statuses; and the one way a body is read.

What a browser sends because another site's page asked it to is refused. A browser that holds a client certificate shows
it for any page: such a page could make keeps with a form. It cannot read an answer, and cannot send `application/json`
without asking first (the manager allows it to none, as it answers no preflight). Browsers name the page's site in
Origin, with every POST, and in Sec-Fetch-Site (Fetch standard, "CORS protocol"; Fetch Metadata Request Headers); no
program of ours sends either.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from http import HTTPStatus

from aiohttp import web

from keep_manager.authorize.quotas import QuotaKeeper
from keep_manager.authorize.table import Action, Owned, authorize
from keep_manager.callers import EVERYONE, Callers, entry_of
from keep_manager.http.connection import Certificates, Connection, Peer, v1_body
from keep_manager.model import Caller, exhaustion_explained
from keep_protocol import strict_json
from keep_protocol.api import UNDEFINED_COMMAND
from keep_protocol.constants import MAX_MANAGER_BODY, parse_kuuid
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.identity import Role, owner_of
from keep_protocol.keep import KeepInfo
from keep_protocol.spec import ANONYMOUS

SECURITY = logging.getLogger("keepfleet.security")
JSON = "application/json"
_OWN_SITE = {"same-origin", "none"}
"""The manager's own page, and an address typed by the user."""
_NOTHING = "application/octet-stream"
"""What aiohttp's client says of a body that is not there, and no form of a page can say."""
_SHOWN = 60
WRITTEN_AT_ONCE = 64
"""Keeps of a list written before the loop turns to others again: 5 ms."""
BODY_SECONDS = 10.0
"""A body is at most 64 KiB, seven kilobytes a second, and that of a start 4 MiB, 3.4 Mbit/s."""
_CLOSING = {ErrorKind.FORBIDDEN, ErrorKind.TOO_LARGE, ErrorKind.TOO_SLOW}
"""After these the connection is not used again: the peer is not trusted, or its body still lies on the wire."""
STATUS_OF: dict[ErrorKind, HTTPStatus] = {
    ErrorKind.BAD_REQUEST: HTTPStatus.BAD_REQUEST,
    ErrorKind.UNKNOWN_COMMAND: HTTPStatus.BAD_REQUEST,
    ErrorKind.NOT_FOUND: HTTPStatus.NOT_FOUND,
    ErrorKind.CONFLICT: HTTPStatus.CONFLICT,
    ErrorKind.FORBIDDEN: HTTPStatus.FORBIDDEN,
    ErrorKind.TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    ErrorKind.TOO_SLOW: HTTPStatus.REQUEST_TIMEOUT,
    ErrorKind.TOO_MANY: HTTPStatus.TOO_MANY_REQUESTS,
    ErrorKind.UNSUPPORTED: HTTPStatus.NOT_IMPLEMENTED,
    ErrorKind.UNSUPPORTED_MEDIA: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    ErrorKind.INVALID_MODULE: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorKind.TOO_COMPLEX: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorKind.COMPILING: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorKind.PORT_UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorKind.NO_SPACE: HTTPStatus.INSUFFICIENT_STORAGE,
    ErrorKind.ISOLATION_FAILURE: HTTPStatus.INTERNAL_SERVER_ERROR,
    ErrorKind.KEEP_FAILED: HTTPStatus.BAD_GATEWAY,
    ErrorKind.SYSTEMD: HTTPStatus.BAD_GATEWAY,
    ErrorKind.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorKind.CONFIGURATION: HTTPStatus.INTERNAL_SERVER_ERROR,
    ErrorKind.CERTIFICATE: HTTPStatus.INTERNAL_SERVER_ERROR,
    ErrorKind.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
}

KIND_OF = {
    400: ErrorKind.BAD_REQUEST,
    404: ErrorKind.NOT_FOUND,
    405: ErrorKind.BAD_REQUEST,
    408: ErrorKind.TOO_SLOW,
    413: ErrorKind.TOO_LARGE,
    415: ErrorKind.UNSUPPORTED_MEDIA,
    417: ErrorKind.BAD_REQUEST,
}
"""The kinds of the refusals that are HTTP's own; any other status is INTERNAL."""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
ErrorBody = Callable[[KeepfleetError], dict[str, object]]


def legacy_body(error: KeepfleetError) -> dict[str, object]:
    """An error as /keeps_post has it: the original's `text`, and ours in addition."""
    if error.kind is ErrorKind.UNKNOWN_COMMAND:
        return dict(UNDEFINED_COMMAND)
    return {"text": error.message, "error": error.to_wire()}


def caller_at(peer: Peer, callers: Callers) -> Caller:
    """Who asks: by the identity in its certificate's URI; without one by the certificate's common name, with the role
    that the configuration gives it, or else as an operator; without a certificate `anonymous`. Pure.
    """
    shown = peer.identity
    if shown is None:
        return Caller(ANONYMOUS, Role.ANONYMOUS, peer.address, str(peer))
    if shown.identity is not None:
        who = shown.identity
        return Caller(who.name, who.role, peer.address, str(peer), shown.fingerprint, who.keep)
    name = owner_of(shown.subject)
    given = entry_of(callers, shown.subject).role or entry_of(callers, name).role or entry_of(callers, EVERYONE).role
    role = Role.OPERATOR if given is None else Role(given.value)
    return Caller(name, role, peer.address, str(peer), shown.fingerprint)


class Admission(Record):
    """Who may connect at all: a client with a certificate of our CA, made for a client, in its time and not revoked,
    which is checked again for every request.

    certificate_required: false lets clients without one in, too, as those of 2020 show none: they are one caller,
    `anonymous`, so keep such a manager on 127.0.0.1. A certificate that is shown must be a good one all the same.
    """

    certificates: Certificates
    certificate_required: bool = True

    def check(self, peer: Peer) -> None:
        """Raises KeepfleetError: FORBIDDEN when `peer` may not, CERTIFICATE when that cannot be found out."""
        if peer.identity is not None:
            self.certificates.check(peer.identity)
        elif self.certificate_required:
            raise KeepfleetError(ErrorKind.FORBIDDEN, "cannot serve a client without a certificate")


def check_site(request: web.Request) -> None:
    """Raises KeepfleetError(FORBIDDEN) for a request on behalf of another site's page."""
    headers = request.headers
    own = f"https://{headers.get('Host', '')}"
    foreign = [origin for origin in headers.getall("Origin", []) if origin != own]
    foreign += [site for site in headers.getall("Sec-Fetch-Site", []) if site not in _OWN_SITE]
    if foreign:
        raise KeepfleetError(
            ErrorKind.FORBIDDEN, f"cannot obey another site's page: a browser sent this for {foreign[0][:_SHOWN]!r}"
        )


def check_media_type(request: web.Request) -> None:
    """Raises KeepfleetError(UNSUPPORTED_MEDIA) for a body that is said to be anything but JSON, and for an encoded one.

    A body whose type is not said is taken for JSON: the manager of 2020 (warp's json filter) drew the same line.
    """
    headers = request.headers
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise KeepfleetError(ErrorKind.UNSUPPORTED_MEDIA, "cannot read the request: its body must not be encoded")
    given = headers.get("Content-Type", JSON).partition(";")[0].strip().lower()
    if given != JSON and (request.body_exists or given != _NOTHING):
        raise KeepfleetError(
            ErrorKind.UNSUPPORTED_MEDIA,
            f"cannot read the request: its Content-Type is {given[:_SHOWN]!r}, and must be {JSON}",
        )


class Rules(Record):
    """What a route carries for the middleware: what it does, None where its body says that; how its errors look, and
    how much it reads."""

    action: Action | None
    error_body: ErrorBody
    max_body: int = MAX_MANAGER_BODY


RULES = web.AppKey("rules", dict[web.AbstractRoute, Rules])
ADMISSION = web.AppKey("admission", Admission)
FIND: web.AppKey[Callable[[int], Owned]] = web.AppKey("find")
"""A keep by its ID. Raises KeepfleetError(NOT_FOUND)."""
QUOTAS = web.AppKey("quotas", QuotaKeeper)


def peer_of(request: web.Request) -> Peer:
    """The other end of the request's connection."""
    connection = request.protocol
    return connection.peer if isinstance(connection, Connection) else Peer("nowhere", None)


def caller_of(request: web.Request) -> Caller:
    """Who sent the request, by the configuration in force. A reader of output is checked for each line that comes: so
    the connection knows it, until the configuration is another one."""
    callers, connection = request.app[QUOTAS].callers, request.protocol
    if not isinstance(connection, Connection):
        return caller_at(peer_of(request), callers)
    if connection.caller is None or connection.caller[0] is not callers:
        connection.caller = callers, caller_at(connection.peer, callers)
    return connection.caller[1]


def json_response(value: object, status: int = 200) -> web.Response:
    """`value` as a JSON answer."""
    return web.Response(status=status, body=strict_json.dumps(value), content_type="application/json")


async def list_response(name: str, keeps: Iterable[KeepInfo], **more: object) -> web.Response:
    """An answer with a list of keeps as its member `name`. Two thousand keeps take 0.2 s to write: others have their
    turn meanwhile."""
    written: list[bytes] = []
    for keep in keeps:
        written.append(strict_json.dumps(keep.to_wire()))
        if len(written) % WRITTEN_AT_ONCE == 0:
            await asyncio.sleep(0)
    members = [(name, b"[" + b",".join(written) + b"]"), *((key, strict_json.dumps(more[key])) for key in more)]
    body = b"{" + b",".join(strict_json.dumps(key) + b":" + value for key, value in members) + b"}"
    return web.Response(body=body, content_type="application/json")


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns refusals into answers of the route's shape. A defect passes through: Connection.handle_error has it."""
    rules = request.app[RULES].get(request.match_info.route)
    body = v1_body if rules is None else rules.error_body
    try:
        with exhaustion_explained(f"answer {_what(request)} now"):
            return await handler(request)
    except KeepfleetError as error:
        failure, status = error, int(STATUS_OF[error.kind])
    except web.HTTPException as error:
        status = error.status
        kind = KIND_OF.get(status, ErrorKind.INTERNAL)
        failure = KeepfleetError(kind, f"cannot {request.method} {request.path[:80]!r}: {error.reason.lower()}")
    response = json_response(body(failure), status)
    if failure.kind is ErrorKind.COMPILING:
        response.headers["Retry-After"] = "0"  # the next request waits here, as this one has
    if failure.kind in _CLOSING:
        response.force_close()
    return response


@contextmanager
def refusals_logged(request: web.Request) -> Iterator[None]:
    """A refusal of what the block asks is one line in the security log, which names the request."""
    try:
        yield
    except KeepfleetError as error:
        SECURITY.warning("refused %s from %s: %s", _what(request), peer_of(request), error.message)
        raise


def admit(request: web.Request) -> None:
    """Raises KeepfleetError, after one line in the security log, unless the request's client may be served now."""
    with refusals_logged(request):
        request.app[ADMISSION].check(peer_of(request))


def authorized(request: web.Request, action: Action, kuuid: int | None = None) -> Caller:
    """Who asks, where it may do that, to the keep `kuuid` or where none is concerned.

    Raises KeepfleetError as `authorize` does, NOT_FOUND too for a keep that there is not.
    """
    caller = caller_of(request)
    keep = None if kuuid is None else request.app[FIND](kuuid)
    with refusals_logged(request):
        authorize(caller, action, keep)
    return caller


def kuuid_of(request: web.Request) -> int | None:
    """The keep in the request's path. Raises KeepfleetError(BAD_REQUEST) for what is no ID."""
    text = request.match_info.get("kuuid")
    return None if text is None else parse_kuuid(text)


def _what(request: web.Request) -> str:
    return f"{request.method} {request.path[:80]!r}"


@web.middleware
async def access(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Asks whether the client may be served and whether it may do what the route does; and, as the handler may have
    waited, once more before its answer goes out whether it may be served.

    That a path does not exist is said to no client that is not served.
    """
    admit(request)
    rules = request.app[RULES].get(request.match_info.route)
    with refusals_logged(request):
        check_site(request)
    if rules is not None and rules.action is not None:
        authorized(request, rules.action, kuuid_of(request))
    response = await handler(request)
    if response.prepared:
        return response  # a stream, which has asked all the while
    admit(request)
    return response


async def expect(request: web.Request) -> web.StreamResponse | None:
    """Answers `Expect: 100-continue`, but not for a body that `read_body` will refuse; runs before the access check."""
    if request.headers.get("Expect", "").lower() != "100-continue":
        error = KeepfleetError(ErrorKind.BAD_REQUEST, "cannot do what the request expects: only 100-continue is known")
        return json_response(v1_body(error), 417)
    if (request.content_length or 0) <= _max_body(request):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    return None


def _max_body(request: web.Request) -> int:
    rules = request.app[RULES].get(request.match_info.route)
    return MAX_MANAGER_BODY if rules is None else rules.max_body


def _too_large(limit: int) -> KeepfleetError:
    return KeepfleetError(ErrorKind.TOO_LARGE, f"cannot read the request: it is over {limit} bytes")


async def read_body(request: web.Request) -> bytes:
    """The request's body, at most the route's `max_body` bytes, in BODY_SECONDS, and never decompressed.

    Raises KeepfleetError: TOO_LARGE, immediately where Content-Length says it; TOO_SLOW; BAD_REQUEST for a body
    that ends half-way; UNSUPPORTED_MEDIA for one that is encoded, or of another type than JSON.
    """
    check_media_type(request)
    limit = _max_body(request)
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > limit:
                    raise _too_large(limit)
    except TimeoutError:
        raise KeepfleetError(ErrorKind.TOO_SLOW, f"cannot read the request: no body in {BODY_SECONDS:g} s") from None
    except web.RequestPayloadError as error:
        raise KeepfleetError(ErrorKind.BAD_REQUEST, "cannot read the request: its body is malformed") from error
    return bytes(body)
