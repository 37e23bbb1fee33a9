"""Rounds: what is to be done is decided whenever something has changed, and when a pause is over.

A round looks at what there is, and begins a task for each name that something is to be done for; one task at a time
works for a name. Each end of one is a change.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress

from keep_manager.tasks import Group


class Rounds:
    """The rounds of one who decides. decide: one round; until when there is nothing else to do, None for ever; of_what:
    what its tasks are called; clock: by which moments are said."""

    def __init__(
        self,
        tasks: Group,
        decide: Callable[[], float | None],
        of_what: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tasks, self._decide, self._of_what, self._clock = tasks, decide, of_what, clock
        self._woken = asyncio.Event()
        self._under_way: set[asyncio.Task[None]] = set()
        self.busy: set[str] = set()
        """Names for which a task works now."""

    def __repr__(self) -> str:
        return f"Rounds({self._of_what}, {len(self.busy)} under way)"

    def wake(self) -> None:
        """Something has changed."""
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
            until = self._decide()
            with suppress(TimeoutError):
                async with asyncio.timeout(None if until is None else max(until - self._clock(), 0.0)):
                    await self._woken.wait()

    async def close(self) -> None:
        """Begins nothing any more, and ends what is under way while its rollback still has a group to run in."""
        under_way = set(self._under_way)
        for task in under_way:
            task.cancel()
        if under_way:
            await asyncio.wait(under_way)

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self.busy.discard(name)
        self.wake()


def earlier(until: float | None, moment: float) -> float:
    """The earlier of the two."""
    return moment if until is None else min(until, moment)
