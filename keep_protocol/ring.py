"""The ring that holds a keep's output: one file, written by its loader, read by the manager at any moment.

    0      magic, capacity              once
    16     tail                         before what lies there is overwritten
    24     journal's progress           after each journal entry, so that a crash repeats none
    48     head, three stream totals    after the data they count
    4096   the data, `capacity` bytes, used round and round

Positions only grow; the byte at position p lies at 4096 + p % capacity. What was read at once is one frame: its header,
then the bytes. A header repeats its own position, so that a reader that was overtaken notices, and how many bytes of
its stream came before it, so that what a reader missed can be counted exactly.
The reader trusts nothing in the file: the loader may have been taken over. It never maps it, as a file that is cut off
under a mapping ends the process.
Import rule: `os`, `struct` and the light part of keep_protocol.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from _collections_abc import Iterator, Sequence

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record

STDOUT, STDERR, MARK = 1, 2, 3
"""The streams: the guest's two, and the loader's marks, see `Mark`."""
STREAMS = (STDOUT, STDERR, MARK)
END, ALIVE = 4, 5
"""What an answer to a client has besides frames of the ring: the last of it, whose data is the keep as JSON, and what
says in a silence that the connection is there."""
CONTENT_TYPE = "application/vnd.keepfleet.output"
"""Of `GET /v1/keeps/ID/output[?from=POSITION][&follow=true][&hold=true]`: frames, each with its header.
The answer begins when nothing more can be missed from `from` on; with `hold` the workload waits for this reader."""
ALIVE_SECONDS = 15.0
MAX_END = 128 * 1024
"""Bytes of a keep as JSON, at most."""
DATA = 4096
"""Where the data begins."""
DEFAULT_CAPACITY = 16 * 1024 * 1024
MIN_CAPACITY, MAX_CAPACITY = 1024 * 1024, 1024 * 1024 * 1024
MAX_FRAME = 256 * 1024
"""Bytes of one frame, without its header: more than a pipe gives at once."""
_CHECKPOINT = 64 * 1024
"""The tail moves over about so many bytes in one step: a header is not read for each frame that is overwritten."""
_LONGEST_STEP = _CHECKPOINT + MAX_FRAME + 64
"""How far the tail may move beyond what is needed: from one checkpoint to the next, which is where a frame begins."""
_MAGIC = b"keepring"
_TAG = 0x6B72_6600
"""The first word of a header, with the stream in its low byte."""
_FIXED, _TAIL, _JOURNAL, _HEAD = (
    struct.Struct("<8sQ"),
    struct.Struct("<Q"),
    struct.Struct("<QQQ"),
    struct.Struct("<QQQQ"),
)
_FRAME = struct.Struct("<IIQQQ")
_ACKNOWLEDGEMENT = struct.Struct("<QQQQ")
_CLOCK = struct.Struct("<Q")
NOT_KEPT = (1 << 64) - 1
HEADER = _FRAME.size
"""Bytes of a frame's header: tag and stream, length, monotonic nanoseconds, own position, its stream's bytes before."""
_AT_TAIL, _AT_JOURNAL, _AT_HEAD = 16, 24, 48
_HEAD_PAGE = _AT_HEAD + _HEAD.size


def _damaged(why: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.KEEP_FAILED, f"cannot read the keep's output: {why}")


class Frame(Record):
    """What one read of the guest's output gave.

    stream: one of STREAMS; time_ns: the monotonic clock when it was read; position: of its header in the ring; offset:
    bytes of its stream before it; data: the bytes.
    """

    stream: int
    time_ns: int
    position: int
    offset: int
    data: bytes

    @property
    def end(self) -> int:
        """The position behind it, where the next one begins."""
        return self.position + HEADER + len(self.data)


class Mark(Record):
    """The data of a frame of MARK: the clock at that moment, so that a reader can say when what follows was written,
    and a line of the loader's own, or none.

    time_ns: nanoseconds of the epoch at the frame's own monotonic time.
    """

    time_ns: int
    line: str = ""

    def encode(self) -> bytes:
        """The frame's data."""
        return _CLOCK.pack(self.time_ns) + self.line.encode("utf-8", "replace")[: MAX_FRAME - _CLOCK.size]


