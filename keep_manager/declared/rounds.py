"""Rounds: what is to be done is decided whenever something has changed, and when a pause is over.

A round looks at the names that something has changed for, or at all of them, and begins a task for each that something
is to be done for; one task at a time works for a name. Each end of one is a change of its name.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress

from keep_manager.tasks import Group

WHOLE_SECONDS = 2.0
"""At the latest so long after a look at some names all are looked at: not every change of a keep is reported, and a
look at 500 takes 8 ms, which each of their changes need not cost."""


class Rounds:
    """The rounds of one who decides. decide: one round, for these names or for all of them; of each that there is
    nothing to do for until then, the moment; of_what: what its tasks are called; clock: by which moments are said."""

    def __init__(
        self,
        tasks: Group,
        decide: Callable[[frozenset[str] | None], Mapping[str, float]],
        of_what: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tasks, self._decide, self._of_what, self._clock = tasks, decide, of_what, clock
        self._woken = asyncio.Event()
        self._changed: set[str] = set()
        self._whole_at = -math.inf
        self._waits: dict[str, float] = {}
        self._under_way: set[asyncio.Task[None]] = set()
        self.busy: set[str] = set()
        """Names for which a task works now."""

    def __repr__(self) -> str:
        return f"Rounds({self._of_what}, {len(self.busy)} under way)"

    def wake(self, name: str = "") -> None:
        """Something has changed for the name; without one: perhaps for all."""
        if name:
            self._changed.add(name)
        else:
            self._whole_at = -math.inf
        self._woken.set()

    def begin(self, name: str, work: Coroutine[None, None, None]) -> None:
        """Has a task do the work for the name, which is not busy."""
        self.busy.add(name)
        task = self._tasks.start(work, name=f"{self._of_what} {name}")
        self._under_way.add(task)
        task.add_done_callback(lambda task: self._ended(name, task))

    async def run(self) -> None:
        """Goes on until it is cancelled."""
        if (running := asyncio.current_task()) is not None:
            self._under_way.add(running)
        while True:
            self._woken.clear()
            names = self._next(self._clock())
            waits = self._decide(names)
            if names is None:
                self._waits.clear()
            for name in names or ():
                self._waits.pop(name, None)
            self._waits.update(waits)
            until = min((self._whole_at, *self._waits.values()))
            with suppress(TimeoutError):
                async with asyncio.timeout(None if until == math.inf else max(until - self._clock(), 0.0)):
                    await self._woken.wait()

    async def close(self) -> None:
        """Begins nothing any more, and ends what is under way while its rollback still has a group to run in."""
        under_way = set(self._under_way)
        for task in under_way:
            task.cancel()
        if under_way:
            await asyncio.wait(under_way)

    def _next(self, now: float) -> frozenset[str] | None:
        """The names that the next round is for, None for all."""
        names = frozenset(self._changed | {name for name, until in self._waits.items() if until <= now})
        self._changed.clear()
        if self._whole_at <= now:
            self._whole_at = math.inf
            return None
        self._whole_at = min(self._whole_at, now + WHOLE_SECONDS)
        return names

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self.busy.discard(name)
        self.wake(name)
