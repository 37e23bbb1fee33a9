"""A keep's lines, and its end after the last of them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from keep_manager.keeps.decide import ENDED
from keep_manager.keeps.lines import LineDecoder, Place, place_of, tail_position
from keep_manager.keeps.readers import Reading
from keep_manager.keeps.view import Entry
from keep_manager.model import Visible
from keep_manager.tasks import Group
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.ring import MARK, STDERR, STDOUT, frames_in
from keep_protocol.sse import KEEP_SOURCE, STDERR_SOURCE, STDOUT_SOURCE, KeepEvent, LogLine
from keep_protocol.states import State

WAIT_SECONDS = 60.0
SENT_TOGETHER = 256
"""Lines written before the loop turns to others: 2 ms."""
Send = Callable[[tuple[LogLine, ...] | KeepInfo], Awaitable[None]]
"""Takes some lines to send, or a keep, which is the end."""


class Output(Protocol):
    """What keeps have written. Every method raises KeepfleetError alone."""

    def reading(
        self, kuuid: int, position: int = 0, *, holds: bool = False, follows: bool = False
    ) -> AbstractAsyncContextManager[Reading]:
        """A reading of a keep's output from `position` on, for the block; with `holds` the workload waits for it."""


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


@dataclass(frozen=True)
class Chosen:
    """Which lines: the `last` ones, or those `after` a cursor; of one source alone, from one moment to another, in
    seconds of the epoch; own: also the loader's own."""

    last: int | None = None
    after: str = ""
    source: str = ""
    since: float | None = None
    until: float | None = None
    own: bool = False
    left_out: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        left_out = set() if self.own else {KEEP_SOURCE}
        if self.source:
            left_out |= {STDOUT_SOURCE, STDERR_SOURCE} - {self.source}
        object.__setattr__(self, "left_out", frozenset(left_out))

    def takes(self, line: LogLine) -> bool:
        """Whether the line is among them."""
        early = self.since is not None and line.at < self.since
        late = self.until is not None and line.at > self.until
        return line.source not in self.left_out and not early and not late

    @property
    def streams(self) -> frozenset[int]:
        """The ring's streams that have them."""
        names = {STDOUT: STDOUT_SOURCE, STDERR: STDERR_SOURCE, MARK: KEEP_SOURCE}
        return frozenset(stream for stream, name in names.items() if name not in self.left_out)


async def ended(keeps: Keeps, kuuid: int) -> KeepInfo:
    """The keep once it has ended; one that was removed says so."""
    try:
        info = await keeps.get(kuuid)
        while info.state not in ENDED:
            info = await keeps.wait(kuuid, info.state, WAIT_SECONDS)
    except KeepfleetError as error:
        if error.kind is not ErrorKind.NOT_FOUND:
            raise
        return KeepInfo(kuuid, State.UNDEFINED, "it was removed")
    return info


def clock_of(entry: Entry) -> int:
    """Realtime less the monotonic clock of the boot in which the keep was started, as far as that is known, in
    nanoseconds; it counts until a mark in the output says it."""
    outcome = None if entry.has_unit or entry.report is None else entry.report.outcome
    if outcome is None or outcome.ended_at is None or outcome.ended_monotonic is None:
        return time.time_ns() - time.monotonic_ns()
    return int((outcome.ended_at - outcome.ended_monotonic) * 1e9)


def place(chosen: Chosen) -> Place:
    """Where to begin. Raises KeepfleetError(BAD_REQUEST) for what is no cursor."""
    return place_of(chosen.after) if chosen.after else Place()


async def present(reading: Reading, chosen: Chosen, clock: int, send: Send) -> None:
    """Sends the lines there are. Raises KeepfleetError(KEEP_FAILED)."""
    await _Lines(reading, chosen, clock, send).copy(lambda: True)


async def follow(keeps: Keeps, kuuid: int, reading: Reading, chosen: Chosen, clock: int, send: Send) -> None:
    """Sends the keep's lines as they come; when it has ended those that are still to be read, and at last the keep.

    Raises KeepfleetError as the reading and the keeps do.
    """
    async with Group() as tasks:
        end = tasks.start(ended(keeps, kuuid))
        end.add_done_callback(lambda _: reading.wake())
        await _Lines(reading, chosen, clock, send).copy(end.done)
        await send(await end)


class _Lines:
    """The lines of one reading on their way to one client."""

    def __init__(self, reading: Reading, chosen: Chosen, clock: int, send: Send) -> None:
        self._reading, self._chosen, self._send = reading, chosen, send
        self._decoder = LineDecoder(place(chosen) if chosen.last is None else None, clock)
        self._newest: deque[LogLine] | None = None if chosen.last is None else deque(maxlen=chosen.last)
        self._head = 0

    async def copy(self, over: Callable[[], bool]) -> None:
        """Sends lines until it is `over`, and those that were there by then."""
        await self._skip_to_tail()
        while True:
            last = over()
            block = self._reading.take()
            if block is not None:
                for frame in frames_in(block.data, block.position):
                    if frame.stream == MARK or frame.stream in self._chosen.streams:
                        await self._pass_on(self._decoder.feed(frame))
                    if self._newest is not None:
                        await asyncio.sleep(0)  # nothing is sent in which others have their turn
                self._reading.sent(block)
            if self._newest is not None and (block is None or (block.end >= self._head and not last)):
                if last:
                    self._newest.extend(filter(self._chosen.takes, self._decoder.rest()))
                newest, self._newest = self._newest, None
                await self._pass_on(iter(newest))
            if block is None:
                if last:
                    await self._pass_on(self._decoder.rest())
                    return
                await self._reading.more()

    async def _skip_to_tail(self) -> None:
        """To where the last lines begin, as far as there are any by now."""
        output = self._reading.output
        if self._chosen.last is None or output is None:
            self._newest = None
            return
        self._head = output.bounds()[1]
        if self._chosen.until is None:
            wanted = self._chosen.streams
            self._reading.skip_to(
                await asyncio.to_thread(tail_position, output.look, self._head, self._chosen.last, wanted)
            )

    async def _pass_on(self, lines: Iterator[LogLine]) -> None:
        some: list[LogLine] = []
        for line in filter(self._chosen.takes, lines):
            if self._newest is not None:
                self._newest.append(line)
                continue
            some.append(line)
            if len(some) == SENT_TOGETHER:
                await self._send(tuple(some))
                some.clear()
        if some:
            await self._send(tuple(some))
