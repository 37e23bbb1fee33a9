"""Creates, lists, starts, stops and removes keeps. It remembers nothing that systemd and the loaders do not know."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from keep_manager.failpoints import Failpoint, reach
from keep_manager.keeps import decide
from keep_manager.keeps.interfaces import Loaders, LoaderSession, Units
from keep_manager.keeps.ports import bind_listener
from keep_manager.model import UnitState
from keep_protocol.api import NewKeep, StartKeep
from keep_protocol.constants import APPLOADER_START_SECONDS, CONTROL_REPLY_SECONDS, KUUID_BITS, unit_name
from keep_protocol.control import Command, CommandType
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.states import State

LOG = logging.getLogger("keepfleet.keeps")
ASKED_AT_ONCE = 256
"""Loaders asked at the same moment: far below RLIMIT_NOFILE, and 2,000 dead ones still take 16 s and not an hour."""
MAX_WAITING_CREATIONS = 512
"""Requests that may queue for a creation; the queue drains at about 20 a second."""
MAX_WAITERS = 128
"""Requests that may wait for a change of state; each holds one of its loader's eight connections."""
MAX_WAIT_SECONDS = 60.0
START_REPLY_SECONDS = APPLOADER_START_SECONDS + CONTROL_REPLY_SECONDS
"""The loader gives its app-loader APPLOADER_START_SECONDS and then answers with the reason."""
DRAWS = 8
"""IDs drawn for one creation: of 2^53 a second draw is needed once in a lifetime."""


@dataclass(frozen=True)
class Terms:
    """What the configuration lets keeps have. client_ca and revoked: the files whose descriptors each door gets."""

    client_ca: str
    revoked: str
    first_port: int
    last_port: int
    start_timeout_seconds: float = 15.0
    max_keeps: int = 2000
    max_creations_at_once: int = 8


