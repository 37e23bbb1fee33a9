"""A keep's lines, and its end after the last of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from keep_manager.keeps.decide import ENDED
from keep_manager.model import Visible
from keep_manager.tasks import Group
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.sse import KeepEvent, LogLine
from keep_protocol.states import State

WAIT_SECONDS = 60.0
Send = Callable[[LogLine | KeepInfo], Awaitable[None]]
"""Takes one thing to send; a keep is the end."""


class Journal(Protocol):
    """Where keeps' lines are. Every method raises KeepfleetError alone."""

    def lines(
        self,
        kuuid: int,
        *,
        last: int | None = None,
        after: str = "",
        follow: bool = False,
        second: bool = False,
        caller: str = "",
    ) -> AbstractAsyncContextManager[AsyncIterator[LogLine]]:
        """The lines there are, the `last` ones or those `after` one; with `follow` also those to come, for ever.

        TOO_MANY where `caller` has its share of readers. second: the caller holds a reader that follows already, and is
        not refused a second one.
        """

    async def sync(self) -> None:
        """Waits until what was written before can be read."""


class Events(Protocol):
    """Where what happened to keeps is. Every method raises KeepfleetError alone."""

    def events(
        self,
        kuuid: int | None = None,
        *,
        last: int | None = None,
        after: str = "",
        follow: bool = False,
        visible: Visible | None = None,
        caller: str = "",
    ) -> AbstractAsyncContextManager[AsyncGenerator[KeepEvent, None]]:
        """The events there are, the `last` ones or those `after` one, of all keeps or of one; with `follow` those to
        come, for ever, and before them only what `last` or `after` asks for. Only of keeps that are `visible`."""


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
    try:
        info = await keeps.get(kuuid)
        while info.state not in ENDED:
            info = await keeps.wait(kuuid, info.state, WAIT_SECONDS)
        outcome = info.outcome
        if outcome is not None and outcome.started_at is not None and outcome.dropped_lines is None:
            info = await keeps.counted(kuuid)
    except KeepfleetError as error:
        if error.kind is not ErrorKind.NOT_FOUND:
            raise
        return KeepInfo(kuuid, State.UNDEFINED, "it was removed")
    return info


@dataclass
class _Place:
    """Where a reader is: after the line with that cursor, or before the `last` ones."""

    last: int | None
    after: str


async def present(journal: Journal, kuuid: int, last: int | None, after: str, send: Send, caller: str = "") -> None:
    """Sends the lines there are. Raises KeepfleetError as the journal does."""
    async with journal.lines(kuuid, last=last, after=after, caller=caller) as lines:
        async for line in lines:
            await send(line)


async def follow(
    keeps: Keeps, journal: Journal, kuuid: int, last: int | None, after: str, send: Send, caller: str = ""
) -> None:
    """Sends the keep's lines as they come; when it has ended those that are still to be read, and at last the keep.

    Raises KeepfleetError as the journal and the keeps do.
    """
    place = _Place(last, after)
    async with journal.lines(kuuid, last=last, after=after, follow=True, caller=caller) as lines:
        async with Group() as copying:
            copying.start(_copy(lines, send, place))
            info = await ended(keeps, kuuid)
        # Inside: a reader that waits takes the kernel up to 20 ms to end, and the rest need not wait for that.
        await journal.sync()
        async with journal.lines(kuuid, last=place.last, after=place.after, second=True) as rest:
            async for line in rest:
                await send(line)
        await send(info)


async def _copy(lines: AsyncIterator[LogLine], send: Send, place: _Place) -> None:
    async for line in lines:
        await send(line)
        place.last, place.after = None, line.cursor
    raise KeepfleetError(ErrorKind.UNAVAILABLE, "cannot follow the journal: its reader ended")
