"""A keep's lines, out of the frames of its ring, and its end after the last of them.

A line is what stands before a newline, of one of the guest's streams, or at its end; one that is too long comes in
pieces. What a reader was too slow for, or came too late for, is a line of its own that says how much is missing.
A line's cursor says where to go on after it: from which frame on to read again, and how much of each stream was had.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from keep_manager.keeps.decide import ENDED
from keep_manager.keeps.readers import Reading
from keep_manager.keeps.view import Entry
from keep_manager.model import Visible
from keep_manager.tasks import Group
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.keep import KeepInfo
from keep_protocol.ring import MARK, STDERR, STDOUT, Block, Frame, decode_mark, frames_in
from keep_protocol.sse import GAP_SOURCE, KEEP_SOURCE, STDERR_SOURCE, STDOUT_SOURCE, KeepEvent, LogLine
from keep_protocol.states import State

WAIT_SECONDS = 60.0
SENT_TOGETHER = 256
"""Lines written before the loop turns to others: 2 ms."""
Send = Callable[[tuple[LogLine, ...] | KeepInfo], Awaitable[None]]
"""Takes some lines to send, or a keep, which is the end."""
MAX_LINE = 48 * 1024
"""Bytes of a line; a longer one comes in pieces of so many. journald cuts them there, too."""
SOURCE_OF = {STDOUT: STDOUT_SOURCE, STDERR: STDERR_SOURCE, MARK: KEEP_SOURCE}
_NANO = 1e9
_CURSOR = re.compile(r"p=([0-9a-f]{1,16});o=([0-9a-f]{1,16});e=([0-9a-f]{1,16});m=([0-9a-f]{1,16})", re.ASCII)


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


class Chosen(Record):
    """Which lines: the `last` ones, or those `after` a cursor; of one source alone, from one moment to another, in
    seconds of the epoch; own: also the loader's own."""

    last: int | None = None
    after: str = ""
    source: str = ""
    since: float | None = None
    until: float | None = None
    own: bool = False

    def takes(self, line: LogLine) -> bool:
        """Whether the line is among them."""
        early = self.since is not None and line.at < self.since
        late = self.until is not None and line.at > self.until
        return self._wants(line.source) and not early and not late

    @property
    def streams(self) -> frozenset[int]:
        """The ring's streams that have them."""
        return frozenset(stream for stream, source in SOURCE_OF.items() if self._wants(source))

    def _wants(self, source: str) -> bool:
        if source == KEEP_SOURCE:
            return self.own
        return source == GAP_SOURCE or self.source in ("", source)


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


class Place(Record):
    """Where to go on: from which frame on, and how much of each stream was had."""

    position: int = 0
    stdout: int = 0
    stderr: int = 0
    mark: int = 0


def place_of(cursor: str) -> Place:
    """The place that a cursor means. Raises KeepfleetError(BAD_REQUEST)."""
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot resume after {cursor[:60]!r}: it is no line's id")
    return Place(*(int(number, 16) for number in match.groups()))


class _Stream:
    """One stream. done: bytes of it that were returned or are missing, None while that is not known; rest: of a line
    whose end has not come, which began at rest_at in the frame at rest_position."""

    def __init__(self, done: int | None) -> None:
        self.done = done
        self.rest = b""
        self.rest_at = self.rest_position = 0


