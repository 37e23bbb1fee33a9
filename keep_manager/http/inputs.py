"""The standard input that a client sends while its workload runs: a request's body, as long as it may be."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import web

from keep_manager.authorize.table import Action
from keep_manager.http.middleware import QUOTAS, authorized, caller_of, json_response
from keep_manager.http.streams import enlist
from keep_manager.keeps.streams import Inputs
from keep_protocol.constants import parse_kuuid
from keep_protocol.errors import ErrorKind, KeepfleetError

MAX_BODY = (1 << 63) - 1
"""It is passed on and never held."""
INPUTS = web.AppKey("inputs", Inputs)


async def keep_input(request: web.Request) -> web.StreamResponse:
    """PUT /v1/keeps/ID/input: the body goes to the guest as fast as that takes it, and its end is the input's.

    Answered when all of it was passed on, or the guest takes no more. A body that breaks off is an input that was cut:
    its workload is ended.
    """
    kuuid = parse_kuuid(request.match_info["kuuid"])
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise KeepfleetError(ErrorKind.UNSUPPORTED_MEDIA, "cannot read the input: it must not be encoded")
    enlist(request.app)
    with request.app[QUOTAS].following(caller_of(request)):
        size, complete = await request.app[INPUTS].send(kuuid, _data(request, kuuid))
    response = json_response({"bytes": size, "complete": complete})
    if not complete:
        response.force_close()  # the rest of its body is still on its way
    return response


async def _data(request: web.Request, kuuid: int) -> AsyncIterator[bytes]:
    """The body, piece by piece, for as long as its sender may send it. Raises KeepfleetError."""
    try:
        async for chunk in request.content.iter_any():
            authorized(request, Action.INPUT, kuuid)
            yield chunk
    except web.RequestPayloadError as error:
        raise KeepfleetError(ErrorKind.BAD_REQUEST, "cannot read the input: it broke off") from error
