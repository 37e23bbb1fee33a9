"""POST /keeps_post: the commands of 2020, answered as the original did, with our members in addition."""

from __future__ import annotations

from aiohttp import web

from keep_manager.authorize.table import Action
from keep_manager.http.handlers import KEEPS, visible_to
from keep_manager.http.middleware import authorized, caller_of, json_response, list_response, read_body
from keep_manager.keeps.decide import by_creation
from keep_protocol import api
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.states import State

COMPILE_SECONDS = 20.0
"""How long a start waits for its module's compilation: the clients of 2020 wait for 30 s, and do not ask again."""


async def keeps_post(request: web.Request) -> web.StreamResponse:
    """Obeys the command in the body. Errors have the shape of errors.legacy_body."""
    keeps = request.app[KEEPS]
    match api.parse_legacy(await read_body(request)):
        case api.NewKeep() as command:
            authorized(request, Action.CREATE)
            return json_response(await _new_keep(request, command))
        case api.ListKeeps() as command:
            visible = visible_to(authorized(request, Action.LIST))
            found = by_creation((await keeps.list(command, visible)).keeps)  # the clients of 2020 start the last one
            return await list_response("klvec", found)
        case api.StartKeep() as command:
            caller = authorized(request, Action.START, command.kuuid)
            return json_response((await keeps.start(command, caller, COMPILE_SECONDS)).to_wire())
        case api.StopKeep(kuuid):
            caller = authorized(request, Action.STOP, kuuid)
            return json_response((await keeps.stop(kuuid, caller)).to_wire())
        case api.RemoveKeep(kuuid):
            await keeps.remove(kuuid, authorized(request, Action.REMOVE, kuuid))
            return json_response({"text": "removed"})


async def _new_keep(request: web.Request, command: api.NewKeep) -> dict[str, object]:
    """The new keep; for hardware this host lacks a keep in state 15 with the reason, as the original had it."""
    try:
        return (await request.app[KEEPS].create(command, caller_of(request))).to_wire()
    except KeepfleetError as error:
        if error.kind is not ErrorKind.UNSUPPORTED:
            raise
        return KeepInfo(0, State.ERROR, error.message).to_wire()
