"""Removes keeps that ended long enough ago, and those that stay unused for longer than their lease.

Time is the host's since its boot, which keeps do not outlive: a clock that is set removes nothing early and keeps
nothing for ever. When a keep ended, its loader says, or its unit where that has failed; since when it is unused, its
latest event says: a new manager goes on where the one before stopped.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from keep_manager.keeps.decide import ENDED
from keep_manager.keeps.view import Entry
from keep_manager.model import Caller
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.identity import Role
from keep_protocol.states import Phase

LOG = logging.getLogger("keepfleet.keeps")
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


class Keeps(Protocol):
    """What retention needs of the keeps. Every method raises KeepfleetError alone."""

    async def remove(self, kuuid: int, caller: Caller) -> None:
        """Ends a keep."""


@dataclass(frozen=True)
class Due:
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
        """Looks at once, by this retention."""
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
