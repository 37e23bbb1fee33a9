"""The ring that holds a keep's output: one file, written by its loader, read by the manager at any moment.

    0      magic, capacity              once
    16     tail                         before what lies there is overwritten
    24     journal's progress           after each journal entry, so that a crash repeats none
    48     head, three stream totals    after the data they count
    4096   the data, `capacity` bytes, used round and round

Positions only grow; the byte at position p lies at 4096 + p % capacity. What was read in one call is one frame: its
header, then the bytes. A header repeats its own position, so that a reader that was overtaken notices, and how many
bytes of its stream came before it, so that what a reader missed can be counted exactly.
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
DATA = 4096
"""Where the data begins."""
DEFAULT_CAPACITY = 16 * 1024 * 1024
MIN_CAPACITY, MAX_CAPACITY = 1024 * 1024, 1024 * 1024 * 1024
MAX_FRAME = 256 * 1024
"""Bytes of one frame, without its header: more than a pipe gives in one call."""
_CHECKPOINT = 64 * 1024
"""The tail moves over about so many bytes in one step: a header is not read for each frame that is overwritten."""
_LONGEST_STEP = _CHECKPOINT + MAX_FRAME + 64
"""How far the tail may move beyond what is needed: from one checkpoint to the next, which is where a frame begins."""
_MAGIC = b"keepring"
TAG = 0x6B72_6600
"""The first word of a header, with the stream in its low byte."""
_FIXED, _TAIL, _JOURNAL, _HEAD = (
    struct.Struct("<8sQ"),
    struct.Struct("<Q"),
    struct.Struct("<QQQ"),
    struct.Struct("<QQQQ"),
)
_PAGE = struct.Struct("<8s9Q")
"""All of it together."""
FRAME = struct.Struct("<IIQQQ")
_ACKNOWLEDGEMENT = struct.Struct("<QQQQ")
_CLOCK = struct.Struct("<Q")
NOT_KEPT = (1 << 64) - 1
HEADER = FRAME.size
"""Bytes of a frame's header: tag and stream, length, monotonic nanoseconds, own position, its stream's bytes before."""
LONGEST = HEADER + MAX_FRAME
"""Bytes of the longest frame."""
_AT_TAIL, _AT_JOURNAL, _AT_HEAD = 16, 24, 48


def damaged(why: str) -> KeepfleetError:
    """The error for what cannot be read."""
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
        raise damaged("a mark has no clock")
    return Mark(_CLOCK.unpack_from(data)[0], data[_CLOCK.size :].decode("utf-8", "replace"))


class Block(Record):
    """Whole frames as they lie in the ring.

    position: of the first; data: their bytes; stdout and stderr: the bytes of each up to the last frame of it, 0 where
    there is none.
    """

    position: int
    data: bytes | memoryview
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


_Header = tuple[int, int, int, tuple[int, int, int], tuple[int, int, int]]
"""Capacity, tail, head, journal's progress, and the totals of the streams: no record, as it is read for each block."""


def _read_header(descriptor: int) -> _Header:
    """The head page, checked. Raises KeepfleetError(KEEP_FAILED), OSError."""
    page = os.pread(descriptor, _PAGE.size, 0)
    if len(page) != _PAGE.size:
        raise damaged("its ring is cut off")
    magic, capacity, tail, stdout, stderr, entries, head, *totals = _PAGE.unpack(page)
    if magic != _MAGIC or not MIN_CAPACITY <= capacity <= MAX_CAPACITY:
        raise damaged("its ring has no valid head page")
    if not tail <= head <= tail + capacity or stdout > totals[0] or stderr > totals[1]:
        raise damaged("the positions in its ring contradict each other")
    return capacity, tail, head, (stdout, stderr, entries), (totals[0], totals[1], totals[2])