class Keeps:
    """Every keep of one service manager."""

    def __init__(self, units: Units, loaders: Loaders, terms: Terms) -> None:
        self._units = units
        self._loaders = loaders
        self._terms = terms
        self._creations = asyncio.Semaphore(terms.max_creations_at_once)
        self._creating: set[int] = set()
        self._waiting = 0
        self._starting: set[int] = set()
        self._waiters = 0
        self._asked = asyncio.Semaphore(ASKED_AT_ONCE)
        self._rollbacks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"Keeps({len(self._creating)} being created, {len(self._starting)} being started)"

    async def create(self, request: NewKeep) -> KeepInfo:
        """A new keep, listening for start-keep. When anything fails, or the caller is cancelled, nothing is left.

        Raises KeepfleetError: UNSUPPORTED for an architecture this host has no hardware for, TOO_MANY, KEEP_FAILED
        with the unit's last journal lines, CONFIGURATION when the units are not installed.
        """
        if request.arch != "wasi":
            raise KeepfleetError(
                ErrorKind.UNSUPPORTED, f"cannot make a keep of {request.arch}: this host has no such hardware; use wasi"
            )
        if self._waiting >= MAX_WAITING_CREATIONS:
            raise KeepfleetError(ErrorKind.TOO_MANY, f"cannot make a keep: {self._waiting} requests wait already")
        self._waiting += 1
        try:
            await self._creations.acquire()
        finally:
            self._waiting -= 1
        try:
            return await self._create()
        finally:
            self._creations.release()

    async def _create(self) -> KeepInfo:
        for _ in range(DRAWS):
            kuuid = self._draw()
            self._creating.add(kuuid)
            try:
                return await self._bring_up(kuuid)
            except KeepfleetError as error:
                if error.kind is not ErrorKind.CONFLICT:
                    raise
            finally:
                self._creating.discard(kuuid)
        raise KeepfleetError(ErrorKind.INTERNAL, f"cannot make a keep: {DRAWS} IDs in a row were taken")

    def _draw(self) -> int:
        taken = self._units.kuuids() | self._creating
        if len(taken) >= self._terms.max_keeps:
            raise KeepfleetError(
                ErrorKind.TOO_MANY,
                f"cannot make a keep: there are {len(taken)}, and max_keeps is {self._terms.max_keeps}",
            )
        while True:
            kuuid = secrets.randbits(KUUID_BITS)
            if decide.check_kuuid_free(kuuid, taken):
                return kuuid

    async def _bring_up(self, kuuid: int) -> KeepInfo:
        reach(Failpoint.CREATE_BEFORE_UNIT)
        try:
            await self._units.start(kuuid, self._terms.start_timeout_seconds)
            reach(Failpoint.CREATE_AFTER_READY)
            info = await self._loaders.ask(kuuid, Command(CommandType.INFO))
        except KeepfleetError as error:
            if error.kind is not ErrorKind.CONFLICT:
                await self._finish(self._roll_back(kuuid))
                LOG.warning("%s: not created: %s", unit_name(kuuid), error.message)
            raise
        except asyncio.CancelledError:
            await self._finish(self._roll_back(kuuid))
            LOG.info("%s: not created: the client went away", unit_name(kuuid))
            raise
        reach(Failpoint.CREATE_BEFORE_REPLY)
        LOG.info("%s: created", unit_name(kuuid))
        return decide.shown(info)

    async def _finish(self, work: Coroutine[None, None, None]) -> None:
        """Carries `work` through even when this task is cancelled meanwhile."""
        task = asyncio.create_task(work)
        self._rollbacks.add(task)
        task.add_done_callback(self._rollbacks.discard)
        await asyncio.shield(task)

    async def _roll_back(self, kuuid: int) -> None:
        try:
            await self._units.stop(kuuid)
        except KeepfleetError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                LOG.error("%s: cannot roll back: %s", unit_name(kuuid), error.message)
        if kuuid in self._units.kuuids():
            LOG.error("%s: its runtime directory is still there after the rollback", unit_name(kuuid))

    async def settle(self) -> None:
        """Waits for the rollbacks under way."""
        if self._rollbacks:
            await asyncio.wait(self._rollbacks)

    async def list(self) -> Sequence[KeepInfo]:
        """Every keep, by ID; those whose loader does not answer are in state 15 (or 0 while starting), with why."""
        units = [unit for unit in await self._units.listed() if decide.is_keep(unit)]
        return await asyncio.gather(*(self._describe(unit) for unit in sorted(units, key=lambda unit: unit.kuuid)))

    async def get(self, kuuid: int) -> KeepInfo:
        """One keep. Raises KeepfleetError(NOT_FOUND)."""
        try:
            return decide.shown(await self._loaders.ask(kuuid, Command(CommandType.INFO)))
        except KeepfleetError as error:
            unit = await self._existing(kuuid)
            return decide.silent(unit, await self._units.reason(kuuid), error)

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
            command = Command(CommandType.WAIT, str(int(changed_from)))
            return decide.shown(await self._loaders.ask(kuuid, command, min(seconds, MAX_WAIT_SECONDS)))
        except KeepfleetError:
            return await self.get(kuuid)
        finally:
            self._waiters -= 1

    async def start(self, request: StartKeep) -> KeepInfo:
        """Binds the listener and hands it to the keep, which then awaits its workload there.

        A caller that is cancelled after the hand-over leaves the keep started: it is listed, and can be stopped.
        Raises KeepfleetError: NOT_FOUND, CONFLICT when it is started or being started, PORT_UNAVAILABLE, or what the
        loader reports.
        """
        kuuid = request.kuuid
        if kuuid in self._starting:
            raise KeepfleetError(ErrorKind.CONFLICT, f"cannot start keep {kuuid}: it is being started")
        self._starting.add(kuuid)
        try:
            async with self._loaders.session(kuuid) as session:
                info = await self._hand_over(session, request)
        except KeepfleetError as error:
            if error.kind is ErrorKind.UNAVAILABLE:
                await self._existing(kuuid)
            raise
        finally:
            self._starting.discard(kuuid)
        reach(Failpoint.START_BEFORE_REPLY)
        LOG.info("%s: started on %s port %d, %s", unit_name(kuuid), info.address, info.port, info.fingerprint)
        return decide.shown(info)

    async def _hand_over(self, session: LoaderSession, request: StartKeep) -> KeepInfo:
        decide.refuse_start(await session.ask(Command(CommandType.INFO)))
        reach(Failpoint.START_BEFORE_BIND)
        ports = decide.candidate_ports(request.address, request.port, self._terms.first_port, self._terms.last_port)
        with bind_listener(request.address, ports) as listener:
            reach(Failpoint.START_AFTER_BIND)
            port = listener.getsockname()[1]
            await session.ask(Command(CommandType.ADDR, request.address))
            await session.ask(Command(CommandType.PORT, str(port)))
            await session.ask(Command(CommandType.NAMES, ",".join(request.names)))
            reach(Failpoint.START_AFTER_ADDRESS)
            with ExitStack() as files:
                grants = [
                    listener.fileno(),
                    *(_open(files, path) for path in (self._terms.client_ca, self._terms.revoked)),
                ]
                info = await session.ask(Command(CommandType.START), START_REPLY_SECONDS, grants)
        reach(Failpoint.START_AFTER_COMMAND)
        if (info.address, info.port) != (request.address, port):
            raise KeepfleetError(ErrorKind.KEEP_FAILED, f"cannot trust keep {request.kuuid}: it names another address")
        return info

    async def stop(self, kuuid: int, who: str) -> KeepInfo:
        """Ends the keep's door or workload; `who` asked. Raises KeepfleetError: NOT_FOUND, CONFLICT."""
        try:
            info = await self._loaders.ask(kuuid, Command(CommandType.STOP, who))
        except KeepfleetError as error:
            if error.kind is ErrorKind.UNAVAILABLE:
                await self._existing(kuuid)
            raise
        reach(Failpoint.STOP_AFTER_COMMAND)
        LOG.info("%s: stopped by %s", unit_name(kuuid), who)
        return decide.shown(info)

    async def remove(self, kuuid: int, who: str) -> None:
        """Ends the keep's unit, in whatever state it is, and everything of it. Raises KeepfleetError(NOT_FOUND).

        A caller that is cancelled has asked for it all the same: the removal is carried through.
        """
        reach(Failpoint.REMOVE_BEFORE_CALL)
        await self._finish(self._remove(kuuid))
        reach(Failpoint.REMOVE_BEFORE_REPLY)
        LOG.info("%s: removed by %s", unit_name(kuuid), who)

    async def _remove(self, kuuid: int) -> None:
        try:
            await self._units.stop(kuuid)
        except KeepfleetError as error:
            raise decide.missing(kuuid) if error.kind is ErrorKind.NOT_FOUND else error from error

    async def _describe(self, unit: UnitState) -> KeepInfo:
        error: KeepfleetError | None = None
        if decide.answers(unit):
            try:
                async with self._asked:
                    return decide.shown(await self._loaders.ask(unit.kuuid, Command(CommandType.INFO)))
            except KeepfleetError as caught:
                error = caught
        return decide.silent(unit, await self._units.reason(unit.kuuid), error)

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
