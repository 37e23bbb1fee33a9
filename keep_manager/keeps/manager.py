"""Creates, lists, starts, stops and removes keeps. It remembers nothing that systemd and the loaders do not know."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import ExitStack

from keep_manager.failpoints import Failpoint, reach
from keep_manager.keeps import decide, listing
from keep_manager.keeps.allowances import allowance
from keep_manager.keeps.creation import Creation, Unbroken
from keep_manager.keeps.idempotency import Remembered
from keep_manager.keeps.interfaces import Grants, Loaders, LoaderSession, Units, Witness
from keep_manager.keeps.lasting import Lasting
from keep_manager.keeps.listing import Page
from keep_manager.keeps.ports import bind_listener
from keep_manager.keeps.terms import Terms
from keep_manager.model import Caller, UnitState
from keep_protocol.api import ListKeeps, NewKeep, StartKeep
from keep_protocol.constants import APPLOADER_START_SECONDS, CONTROL_REPLY_SECONDS, unit_name
from keep_protocol.control import Command, CommandType
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.states import State

LOG = logging.getLogger("keepfleet.keeps")
ASKED_AT_ONCE = 256
"""Loaders asked at the same moment: far below RLIMIT_NOFILE, and 2,000 dead ones still take 16 s and not an hour."""
MAX_WAITERS = 128
"""Requests that may wait for a change of state; each holds one of its loader's eight connections."""
MAX_WAIT_SECONDS = 60.0
AGAIN_SECONDS = 1.0
"""Until a waiter looks again at a keep whose loader is away; the next loader knows nothing of those who wait."""
STOP_SECONDS = 10.0
"""systemd starts a keep again after a quarter of a second, and a loader is there 50 ms later; a busy host is slower."""
STOP_AGAIN_SECONDS = 0.02
"""A workload that fails at once runs for less than a tenth of a second before it is started again."""
START_REPLY_SECONDS = APPLOADER_START_SECONDS + CONTROL_REPLY_SECONDS
"""The loader gives its app-loader APPLOADER_START_SECONDS and then answers with the reason."""

EVERY_KEEP = ListKeeps()


