"""The guest's output on its way: two pipes, the ring, and those who are notified that there is more.

The guest waits for readers that the manager names, never for the journal. A token goes to the manager when there is
more and the last one was answered, so that a flood costs no wake-up a write, and a quiet keep nothing.
Import rule: that of keep_loader.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time

from keep_loader.journal import JournalFollower
from keep_loader.loop import READABLE, Action, Loop, log
from keep_protocol import sockets as socket
from keep_protocol.errors import KeepfleetError
from keep_protocol.ring import (
    MARK,
    MAX_FRAME,
    NOT_KEPT,
    STDERR,
    STDOUT,
    TOKEN,
    Acknowledgement,
    Mark,
    RingWriter,
    decode_acknowledgement,
)

PIPE_BYTES = 1024 * 1024
"""What the guest may be ahead of its loader; a user without privileges has 64 MiB for all pipes, and then gets less."""
REST_SECONDS, LONG_REST_SECONDS = 0.001, 0.012
"""Until pipes are looked at again that give little each time, and one time soon after the other: a guest that writes
line by line wakes its loader, and that the manager and the client, for thousands of lines together. The long one is for
what goes on so; a pipe has room for what comes meanwhile at 80 MB/s."""
LITTLE, MUCH = 256 * 1024, 512 * 1024
"""Bytes of one look, a quarter and a half of a pipe. A long rest is as long as the first takes to come; what gives the
second is looked at again immediately, or the guest would wait."""
DENSE_SECONDS = 0.004
"""What comes this soon after the last look has come soon."""
DENSE_LOOKS, MORE_DENSE_LOOKS = 32, 128
"""So many of them before there is a rest, and before there are long ones, and half of that after each that did not come
soon, which on a busy host is no pause of the guest's: the lines of an ordinary program are read as they come, also in
the order in which it wrote to its two streams."""
LEAST = 64 * 1024
"""Bytes of room in the ring below which a pipe waits, where a reader is waited for: a reader that is a little too slow
would make frames of a few bytes of all that comes. The smallest ring has sixteen times as much."""
JOURNAL_SECONDS = 0.02
"""Between two looks of the journal's follower at what comes densely, or in large parts: it then sends long entries, and
few. The ring holds what comes meanwhile at 800 MB/s."""
READS_IN_A_TURN = 16
"""Reads of one pipe before the loop looks at the other descriptors: 4 MiB at most."""
MAX_ACKNOWLEDGEMENTS = 64
"""Packets read in one turn; the manager sends one for each token, and some more."""
FINISH_SECONDS = 30.0
"""How long a guest that has ended is not reported as such for the sake of a reader; the manager gives a stalled one up
after ten."""
STOPPED_SECONDS = 2.0
"""The same where someone has asked for the end, and waits for it: one that reads has all in milliseconds."""
LAST_WORDS_SECONDS = 2.0
"""What a journald that stands still gets to take the last words; another needs a millisecond."""
LAST_SECONDS = 10.0
"""What one gets that takes something now and then, on a host where it seldom runs."""
READ_SECONDS = 0.01
"""Between two looks at whether journald has read the last words: an entry that it reads after we have ended belongs to
no unit for it."""
CLOCK_SLACK_NS = 10_000_000
"""How far the clock of the day may move against the monotonic one before that is written down."""
MARKS = 16
"""There is a mark in each of so many parts of the ring: what is left of it can be read with its time."""
MAX_WAITING_LINES = 64
"""Lines of the loader's own that wait for room: it says a dozen in a keep's life."""
_LAST_READS = 16
"""Of a pipe that something of the guest's still holds: it has 1 MiB, and could be written to without end."""
_FIONREAD = 0x541B
"""ioctl(2): the bytes in a pipe; `termios` would be a library more."""
_JOURNAL, _FINISH, _LAST_WORDS, _DONE = "journal of output", "end of output", "last words", "output is done"
_REST = "rest of output"


