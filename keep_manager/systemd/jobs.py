"""The waits for the ends of systemd jobs. No I/O: `units` feeds it signals and awaits it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from keep_manager.systemd.replies import JobEnd


class JobWait:
    """One caller's wait for a job of one unit.

    It is made before the call that queues the job, because the job's end can arrive together with the call's reply.
    """

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self._results: dict[str, str] = {}
        self._doubt = False
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"JobWait({self.unit}, {self._results}, doubt={self._doubt})"

    def ended(self, end: JobEnd) -> None:
        """Notes the end of a job of this unit's."""
        self._results[end.job] = end.result
        self._changed.set()

    def doubt(self) -> None:
        """Notes that signals may have been lost."""
        self._doubt = True
        self._changed.set()

    async def result(self, job: str | None) -> str | None:
        """How `job` ended (None: any job of the unit's), or None once each time signals may have been lost."""
        while True:
            if job is None and self._results:
                return next(iter(self._results.values()))
            if job in self._results:
                return self._results[job]
            if self._doubt:
                self._doubt = False
                return None
            self._changed.clear()
            await self._changed.wait()


class JobWaits:
    """Every wait under way."""

    def __init__(self) -> None:
        self._waits: dict[str, set[JobWait]] = {}
        self._empty = asyncio.Event()

    def __repr__(self) -> str:
        return f"JobWaits({sorted(self._waits)})"

    async def drained(self) -> None:
        """Returns when no wait is left."""
        while self._waits:
            self._empty.clear()
            await self._empty.wait()

    def __len__(self) -> int:
        return sum(len(waits) for waits in self._waits.values())

    @contextmanager
    def expect(self, unit: str) -> Iterator[JobWait]:
        """A wait for jobs of `unit`, from now until the block ends."""
        wait = JobWait(unit)
        self._waits.setdefault(unit, set()).add(wait)
        try:
            yield wait
        finally:
            self._waits[unit].discard(wait)
            if not self._waits[unit]:
                del self._waits[unit]
            if not self._waits:
                self._empty.set()

    def ended(self, end: JobEnd) -> None:
        """Passes the end of a job on to those who wait for it."""
        for wait in self._waits.get(end.unit, ()):
            wait.ended(end)

    def doubt(self) -> None:
        """Makes every wait look at its unit: signals may have been lost."""
        for waits in self._waits.values():
            for wait in waits:
                wait.doubt()