def decode_mark(data: bytes) -> Mark:
    """Raises KeepfleetError(KEEP_FAILED)."""
    if len(data) < _CLOCK.size:
        raise _damaged("a mark has no clock")
    return Mark(_CLOCK.unpack_from(data)[0], data[_CLOCK.size :].decode("utf-8", "replace"))


class Block(Record):
    """Whole frames as they lie in the ring.

    position: of the first; data: their bytes; stdout and stderr: the bytes of each up to the last frame of it, 0 where
    there is none.
    """

    position: int
    data: bytes
    stdout: int = 0
    stderr: int = 0

    @property
    def end(self) -> int:
        """The position behind it."""
        return self.position + len(self.data)


class Acknowledgement(Record):
    """What the manager answers to a token of the loader's, over the channel that announces output: one packet.

    seen: up to which position it has read; kept: what lies there and after is not to be overwritten, NOT_KEPT where no
    reader is waited for; stdout and stderr: bytes of each that at least one reader has been sent.
    """

    seen: int = 0
    kept: int = NOT_KEPT
    stdout: int = 0
    stderr: int = 0

    def encode(self) -> bytes:
        """The packet."""
        return _ACKNOWLEDGEMENT.pack(self.seen, self.kept, self.stdout, self.stderr)


TOKEN = b"\1"
"""What the loader sends when there is more output, and the last token was answered."""


def decode_acknowledgement(packet: bytes) -> Acknowledgement:
    """Raises KeepfleetError(BAD_REQUEST)."""
    if len(packet) != _ACKNOWLEDGEMENT.size:
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read an acknowledgement of {len(packet)} bytes")
    return Acknowledgement(*_ACKNOWLEDGEMENT.unpack(packet))


class Progress(Record):
    """How far the journal has the output: bytes of each of the guest's streams, and the entries that took."""

    stdout: int = 0
    stderr: int = 0
    entries: int = 0


class _Header(Record):
    capacity: int
    tail: int
    journal: Progress
    head: int
    totals: tuple[int, int, int]


def _read_header(descriptor: int) -> _Header:
    """The head page, checked. Raises KeepfleetError(KEEP_FAILED), OSError."""
    page = os.pread(descriptor, _HEAD_PAGE, 0)
    if len(page) != _HEAD_PAGE:
        raise _damaged("its ring is cut off")
    magic, capacity = _FIXED.unpack_from(page)
    (tail,) = _TAIL.unpack_from(page, _AT_TAIL)
    journal = Progress(*_JOURNAL.unpack_from(page, _AT_JOURNAL))
    head, *totals = _HEAD.unpack_from(page, _AT_HEAD)
    if magic != _MAGIC or not MIN_CAPACITY <= capacity <= MAX_CAPACITY:
        raise _damaged("its ring has no valid head page")
    if not tail <= head <= tail + capacity or journal.stdout > totals[0] or journal.stderr > totals[1]:
        raise _damaged("the positions in its ring contradict each other")
    return _Header(capacity, tail, journal, head, (totals[0], totals[1], totals[2]))


def _pread(descriptor: int, capacity: int, position: int, size: int) -> bytes:
    """`size` bytes from `position` on, over the end of the file if it must be; fewer where the file is cut off."""
    start = position % capacity
    first = os.pread(descriptor, min(size, capacity - start), DATA + start)
    if size <= capacity - start or len(first) < capacity - start:
        return first
    return first + os.pread(descriptor, size - len(first), DATA)


_Checkpoint = tuple[int, int, int]
"""The position of a frame, and the bytes of stdout and of stderr before it."""


