"""What a guest writes, on our own standard output and error: the same bytes, or safe text where a terminal shows them.

Pieces are those of `keep_client.output`; each is written before the next is asked for.
"""

from __future__ import annotations

import codecs
import select
import sys
import time
from _collections_abc import Callable, Generator, Iterator, Sequence

from keep_client.output import GAP, Piece
from keep_client.peer import printable
from keep_protocol.ring import MARK, STDERR, STDOUT, decode_mark
from keep_protocol.sse import GAP_SOURCE, LogLine
from keepctl.display import echo, json_line, say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO

Show = Callable[[Sequence[Piece]], None]
NAMES = {STDOUT: "stdout", STDERR: "stderr"}
LONGEST_LINE = 48 * 1024
"""A longer line comes in pieces, as in `GET /v1/keeps/ID/logs`: what a guest never ends is not kept for ever."""
_PLAIN = bytes(range(0x20, 0x7F)) + b"\n\t"
"""What a terminal shows, or moves by, and does nothing else for."""


def missing(count: bytes | int, stream: int) -> str:
    """What is said of bytes that were overwritten before they could be read."""
    number = int(count)
    return f"{number} byte{'s are' if number != 1 else ' is'} missing here, of {NAMES[stream]}"


class Sink:
    """One of our own streams, for a guest's bytes: as they are, or, where a terminal shows them, with its control
    characters as escapes."""

    def __init__(self, stream: TextIO, raw: bool) -> None:
        buffer = stream.buffer
        self._raw = getattr(buffer, "raw", buffer)  # nothing is kept back: each piece is there as soon as it is written
        self._text = None if raw or not stream.isatty() else codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._at_line_start = True

    def write(self, parts: Sequence[memoryview | bytes]) -> None:
        """Writes all of it. Raises OSError."""
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        if self._text is not None:
            data = self._safe(bytes(data))
        self._write(data)

    def _safe(self, data: bytes) -> bytes:
        assert self._text is not None  # noqa: S101  # as its callers have seen
        text, state = "", self._text.getstate()
        if state[0] or data.translate(None, _PLAIN):
            text = printable(self._text.decode(data))
            data = text.encode()
        self._at_line_start = data.endswith(b"\n") if data else self._at_line_start
        return data

    def _write(self, data: memoryview | bytes) -> None:
        view = memoryview(data)
        while view:
            written = self._raw.write(view)
            if written is None:  # ours is a descriptor that another process has made non-blocking
                poll = select.poll()
                poll.register(self._raw.fileno(), select.POLLOUT)
                poll.poll()
            else:
                view = view[written:]

    def break_line(self) -> None:
        """A line that the guest left open is ended where a person reads it."""
        if self._text is not None and not self._at_line_start:
            self._write(b"\n")
            self._at_line_start = True

    def end(self) -> None:
        """The guest writes no more; a line that it left open is ended, see `break_line`."""
        if self._text is not None:
            self._write(printable(self._text.decode(b"", True)).encode())
            self.break_line()


class Streams:
    """A guest's output on our own streams, in the order in which it was written."""

    def __init__(self, raw: bool, merged: bool = False, only: int | None = None) -> None:
        """merged: standard error goes where standard output does. only: one of the two is shown alone."""
        out = Sink(sys.stdout, raw)
        self._sinks = {STDOUT: out, STDERR: out if merged else Sink(sys.stderr, raw)}
        self._shown = {only} if only is not None else {STDOUT, STDERR}

    def show(self, pieces: Sequence[Piece]) -> None:
        """Writes them; what is missing is said on standard error. Raises OSError."""
        waiting: list[memoryview | bytes] = []
        current = STDOUT
        for stream, of, data in pieces:
            if stream in self._shown:
                if stream != current and waiting:
                    self._sinks[current].write(waiting)
                    waiting = []
                current = stream
                waiting.append(data)
            elif stream == GAP and of in self._shown:
                if waiting:
                    self._sinks[current].write(waiting)
                    waiting = []
                say(f"keepctl: {missing(bytes(data), of)}")
        if waiting:
            self._sinks[current].write(waiting)

    def break_line(self) -> None:
        """Something else is shown on this terminal, in a line of its own. Raises OSError."""
        for sink in self._sinks.values():
            sink.break_line()

    def end(self) -> None:
        """The guest writes no more. Raises OSError."""
        for sink in {self._sinks[stream] for stream in self._shown}:
            sink.end()


class Lines:
    """Pieces in, lines out, each with its stream and the time at which its end was read."""

    def __init__(self) -> None:
        self._open = {STDOUT: b"", STDERR: b""}
        self._clock: int | None = None  # nanoseconds of the epoch at the monotonic 0
        self._at = 0.0

    def feed(self, pieces: Sequence[Piece]) -> Iterator[LogLine]:
        """The lines that they complete."""
        for stream, time_ns, data in pieces:
            if stream == MARK:
                if data:
                    self._clock = decode_mark(bytes(data)).time_ns - time_ns
            elif stream == GAP:
                yield from self._cut(time_ns)
                yield LogLine(self._at, GAP_SOURCE, missing(bytes(data), time_ns))
            else:
                self._at = time.time() if self._clock is None else (self._clock + time_ns) / 1e9
                yield from self._lines(stream, self._open[stream] + data)

    def _lines(self, stream: int, data: bytes) -> Iterator[LogLine]:
        *whole, rest = data.split(b"\n")
        for line in whole:
            left = yield from self._beginnings(stream, line)
            yield self._line(stream, left)
        self._open[stream] = yield from self._beginnings(stream, rest)

    def _beginnings(self, stream: int, line: bytes) -> Generator[LogLine, None, bytes]:
        """The pieces of a long line but for the last, which it returns; each begins with a whole character."""
        while len(line) > LONGEST_LINE:
            size = LONGEST_LINE
            while size > LONGEST_LINE - 4 and line[size] & 0xC0 == 0x80:
                size -= 1
            yield self._line(stream, line[:size])
            line = line[size:]
        return line

    def _line(self, stream: int, line: bytes) -> LogLine:
        return LogLine(self._at, NAMES[stream], line.decode("utf-8", "replace"))

    def _cut(self, stream: int) -> Iterator[LogLine]:
        line, self._open[stream] = self._open[stream], b""
        if line:
            yield self._line(stream, line)

    def end(self) -> Iterator[LogLine]:
        """What was not ended by a newline."""
        for stream in NAMES:
            yield from self._cut(stream)


class JsonLines:
    """A guest's output as one JSON object for each line, both streams on standard output."""

    def __init__(self) -> None:
        self._lines = Lines()

    def break_line(self) -> None:
        """Whole lines alone are printed."""

    def show(self, pieces: Sequence[Piece]) -> None:
        """Prints what is whole. Raises OSError."""
        for line in self._lines.feed(pieces):
            echo(json_line(line.to_wire()))

    def end(self) -> None:
        """Prints the rest. Raises OSError."""
        for line in self._lines.end():
            echo(json_line(line.to_wire()))