def _pread(descriptor: int, capacity: int, position: int, into: memoryview) -> int:
    """Fills `into` with the bytes from `position` on, over the end of the file if it must be. Returns how many there
    are: fewer where the file is cut off."""
    start = position % capacity
    before_end = capacity - start
    size = os.preadv(descriptor, (into[:before_end],), DATA + start)
    if size < before_end or size == len(into):
        return size
    return size + os.preadv(descriptor, (into[size:],), DATA)


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
        self.capacity, self.tail, self.head, journal, totals = header
        self.journal, self.totals = Progress(*journal), list(totals)
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
        capacity, position, head, _, totals = header
        checkpoints: list[_Checkpoint] = []
        before = list(totals)  # of a stream without a frame; of the others it is where their first one begins
        found = memoryview(bytearray(HEADER))
        seen: set[int] = set()
        while position < head:
            if _pread(descriptor, capacity, position, found) < HEADER:
                raise damaged("its ring is cut off")
            tag, length, _, own, offset = FRAME.unpack(found)
            if not _is_header(tag, length, own, position) or position + HEADER + length > head:
                raise damaged(f"the frame at {position} is damaged")
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
            checkpoints.append((head, before[0], before[1]))
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

    def append(self, stream: int, data: bytes | memoryview, time_ns: int) -> None:
        """Writes one frame of at most MAX_FRAME bytes, over the oldest ones where there is no other room.

        Nothing has happened where it raises OSError, but that what it would have overwritten may be gone.
        """
        size = HEADER + len(data)
        if len(data) > MAX_FRAME:
            raise ValueError(f"a frame holds {MAX_FRAME} bytes, not {len(data)}")
        self._make_room(size)
        self._write((self._header(stream, len(data), time_ns), data), size)
        self._count(stream, len(data))

    def append_from(self, pipe: int, stream: int, size: int, time_ns: int) -> int:
        """One frame of `size` bytes that are in the pipe, or of fewer, which the kernel moves from there; how many.

        Where it raises OSError nothing has happened, but that what it would have overwritten may be gone: what was to
        be moved is in the pipe still.
        """
        start = (self.head + HEADER) % self.capacity
        size = min(size, MAX_FRAME, self.capacity - start)
        self._make_room(HEADER + size)
        self._write((self._header(stream, size, time_ns),), HEADER)  # first: it may fail, and nothing is moved then
        moved = os.splice(pipe, self.descriptor, size, offset_dst=DATA + start)
        if moved != size:
            self._write((self._header(stream, moved, time_ns),), HEADER)
        if moved:
            self._count(stream, moved)
        return moved

    def _header(self, stream: int, size: int, time_ns: int) -> bytes:
        return FRAME.pack(TAG | stream, size, time_ns, self.head, self.totals[stream - 1])

    def _count(self, stream: int, size: int) -> None:
        """The next frame has been written, with so many bytes."""
        if self.head - self._checkpoints[-1][0] >= _CHECKPOINT:
            self._checkpoints.append((self.head, self.totals[0], self.totals[1]))
        self.head += HEADER + size
        self.totals[stream - 1] += size
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

    def _write(self, parts: Sequence[bytes | memoryview], size: int) -> None:
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
    return tag & ~0xFF == TAG and tag & 0xFF in STREAMS and own == position and length <= MAX_FRAME


