"""The handlers of /v1/codelets: who may is decided here by each application's owner, as that of a keep is.

Whatever becomes of a load or an unload, it leaves one line in the security log, which says who, which set, and where.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Protocol

from aiohttp import web

from codelets.states import HookState, SetState, changed
from keep_manager.authorize.table import Action, authorize, may
from keep_manager.http import streams
from keep_manager.http.declared import Owned
from keep_manager.http.middleware import QUOTAS, caller_of, json_response, read_body, refusals_logged
from keep_manager.model import Caller
from keep_protocol import sse, strict_json
from keep_protocol.codelets import (
    MAX_LOAD_BODY,
    SET_EVENT,
    V1_CODELETS_PATH,
    Application,
    ApplicationList,
    LoadedSet,
    LoadSet,
    check_set_id,
)
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import parse

SECURITY = logging.getLogger("keepfleet.security")
APPLICATION_PATH = f"{V1_CODELETS_PATH}/{{name}}"
SETS_PATH = f"{APPLICATION_PATH}/sets"
SET_PATH = f"{SETS_PATH}/{{id}}"
WATCH_PATH = f"{APPLICATION_PATH}/watch"
STATS_PATH = f"{APPLICATION_PATH}/stats"


class Applications(Protocol):
    """What the handlers need of the applications. Every method raises KeepfleetError alone."""

    async def list(self) -> Sequence[Application]:
        """All, by name."""

    async def find(self, name: str) -> Application:
        """One."""

    async def load(self, application: Application, descriptor: str, variables: tuple[tuple[str, str], ...]) -> str:
        """Has a set loaded; its ID."""

    async def unload(self, application: Application, name: str) -> None:
        """Has a set unloaded."""

    async def sets(self, application: Application) -> Sequence[SetState]:
        """Its sets."""

    def watch(self, application: Application) -> AsyncGenerator[Sequence[SetState], None]:
        """Its sets, again and again."""

    async def hooks(self, application: Application) -> Sequence[HookState]:
        """Its hooks."""


APPLICATIONS = web.AppKey("applications", Applications)


async def list_applications(request: web.Request) -> web.StreamResponse:
    """GET /v1/codelets."""
    caller, found = caller_of(request), await request.app[APPLICATIONS].list()
    return json_response(ApplicationList(tuple(each for each in found if _sees(caller, each))).to_wire())


async def list_sets(request: web.Request) -> web.StreamResponse:
    """GET /v1/codelets/NAME/sets."""
    application = await _readable(request)
    found = await request.app[APPLICATIONS].sets(application)
    return json_response({"codeletsets": [each.to_wire() for each in found]})


async def list_stats(request: web.Request) -> web.StreamResponse:
    """GET /v1/codelets/NAME/stats."""
    application = await _readable(request)
    found = await request.app[APPLICATIONS].hooks(application)
    return json_response({"hooks": [each.to_wire() for each in found]})


async def watch_sets(request: web.Request) -> web.StreamResponse:
    """GET /v1/codelets/NAME/watch: server-sent events, a set each, first all and then those that are not as before."""
    application = await _readable(request)

    async def produce(send: Callable[[streams.Item], Awaitable[None]]) -> None:
        known: dict[str, SetState] = {}
        async with aclosing(request.app[APPLICATIONS].watch(application)) as looks:
            async for found in looks:
                for each in changed(known, found):
                    await send(sse.encode(SET_EVENT, each.to_wire()))
                known = {each.codeletset_id: each for each in found}

    with request.app[QUOTAS].following(caller_of(request)):
        return await streams.answer(
            request, produce, lambda: authorize(caller_of(request), Action.READ_CODELETS, Owned(application.owner))
        )


async def load_set(request: web.Request) -> web.StreamResponse:
    """POST /v1/codelets/NAME/sets: the descriptor names modules that are in the application's store already."""
    application, caller = await _changeable(request), caller_of(request)
    body = strict_json.loads_object(await read_body(request), MAX_LOAD_BODY, "the request")
    asked = parse(LoadSet, body, "request", strict=True)
    request.app[QUOTAS].admit_load(caller, application.name)
    with _audited(caller, application, "load of a codelet set into") as said:
        name = await request.app[APPLICATIONS].load(application, asked.descriptor, asked.variables)
        said.append(f", {name}")
    response = json_response(LoadedSet(name).to_wire(), 201)
    response.headers["Location"] = f"{V1_CODELETS_PATH}/{application.name}/sets/{name}"
    return response


async def unload_set(request: web.Request) -> web.StreamResponse:
    """DELETE /v1/codelets/NAME/sets/ID."""
    application, caller, name = await _changeable(request), caller_of(request), check_set_id(request.match_info["id"])
    with _audited(caller, application, f"unload of the codelet set {name} from"):
        await request.app[APPLICATIONS].unload(application, name)
    return web.Response(status=204)


def _sees(caller: Caller, application: Application) -> bool:
    return may(caller, Action.READ_CODELETS, Owned(application.owner))


async def _readable(request: web.Request) -> Application:
    """The application that the path names. Raises KeepfleetError(NOT_FOUND): another's is as one that there is not."""
    name = request.match_info["name"]
    try:
        found = await request.app[APPLICATIONS].find(name)
    except KeepfleetError as error:
        if error.kind is not ErrorKind.NOT_FOUND:
            raise
        found = None
    if found is None or not _sees(caller_of(request), found):
        why = "none of that name is attached"
        raise KeepfleetError(ErrorKind.NOT_FOUND, f"cannot find the application {name[:63]!r}: {why}")
    return found


async def _changeable(request: web.Request) -> Application:
    """The same, where the caller may load and unload. Raises KeepfleetError, FORBIDDEN too."""
    application = await _readable(request)
    with refusals_logged(request):
        authorize(caller_of(request), Action.CHANGE_CODELETS, Owned(application.owner))
    return application


@contextmanager
def _audited(caller: Caller, application: Application, what: str) -> Iterator[list[str]]:
    """Says in the log what became of the block, and what it has appended to what it is given."""
    more: list[str] = []
    try:
        yield more
    except KeepfleetError as error:
        SECURITY.warning("%s %s by %s: %s: %s", what, application.name, caller, error.kind.value, error.message[:500])
        raise
    except asyncio.CancelledError:
        SECURITY.warning("%s %s by %s: broken off; it may have been done", what, application.name, caller)
        raise
    SECURITY.info("%s %s by %s: done%s", what, application.name, caller, "".join(more))