class LineDecoder:
    """Frames in, lines out; bounded in memory. `clock` is realtime less the monotonic clock, in nanoseconds, until a
    mark says it."""

    def __init__(self, place: Place | None, clock: int) -> None:
        """place: where it begins; None for the middle of a ring, before which nothing is missed."""
        done = (None, None, None) if place is None else (place.stdout, place.stderr, place.mark)
        self._streams = {stream: _Stream(had) for stream, had in zip((STDOUT, STDERR, MARK), done, strict=True)}
        self._clock = clock

    def __repr__(self) -> str:
        return f"LineDecoder({self._cursor(0)})"

    def feed(self, frame: Frame) -> Iterator[LogLine]:
        """The lines that the frame completes. Raises KeepfleetError(KEEP_FAILED) for a mark that is none."""
        stream = self._streams[frame.stream]
        if stream.done is None:
            stream.done = frame.offset
        if frame.stream == MARK:
            mark = decode_mark(frame.data)
            self._clock = mark.time_ns - frame.time_ns
            if frame.offset < stream.done:
                return
            stream.done = frame.offset + len(frame.data)
            if mark.line:
                yield self._line(frame.time_ns, KEEP_SOURCE, mark.line, frame.position)
            return
        had = stream.done + len(stream.rest)
        if frame.offset > had:
            yield from self._cut(frame.stream)
            stream.done = frame.offset
            yield self._line(frame.time_ns, GAP_SOURCE, f"{frame.offset - had} bytes are missing here", frame.position)
        data = frame.data[max(0, had - frame.offset) :]
        if data:
            yield from self._split(stream, SOURCE_OF[frame.stream], frame, data)

    def rest(self) -> Iterator[LogLine]:
        """What came last without an end of its line."""
        yield from self._cut(STDOUT)
        yield from self._cut(STDERR)

    def _split(self, stream: _Stream, source: str, frame: Frame, data: bytes) -> Iterator[LogLine]:
        at, start, position, before = frame.time_ns, 0, frame.position, len(stream.rest)
        if before:
            at, position, data = stream.rest_at, stream.rest_position, stream.rest + data
            stream.rest = b""
        while True:
            end = data.find(b"\n", start, start + MAX_LINE + 1)
            if end >= 0:
                piece, following = data[start:end], end + 1
            elif len(data) - start > MAX_LINE:
                following = _cut_at(data, start + MAX_LINE)
                piece = data[start:following]
            else:
                break
            stream.done = (stream.done or 0) + following - start
            if following >= before:
                position = frame.position
            yield self._line(at, source, piece.decode("utf-8", "replace"), position)
            at, start = frame.time_ns, following
        if start < len(data):
            stream.rest, stream.rest_at, stream.rest_position = data[start:], at, position

    def _cut(self, number: int) -> Iterator[LogLine]:
        stream = self._streams[number]
        if stream.rest:
            text, position = stream.rest.decode("utf-8", "replace"), stream.rest_position
            stream.done, stream.rest = (stream.done or 0) + len(stream.rest), b""
            yield self._line(stream.rest_at, SOURCE_OF[number], text, position)

    def _line(self, at: int, source: str, text: str, position: int) -> LogLine:
        return LogLine(max(0.0, (at + self._clock) / _NANO), source, text, self._cursor(position))

    def _cursor(self, position: int) -> str:
        """The cursor of Place, written out: a stream may have a million lines."""
        stdout, stderr, mark = self._streams[STDOUT], self._streams[STDERR], self._streams[MARK]
        if stdout.rest:
            position = min(position, stdout.rest_position)
        if stderr.rest:
            position = min(position, stderr.rest_position)
        return f"p={position:x};o={stdout.done or 0:x};e={stderr.done or 0:x};m={mark.done or 0:x}"


def _cut_at(data: bytes, end: int) -> int:
    """`end`, or a little before it, where no character of UTF-8 is in two pieces."""
    for place in range(end, end - 4, -1):
        if data[place] & 0xC0 != 0x80:
            return place
    return end


def tail_position(look: Callable[[int], Block], head: int, lines: int, streams: Iterable[int]) -> int:
    """From where on to read for the last `lines` of `streams` before `head`: at that frame, or a little before it.

    Raises KeepfleetError as `look` does.
    """
    wanted, position = frozenset(streams), 0
    frames: deque[tuple[int, int]] = deque()
    count, enough = 0, lines + 2  # the first of each of the guest's streams may have begun before
    while position < head:
        block = look(position)
        if not block.data:
            break
        for frame in frames_in(block.data, block.position):
            ends = 0 if frame.stream not in wanted else 1 if frame.stream == MARK else frame.data.count(b"\n")
            if not ends:
                continue
            frames.append((frame.position, ends))
            count += ends
            while count - frames[0][1] >= enough:
                count -= frames.popleft()[1]
        position = block.end
    return frames[0][0] if count >= enough else 0