class RingReader:
    """A reader's side. The writer may be hostile: every size is bounded, and nothing is believed unchecked.

    capacity: what the ring said when it was opened; it must not change.
    """

    def __init__(self, descriptor: int) -> None:
        """Raises KeepfleetError(KEEP_FAILED) for what is no ring, OSError."""
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise damaged("its ring is no regular file")
        self.descriptor = descriptor
        self.capacity = _read_header(descriptor)[0]

    def __repr__(self) -> str:
        return f"RingReader({self.descriptor})"

    def bounds(self) -> tuple[int, int]:
        """The positions of the oldest frame and of the end. Raises KeepfleetError(KEEP_FAILED), OSError."""
        capacity, tail, head, _, _ = _read_header(self.descriptor)
        if capacity != self.capacity:
            raise damaged("the capacity of its ring has changed")
        return tail, head

    def journal(self) -> Progress:
        """How far the journal has the output. Raises as `bounds`."""
        return Progress(*_read_header(self.descriptor)[3])

    def read(self, position: int, limit: int = 4 * MAX_FRAME) -> tuple[list[Frame], int]:
        """The frames from `position` on, see `block`, and the position after them."""
        block = self.block(position, limit)
        return list(frames_in(block.data, block.position)), block.end

    def block(self, position: int, limit: int = 4 * MAX_FRAME) -> Block:
        """The whole frames from `position` on, see `fill`, of about `limit` bytes together."""
        position, size = self._extent(position, max(limit, LONGEST))
        return self._whole(position, memoryview(bytearray(size)))

    def fill(self, room: memoryview, position: int) -> Block:
        """Whole frames from `position` on as they lie there, as many as fit into `room`, and at its beginning: it has
        LONGEST bytes or more.

        Where `position` was overwritten it begins at the oldest frame; a frame's `offset` says what is missing. Nothing
        is returned where there is nothing more yet. Raises KeepfleetError(KEEP_FAILED), OSError.
        """
        position, size = self._extent(position, len(room))
        return self._whole(position, room[:size])

    def _extent(self, position: int, most: int) -> tuple[int, int]:
        """Where to read from, and how many bytes are there."""
        tail, head = self.bounds()
        if position > head:
            raise damaged(f"position {position} lies after its end")
        position = max(position, tail)
        return position, min(head - position, most)

    def _whole(self, position: int, data: memoryview) -> Block:
        """Reads into `data`, which is as long as LONGEST or reaches up to where a frame ends."""
        if not data:
            return Block(position, data, 0, 0)
        if _pread(self.descriptor, self.capacity, position, data) < len(data):
            raise damaged("its ring is cut off")
        overwritten = max(0, self.bounds()[0] - position)
        if overwritten:  # while it was read: the oldest frame that is whole comes next
            left = max(0, len(data) - overwritten)
            data[:left] = data[overwritten:]
            position, data = position + overwritten, data[:left]
        whole, ends = _whole_frames(data, position)
        if not whole and not overwritten:
            raise damaged(f"the frame at {position} is not whole")
        return Block(position, data[:whole], ends[STDOUT], ends[STDERR])


def _whole_frames(data: bytes | memoryview, position: int) -> tuple[int, list[int]]:
    """The bytes of `data`, which lies at `position`, that are whole frames, and where each stream is after them.

    Raises KeepfleetError(KEEP_FAILED).
    """
    start, size, ends = 0, len(data), [0] * (MARK + 1)
    unpack, header = FRAME.unpack_from, HEADER
    while size - start >= header:
        tag, length, _, own, offset = unpack(data, start)
        if not _is_header(tag, length, own, position + start):
            raise damaged(f"the frame at {position + start} is damaged")
        end = start + header + length
        if end > size:
            break
        ends[tag & 0xFF] = offset + length
        start = end
    return start, ends


def parts_in(data: bytes | memoryview, position: int) -> Iterator[tuple[int, int, memoryview]]:
    """The frames in a block that lies at `position`, each as its stream, its offset there and its bytes, which are not
    copied. Raises KeepfleetError(KEEP_FAILED) for one that is damaged."""
    (end, _), start, view = _whole_frames(data, position), 0, memoryview(data)
    while start < end:
        tag, length, _, _, offset = FRAME.unpack_from(data, start)
        start += HEADER + length
        yield tag & 0xFF, offset, view[start - length : start]


def frames_in(data: bytes | memoryview, position: int) -> Iterator[Frame]:
    """The frames in a block that lies at `position`; what is not whole at its end is left out.

    Raises KeepfleetError(KEEP_FAILED) for one that is damaged.
    """
    (end, _), start = _whole_frames(data, position), 0
    while start < end:
        tag, length, time_ns, own, offset = FRAME.unpack_from(data, start)
        yield Frame(tag & 0xFF, time_ns, own, offset, bytes(data[start + HEADER : start + HEADER + length]))
        start += HEADER + length
