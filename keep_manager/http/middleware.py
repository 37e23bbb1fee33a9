"""Around every handler: access first, one error shape last; and the one way a body is read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from keep_manager.callers import Callers
from keep_manager.http.access import Certificates, Peer, Policy, admit, caller_at
from keep_manager.http.connection import Connection
from keep_manager.http.errors import KIND_OF, STATUS_OF, v1_body
from keep_manager.model import Caller
from keep_protocol import strict_json
from keep_protocol.constants import MAX_MANAGER_BODY
from keep_protocol.errors import ErrorKind, KeepfleetError

BODY_SECONDS = 10.0
"""A body is at most 64 KiB, seven kilobytes a second, and that of a start 4 MiB, 3.4 Mbit/s."""
_CLOSING = {ErrorKind.FORBIDDEN, ErrorKind.TOO_LARGE, ErrorKind.TOO_SLOW}
"""After these the connection is not used again: the peer is not trusted, or its body still lies on the wire."""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
ErrorBody = Callable[[KeepfleetError], dict[str, object]]


@dataclass(frozen=True)
class Rules:
    """What a route carries for the middleware: who may use it, how it tells errors, and how much it reads."""

    access: Policy
    error_body: ErrorBody
    max_body: int = MAX_MANAGER_BODY


RULES = web.AppKey("rules", dict[web.AbstractRoute, Rules])
CERTIFICATES = web.AppKey("certificates", Certificates)
CALLERS: web.AppKey[Callers] = web.AppKey("callers")
"""What the configuration says of callers."""


def peer_of(request: web.Request) -> Peer:
    """The other end of the request's connection."""
    connection = request.protocol
    return connection.peer if isinstance(connection, Connection) else Peer("nowhere", None)


def caller_of(request: web.Request) -> Caller:
    """Who sent the request."""
    return caller_at(peer_of(request), request.app[CALLERS])


def json_response(value: object, status: int = 200) -> web.Response:
    """`value` as a JSON answer."""
    return web.Response(status=status, body=strict_json.dumps(value), content_type="application/json")


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns refusals into answers of the route's shape. A defect passes through: Connection.handle_error has it."""
    rules = request.app[RULES].get(request.match_info.route)
    body = v1_body if rules is None else rules.error_body
    try:
        return await handler(request)
    except KeepfleetError as error:
        failure, status = error, int(STATUS_OF[error.kind])
    except web.HTTPException as error:
        status = error.status
        kind = KIND_OF.get(status, ErrorKind.INTERNAL)
        failure = KeepfleetError(kind, f"cannot {request.method} {request.path[:80]!r}: {error.reason.lower()}")
    response = json_response(body(failure), status)
    if failure.kind in _CLOSING:
        response.force_close()
    return response


@web.middleware
async def access(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Asks the route's policy, before the handler and, as it may have waited, once more before its answer goes out.

    A path that does not exist is told to nobody whom no route would serve.
    """
    rules = request.app[RULES].get(request.match_info.route)
    policy = rules.access if rules is not None else request.app[DEFAULT_ACCESS]
    what = f"{request.method} {request.path[:80]!r}"
    admit(policy, peer_of(request), request.app[CERTIFICATES], what)
    response = await handler(request)
    if response.prepared:
        return response  # a stream; it has asked all the while
    admit(policy, peer_of(request), request.app[CERTIFICATES], what)
    return response


DEFAULT_ACCESS = web.AppKey("default_access", Policy)


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

    Raises KeepfleetError: TOO_LARGE, at once where Content-Length says it; TOO_SLOW; BAD_REQUEST for a body that
    ends half-way; and HTTPUnsupportedMediaType for one that is encoded.
    """
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise web.HTTPUnsupportedMediaType(reason="A body must not be encoded")
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