def _with(checkpoint: _Checkpoint, stream: int, offset: int) -> _Checkpoint:
    """The same with `offset` bytes of `stream` before it."""
    position, stdout, stderr = checkpoint
    return position, offset if stream == STDOUT else stdout, offset if stream == STDERR else stderr


class RingWriter:
    """The loader's side. Every method may raise OSError: the disk is full, or the file system failed.

    head: where the next frame begins; tail: where the oldest one does that is whole; journal: what `note_journal` noted
    last; totals: bytes written so far, of each of STREAMS.
    """

    def __init__(self, descriptor: int, header: _Header, checkpoints: list[_Checkpoint]) -> None:
        """checkpoints: frames in their order, the first of them the oldest one, or where that will be."""
        self.descriptor = descriptor
        self.capacity, self.tail, self.head = header.capacity, header.tail, header.head
        self.journal = header.journal
        self.totals = list(header.totals)
        self._checkpoints = checkpoints

    def __repr__(self) -> str:
        return f"RingWriter({self.tail} … {self.head} of {self.capacity})"

    @classmethod
    def create(cls, descriptor: int, capacity: int = DEFAULT_CAPACITY) -> RingWriter:
        """A new ring in the empty file, which takes room on its disk only as output comes.

        Raises OSError, ValueError for a capacity that is too small or too large.
        """
        if not MIN_CAPACITY <= capacity <= MAX_CAPACITY:
            raise ValueError(f"a ring holds {MIN_CAPACITY} to {MAX_CAPACITY} bytes, not {capacity}")
        os.ftruncate(descriptor, DATA + capacity)
        os.pwrite(descriptor, _FIXED.pack(_MAGIC, capacity), 0)
        return cls(descriptor, _read_header(descriptor), [(0, 0, 0)])

    @classmethod
    def resume(cls, descriptor: int) -> RingWriter:
        """The ring of a loader before us, from where its head was written last. Raises KeepfleetError(KEEP_FAILED)."""
        header = _read_header(descriptor)
        checkpoints: list[_Checkpoint] = []
        position = header.tail
        before = list(header.totals)  # of a stream without a frame; of the others it is where their first one begins
        seen: set[int] = set()
        while position < header.head:
            found = _pread(descriptor, header.capacity, position, HEADER)
            if len(found) < HEADER:
                raise _damaged("its ring is cut off")
            tag, length, _, own, offset = _FRAME.unpack(found)
            if not _is_header(tag, length, own, position) or position + HEADER + length > header.head:
                raise _damaged(f"the frame at {position} is damaged")
            stream = tag & 0xFF
            if stream not in seen:
                seen.add(stream)
                checkpoints = [_with(checkpoint, stream, offset) for checkpoint in checkpoints]
            before[stream - 1] = offset
            if not checkpoints or position - checkpoints[-1][0] >= _CHECKPOINT:
                checkpoints.append((position, before[0], before[1]))
            before[stream - 1] = offset + length
            position += HEADER + length
        if not checkpoints:
            checkpoints.append((header.head, before[0], before[1]))
        return cls(descriptor, header, checkpoints)

    @property
    def overwritten(self) -> tuple[int, int]:
        """Bytes of stdout and of stderr that the ring no longer has."""
        return self._checkpoints[0][1:]

    def room(self, kept: int) -> int:
        """Bytes that one frame may have now without overwriting what lies at `kept` and after; 0 where none fits."""
        unused = self.capacity - (self.head - self.tail)
        behind = self.capacity - (self.head - max(kept, self.tail)) - _LONGEST_STEP
        return max(0, min(MAX_FRAME, max(unused, behind) - HEADER))

    def append(self, stream: int, data: bytes, time_ns: int) -> None:
        """Writes one frame of at most MAX_FRAME bytes, over the oldest ones where there is no other room.

        Nothing has happened where it raises OSError, but that what it would have overwritten may be gone.
        """
        size = HEADER + len(data)
        if len(data) > MAX_FRAME:
            raise ValueError(f"a frame holds {MAX_FRAME} bytes, not {len(data)}")
        self._make_room(size)
        place = stream - 1
        header = _FRAME.pack(_TAG | stream, len(data), time_ns, self.head, self.totals[place])
        self._write((header, data), size)
        if self.head - self._checkpoints[-1][0] >= _CHECKPOINT:
            self._checkpoints.append((self.head, self.totals[0], self.totals[1]))
        self.head += size
        self.totals[place] += len(data)
        os.pwrite(self.descriptor, _HEAD.pack(self.head, *self.totals), _AT_HEAD)

    def note_journal(self, progress: Progress) -> None:
        """Notes how far the journal has the output."""
        self.journal = progress
        os.pwrite(self.descriptor, _JOURNAL.pack(progress.stdout, progress.stderr, progress.entries), _AT_JOURNAL)

    def _make_room(self, size: int) -> None:
        if self.head + size - self.tail <= self.capacity:
            return
        while self.head + size - self.tail > self.capacity:
            self._checkpoints.pop(0)
            if not self._checkpoints:
                self._checkpoints.append((self.head, self.totals[0], self.totals[1]))
            self.tail = self._checkpoints[0][0]
        os.pwrite(self.descriptor, _TAIL.pack(self.tail), _AT_TAIL)

    def _write(self, parts: Sequence[bytes], size: int) -> None:
        start = self.head % self.capacity
        if size <= self.capacity - start:
            written = os.pwritev(self.descriptor, parts, DATA + start)
        else:
            whole, cut = b"".join(parts), self.capacity - start
            written = os.pwrite(self.descriptor, whole[:cut], DATA + start)
            written += os.pwrite(self.descriptor, whole[cut:], DATA)
        if written != size:  # the disk was full, or a limit on files reached, after the first of the bytes
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _is_header(tag: int, length: int, own: int, position: int) -> bool:
    return tag & ~0xFF == _TAG and tag & 0xFF in STREAMS and own == position and length <= MAX_FRAME


