"""Around every handler: access first, one error shape last; and the one way a body is read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from aiohttp import web

from keep_manager.authorize.quotas import QuotaKeeper
from keep_manager.authorize.table import Action, Owned, authorize
from keep_manager.http.access import Admission, Peer, caller_at, check_media_type, check_site, refusals_logged
from keep_manager.http.connection import Connection
from keep_manager.http.errors import KIND_OF, STATUS_OF, v1_body
from keep_manager.model import Caller, exhaustion_explained
from keep_protocol import strict_json
from keep_protocol.constants import MAX_MANAGER_BODY, parse_kuuid
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.keep import KeepInfo

WRITTEN_AT_ONCE = 64
"""Keeps of a list written before the loop turns to others again: 5 ms."""
BODY_SECONDS = 10.0
"""A body is at most 64 KiB, seven kilobytes a second, and that of a start 4 MiB, 3.4 Mbit/s."""
_CLOSING = {ErrorKind.FORBIDDEN, ErrorKind.TOO_LARGE, ErrorKind.TOO_SLOW}
"""After these the connection is not used again: the peer is not trusted, or its body still lies on the wire."""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
ErrorBody = Callable[[KeepfleetError], dict[str, object]]


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


def admit(request: web.Request) -> None:
    """Raises KeepfleetError, after one line in the security log, unless the request's client may be served now."""
    peer = peer_of(request)
    with refusals_logged(peer, _what(request)):
        request.app[ADMISSION].check(peer)


def authorized(request: web.Request, action: Action, kuuid: int | None = None) -> Caller:
    """Who asks, where it may do that, to the keep `kuuid` or where none is concerned.

    Raises KeepfleetError as `authorize` does, NOT_FOUND too for a keep that there is not.
    """
    caller = caller_of(request)
    keep = None if kuuid is None else request.app[FIND](kuuid)
    with refusals_logged(peer_of(request), _what(request)):
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
    with refusals_logged(peer_of(request), _what(request)):
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
