"""The handlers of /v1/pools: a pool is a keep of kind scripts, whose owner, quotas and life are those of any keep."""

from __future__ import annotations

from aiohttp import web

from keep_manager.authorize.table import Action, may
from keep_manager.http.handlers import KEEPS
from keep_manager.http.middleware import caller_of, json_response, list_response, read_body
from keep_manager.keeps.policy import kind_of
from keep_protocol.api import parse_v1_list
from keep_protocol.api_pools import parse_v1_pool
from keep_protocol.constants import V1_KEEPS_PATH, V1_POOLS_PATH, parse_kuuid
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo

POOL_PATH = f"{V1_POOLS_PATH}/{{kuuid}}"


async def create_pool(request: web.Request) -> web.StreamResponse:
    """POST /v1/pools: answered when it listens."""
    asked = parse_v1_pool(await read_body(request))
    info = await request.app[KEEPS].create(asked.as_keep(), caller_of(request))
    response = json_response(info.to_wire(), 201)
    response.headers["Location"] = f"{V1_KEEPS_PATH}/{info.kuuid}"
    return response


async def list_pools(request: web.Request) -> web.StreamResponse:
    """GET /v1/pools; pages as GET /v1/keeps has them."""
    caller = caller_of(request)
    asked = parse_v1_list(request.query.items())
    page = await request.app[KEEPS].list(asked, lambda keep: _is_pool(keep) and may(caller, Action.LIST, keep))
    return await list_response("keeps", page.keeps, next=page.next)


async def get_pool(request: web.Request) -> web.StreamResponse:
    """GET /v1/pools/ID."""
    return json_response((await request.app[KEEPS].get(_kuuid(request))).to_wire())


async def remove_pool(request: web.Request) -> web.StreamResponse:
    """DELETE /v1/pools/ID: what it has been asked is answered first, within its time."""
    await request.app[KEEPS].remove(_kuuid(request), caller_of(request))
    return web.Response(status=204)


def _is_pool(keep: object) -> bool:
    return isinstance(keep, KeepInfo) and kind_of(keep.kind).pool


def _kuuid(request: web.Request) -> int:
    """The pool that the path names. Raises KeepfleetError(NOT_FOUND) for a keep that is none."""
    kuuid = parse_kuuid(request.match_info["kuuid"])
    if not _is_pool(request.app[KEEPS].find(kuuid)):
        raise KeepfleetError(ErrorKind.NOT_FOUND, f"cannot find the script pool {kuuid}: that keep is none")
    return kuuid