class RingReader:
    """A reader's side. The writer may be hostile: every size is bounded, and nothing is believed unchecked.

    capacity: what the ring said when it was opened; it must not change.
    """

    def __init__(self, descriptor: int) -> None:
        """Raises KeepfleetError(KEEP_FAILED) for what is no ring, OSError."""
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _damaged("its ring is no regular file")
        self.descriptor = descriptor
        self.capacity = _read_header(descriptor).capacity

    def __repr__(self) -> str:
        return f"RingReader({self.descriptor})"

    def bounds(self) -> tuple[int, int]:
        """The positions of the oldest frame and of the end. Raises KeepfleetError(KEEP_FAILED), OSError."""
        header = self._header()
        return header.tail, header.head

    def journal(self) -> Progress:
        """How far the journal has the output. Raises as `bounds`."""
        return self._header().journal

    def read(self, position: int, limit: int = 4 * MAX_FRAME) -> tuple[list[Frame], int]:
        """The frames from `position` on, see `block`, and the position after them."""
        block = self.block(position, limit)
        return list(frames_in(block.data, block.position)), block.end

    def block(self, position: int, limit: int = 4 * MAX_FRAME) -> Block:
        """The whole frames from `position` on as they lie there, of about `limit` bytes together.

        Where `position` was overwritten it begins at the oldest frame; a frame's `offset` says what is missing. Nothing
        is returned where there is nothing more yet. Raises KeepfleetError(KEEP_FAILED), OSError.
        """
        header = self._header()
        if position > header.head:
            raise _damaged(f"position {position} lies after its end")
        position = max(position, header.tail)
        size = min(header.head - position, max(limit, HEADER + MAX_FRAME))
        data = _pread(self.descriptor, self.capacity, position, size)
        if len(data) < size:
            raise _damaged("its ring is cut off")
        overwritten = self._header().tail - position
        if overwritten > 0:  # while it was read: the oldest frame that is whole comes next
            if overwritten >= size:
                return Block(position + overwritten, b"")
            position, data = position + overwritten, data[overwritten:]
        whole, ends = _whole_frames(data, position)
        if data and not whole:
            raise _damaged(f"the frame at {position} is not whole")
        return Block(position, data[:whole], ends[STDOUT], ends[STDERR])

    def _header(self) -> _Header:
        header = _read_header(self.descriptor)
        if header.capacity != self.capacity:
            raise _damaged("the capacity of its ring has changed")
        return header


