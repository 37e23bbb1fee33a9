"""Makes keeps, each whole or not at all."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Coroutine

from keep_manager.failpoints import Failpoint, reach
from keep_manager.keeps import decide
from keep_manager.keeps.allowances import allowance, limits_for
from keep_manager.keeps.interfaces import Loaders, Units, Witness
from keep_manager.keeps.terms import Terms
from keep_manager.model import Caller
from keep_protocol import strict_json
from keep_protocol.api import NewKeep
from keep_protocol.constants import KUUID_BITS, unit_name
from keep_protocol.control import Command, CommandType
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.limits import Limits

LOG = logging.getLogger("keepfleet.keeps")
MAX_WAITING_CREATIONS = 512
"""Requests that may queue for a creation; the queue drains at about 20 a second."""
DRAWS = 8
"""IDs drawn for one creation: of 2^53 a second draw is needed once in a lifetime."""
ROLL_BACK_SECONDS = 1.0
"""Between two tries to roll back while systemd cannot be reached; a try itself waits for systemd's return."""


def describe(request: NewKeep, caller: Caller) -> Command:
    """The command that tells a new keep's loader what it is called, and by whom."""
    described = {"name": request.name, "labels": dict(request.labels), "owner": caller.name}
    return Command(CommandType.DESCRIBE, strict_json.dumps(described).decode("ascii"))


class Unbroken:
    """Work that is carried through even when the one who waits for it is cancelled."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._later: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"Unbroken({len(self._tasks)}, {len(self._later)} later)"

    async def finish(self, work: Coroutine[None, None, None]) -> None:
        """Carries `work` through even when this task is cancelled meanwhile."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.shield(task)

    def later(self, work: Coroutine[None, None, None]) -> None:
        """Carries `work` through with nobody waiting for it."""
        task = asyncio.create_task(work)
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    async def settle(self) -> None:
        """Waits for what is under way, and gives up what nobody waits for: systemd may never come back."""
        if self._tasks:
            await asyncio.wait(self._tasks)
        for task in self._later:
            task.cancel()
        if self._later:
            await asyncio.wait(self._later)


class Creation:
    """Makes keeps: at most so many at once, at most so many in all."""

    def __init__(self, units: Units, loaders: Loaders, terms: Terms, unbroken: Unbroken, witness: Witness) -> None:
        self._units = units
        self._loaders = loaders
        self._terms = terms
        self._unbroken = unbroken
        self._witness = witness
        self._creations = asyncio.Semaphore(terms.max_creations_at_once)
        self._creating: set[int] = set()
        self._waiting = 0

    def __repr__(self) -> str:
        return f"Creation({len(self._creating)} under way, {self._waiting} waiting)"

    async def create(self, request: NewKeep, caller: Caller) -> KeepInfo:
        """A new keep, listening for start-keep. When anything fails, or the caller is cancelled, nothing is left.

        Raises KeepfleetError: UNSUPPORTED for an architecture this host has no hardware for, FORBIDDEN above one of
        the caller's ceilings, TOO_MANY, KEEP_FAILED with the unit's last journal lines, CONFIGURATION when the units
        are not installed.
        """
        if request.arch != "wasi":
            raise KeepfleetError(
                ErrorKind.UNSUPPORTED, f"cannot make a keep of {request.arch}: this host has no such hardware; use wasi"
            )
        limits = limits_for(request.limits, allowance(self._terms.callers, caller), caller)
        described = describe(request, caller)
        if self._waiting >= MAX_WAITING_CREATIONS:
            raise KeepfleetError(ErrorKind.TOO_MANY, f"cannot make a keep: {self._waiting} requests wait already")
        self._waiting += 1
        try:
            await self._creations.acquire()
        finally:
            self._waiting -= 1
        try:
            return await self._create(limits, described)
        finally:
            self._creations.release()

    async def _create(self, limits: Limits, described: Command) -> KeepInfo:
        for _ in range(DRAWS):
            kuuid = self._draw()
            self._creating.add(kuuid)
            try:
                return await self._bring_up(kuuid, limits, described)
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

    async def _bring_up(self, kuuid: int, limits: Limits, described: Command) -> KeepInfo:
        reach(Failpoint.CREATE_BEFORE_UNIT)
        try:
            await self._units.start(kuuid, self._terms.start_timeout_seconds, limits)
            reach(Failpoint.CREATE_AFTER_READY)
            info = await self._loaders.ask(kuuid, described)
        except KeepfleetError as error:
            if error.kind is not ErrorKind.CONFLICT:
                await self._unbroken.finish(self._roll_back(kuuid))
                LOG.warning("%s: not created: %s", unit_name(kuuid), error.message)
            raise
        except asyncio.CancelledError:
            await self._unbroken.finish(self._roll_back(kuuid))
            LOG.info("%s: not created: the client went away", unit_name(kuuid))
            raise
        reach(Failpoint.CREATE_BEFORE_REPLY)
        made = decide.shown(info)
        self._witness.appeared(made)
        return made

    async def _roll_back(self, kuuid: int) -> None:
        if not await self._rolled_back(kuuid):
            self._unbroken.later(self._roll_back_later(kuuid))

    async def _roll_back_later(self, kuuid: int) -> None:
        while True:
            await asyncio.sleep(ROLL_BACK_SECONDS)
            if await self._rolled_back(kuuid):
                return

    async def _rolled_back(self, kuuid: int) -> bool:
        """Removes what there is of a keep that was not created; False while systemd cannot be reached."""
        try:
            await self._units.stop(kuuid)
        except KeepfleetError as error:
            if error.kind is ErrorKind.UNAVAILABLE:
                LOG.warning("%s: cannot roll back yet: %s", unit_name(kuuid), error.message)
                return False
            if error.kind is not ErrorKind.NOT_FOUND:
                LOG.error("%s: cannot roll back: %s", unit_name(kuuid), error.message)
        if kuuid in self._units.kuuids():
            LOG.error("%s: its runtime directory is still there after the rollback", unit_name(kuuid))
        return True
