"""The handlers of /v1/declared: who may is decided here by each declared keep's owner, as that of a keep is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from aiohttp import web

from keep_manager.authorize.table import Action, authorize, may
from keep_manager.http.middleware import caller_of, json_response, read_body, refusals_logged
from keep_manager.model import Caller
from keep_protocol.declared import MAX_SETTLING_SECONDS, DeclaredKeep, RunHistory, parse_apply
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.runs import Run


class Declarations(Protocol):
    """What the handlers need of the declared keeps. Every method raises KeepfleetError alone."""

    def names(self) -> Sequence[str]:
        """The names of all."""

    def owner(self, name: str) -> str | None:
        """Whose it is; None where none has the name."""

    def get(self, name: str) -> DeclaredKeep:
        """One."""

    async def settled(self, name: str, seconds: float) -> DeclaredKeep:
        """One once nothing is done for it now, or as it is after so long."""

    async def apply(self, name: str, manifest: str, caller: Caller) -> DeclaredKeep:
        """Has there be a keep as the manifest says."""

    async def runs(self, name: str) -> tuple[Run, ...]:
        """The latest runs of a job, the oldest first."""

    async def restart(self, name: str) -> DeclaredKeep:
        """Has another keep take the place of the one there is."""

    async def roll_back(self, name: str) -> DeclaredKeep:
        """Wants again what was wanted before."""

    async def delete(self, name: str) -> None:
        """Has it be declared no more."""


DECLARED = web.AppKey("declared", Declarations)


class Owned(Record):
    """A declared keep as far as `authorize` asks."""

    owner: str
    kuuid: int = 0


def _name(request: web.Request, action: Action) -> str:
    """The name in the path, where the caller may do that to what has it. Raises KeepfleetError: NOT_FOUND also for one
    that the caller may not read."""
    name, caller = request.match_info["name"], caller_of(request)
    owner = request.app[DECLARED].owner(name)
    if owner is None or not may(caller, Action.READ_DECLARED, Owned(owner)):
        raise KeepfleetError(ErrorKind.NOT_FOUND, f"cannot find the declared keep {name[:63]!r}: none has that name")
    with refusals_logged(request):
        authorize(caller, action, Owned(owner))
    return name


async def list_declared(request: web.Request) -> web.StreamResponse:
    """GET /v1/declared."""
    declared, caller = request.app[DECLARED], caller_of(request)
    mine = [name for name in declared.names() if may(caller, Action.READ_DECLARED, Owned(declared.owner(name) or ""))]
    return json_response({"declared": [declared.get(name).to_wire() for name in mine]})


async def get_declared(request: web.Request) -> web.StreamResponse:
    """GET /v1/declared/NAME; with `?settled=SECONDS` it waits for what is under way first."""
    declared, name, query = request.app[DECLARED], _name(request, Action.READ_DECLARED), request.query
    if unknown := sorted(set(query) - {"settled"}):
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"invalid query: unknown parameter {unknown[0][:40]!r}")
    if "settled" not in query:
        return json_response(declared.get(name).to_wire())
    seconds = query["settled"]
    if not re.fullmatch("[0-9]{1,2}", seconds) or int(seconds) > MAX_SETTLING_SECONDS:
        why = f"settled must be whole seconds, at most {MAX_SETTLING_SECONDS}"
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot wait: {why}")
    return json_response((await declared.settled(name, float(seconds))).to_wire())


async def get_runs(request: web.Request) -> web.StreamResponse:
    """GET /v1/declared/NAME/runs: the history of a job."""
    runs = await request.app[DECLARED].runs(_name(request, Action.READ_DECLARED))
    return json_response(RunHistory(runs).to_wire())


async def put_declared(request: web.Request) -> web.StreamResponse:
    """PUT /v1/declared/NAME; a name that another has is taken, and the caller has to learn that."""
    name, caller = request.match_info["name"], caller_of(request)
    asked = parse_apply(await read_body(request))
    owner = request.app[DECLARED].owner(name)
    if owner is not None and not may(caller, Action.DECLARE, Owned(owner)):
        raise KeepfleetError(ErrorKind.CONFLICT, f"cannot declare {name}: another's declared keep has that name")
    return json_response((await request.app[DECLARED].apply(name, asked.manifest, caller)).to_wire())


async def delete_declared(request: web.Request) -> web.StreamResponse:
    """DELETE /v1/declared/NAME."""
    await request.app[DECLARED].delete(_name(request, Action.DECLARE))
    return web.Response(status=204)


async def restart_declared(request: web.Request) -> web.StreamResponse:
    """POST /v1/declared/NAME/restart."""
    await read_body(request)
    return json_response((await request.app[DECLARED].restart(_name(request, Action.DECLARE))).to_wire())


async def roll_back_declared(request: web.Request) -> web.StreamResponse:
    """POST /v1/declared/NAME/rollback."""
    await read_body(request)
    return json_response((await request.app[DECLARED].roll_back(_name(request, Action.DECLARE))).to_wire())