def _whole_frames(data: bytes, position: int) -> tuple[int, list[int]]:
    """The bytes of `data`, which lies at `position`, that are whole frames, and where each stream is after them.

    Raises KeepfleetError(KEEP_FAILED).
    """
    start, size, ends = 0, len(data), [0] * (MARK + 1)
    unpack, header = _FRAME.unpack_from, HEADER
    while size - start >= header:
        tag, length, _, own, offset = unpack(data, start)
        if not _is_header(tag, length, own, position + start):
            raise _damaged(f"the frame at {position + start} is damaged")
        end = start + header + length
        if end > size:
            break
        ends[tag & 0xFF] = offset + length
        start = end
    return start, ends


def frames_in(data: bytes, position: int) -> Iterator[Frame]:
    """The frames in a block that lies at `position`; what is not whole at its end is left out.

    Raises KeepfleetError(KEEP_FAILED) for one that is damaged, also where it came over a network.
    """
    (end, _), start = _whole_frames(data, position), 0
    while start < end:
        tag, length, time_ns, own, offset = _FRAME.unpack_from(data, start)
        yield Frame(tag & 0xFF, time_ns, own, offset, data[start + HEADER : start + HEADER + length])
        start += HEADER + length


def encode_frame(stream: int, data: bytes, position: int = 0) -> bytes:
    """A frame that stands in no ring: END or ALIVE."""
    return _FRAME.pack(_TAG | stream, len(data), 0, position, 0) + data


def decode_head(header: bytes | memoryview) -> tuple[int, int, int, int, int]:
    """Stream, length of the data, monotonic nanoseconds, own position, and its stream's bytes before, of a frame whose
    HEADER bytes `header` begins with: of one that a client may be sent. Raises KeepfleetError(KEEP_FAILED)."""
    tag, length, time_ns, own, offset = _FRAME.unpack_from(header)
    stream = tag & 0xFF
    if tag & ~0xFF != _TAG or length > (MAX_END if stream == END else MAX_FRAME):
        raise _damaged("what was received is no frame")
    if stream not in (*STREAMS, END, ALIVE):
        raise _damaged("what was received is a frame of no stream")
    return stream, length, time_ns, own, offset


class OutputDecoder:
    """Bytes of an answer in, frames out; bounded in memory. Positions only grow; each frame's `offset` says what is
    missing before it."""

    def __init__(self) -> None:
        self._rest = b""
        self._position = 0

    def __repr__(self) -> str:
        return f"OutputDecoder(at {self._position}, {len(self._rest)} bytes held)"

    @property
    def whole(self) -> bool:
        """Whether nothing of a frame is waiting for its end."""
        return not self._rest

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes. Raises KeepfleetError(KEEP_FAILED) for what cannot be read."""
        data, start, frames = self._rest + data if self._rest else data, 0, []
        size = len(data)
        while size - start >= HEADER:
            stream, length, time_ns, own, offset = decode_head(data[start : start + HEADER])
            if start + HEADER + length > size:
                break
            if stream in STREAMS:
                if own < self._position:
                    raise _damaged(f"the frame at {own} comes after position {self._position}")
                self._position = own + HEADER + length
            frames.append(Frame(stream, time_ns, own, offset, data[start + HEADER : start + HEADER + length]))
            start += HEADER + length
        self._rest = data[start:]
        return frames
