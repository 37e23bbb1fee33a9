"""A manager in a thread of its own, for clients that block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fakes.running_manager import RunningManager, running_manager

READY_SECONDS = 60.0


@contextmanager
def manager_thread(directory: Path) -> Iterator[RunningManager]:
    """A manager that serves while the block runs."""
    ready, made = threading.Event(), []
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def live() -> None:
        async with running_manager(directory) as manager:
            manager.loop = loop
            made.append(manager)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(live(),))
    thread.start()
    try:
        assert ready.wait(READY_SECONDS)
        yield made[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
