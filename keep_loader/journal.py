"""The guest's output in the journal: a follower of the ring, over journald's native protocol.

One entry a line while it keeps up; when it is behind, several lines in one, cut at a newline. It never waits, and
the guest never waits for it: what it cannot send in time it leaves out, counted, in one entry that says so.
journald drops what comes faster than its limit of entries in one interval, and after it has stood still that limit
meets everything that has queued up meanwhile. So the pace is at most half of the limit, and earned only while journald
has read all that was sent: then no more than the limit can ever be in one interval.
The native protocol keeps blank lines, trailing blanks, CR, NUL and long lines, which a unit's own stream does not
(https://systemd.io/JOURNAL_NATIVE_PROTOCOL).
Import rule: that of keep_loader.
"""

from __future__ import annotations

import errno
import fcntl
from _collections_abc import Callable, Sequence

from keep_protocol import sockets as socket
from keep_protocol.enumeration import Enum
from keep_protocol.ring import HEADER, LONGEST, STDERR, STDOUT, Progress, RingReader, RingWriter, parts_in

MAX_ENTRY = 48 * 1024
"""Bytes of one entry's message: the kernel's default room for a datagram is 208 KiB, journald cuts streams here too."""
PACKED = 4 * 1024
"""Bytes of a packed entry while little is waiting: `systemctl status` shows ten entries, however long they are."""
PACK_OVER = 64 * 1024
"""Bytes waiting above which lines are packed."""
PACK_FULLY_OVER = 256 * 1024
"""Bytes waiting above which entries are as long as they can be, until they have all been sent."""
LAST_WORDS = 64 * 1024
"""Bytes at the guest's end that are sent whatever waits before them: they are what people look for."""
LAST_ENTRIES = LAST_WORDS // PACKED + 8
"""Entries that LAST_WORDS take, and those that say what was left out: held back from the pace until the end."""
LOOK_BYTES, LOOK_SECONDS = 256 * 1024, 0.02
"""The most that is sent in one look while the guest lives, and the time to the next: 13 MB/s. A byte costs journald as
much processor time as all others on its way to a reader together; a flood that fits into the ring is in the journal
after it, and of a longer one it cannot have all in any case."""
BYTES_PER_SECOND = 1_000_000
BURST_BYTES = 16_000_000
"""The journal is the whole host's, and old entries leave it for new ones."""
SHORTEST_SECONDS = 0.01
FULL_SECONDS = 0.02
"""Until journald is tried again whose queue was full: it takes 512 entries, and reads them in milliseconds."""
LAST_PATIENCE_SECONDS = 1.0
"""How long a journald may take nothing, once the guest has ended, until what waits is left out but for the last words.
One that a busy host lets run seldom takes something each time, and gets everything."""
_STREAMS = (STDOUT, STDERR)
_PRIORITY = {STDOUT: 6, STDERR: 3}
"""journald limits each priority by itself: what floods one stream does not cost the other's lines."""
_NAME = {STDOUT: "stdout", STDERR: "stderr"}
_SIOCOUTQ = 0x5411
"""Bytes that were sent and are not read yet (man 7 unix)."""
_FULL = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)
_GONE = (errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOTCONN, errno.EPIPE, errno.EDESTADDRREQ)
"""A socket that journald was connected by stays dead once systemd-journald.socket was stopped."""


class Sent(Enum):
    """What became of one entry: journald has it, cannot take it at this moment, or is not there any more."""

    TAKEN = "taken"
    FULL = "full"
    GONE = "gone"


def entry(fields: Sequence[tuple[str, bytes]]) -> bytes:
    """One entry in the native protocol; a value with a newline is framed by its length."""
    parts: list[bytes] = []
    for name, value in fields:
        if b"\n" in value:
            parts += (name.encode(), b"\n", len(value).to_bytes(8, "little"), value, b"\n")
        else:
            parts += (name.encode(), b"=", value, b"\n")
    return b"".join(parts)


class Pace:
    """How many entries and bytes may be sent: earned by time, and only while journald has read everything before."""

    def __init__(self, entries_per_second: float, now: float) -> None:
        """entries_per_second: half of what journald lets through for each second of its interval."""
        self._rate = entries_per_second
        self._most = max(1.0, entries_per_second - LAST_ENTRIES)
        self._entries, self._bytes = self._most, float(BURST_BYTES)
        self._at = now

    def __repr__(self) -> str:
        return f"Pace({self._entries:.0f} entries, {self._bytes:.0f} bytes)"

    def earn(self, now: float, *, all_read: bool) -> None:
        """Time has passed until `now`; it counts only where journald has read everything that was sent."""
        passed, self._at = max(0.0, now - self._at), now
        if all_read:
            self._entries = min(self._most, self._entries + passed * self._rate)
            self._bytes = min(float(BURST_BYTES), self._bytes + passed * BYTES_PER_SECOND)

    def may(self) -> bool:
        """Whether another entry may be sent now."""
        return self._entries >= 1.0 and self._bytes > 0.0

    @property
    def ample(self) -> bool:
        """Whether less than half of what could be sent has been: lines need not share entries."""
        return self._entries > self._most / 2

    def spend(self, size: int) -> None:
        """One entry of so many bytes was sent."""
        self._entries -= 1.0
        self._bytes -= size

    def seconds(self) -> float:
        """When another one may be sent, if journald reads meanwhile."""
        return max((1.0 - self._entries) / self._rate, -self._bytes / BYTES_PER_SECOND, 0.0)


