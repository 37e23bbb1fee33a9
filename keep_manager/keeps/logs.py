"""A keep's lines, and its end after the last of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.sse import KeepEvent, LogLine
from keep_protocol.states import State

WAIT_SECONDS = 60.0
AGAIN_SECONDS = 0.25
"""Until a keep whose loader does not answer is asked again; it comes back on its own, and no one is told."""
ENDED = (State.COMPLETE, State.ERROR)


class Journal(Protocol):
    """Where keeps' lines are. Every method raises KeepfleetError alone."""

    def lines(
        self, kuuid: int, *, last: int | None = None, after: str = "", follow: bool = False, beside: bool = False
    ) -> AbstractAsyncContextManager[AsyncIterator[LogLine]]:
        """The lines there are, the `last` ones or those `after` one; with `follow` also those to come, for ever.

        beside: the caller holds a reader that follows already, and is not refused a second one.
        """

    async def sync(self) -> None:
        """Waits until what was written before can be read."""


class Events(Protocol):
    """Where what happened to keeps is. Every method raises KeepfleetError alone."""

    def events(
        self, kuuid: int | None = None, *, last: int | None = None, after: str = "", follow: bool = False
    ) -> AbstractAsyncContextManager[AsyncGenerator[KeepEvent, None]]:
        """The events there are, the `last` ones or those `after` one, of all keeps or of one; with `follow` those to
        come, for ever, and before them only what `last` or `after` asks for."""


class Keeps(Protocol):
    """What is asked about the keep itself."""

    async def get(self, kuuid: int) -> KeepInfo:
        """One keep, or NOT_FOUND."""

    async def wait(self, kuuid: int, changed_from: State, seconds: float) -> KeepInfo:
        """One keep, after its state has changed or the time is over."""

    async def counted(self, kuuid: int) -> KeepInfo:
        """A keep that has ended, once it is known how many of its lines were dropped."""


async def ended(keeps: Keeps, kuuid: int) -> KeepInfo:
    """The keep once it has ended and its dropped lines are counted; one that was removed says so."""
    loop = asyncio.get_running_loop()
    try:
        info = await keeps.get(kuuid)
        while info.state not in ENDED:
            before, asked = info.state, loop.time()
            info = await keeps.wait(kuuid, info.state, WAIT_SECONDS)
            if info.state is before and loop.time() - asked < AGAIN_SECONDS:
                await asyncio.sleep(AGAIN_SECONDS)
        outcome = info.outcome
        if outcome is not None and outcome.started_at is not None and outcome.dropped_lines is None:
            info = await keeps.counted(kuuid)
    except KeepfleetError as error:
        if error.kind is not ErrorKind.NOT_FOUND:
            raise
        return KeepInfo(kuuid, State.UNDEFINED, "it was removed")
    return info


async def followed(
    keeps: Keeps, journal: Journal, kuuid: int, last: int | None, after: str
) -> AsyncGenerator[LogLine | KeepInfo, None]:
    """The keep's lines as they come; when it has ended those that are still to be read, and at the very end the keep.

    Whoever takes it closes it: it holds a reader of the journal. Raises KeepfleetError as the journal and the keeps do.
    """
    end = asyncio.create_task(ended(keeps, kuuid))
    coming: asyncio.Task[LogLine | None] | None = None
    try:
        async with journal.lines(kuuid, last=last, after=after, follow=True) as lines:
            try:
                while not end.done():
                    coming = coming or asyncio.create_task(_next(lines))
                    await asyncio.wait({coming, end}, return_when=asyncio.FIRST_COMPLETED)
                    if not coming.done():
                        continue
                    line, coming = coming.result(), None
                    if line is None:
                        raise KeepfleetError(ErrorKind.UNAVAILABLE, "cannot follow the journal: its reader ended")
                    after, last = line.cursor, None
                    yield line
            finally:
                await end_task(coming)  # before the journal ends its reader: only one may read from that at a time
            # Inside: a reader that waits takes the kernel up to 20 ms to end, and the rest need not wait for that.
            info = await end
            await journal.sync()
            async with journal.lines(kuuid, last=last, after=after, beside=True) as rest:
                async for line in rest:
                    yield line
            yield info
    finally:
        await end_task(end)


async def _next(lines: AsyncIterator[LogLine]) -> LogLine | None:
    return await anext(lines, None)


async def end_task(task: asyncio.Task[Any] | None) -> None:
    """Cancels a task and returns when it has ended, also when the caller is cancelled meanwhile, once or more often:
    what the task holds is then free, and what it was using may be closed. Its result is nobody's any more.
    """
    if task is None:
        return
    task.cancel()
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancelled = True
    if not task.cancelled():
        task.exception()  # looked at, or asyncio logs that nobody did
    if cancelled:
        raise asyncio.CancelledError
