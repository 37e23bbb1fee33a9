"""The ring between an application and its data collector: shared memory that one process writes and another reads.

    bytes 64, 72, 80      the writer's: bytes written, messages written, messages lost
    bytes 128, 136, 144   the reader's: bytes read, messages read, 1 while it waits to be woken
    bytes 4096 …          the records, each 4 bytes of the message's size, the stream's ID, the message

Bytes are counted from the ring's beginning on and never go back; where one lies is its count modulo the capacity. Each
end has its own counts in its own memory, and checks the other's before use: who scribbles on the ring loses his own
messages, and harms no other process. Import rule: the standard library, keep_protocol, codelets.channels.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import threading
from collections.abc import Sequence

from codelets.channels import STREAM_BYTES
from keep_protocol.errors import ErrorKind, KeepfleetError

RING_BYTES = 4 * 1024 * 1024
"""Some fifty thousand messages of 64 bytes: a quarter of a second at 200,000 a second."""
MIN_RING_BYTES, MAX_RING_BYTES = 4096, 256 * 1024 * 1024
RECORD_BYTES = 4 + STREAM_BYTES
"""Of a record, without its message."""
MAX_MESSAGE_BYTES = 64 * 1024
"""storage.MAX_ITEM_BYTES: of one message of a channel."""
HEADER_BYTES = 4096
_WRITTEN, _SENT, _LOST, _READ, _TAKEN, _WAITING = (
    8,
    9,
    10,
    16,
    17,
    18,
)  # the ends' words lie in cache lines of their own
_HEAD = struct.Struct(f"<I{STREAM_BYTES}s")
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
"""The size can no longer change: what is mapped stays there, and no access ends in SIGBUS."""


class RingFault(Exception):
    """What the other end wrote into the ring cannot be."""


class _Fence:
    """Orders this thread's accesses to the ring: those before are seen by the other process before those after.

    Releasing a lock and taking it again is a barrier of which Python has no other: without it any processor may show
    the index before the bytes that it counts, or read "no reader waits" before the index is seen.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def __call__(self) -> None:
        self._lock.release()
        self._lock.acquire()


class _Ring:
    """One end's view of the memory behind `file`."""

    def __init__(self, file: int, size: int) -> None:
        self.capacity = size - HEADER_BYTES
        self._map = mmap.mmap(file, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        view = memoryview(self._map)
        self._words, self._records = view[:HEADER_BYTES].cast("Q"), view[HEADER_BYTES:]
        self._fence = _Fence()

    def close(self) -> None:
        """Lets the memory go."""
        self._words.release()
        self._records.release()
        self._map.close()


class Writer(_Ring):
    """The application's end. file: of the memory, to be given to the reader. Used by one thread at a time."""

    def __init__(self, ring_bytes: int = RING_BYTES) -> None:
        """Raises OSError where there is no memory."""
        size = HEADER_BYTES + ring_bytes
        self.file = os.memfd_create("codelets-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(self.file, 0, size)
            fcntl.fcntl(self.file, fcntl.F_ADD_SEALS, _SEALS | fcntl.F_SEAL_SEAL)
            super().__init__(self.file, size)
        except BaseException:
            os.close(self.file)
            raise
        self._written = self.sent = self.lost = 0

    def __repr__(self) -> str:
        return f"Writer({self.sent} messages, {self.lost} lost)"

    def room(self) -> int:
        """Bytes that are free. Raises RingFault."""
        used = self._written - self._words[_READ]
        if not 0 <= used <= self.capacity:
            raise RingFault(f"the reader's index is {used} bytes behind, of a ring of {self.capacity}")
        return self.capacity - used

    def write(self, stream: bytes, messages: Sequence[bytes]) -> bool:
        """Writes messages of a stream, of which those that find no room are counted as lost; whether the reader is to
        be woken. Raises RingFault."""
        room, pieces, sent = self.room(), list[bytes](), 0
        pack, head = _HEAD.pack, _HEAD.size
        for message in messages:
            size = len(message)
            if room < head + size:
                self.lost += 1
                continue
            room -= head + size
            pieces += (pack(size, stream), message)
            sent += 1
        self._words[_LOST] = self.lost
        if not sent:
            return False
        self._copy(b"".join(pieces))
        self.sent += sent
        self._fence()
        self._words[_SENT], self._words[_WRITTEN] = self.sent, self._written
        self._fence()
        waits = bool(self._words[_WAITING])
        if waits:  # woken once: it says so again when it waits again
            self._words[_WAITING] = 0
        return waits

    def _copy(self, data: bytes) -> None:
        at = self._written % self.capacity
        until_end = self.capacity - at
        if len(data) <= until_end:
            self._records[at : at + len(data)] = data
        else:
            self._records[at:] = data[:until_end]
            self._records[: len(data) - until_end] = data[until_end:]
        self._written += len(data)

    def unread(self) -> int:
        """Messages that the reader has not taken, as far as it can be believed."""
        return self.sent - min(self._words[_TAKEN], self.sent)

    def close(self) -> None:
        """Lets the memory go; a reader that has it keeps it."""
        super().close()
        os.close(self.file)


class Reader(_Ring):
    """The collector's end. Used by one thread at a time."""

    def __init__(self, file: int) -> None:
        """Takes over `file`. Raises KeepfleetError for what is no ring: nothing in it is read before that is known."""
        try:
            size = _checked_size(file)
            super().__init__(file, size)
        finally:
            os.close(file)
        self._read = self._taken = 0

    def __repr__(self) -> str:
        return f"Reader({self._taken} messages)"

    @property
    def lost(self) -> int:
        """Messages that found no room, as the writer counts them."""
        return self._words[_LOST]

    def take(self) -> list[tuple[bytes, bytes]]:
        """The stream and bytes of every message that is there; it has room for others then. Raises RingFault."""
        size = self._words[_WRITTEN] - self._read
        if not size:
            return []
        if not 0 < size <= self.capacity:
            raise RingFault(f"the writer's index is {size} bytes ahead, of a ring of {self.capacity}")
        self._fence()
        at = self._read % self.capacity
        data = bytes(self._records[at : at + size])
        if len(data) < size:
            data += bytes(self._records[: size - len(data)])
        found = _parsed(data)
        self._fence()
        self._read += size
        self._taken += len(found)
        self._words[_READ], self._words[_TAKEN] = self._read, self._taken
        return found

    def must_wait(self) -> bool:
        """Says that this end waits to be woken, and whether there is still nothing to take."""
        self._words[_WAITING] = 1
        self._fence()
        return self._words[_WRITTEN] == self._read


def _parsed(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at, end, head = [], 0, len(data), _HEAD.size
    unpack = _HEAD.unpack_from
    while at < end:
        if end - at < head:
            raise RingFault("a record is cut")
        size, stream = unpack(data, at)
        begin = at + head
        at = begin + size
        if size > MAX_MESSAGE_BYTES or at > end:
            raise RingFault(f"a record has {size} bytes")
        found.append((stream, data[begin:at]))
    return found


def _checked_size(file: int) -> int:
    try:
        seals = fcntl.fcntl(file, fcntl.F_GET_SEALS)
    except OSError as error:
        raise _refused(f"it is no memory of that kind: {error.strerror}") from error
    if seals & _SEALS != _SEALS:
        raise _refused("its size is not sealed")
    size = os.fstat(file).st_size
    if not MIN_RING_BYTES <= size - HEADER_BYTES <= MAX_RING_BYTES:
        raise _refused(f"it has {size} bytes")
    return size


def _refused(why: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot use the application's ring: {why}")