class _Stream:
    """One stream's bytes that are in no entry yet. start: how many came before them."""

    def __init__(self, start: int) -> None:
        self.start = start
        self._bytes = b""
        self._at = 0  # what comes before it was taken: a copy of the rest for each entry would cost more than all else

    @property
    def end(self) -> int:
        return self.start + len(self._bytes) - self._at

    def add(self, parts: Sequence[bytes | memoryview]) -> None:
        """More of the stream."""
        self._bytes, self._at = b"".join([memoryview(self._bytes)[self._at :], *parts]), 0

    def cut(self, longest: int, *, one_line: bool, last: bool) -> tuple[bytes, int, bool]:
        """What the next entry has: its message, the bytes it takes of the stream, and whether it ends within a line.

        Nothing is taken of a line that is not whole, unless it is longer than an entry, or the last.
        """
        data, at = self._bytes, self._at
        newline = data.find(b"\n", at, at + longest) if one_line else data.rfind(b"\n", at, at + longest)
        if newline < 0 and not one_line:
            newline = data.find(b"\n", at, at + MAX_ENTRY)
        if newline >= 0:
            return data[at:newline], newline + 1 - at, False
        left = len(data) - at
        if left >= MAX_ENTRY or (last and left):
            message = data[at : at + MAX_ENTRY]
            return message, len(message), not last or left > MAX_ENTRY
        return b"", 0, False

    def take(self, size: int) -> None:
        self._at = min(self._at + size, len(self._bytes))
        self.start += size


