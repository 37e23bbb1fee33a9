"""What the manager does for its keeps by itself: spares, made before anyone asks for a keep, and the removal of those
that ended long enough ago, or stay unused for longer than their lease.

Time is the host's since its boot, which keeps do not outlive: a clock that is set removes nothing early and keeps
nothing for ever. When a keep ended, its loader says, or its unit where that has failed; since when it is unused, its
latest event says: a new manager goes on where the one before stopped.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Protocol

from keep_manager.failpoints import Failpoint, reach
from keep_manager.keeps.decide import ENDED
from keep_manager.keeps.interfaces import Units
from keep_manager.keeps.policy import Policy, kind_of
from keep_manager.keeps.view import Entry
from keep_manager.model import Caller
from keep_protocol.constants import unit_name
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.identity import Role
from keep_protocol.limits import DEFAULT_LIMITS
from keep_protocol.spec import KeepSpec, Profile
from keep_protocol.states import Phase

LOG = logging.getLogger("keepfleet.keeps")
RETRY_SECONDS = 10.0
"""Between two tries to make a spare when one has failed: what is wrong with it is wrong with creations, too, which say
so; nothing is lost while there is none."""
LOOKS_PER_RETENTION = 60
"""Keeps that end one after another are due together, a sixtieth of the retention late."""
LONGEST_PAUSE_SECONDS = 60.0
"""A keep that is made a moment after a look may have a lease that is shorter than the retention."""
UNUSED = {
    Phase.IDLE.value: "idle_seconds",
    Phase.AWAITING.value: "await_seconds",
    Phase.REOPENING.value: "await_seconds",
}
"""The phases of a keep that is unused, and the part of its lease that counts there."""


class Spare(Record):
    """One spare. mark: `Units.settings_mark` of its unit when it was made."""

    kuuid: int
    mark: str


def is_spare(spec: KeepSpec | None) -> bool:
    """Whether a unit with that spec is of a spare without an owner yet."""
    return spec is not None and spec.spare and not spec.owner


def fits(spec: KeepSpec) -> bool:
    """Whether a spare can become the keep that `spec` describes: systemd sets every limit on a unit that runs, but not
    how many lines the journal takes of it, nor what a profile needs, nor a credential."""
    lines = spec.limits.log_lines_per_second
    return (
        kind_of(spec.kind).of_spares
        and spec.profile is Profile.STANDARD
        and not spec.credentials
        and lines == DEFAULT_LIMITS.log_lines_per_second
    )


class Spares:
    """The spares of one manager, `policy.spare_keeps` of them: units of keeps whose loader is ready, so that a creation
    waits for neither systemd nor an interpreter.

    A spare has no owner: it is in no list, counts for no one, and holds nothing of anyone's. It becomes a keep in one
    call to systemd, from which on its unit says what it is, and never becomes a spare again. A manager ends those that
    the one before left, as they may be of another version; and at the moment it would assign one, those with other
    settings than a new unit would have.
    """

    def __init__(self, units: Units, policy: Policy) -> None:
        self._units, self._policy = units, policy
        self._ready: deque[Spare] = deque()
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"Spares({len(self._ready)} of {self._policy.spare_keeps})"

    def __len__(self) -> int:
        return len(self._ready)

    def apply(self, policy: Policy) -> None:
        """Keeps as many as this policy says from now on."""
        self._policy = policy
        self._changed.set()

    def take(self, spec: KeepSpec) -> Spare | None:
        """A spare for the keep that `spec` describes, which is the caller's from now on; None where there is none."""
        if not self._ready or not fits(spec):
            return None
        self._changed.set()
        return self._ready.popleft()

    async def claim(self, spare: Spare, spec: KeepSpec) -> None:
        """Has the spare's unit say that it is the keep that `spec` describes.

        Raises KeepfleetError where it cannot: the caller must end the unit, and make another.
        """
        if await self._units.settings_mark(spare.kuuid) != spare.mark:
            raise KeepfleetError(ErrorKind.CONFLICT, "its unit has other settings than a new one would have")
        reach(Failpoint.CLAIM_BEFORE_CALL)
        await self._units.claim(spare.kuuid, spec)
        reach(Failpoint.CLAIM_AFTER_CALL)

    async def run(self, draw: Callable[[], int], quiet: Callable[[], Awaitable[None]]) -> None:
        """Makes spares for ever, one at a time, each when `quiet` says that no creation is under way or was a moment
        ago; `draw` gives each its ID."""
        while True:
            self._changed.clear()
            try:
                while len(self._ready) > self._policy.spare_keeps:
                    await self.end(self._ready.pop().kuuid)
                while len(self._ready) < self._policy.spare_keeps:
                    await quiet()
                    if len(self._ready) < self._policy.spare_keeps:  # so many may not be wanted any more
                        self._ready.append(await self._make(draw()))
            except KeepfleetError as error:
                LOG.warning("cannot make a spare keep, trying again: %s", error.message)
                with suppress(TimeoutError):
                    async with asyncio.timeout(RETRY_SECONDS):
                        await self._changed.wait()
                continue
            await self._changed.wait()

    async def _make(self, kuuid: int) -> Spare:
        try:
            spec = KeepSpec(spare=True, created_at=time.time())
            await self._units.start(kuuid, self._policy.start_timeout_seconds, spec)
            return Spare(kuuid, await self._units.settings_mark(kuuid))
        except KeepfleetError as error:
            if error.kind is not ErrorKind.CONFLICT:  # which is another's unit
                await self.end(kuuid)
            raise

    async def end(self, kuuid: int) -> None:
        """Ends a spare's unit. What cannot be ended now is by the next manager."""
        try:
            await self._units.stop(kuuid)
        except KeepfleetError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                LOG.warning("cannot end the spare keep %s: %s", unit_name(kuuid), error.message)


