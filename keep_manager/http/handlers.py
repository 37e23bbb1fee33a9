"""The handlers of /v1, of the banner, and of the commands of 2020, which are answered as the original did, with our
members in addition: parse, call, answer.
"""

from __future__ import annotations

import re

from aiohttp import web

from keep_manager.authorize.table import Action, may
from keep_manager.http.middleware import authorized, caller_of, json_response, list_response, read_body
from keep_manager.keeps.decide import by_creation
from keep_manager.keeps.manager import Keeps
from keep_manager.model import Caller, Visible
from keep_protocol import api
from keep_protocol.constants import V1_KEEPS_PATH, WORKLOAD_FOLLOWS_HEADER, parse_kuuid
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.states import State

DEFAULT_WAIT_SECONDS = 30.0
MAX_WAIT_SECONDS = 60.0
"""Longer waits are asked again: a proxy or a firewall forgets a silent connection after a minute."""
IDEMPOTENCY_HEADER = "Idempotency-Key"
COMPILE_ANSWER_SECONDS = 2.0
"""How long a request waits for its module's compilation until it is answered how far that is, to be made again: a
client that shows it, or goes away, is heard of so often."""
_KEY = re.compile(r"[\x21-\x7e]{1,128}")
_SECONDS = re.compile(r"[0-9]{1,2}(\.[0-9]{1,3})?", re.ASCII)
COMPILE_SECONDS = 20.0
"""How long a start waits for its module's compilation: the clients of 2020 wait for 30 s, and do not ask again."""
KEEPS = web.AppKey("keeps", Keeps)


def _kuuid(request: web.Request) -> int:
    return parse_kuuid(request.match_info["kuuid"])


def visible_to(caller: Caller) -> Visible:
    """Whether a keep may be listed for `caller`."""
    return lambda keep: may(caller, Action.LIST, keep)


async def banner(_: web.Request) -> web.StreamResponse:
    """GET /: the protocol's name and version, as the original has them."""
    return web.Response(text=api.BANNER)


async def create_keep(request: web.Request) -> web.StreamResponse:
    """POST /v1/keeps; a second request with the same Idempotency-Key gets the first one's answer."""
    key = request.headers.get(IDEMPOTENCY_HEADER, "")
    if IDEMPOTENCY_HEADER in request.headers and not _KEY.fullmatch(key):
        raise KeepfleetError(
            ErrorKind.BAD_REQUEST, f"cannot make a keep: {IDEMPOTENCY_HEADER} must be 1 to 128 visible ASCII characters"
        )
    asked = api.parse_v1_create(await read_body(request))
    if asked.start is not None:
        authorized(request, Action.START)
    if (follows := request.headers.get(WORKLOAD_FOLLOWS_HEADER, "yes")) != "yes":
        raise KeepfleetError(
            ErrorKind.BAD_REQUEST, f"cannot make a keep: {WORKLOAD_FOLLOWS_HEADER} must be yes, not {follows[:40]!r}"
        )
    asked = asked.replace(workload_follows=WORKLOAD_FOLLOWS_HEADER in request.headers)
    info = await request.app[KEEPS].create(asked, caller_of(request), key, patience=COMPILE_ANSWER_SECONDS)
    response = json_response(info.to_wire(), 201)
    response.headers["Location"] = f"{V1_KEEPS_PATH}/{info.kuuid}"
    return response


async def list_keeps(request: web.Request) -> web.StreamResponse:
    """GET /v1/keeps; `next` is what to ask for `after` on the following page, or null."""
    page = await request.app[KEEPS].list(api.parse_v1_list(request.query.items()), visible_to(caller_of(request)))
    return await list_response("keeps", page.keeps, next=page.next)


async def get_keep(request: web.Request) -> web.StreamResponse:
    """GET /v1/keeps/ID; with `?changed-from=STATE&timeout=SECONDS` it waits for another state first."""
    kuuid, query = _kuuid(request), request.query
    unknown = sorted(set(query) - {"changed-from", "timeout"})
    if unknown:
        raise KeepfleetError(
            ErrorKind.BAD_REQUEST, f"cannot obey the request: {unknown[0][:40]!r} is no parameter of it"
        )
    if "changed-from" not in query:
        return json_response((await request.app[KEEPS].get(kuuid)).to_wire())
    states = {str(int(state)): state for state in State}
    changed_from, timeout = query["changed-from"], query.get("timeout", str(DEFAULT_WAIT_SECONDS))
    if changed_from not in states:
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot wait: changed-from must be one of {', '.join(states)}")
    if not _SECONDS.fullmatch(timeout) or float(timeout) > MAX_WAIT_SECONDS:
        raise KeepfleetError(
            ErrorKind.BAD_REQUEST, f"cannot wait: timeout must be seconds, at most {MAX_WAIT_SECONDS:g}"
        )
    info = await request.app[KEEPS].wait(kuuid, states[changed_from], float(timeout))
    return json_response(info.to_wire())


async def start_keep(request: web.Request) -> web.StreamResponse:
    """POST /v1/keeps/ID/start."""
    start = api.parse_v1_start(_kuuid(request), await read_body(request))
    info = await request.app[KEEPS].start(start, caller_of(request), COMPILE_ANSWER_SECONDS)
    return json_response(info.to_wire())


async def stop_keep(request: web.Request) -> web.StreamResponse:
    """POST /v1/keeps/ID/stop."""
    await read_body(request)
    return json_response((await request.app[KEEPS].stop(_kuuid(request), caller_of(request))).to_wire())


async def remove_keep(request: web.Request) -> web.StreamResponse:
    """DELETE /v1/keeps/ID."""
    await request.app[KEEPS].remove(_kuuid(request), caller_of(request))
    return web.Response(status=204)


async def keeps_post(request: web.Request) -> web.StreamResponse:
    """Obeys the command in the body. Errors have the shape of middleware.legacy_body."""
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
