"""Tasks with an owner: the one place in the manager that makes them.

A group's tasks end with its block: what still runs then is cancelled and waited for. A task that fails ends the block,
and with it what opened it: in the daemon that is the process, which systemd starts again.

A process without descriptors for a moment is none that has failed: what it does goes on when there are some again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, TypeVar

from keep_manager.model import is_exhausted

T = TypeVar("T")
LOG = logging.getLogger("keepfleet.tasks")
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 16.0
"""Until what lacked descriptors is tried again, doubled each time: nothing signals when there are some."""


async def carried_on(make: Callable[[], Awaitable[T]], what: str) -> T:
    """What `make` makes. Where that ends for want of descriptors it begins again after a pause, as often as it takes:
    for what a manager must not lose because clients, or the host, left it none for a moment."""
    pause, said = FIRST_PAUSE_SECONDS, ""
    while True:
        try:
            return await make()
        except OSError as error:
            if not is_exhausted(error):
                raise
            if (why := str(error.strerror)) != said:
                LOG.error("%s: interrupted, and tried again: %s", what, why)
            said = why
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


class Group:
    """An asyncio.TaskGroup whose first error is raised as itself, so that callers catch KeepfleetError by its name."""

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[Any]] = set()

    def __repr__(self) -> str:
        return f"Group({len(self._tasks)} tasks)"

    async def __aenter__(self) -> Group:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        try:
            await self._group.__aexit__(kind, error, trace)
        except BaseExceptionGroup as errors:
            first, *more = _leaves(errors)
            for other in more:
                LOG.error("another task failed, too: %s", other, exc_info=other)
            raise first from first.__cause__

    def start(self, work: Coroutine[Any, Any, T], name: str | None = None) -> asyncio.Task[T]:
        """Runs `work` as a task of the group."""
        task = self._group.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _leaves(errors: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The errors in a group and in the groups within it, in order."""
    found: list[BaseException] = []
    for error in errors.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