class Keeps(Protocol):
    """What retention needs of the keeps. Every method raises KeepfleetError alone."""

    async def remove(self, kuuid: int, caller: Caller) -> None:
        """Ends a keep."""


class Due(Record):
    """A keep to remove, and why."""

    kuuid: int
    why: str


def due(entries: Iterable[Entry], now: float, retention: float) -> tuple[list[Due], float]:
    """The keeps to remove at `now`, in seconds since boot, and in how many seconds another look is worth it. Pure."""
    found: list[Due] = []
    wait = min(retention, LONGEST_PAUSE_SECONDS)
    for entry in entries:
        at, why = _end_of(entry, retention)
        if at is None or entry.removing:
            continue
        if at <= now:
            found.append(Due(entry.info.kuuid, why))
        else:
            wait = min(wait, at - now)
    return found, max(wait, min(retention / LOOKS_PER_RETENTION, LONGEST_PAUSE_SECONDS / LOOKS_PER_RETENTION))


def _end_of(entry: Entry, retention: float) -> tuple[float | None, str]:
    """When the keep is due, None for never, and why."""
    info = entry.info
    if entry.spec is not None and entry.spec.declared is not None:
        return None, ""  # its end says whether it is to run again, for as long as it is declared
    if info.state in ENDED:
        # Of a keep of an earlier boot it counts from when it was found in this one.
        ended = None if info.outcome is None or not entry.has_unit else info.outcome.ended_monotonic
        ended = entry.unit_ended if ended is None else ended
        return (None if ended is None else ended + retention), f"ended {retention:g} s ago"
    lease = getattr(info.lease, UNUSED.get(info.phase, ""), 0)
    return (entry.since + lease if lease else None), f"unused for {lease} s"


class Retention:
    """Removes keeps when they are due, looking at `entries`; `seconds` is how long one that ended stays."""

    def __init__(
        self,
        keeps: Keeps,
        entries: Callable[[], Iterable[Entry]],
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keeps, self._entries, self._seconds, self._clock = keeps, entries, seconds, clock
        self._applied = asyncio.Event()

    def __repr__(self) -> str:
        return f"Retention({self._seconds:g} s)"

    def apply(self, seconds: float) -> None:
        """Looks immediately, by this retention."""
        self._seconds = seconds
        self._applied.set()

    async def run(self) -> None:
        """Goes on until it is cancelled. What cannot be removed now is tried at the next look."""
        while True:
            self._applied.clear()
            found, wait = due(self._entries(), self._clock(), self._seconds)
            for one in found:
                if one in due(self._entries(), self._clock(), self._seconds)[0]:  # it may have been started meanwhile
                    await _remove(self._keeps, one)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._applied.wait(), wait)


async def _remove(keeps: Keeps, one: Due) -> None:
    who = f"the manager: {one.why}"
    try:
        await keeps.remove(one.kuuid, Caller(who, Role.OPERATOR, "", who))
    except KeepfleetError as error:
        if error.kind is not ErrorKind.NOT_FOUND:
            LOG.warning("cannot remove keep %d, %s: %s", one.kuuid, one.why, error.message)
