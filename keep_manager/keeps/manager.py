"""Creates, lists, starts, stops and removes keeps. It holds nothing that units and loaders do not know, but for minutes
which creations were asked for with a key, so that a client may safely ask twice.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from keep_manager.failpoints import Failpoint, reach
from keep_manager.keeps import decide
from keep_manager.keeps.creation import Creation, Unbroken, spec_for
from keep_manager.keeps.decide import Page
from keep_manager.keeps.interfaces import (
    Artifacts,
    Folders,
    Loaders,
    Modules,
    Providers,
    Quotas,
    Units,
)
from keep_manager.keeps.policy import Policy, Unlimited
from keep_manager.keeps.readers import Readers
from keep_manager.keeps.starts import Starts
from keep_manager.keeps.streams import Inputs
from keep_manager.keeps.upkeep import Spares, is_spare
from keep_manager.keeps.view import Entry, Rest, View, clear_away
from keep_manager.keeps.watch import Watch
from keep_manager.model import Answer, Caller, LoaderGone, UnitState, Visible, missing
from keep_manager.tasks import Group
from keep_protocol.api import ListKeeps, NewKeep, StartKeep
from keep_protocol.constants import STOP_REPLY_SECONDS, unit_name
from keep_protocol.control import Command, CommandType
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.spec import Declaration, KeepSpec
from keep_protocol.states import State

LOG = logging.getLogger("keepfleet.keeps")
ASKED_CONCURRENTLY = 64
"""Units and loaders asked at the same moment when keeps are found: as many as the bus takes calls in flight."""
MAX_WAITERS = 4096
"""Requests that may wait for a change of state; each costs a task and no connection to a loader."""
MAX_WAIT_SECONDS = 60.0
STOP_SECONDS = 10.0
"""systemd starts a keep again after a quarter of a second, and a loader is there 50 ms later; a busy host is slower."""
STOP_AGAIN_SECONDS = 0.02
"""A workload that fails immediately runs for less than a tenth of a second before it is started again."""
EVERY_KEEP = ListKeeps()
KEPT_SECONDS = 600.0
"""A client that has not retried in ten minutes has given up."""
MAX_KEPT = 20_000
"""A host makes at most about 20 keeps a second, 12,000 in that time; the oldest are forgotten above it."""


class Keeps:
    """Every keep of one service manager."""

    def __init__(
        self,
        tasks: Group,
        units: Units,
        loaders: Loaders,
        policy: Policy,
        providers: Providers,
        folders: Folders,
        watch: Watch,
        view: View,
        readers: Readers,
        inputs: Inputs,
        modules: Modules,
        artifacts: Artifacts,
        quotas: Quotas | None = None,
    ) -> None:
        self._units, self._loaders, self._policy, self._folders = units, loaders, policy, folders
        self._watch, self._view, self._inputs = watch, view, inputs
        self._modules = modules
        self._quotas: Quotas = quotas or Unlimited()
        self._unbroken = Unbroken(tasks)
        self._rest = Rest(units, folders, view)
        self._starts = Starts(loaders, policy, providers, folders, view, self._quotas, readers, inputs, artifacts)
        self._spares = Spares(units, policy)
        self._creation = Creation(
            units,
            loaders,
            policy,
            self._unbroken,
            watch,
            view,
            self._quotas,
            self._starts,
            self._spares,
            remove=self.remove,
            forget=self._forget,
        )
        self._idempotency = IdempotencyCache()
        self._waiters = 0

    def __repr__(self) -> str:
        return f"Keeps({self._view!r}, {self._creation!r}, {self._starts!r})"

    def apply(self, policy: Policy) -> None:
        """Makes and starts keeps by this policy from now on; what is there already stays."""
        self._policy = policy
        self._creation.apply(policy)
        self._starts.apply(policy)
        self._spares.apply(policy)

    async def rediscover(self) -> list[KeepInfo]:
        """Every keep that units and loaders know of, and the view made of them. Raises KeepfleetError: without its spec
        a keep would be lost to its owner, so that what cannot be read is rather another start of the manager."""
        found = [unit for unit in await self._units.listed() if decide.is_keep(unit)]
        async with Group() as asking:
            specs = asking.start(self._units.specs([unit.kuuid for unit in found]))
            answering = [unit.kuuid for unit in found if decide.answers(unit)]
            answers = await self._loaders.ask_all(answering, Command(CommandType.INFO))
            said = await specs
        for unit in found:
            if is_spare(said.get(unit.kuuid)):
                self._unbroken.later(self._spares.end(unit.kuuid))
                continue
            self._view.begin(unit.kuuid, said.get(unit.kuuid))
            answer = answers.get(unit.kuuid)
            if isinstance(answer, Answer):
                self._view.answered(unit.kuuid, answer)
            elif not decide.at_rest(unit):
                await self._rest.look(unit, answer)
        await self._rest.look_at_all([unit for unit in found if decide.at_rest(unit) and unit.kuuid in self._view])
        await self._rest.look_at_remains({unit.kuuid for unit in found})
        return list(self._view)

    async def tend_spares(self) -> None:
        """Has as many spares as the policy says. For ever."""
        await self._spares.run(self._creation.draw, self._creation.quiet)

    async def create(
        self,
        request: NewKeep,
        caller: Caller,
        key: str = "",
        declared: Declaration | None = None,
        *,
        patience: float | None = None,
    ) -> KeepInfo:
        """A new keep, listening for start-keep, or where the request has its start, listening for its workload; with a
        `key` the one that the same caller's same request with it has made before, also where that was another
        manager's work. declared: for which of the caller's specifications it is made.

        Raises KeepfleetError as `spec_for`, Modules.take and Creation.create do, CONFLICT for a key of another request,
        COMPILING where it is to run a module that is not compiled after `patience` seconds: nothing is made then.
        """
        module = await asyncio.to_thread(self._modules.take, request.module) if request.module else None
        spec = spec_for(request, caller, self._policy, key, module, declared)
        if request.start is None or not spec.digest:
            return await self._create(request, spec, caller)
        if not request.replace_living:
            self._quotas.admit_creation(caller, spec)  # before anything is compiled for it
        async with self._starts.compiled(spec, patience):
            return await self._create(request, spec, caller)

    async def _create(self, request: NewKeep, spec: KeepSpec, caller: Caller) -> KeepInfo:
        if not spec.key:
            return await self._creation.create(request, spec, caller)

        async def once() -> KeepInfo:
            made = self._view.made_with(spec.key)
            if made is None:
                return await self._creation.create(request, spec, caller)
            kuuid, before = made
            if before.request != spec.request:
                raise another_request()
            return await self._creation.complete(kuuid, request, caller)

        return await self._idempotency.once(spec.key, spec.request, once)

    async def settle(self) -> None:
        """Waits for the rollbacks and removals under way."""
        await self._unbroken.settle()

    async def list(self, request: ListKeeps = EVERY_KEEP, visible: Visible | None = None) -> Page:
        """Keeps by ID that are `visible`; those whose loader does not answer are in state 15 (or 0 while starting)."""
        shown = [entry for entry in self._view.entries() if visible is None or visible(entry.info)]
        await self._look_at([entry for entry in shown if entry.passing])
        return decide.page((keep for keep in self._view if visible is None or visible(keep)), request)

    async def _look_at(self, passing: Sequence[Entry]) -> None:
        """Has the view show the units of these keeps as they are at this moment.

        systemd sends a unit's changes to those alone who subscribe to all of them, which would cost it a tenth of its
        rate; so what was passing when the watch looked is looked at again when it is asked for.
        """
        if not passing:
            return
        try:
            units = {unit.kuuid: unit for unit in await self._units.listed()}
        except KeepfleetError as error:
            LOG.debug("cannot look at %d keeps: %s", len(passing), error.message)
            return
        places = asyncio.Semaphore(ASKED_CONCURRENTLY)

        async def look(kuuid: int) -> None:
            async with places:
                with suppress(KeepfleetError):  # gone meanwhile
                    await self._refreshed(kuuid)

        async with Group() as looking:
            tasks: list[asyncio.Task[None]] = []
            for kuuid in [entry.info.kuuid for entry in passing]:
                unit = units.get(kuuid)
                if unit is None or not decide.is_keep(unit):
                    self._view.drop(kuuid)
                else:
                    tasks.append(looking.start(look(kuuid)))
            for task in tasks:
                await task

    def find(self, kuuid: int) -> KeepInfo:
        """One keep. Raises KeepfleetError(NOT_FOUND)."""
        return self._view.find(kuuid)

    async def get(self, kuuid: int) -> KeepInfo:
        """One keep. Raises KeepfleetError(NOT_FOUND)."""
        entry = self._view.entry(kuuid)
        await self._look_at([entry] if entry.passing else [])
        return self._view.find(kuuid)

    async def wait(self, kuuid: int, changed_from: State, seconds: float) -> KeepInfo:
        """One keep, once its state is another than `changed_from`, or as it is after `seconds`.

        Raises KeepfleetError: NOT_FOUND, TOO_MANY.
        """
        if self._waiters >= MAX_WAITERS:
            raise KeepfleetError(
                ErrorKind.TOO_MANY, f"cannot wait for keep {kuuid}: {self._waiters} requests wait already"
            )
        self._waiters += 1
        try:
            return await self._view.changed(kuuid, changed_from, min(seconds, MAX_WAIT_SECONDS))
        finally:
            self._waiters -= 1

    async def start(self, request: StartKeep, caller: Caller, patience: float | None = None) -> KeepInfo:
        """Binds the listener and passes it to the keep, which then awaits its workload there; or has it run its module.

        A caller that is cancelled after that leaves the keep started: it is listed, and can be stopped.
        Raises KeepfleetError: NOT_FOUND, CONFLICT when it is started or being started, PORT_UNAVAILABLE, FORBIDDEN
        and others for what cannot be granted, or what the loader reports; COMPILING where its module is not compiled
        after `patience` seconds.
        """
        kuuid = request.kuuid
        self._view.find(kuuid)
        try:
            return await self._starts.start(request, caller, patience)
        except KeepfleetError as error:
            if isinstance(error, LoaderGone):
                info = await self._refreshed(kuuid)
                if info.state in decide.ENDED:
                    decide.refuse_start(info)
            elif error.kind is ErrorKind.UNAVAILABLE:
                await self._existing(kuuid)
            raise

    async def stop(self, kuuid: int, caller: Caller) -> KeepInfo:
        """Ends the keep's upload endpoint or workload; its outcome says that `caller` asked. One that has ended already
        is returned as it is.

        One that is being started again has no loader for moments: it is stopped as soon as there is one.
        Raises KeepfleetError: NOT_FOUND, CONFLICT where nothing runs yet, UNAVAILABLE.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + STOP_SECONDS
        info = self._view.find(kuuid)
        while info.state not in decide.ENDED:
            try:
                answer = await self._loaders.ask(kuuid, Command(CommandType.STOP, caller.who), STOP_REPLY_SECONDS)
            except KeepfleetError as error:
                info = await self._refreshed(kuuid)
                if info.state in decide.ENDED:
                    break
                decide.refuse_stop(info, error)
                if loop.time() > deadline:
                    raise
            else:
                info = self._view.answered(kuuid, answer)
                reach(Failpoint.STOP_AFTER_COMMAND)
                LOG.info("%s: stopped by %s", unit_name(kuuid), caller)
                return info
            await asyncio.sleep(STOP_AGAIN_SECONDS)
        return info

    async def remove(self, kuuid: int, caller: Caller) -> None:
        """Ends the keep's unit, in whatever state it is, and everything of it. Raises KeepfleetError(NOT_FOUND).

        A caller that is cancelled has asked for it all the same: the removal is carried through.
        """
        reach(Failpoint.REMOVE_BEFORE_CALL)
        await self._unbroken.finish(self._remove(kuuid, caller.who))
        reach(Failpoint.REMOVE_BEFORE_REPLY)
        LOG.info("%s: removed by %s", unit_name(kuuid), caller)

    async def _remove(self, kuuid: int, by: str) -> None:
        entry = self._view.entry(kuuid)
        entry.removing = True
        try:
            async with self._watch.removing(kuuid, by):
                if entry.has_unit:
                    await self._units.stop(kuuid)
                reach(Failpoint.REMOVE_BEFORE_FILES)
                await self._forget(kuuid)
        except KeepfleetError as error:
            entry.removing = False
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
            await self._forget(kuuid)
            self._view.drop(kuuid)
            raise missing(kuuid) from error
        self._view.drop(kuuid)

    async def _forget(self, kuuid: int) -> None:
        """Removes what is left of a keep whose unit has gone."""
        self._inputs.close(kuuid)
        await clear_away(self._folders, kuuid)

    async def _refreshed(self, kuuid: int) -> KeepInfo:
        """One keep as its loader, or else its unit, shows it at this moment. Raises KeepfleetError(NOT_FOUND)."""
        try:
            return self._view.answered(kuuid, await self._loaders.ask(kuuid, Command(CommandType.INFO)))
        except KeepfleetError as error:
            unit = await self._existing(kuuid)
            return await self._rest.look(unit, error)

    async def _existing(self, kuuid: int) -> UnitState:
        unit = await self._units.look(kuuid)
        if unit is None or not decide.is_keep(unit):
            raise missing(kuuid)
        return unit