class JournalFollower:
    """Follows the ring and sends its output on.

    skipped: bytes of each stream that it has left out; gone: whether journald's socket has to be opened again.
    """

    def __init__(
        self,
        ring: RingWriter,
        pace: Pace,
        send: Callable[[bytes], Sent],
        all_read: Callable[[], bool],
        fields: Sequence[tuple[str, bytes]],
    ) -> None:
        """send: sends one entry; all_read: whether journald has read everything before; fields: of every entry."""
        self._ring, self._reader, self._pace = ring, RingReader(ring.descriptor), pace
        self._send, self._all_read, self._fields = send, all_read, tuple(fields)
        self._streams = {STDOUT: _Stream(ring.journal.stdout), STDERR: _Stream(ring.journal.stderr)}
        self._entries = ring.journal.entries
        self._position = ring.tail
        self._room = memoryview(bytearray(LONGEST))  # for all reads: pages that are not needed are not there
        self._turn, self._packed = STDOUT, PACKED
        self._unsaid = {STDOUT: 0, STDERR: 0}
        self.skipped = {STDOUT: 0, STDERR: 0}
        self.gone = False
        self._sent = 0  # bytes of all entries by now
        self._took_at: float | None = None  # once the guest has ended: when journald has taken something

    def __repr__(self) -> str:
        return f"JournalFollower({self._entries} entries, {self.waiting} bytes waiting, {self._pace!r})"

    def all_read(self) -> bool:
        """Whether journald has read everything that was sent."""
        return self._all_read()

    @property
    def waiting(self) -> int:
        """Bytes of the ring that are in no entry yet."""
        taken = sum(stream.start for stream in self._streams.values())
        return self._ring.totals[STDOUT - 1] + self._ring.totals[STDERR - 1] - taken

    def pump(self, now: float, *, last: bool = False) -> float | None:
        """Sends what may be sent now. Seconds until it wants to be called again, or None until there is more output.

        last: the guest has ended: once the pace has come to its end, or journald has taken nothing for
        LAST_PATIENCE_SECONDS, its last words are sent beyond it, and what else waits is left out.
        """
        self._pace.earn(now, all_read=self._all_read())
        self._packed = MAX_ENTRY if self.waiting > PACK_FULLY_OVER else PACKED
        if last and self._took_at is None:
            self._took_at = now
        before = self._sent
        while True:
            self._read_on()
            if not any(self._unsaid.values()) and not self._can_cut(last):
                return None
            if not last and self._sent - before >= LOOK_BYTES:
                return LOOK_SECONDS
            if not self._pace.may():
                if not last:
                    return max(self._pace.seconds(), SHORTEST_SECONDS)
                self._leave_out_all_but_last_words()
            if not self._send_next(last):
                if self._took_at is not None and now - self._took_at > LAST_PATIENCE_SECONDS:
                    self._leave_out_all_but_last_words()  # it takes none now, either: we were not the late ones
                return FULL_SECONDS
            if self._took_at is not None:
                self._took_at = now

    def _send_next(self, last: bool) -> bool:
        """Sends one entry; false where journald does not take it now."""
        if any(self._unsaid.values()):
            return self._say_what_is_missing()
        waiting = self.waiting
        stream = self._streams[self._turn]
        one_line = waiting <= PACK_OVER and self._pace.ample
        message, size, cut = stream.cut(self._packed if not one_line else MAX_ENTRY, one_line=one_line, last=last)
        own: list[tuple[str, bytes]] = [("PRIORITY", b"%d" % _PRIORITY[self._turn])]
        own.append(("KEEP_STREAM", _NAME[self._turn].encode()))
        if cut:
            own.append(("KEEP_CUT", b"1"))
        if not self._deliver([("MESSAGE", message), *own]):
            return False
        stream.take(size)
        self._note()
        return True

    def _say_what_is_missing(self) -> bool:
        missing = {stream: size for stream, size in self._unsaid.items() if size}
        text = " and ".join(f"{size} bytes of {_NAME[stream]}" for stream, size in missing.items())
        own = [(f"KEEP_SKIPPED_{_NAME[stream].upper()}", b"%d" % size) for stream, size in missing.items()]
        fields = [("MESSAGE", f"{text} are not in the journal".encode()), ("PRIORITY", b"4"), *own]
        if not self._deliver(fields):
            return False
        self._unsaid = {STDOUT: 0, STDERR: 0}
        self._note()
        return True

    def _deliver(self, fields: Sequence[tuple[str, bytes]]) -> bool:
        data = entry([*fields, ("KEEP_SEQ", b"%d" % self._entries), *self._fields])
        sent = self._send(data)
        self.gone = sent is Sent.GONE
        if sent is not Sent.TAKEN:
            return False
        self._pace.spend(len(data))
        self._entries += 1
        self._sent += len(data)
        return True

    def _note(self) -> None:
        self._ring.note_journal(
            Progress(self._streams[STDOUT].start, self._streams[STDERR].start, self._entries),
        )

    def _can_cut(self, last: bool) -> bool:
        """Whether there is an entry to send; the stream that it is of has its turn then."""
        for stream in (self._turn, *(other for other in _STREAMS if other != self._turn)):
            if self._streams[stream].cut(MAX_ENTRY, one_line=True, last=last)[1]:
                self._turn = stream
                return True
        return False

    def _read_on(self) -> None:
        """Takes frames up to the next change of stream, so that the lines of both stay in their order."""
        while not self._can_cut(False):
            block = self._reader.fill(self._room, self._position)
            self._position = block.position
            if not block.data:
                return
            turn, parts = 0, list[tuple[int, memoryview]]()
            for stream, offset, data in parts_in(block.data, block.position):
                if turn and stream != turn:
                    break
                turn = stream
                parts.append((offset, data))
                self._position += HEADER + len(data)
            if turn in _STREAMS:
                self._take(turn, parts)
                self._turn = turn

    def _take(self, stream: int, parts: Sequence[tuple[int, memoryview]]) -> None:
        """Takes what follows one another in a stream, each part with its offset there."""
        held, (first, _) = self._streams[stream], parts[0]
        self._skip(stream, first if first > held.end else held.start)  # what was overwritten before it was read
        end = held.end
        held.add([data[max(0, end - offset) :] for offset, data in parts])

    def _skip(self, stream: int, offset: int) -> None:
        """Leaves out what comes before the stream's byte `offset`, and counts it."""
        held = self._streams[stream]
        size = offset - held.start
        held.take(size)
        self._unsaid[stream] += size
        self.skipped[stream] += size

    def _leave_out_all_but_last_words(self) -> None:
        """Goes on with the last bytes of both streams where more than those wait."""
        if self.waiting <= LAST_WORDS:
            return
        while True:
            block = self._reader.fill(self._room, self._position)
            self._position = block.end
            if not block.data:
                return
            for stream, offset, data in parts_in(block.data, block.position):
                if stream in _STREAMS:
                    last_words = self._ring.totals[stream - 1] - LAST_WORDS // len(_STREAMS)
                    end = offset + len(data)
                    self._skip(stream, max(self._streams[stream].start, min(end, last_words)))
                    self._take(stream, [(offset, data)])


class JournalSocket:
    """Owns the socket to journald, until it is replaced or closed."""

    def __init__(self, descriptor: int) -> None:
        """Takes `descriptor` over."""
        self._sock = socket.socket(fileno=descriptor)

    def __repr__(self) -> str:
        return f"JournalSocket({self._sock.fileno()})"

    def replace(self, descriptor: int) -> None:
        """Goes on with another one, which it takes over."""
        self._sock.close()
        self._sock = socket.socket(fileno=descriptor)

    def send(self, data: bytes) -> Sent:
        """Sends one entry, and does not wait. Raises OSError for what a datagram cannot be."""
        try:
            self._sock.send(data, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        except OSError as error:
            if error.errno in _FULL:
                return Sent.FULL
            if error.errno in _GONE:
                return Sent.GONE
            raise
        return Sent.TAKEN

    def all_read(self) -> bool:
        """Whether journald has read everything that was sent."""
        return not any(fcntl.ioctl(self._sock.fileno(), _SIOCOUTQ, bytes(4)))

    def close(self) -> None:
        """Closes it."""
        self._sock.close()