class Output:
    """One run's output, from its pipes to its last byte.

    lost: bytes of stdout and stderr that were overwritten, or could not be written, before a reader had them;
    unwritten: of both, those that could not be written.
    """

    def __init__(
        self,
        loop: Loop,
        ring: RingWriter,
        journal: JournalFollower | None,
        *,
        drops_oldest: bool,
        journal_gone: Action = lambda: None,
    ) -> None:
        """journal: None where there is none to be had. drops_oldest: the guest never waits. journal_gone: called
        when journald's socket is found dead, until `journal_is_back`."""
        self._loop, self._ring, self._journal, self._drops_oldest = loop, ring, journal, drops_oldest
        self._journal_gone = journal_gone
        self._lines: list[str] = []
        self._marked: tuple[int, int] | None = None  # the position of the last mark, and how far apart the clocks were
        self._never_waits = False
        self.unwritten = 0
        self._pipes: dict[int, int] = {}
        self._paused: set[int] = set()
        self._resting: set[int] = set()
        self._may_rest = True
        self._looked_at = self._dense = 0  # the monotonic clock at the last look; how many came soon and gave little
        self._rest = 0.0  # seconds of the rest that came before what is looked at next
        self._buffer = memoryview(bytearray(MAX_FRAME))  # one for all reads: a new one is mapped and zeroed each time
        self._moves, self._gives_much = True, False  # whether the kernel can; whether the last look gave LEAST
        self._channel: socket.socket | None = None
        self._token_out = False
        self._pumps_after_answer = False  # a reader has a line before the journal: its answer wakes us in any case
        self._acknowledged = Acknowledgement()
        self._done: Action | None = None
        self._end_at = 0.0  # by the monotonic clock, once both pipes are at their end
        self.lost = [0, 0]

    def __repr__(self) -> str:
        return f"Output({self._ring!r}, {len(self._pipes)} pipes, {'' if self._channel else 'no '}channel)"

    def open(self) -> tuple[int, int]:
        """Makes the pipes; the ends for the guest's stdout and stderr, which the caller closes. Raises OSError."""
        self.say()
        guests: list[int] = []
        for stream in (STDOUT, STDERR):
            ours, theirs = os.pipe2(os.O_CLOEXEC)
            guests.append(theirs)
            try:
                fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            except PermissionError:
                log(
                    "the pipes of the workload's output are small: its user has the most of them that the kernel allows"
                )
            self.adopt(ours, stream)
        return guests[0], guests[1]

    @property
    def pipes(self) -> dict[int, int]:
        """The stream that each of our ends of a pipe has."""
        return dict(self._pipes)

    def adopt(self, pipe: int, stream: int) -> None:
        """Takes over the reading end of a pipe: what a guest left in it counts too."""
        os.set_blocking(pipe, False)
        self._may_rest = self._may_rest and fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ) >= PIPE_BYTES
        self._pipes[pipe] = stream
        self._watch(pipe)

    def say(self, line: str = "") -> None:
        """A line of the loader's own, or none: a mark with the clock, in its place among the output."""
        if len(self._lines) < MAX_WAITING_LINES:
            self._lines.append(line)
        self._say_what_waits()

    def _say_what_waits(self) -> None:
        while self._lines:
            mark = Mark(time.time_ns(), self._lines[0])
            if not self._mark(mark):
                return
            del self._lines[0]
        self._announce()

    def _mark(self, mark: Mark) -> bool:
        """Writes a mark; false where there is no room yet."""
        data = mark.encode()
        if len(data) > self._room():
            return False
        now = time.monotonic_ns()
        self._marked = self._ring.head, mark.time_ns - now
        self._append(MARK, data, now)
        return True

    def _mark_the_clock(self) -> None:
        """A mark where the last one is far behind, or its clock is not true any more."""
        apart = time.time_ns() - time.monotonic_ns()
        if self._marked is not None:
            position, before = self._marked
            near = self._ring.head - position < self._ring.capacity // MARKS
            if near and abs(apart - before) < CLOCK_SLACK_NS:
                return
        self._mark(Mark(time.time_ns()))

    def _room(self) -> int:
        """Bytes that the next frame may have."""
        if self._drops_oldest or self._never_waits:
            return MAX_FRAME
        room = self._ring.room(self._acknowledged.kept)
        return room if room >= LEAST else 0

    def attach(self, channel: socket.socket) -> None:
        """Takes over the channel to the manager, in place of one from before."""
        self._hang_up()
        channel.setblocking(False)
        self._channel, self._token_out = channel, False
        self._acknowledged = Acknowledgement(stdout=self._acknowledged.stdout, stderr=self._acknowledged.stderr)
        self._loop.watch(channel.fileno(), READABLE, self._answered)
        self._answered(READABLE)  # what its readers hold has come before the channel itself
        self._announce()

    def finish(self, done: Action, seconds: float = FINISH_SECONDS) -> None:
        """The guest has ended: `done` is called when all that it wrote is in the ring and its last words are sent on.

        A reader that holds is waited for here too, `seconds` at most: then it has gaps.
        """
        self._done = done
        self._loop.after(_FINISH, seconds, self._wait_no_more)
        if not self._pipes:
            self._all_read()

    def hurry(self) -> None:
        """No reader is waited for any more, and no one who holds a pipe, where the guest has ended."""
        if self._done is not None and self._pipes:
            self._wait_no_more()

    def _wait_no_more(self) -> None:
        self._never_waits = True
        for pipe in list(self._pipes):
            for _ in range(_LAST_READS):
                if not self._read(pipe):
                    break
        for pipe in list(self._pipes):  # held open by what the guest left behind
            self._close(pipe)

    def _all_read(self) -> None:
        """Both pipes have come to their end after the guest's."""
        self._loop.cancel(_FINISH)
        self._announce()
        self._loop.after(_LAST_WORDS, LAST_WORDS_SECONDS, self._end)
        self._end_at = time.monotonic() + LAST_SECONDS
        self._pump()

    def _end(self) -> None:
        """Everything was sent on, or journald does not take it."""
        for name in (_LAST_WORDS, _JOURNAL):
            self._loop.cancel(name)
        done, self._done = self._done, None
        if done is not None:
            self._loop.after(_DONE, 0, done)  # when whatever has led here has come to its end: it may close everything

    def close(self) -> None:
        """Closes everything but the ring."""
        self._hang_up()
        self._done = None
        for pipe in list(self._pipes):
            self._close(pipe)
        for name in (_JOURNAL, _FINISH, _LAST_WORDS, _DONE, _REST):
            self._loop.cancel(name)

    def _watch(self, pipe: int) -> None:
        self._loop.watch(pipe, READABLE, lambda _events: self._readable(pipe))

    def _readable(self, pipe: int) -> None:
        before = self._ring.head
        for _ in range(READS_IN_A_TURN):
            if not self._read(pipe):
                break
        size = self._ring.head - before
        self._announce()  # before all that can wait
        self._rest_if_dense(size)
        if not self._loop.is_set(_JOURNAL) and not (self._journal is not None and self._journal.gone):
            floods = size >= LITTLE or self._dense > DENSE_LOOKS
            if floods or self._token_out:
                self._loop.after(_JOURNAL, JOURNAL_SECONDS, self._pump)
                self._pumps_after_answer = not floods
            else:
                self._pump()

    def _rest_if_dense(self, size: int) -> None:
        """Looks at no pipe for a moment where the looks at them give little, as the last one gave `size` bytes."""
        now = time.monotonic_ns()
        passed = (now - self._looked_at) / 1e9 + self._rest  # since the look before
        soon = passed < DENSE_SECONDS + self._rest
        self._looked_at, self._dense = now, min(self._dense + 1, 2 * MORE_DENSE_LOOKS) if soon else self._dense // 2
        if self._dense > DENSE_LOOKS and size < MUCH and self._may_rest and not self._resting:
            self._resting = self._pipes.keys() - self._paused
            for pipe in self._resting:
                self._loop.forget(pipe)
            self._rest = REST_SECONDS
            if self._dense > MORE_DENSE_LOOKS:
                self._rest = max(REST_SECONDS, min(LONG_REST_SECONDS, passed * LITTLE / max(1, size)))
            self._loop.after(_REST, self._rest, self._rested)
        else:
            self._rest = 0.0

    def _rested(self) -> None:
        self._looked_at = time.monotonic_ns()
        resting, self._resting = self._resting, set()
        for pipe in resting:
            self._watch(pipe)

    def _read(self, pipe: int) -> bool:
        """One read of a pipe into the ring; false where there is nothing more to read, or no room."""
        self._mark_the_clock()
        room = self._room()
        if not room:
            self._paused.add(pipe)
            self._loop.forget(pipe)
            return False
        if self._gives_much and (size := self._move(pipe, room)):
            return size == room
        try:
            size = os.readv(pipe, (self._buffer[:room],))
        except BlockingIOError:
            return False
        if not size:
            self._close(pipe)
            return False
        self._append(self._pipes[pipe], self._buffer[:size], time.monotonic_ns())
        self._gives_much = self._moves and size >= LEAST
        return size == room  # a pipe that gave less is empty

    def _move(self, pipe: int, room: int) -> int:
        """Has the kernel move what the pipe has into the ring, which spares a copy; how many bytes. None where they are
        few, or that cannot be done."""
        size = min(room, int.from_bytes(fcntl.ioctl(pipe, _FIONREAD, bytes(4)), sys.byteorder))
        self._gives_much = size >= LEAST
        if not self._gives_much:
            return 0
        before = self._ring.overwritten
        try:
            return self._ring.append_from(pipe, self._pipes[pipe], size, time.monotonic_ns())
        except OSError:  # a full disk, of which `_append` speaks; or a file system that does not know it
            self._gives_much = self._moves = False
            return 0
        finally:
            self._count_lost(before)

    def _append(self, stream: int, data: bytes | memoryview, time_ns: int) -> None:
        before, failed = self._ring.overwritten, None
        try:
            self._ring.append(stream, data, time_ns)
        except OSError as error:
            if stream != MARK:
                failed, self.unwritten = (None if self.unwritten else error), self.unwritten + len(data)
                self.lost[stream - 1] += len(data)
        self._count_lost(before)
        if failed is not None:
            log(f"output is lost, as it cannot be written: {failed.strerror}")

    def _count_lost(self, before: tuple[int, int]) -> None:
        """Counts what has been overwritten since so much was, and no reader had."""
        seen = (self._acknowledged.stdout, self._acknowledged.stderr)
        for place, (old, new) in enumerate(zip(before, self._ring.overwritten, strict=True)):
            self.lost[place] += max(0, new - max(old, seen[place]))

    def _close(self, pipe: int) -> None:
        self._loop.forget(pipe)
        self._paused.discard(pipe)
        self._resting.discard(pipe)
        del self._pipes[pipe]
        os.close(pipe)
        if not self._pipes and self._done is not None:
            self._all_read()

    def _announce(self) -> None:
        """Sends a token where the manager has not seen everything, and has answered the last one."""
        if self._channel is None or self._token_out or self._acknowledged.seen >= self._ring.head:
            return
        try:
            self._channel.send(TOKEN, socket.MSG_NOSIGNAL)
            self._token_out = True
        except BlockingIOError:
            self._token_out = True  # a manager that reads none of them has one to read
        except OSError:
            self._hang_up()

    def _answered(self, _events: int) -> None:
        for _ in range(MAX_ACKNOWLEDGEMENTS):
            if self._channel is None:
                return
            try:
                packet = self._channel.recv(64)
            except BlockingIOError:
                break
            except OSError:
                packet = b""
            try:
                self._acknowledged = decode_acknowledgement(packet)
            except KeepfleetError:
                self._hang_up()
                break
            self._token_out = False
        self._resume()
        self._announce()
        if self._pumps_after_answer and not self._token_out:
            self._pump()

    def _hang_up(self) -> None:
        """The manager is gone, or does not speak as it must: no one is waited for."""
        if self._channel is not None:
            self._loop.forget(self._channel.fileno())
            self._channel.close()
            self._channel = None
            self._acknowledged = self._acknowledged.replace(kept=NOT_KEPT)
            self._resume()

    def _resume(self) -> None:
        """Reads the pipes again that waited for room, where there is some."""
        self._say_what_waits()
        if self._paused and self._room():
            paused, self._paused = self._paused, set()
            for pipe in paused:
                self._watch(pipe)

    def _pump(self) -> None:
        self._loop.cancel(_JOURNAL)
        self._pumps_after_answer = False
        last = self._done is not None and not self._pipes
        seconds = None
        if self._journal is not None:
            before = self._journal.waiting
            try:
                seconds = self._journal.pump(time.monotonic(), last=last)
                if seconds is None and last and not self._journal.all_read():
                    seconds = READ_SECONDS
                if last and self._journal.waiting < before:
                    self._loop.after(
                        _LAST_WORDS, min(LAST_WORDS_SECONDS, max(0.0, self._end_at - time.monotonic())), self._end
                    )
            except (KeepfleetError, OSError) as error:
                self._journal = None
                log(f"the journal gets no more of the output: {error}")
        if self._journal is not None and self._journal.gone:
            self._journal_gone()  # and nothing is sent until it is back, or LAST_WORDS_SECONDS have passed
        elif seconds is not None:
            self._loop.after(_JOURNAL, seconds, self._pump)
        elif last:
            self._end()

    def journal_is_back(self) -> None:
        """journald's socket is another one."""
        self._pump()