def another_request() -> KeepfleetError:
    """The error for a key that was used for another request."""
    return KeepfleetError(
        ErrorKind.CONFLICT, "cannot make a keep: its idempotency key came with another request before"
    )


@dataclass
class _Creation:
    """One key's creation. request: the digest of what was asked for, which may be megabytes; done: the keep as it was
    made, or None when it was not."""

    request: str
    until: float
    done: asyncio.Future[KeepInfo | None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class IdempotencyCache:
    """The creations of the last minutes that came with a key: the same key from the same caller names the same keep.

    What is kept here, in this process and for minutes, makes a retry wait for the request it repeats. Which keep a key
    made stands in its unit: a new manager knows it from there, for as long as the keep lives.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._creations: dict[str, _Creation] = {}

    def __repr__(self) -> str:
        return f"IdempotencyCache({len(self._creations)} keys)"

    async def once(self, key: str, request: str, make: Callable[[], Awaitable[KeepInfo]]) -> KeepInfo:
        """The keep that `make` made for this key, which has the caller in it, now or before; a second request, with the
        same digest `request`, waits for the first.

        A creation that failed, or whose client went away, is forgotten: the next request makes its own. Raises
        KeepfleetError(CONFLICT) for a key that came with another request, and what `make` raises.
        """
        while True:
            self._forget()
            known = self._creations.get(key)
            if known is None:
                return await self._make(key, request, make)
            if known.request != request:
                raise another_request()
            made = await asyncio.shield(known.done)
            if made is not None:
                return made

    async def _make(self, key: str, request: str, make: Callable[[], Awaitable[KeepInfo]]) -> KeepInfo:
        creation = self._creations[key] = _Creation(request, self._clock() + KEPT_SECONDS)
        made: KeepInfo | None = None
        try:
            made = await make()
            return made
        finally:
            if made is None and self._creations.get(key) is creation:
                del self._creations[key]
            creation.done.set_result(made)

    def _forget(self) -> None:
        """Drops what is too old, oldest first, as they were put in; never what is still under way."""
        now = self._clock()
        for name, creation in list(self._creations.items()):
            if creation.until > now and len(self._creations) <= MAX_KEPT:
                return
            if creation.done.done():
                del self._creations[name]