class Keeps:
    """Every keep of one service manager."""

    def __init__(self, units: Units, loaders: Loaders, terms: Terms, grants: Grants, witness: Witness) -> None:
        self._units = units
        self._loaders = loaders
        self._terms = terms
        self._grants = grants
        self._witness = witness
        self._unbroken = Unbroken()
        self._creation = Creation(units, loaders, terms, self._unbroken, witness)
        self._remembered = Remembered()
        self._lasting = Lasting()
        self._starting: set[int] = set()
        self._waiters = 0
        self._asked = asyncio.Semaphore(ASKED_AT_ONCE)

    def __repr__(self) -> str:
        return f"Keeps({self._creation!r}, {len(self._starting)} being started)"

    async def create(self, request: NewKeep, caller: Caller, key: str = "") -> KeepInfo:
        """A new keep, listening for start-keep; see Creation.create, and for a `key` Remembered.once."""
        if not key:
            return self._lasting.heard(await self._creation.create(request, caller))
        once = self._remembered.once(caller, key, request, lambda: self._creation.create(request, caller))
        return self._lasting.heard(await once)

    async def settle(self) -> None:
        """Waits for the rollbacks and removals under way."""
        await self._unbroken.settle()

    async def list(self, request: ListKeeps = EVERY_KEEP) -> Page:
        """Keeps by ID; those whose loader does not answer are in state 15 (or 0 while starting), with why."""
        there = await self._units.listed()
        self._lasting.only(unit.kuuid for unit in there)
        units = listing.candidates(there, request)
        step = max(request.limit + 1, ASKED_AT_ONCE) if request.limit and request.labels else request.limit + 1
        found: list[KeepInfo] = []
        while units and not listing.enough(found, request):
            asked, units = (units[:step], units[step:]) if request.limit else (units, [])
            keeps = await asyncio.gather(*(self._describe(unit) for unit in asked))
            found += [keep for keep in keeps if listing.matches(keep, request)]
        return listing.page(found, request)

    async def get(self, kuuid: int) -> KeepInfo:
        """One keep. Raises KeepfleetError(NOT_FOUND)."""
        try:
            return self._shown(await self._loaders.ask(kuuid, Command(CommandType.INFO)))
        except KeepfleetError as error:
            return await self._silent(await self._existing(kuuid), error)

    async def counted(self, kuuid: int) -> KeepInfo:
        """A keep that has ended, once it is known how many of its lines were dropped. Raises NOT_FOUND."""
        await self._witness.counted(kuuid)
        return await self.get(kuuid)

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
            return await self._changed(kuuid, changed_from, min(seconds, MAX_WAIT_SECONDS))
        finally:
            self._waiters -= 1

    async def _changed(self, kuuid: int, changed_from: State, seconds: float) -> KeepInfo:
        command = Command(CommandType.WAIT, str(int(changed_from)))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while True:
            try:
                return self._shown(await self._loaders.ask(kuuid, command, deadline - loop.time()))
            except KeepfleetError:
                info = await self.get(kuuid)
            left = deadline - loop.time()
            if info.state is not changed_from or left <= 0:
                return info
            await asyncio.sleep(min(AGAIN_SECONDS, left))

    async def start(self, request: StartKeep, caller: Caller) -> KeepInfo:
        """Binds the listener and hands it to the keep, which then awaits its workload there.

        A caller that is cancelled after the hand-over leaves the keep started: it is listed, and can be stopped.
        Raises KeepfleetError: NOT_FOUND, CONFLICT when it is started or being started, PORT_UNAVAILABLE, FORBIDDEN
        and others for what cannot be granted, or what the loader reports.
        """
        kuuid = request.kuuid
        if kuuid in self._starting:
            raise KeepfleetError(ErrorKind.CONFLICT, f"cannot start keep {kuuid}: it is being started")
        self._starting.add(kuuid)
        try:
            async with self._loaders.session(kuuid) as session:
                info = await self._hand_over(session, request, caller)
        except KeepfleetError as error:
            if error.kind is ErrorKind.UNAVAILABLE:
                await self._existing(kuuid)
            raise
        finally:
            self._starting.discard(kuuid)
        reach(Failpoint.START_BEFORE_REPLY)
        LOG.info("%s: started by %s on %s port %d", unit_name(kuuid), caller, info.address, info.port)
        return self._shown(info)

    async def _hand_over(self, session: LoaderSession, request: StartKeep, caller: Caller) -> KeepInfo:
        decide.refuse_start(await session.ask(Command(CommandType.INFO)))
        with ExitStack() as files:
            granted: tuple[int, ...] = ()
            if request.workload is not None:
                allowed = allowance(self._terms.callers, caller)
                granted = files.enter_context(self._grants(request.workload, allowed, caller))
            doors = tuple(_open(files, path) for path in (self._terms.client_ca, self._terms.revoked))
            return await self._open_door(session, request, (*doors, *granted))

    async def _open_door(self, session: LoaderSession, request: StartKeep, files: tuple[int, ...]) -> KeepInfo:
        reach(Failpoint.START_BEFORE_BIND)
        ports = decide.candidate_ports(request.address, request.port, self._terms.first_port, self._terms.last_port)
        with bind_listener(request.address, ports) as listener:
            reach(Failpoint.START_AFTER_BIND)
            port = listener.getsockname()[1]
            await session.ask(Command(CommandType.ADDR, request.address))
            await session.ask(Command(CommandType.PORT, str(port)))
            await session.ask(Command(CommandType.NAMES, ",".join(request.names)))
            reach(Failpoint.START_AFTER_ADDRESS)
            info = await session.ask(Command(CommandType.START), START_REPLY_SECONDS, (listener.fileno(), *files))
        reach(Failpoint.START_AFTER_COMMAND)
        if (info.address, info.port) != (request.address, port):
            raise KeepfleetError(ErrorKind.KEEP_FAILED, f"cannot trust keep {request.kuuid}: it names another address")
        return info

    async def stop(self, kuuid: int, caller: Caller) -> KeepInfo:
        """Ends the keep's door or workload; its outcome says that `caller` asked.

        One that is being started again has no loader for moments: it is stopped as soon as there is one.
        Raises KeepfleetError: NOT_FOUND, CONFLICT, UNAVAILABLE.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + STOP_SECONDS
        while True:
            try:
                info = await self._loaders.ask(kuuid, Command(CommandType.STOP, caller.who))
                break
            except KeepfleetError as error:
                decide.refuse_stop(await self.get(kuuid), error)
                if loop.time() > deadline:
                    raise
            await asyncio.sleep(STOP_AGAIN_SECONDS)
        reach(Failpoint.STOP_AFTER_COMMAND)
        LOG.info("%s: stopped by %s", unit_name(kuuid), caller)
        return self._shown(info)

    async def remove(self, kuuid: int, caller: Caller) -> None:
        """Ends the keep's unit, in whatever state it is, and everything of it. Raises KeepfleetError(NOT_FOUND).

        A caller that is cancelled has asked for it all the same: the removal is carried through.
        """
        reach(Failpoint.REMOVE_BEFORE_CALL)
        await self._unbroken.finish(self._remove(kuuid, caller))
        reach(Failpoint.REMOVE_BEFORE_REPLY)
        LOG.info("%s: removed by %s", unit_name(kuuid), caller)

    async def _remove(self, kuuid: int, caller: Caller) -> None:
        try:
            async with self._witness.removing(kuuid, caller.who):
                await self._units.stop(kuuid)
        except KeepfleetError as error:
            raise decide.missing(kuuid) if error.kind is ErrorKind.NOT_FOUND else error from error

    async def _describe(self, unit: UnitState) -> KeepInfo:
        error: KeepfleetError | None = None
        if decide.answers(unit):
            try:
                async with self._asked:
                    return self._shown(await self._loaders.ask(unit.kuuid, Command(CommandType.INFO)))
            except KeepfleetError as caught:
                error = caught
        return await self._silent(unit, error)

    def _shown(self, info: KeepInfo) -> KeepInfo:
        return self._lasting.heard(decide.shown(info))

    async def _silent(self, unit: UnitState, error: KeepfleetError | None) -> KeepInfo:
        return self._lasting.filled(decide.silent(unit, await self._units.reason(unit.kuuid), error))

    async def _existing(self, kuuid: int) -> UnitState:
        unit = await self._units.look(kuuid)
        if unit is None or not decide.is_keep(unit):
            raise decide.missing(kuuid)
        return unit


def _open(files: ExitStack, path: str) -> int:
    """A read-only descriptor of `path`, closed with `files`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise KeepfleetError(
            ErrorKind.CERTIFICATE, f"cannot open {path}: {error.strerror}; run: keepctl init"
        ) from error
    files.callback(os.close, descriptor)
    return descriptor
