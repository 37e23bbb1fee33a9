"""The guest's output on its way: two pipes, the ring, and those who are told that there is more.

The guest waits for readers that the manager names, never for the journal. A token goes to the manager when there is
more and the last one was answered, so that a flood costs no wake-up a write, and a quiet keep nothing.
Import rule: that of keep_loader.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time

from keep_loader.journal import JournalFollower
from keep_loader.log import log
from keep_loader.loop import READABLE, Action, Loop
from keep_protocol.errors import KeepfleetError
from keep_protocol.ring import (
    MAX_FRAME,
    NOT_KEPT,
    STDERR,
    STDOUT,
    TOKEN,
    Acknowledgement,
    RingWriter,
    decode_acknowledgement,
)

PIPE_BYTES = 1024 * 1024
"""What the guest may be ahead of its loader; a user without privileges has 64 MiB for all pipes, and then gets less."""
READS_IN_A_TURN = 16
"""Reads of one pipe before the loop looks at the other descriptors: 4 MiB at most."""
MAX_ACKNOWLEDGEMENTS = 64
"""Packets read in one turn; the manager sends one for each token, and some more."""
FINISH_SECONDS = 30.0
"""How long a guest that has ended is not reported as such for the sake of a reader; the manager gives a stalled one up
after ten."""
LAST_WORDS_SECONDS = 2.0
"""What journald gets to take the last words; it needs a millisecond, or it stands still."""
_JOURNAL, _FINISH, _LAST_WORDS = "journal of output", "end of output", "last words"


class Output:
    """One run's output, from its pipes to its last byte.

    lost: bytes of stdout and stderr that were overwritten, or could not be written, before a reader had them.
    """

    def __init__(self, loop: Loop, ring: RingWriter, journal: JournalFollower | None, *, drops_oldest: bool) -> None:
        """journal: None where there is none to be had. drops_oldest: the guest waits for nobody."""
        self._loop, self._ring, self._journal, self._drops_oldest = loop, ring, journal, drops_oldest
        self._pipes: dict[int, int] = {}
        self._paused: set[int] = set()
        self._channel: socket.socket | None = None
        self._token_out = False
        self._acknowledged = Acknowledgement()
        self._done: Action | None = None
        self.lost = [0, 0]

    def __repr__(self) -> str:
        return f"Output({self._ring!r}, {len(self._pipes)} pipes, {'' if self._channel else 'no '}channel)"

    def open(self) -> tuple[int, int]:
        """Makes the pipes; the ends for the guest's stdout and stderr, which the caller closes. Raises OSError."""
        guests: list[int] = []
        for stream in (STDOUT, STDERR):
            ours, theirs = os.pipe2(os.O_CLOEXEC)
            guests.append(theirs)
            os.set_blocking(ours, False)
            try:
                fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            except PermissionError:
                log(
                    "the pipes of the workload's output are small: its user has the most of them that the kernel allows"
                )
            self._pipes[ours] = stream
            self._watch(ours)
        return guests[0], guests[1]

    def attach(self, channel: socket.socket) -> None:
        """Takes over the channel to the manager, in place of one from before."""
        self._hang_up()
        channel.setblocking(False)
        self._channel, self._token_out = channel, False
        self._acknowledged = Acknowledgement(stdout=self._acknowledged.stdout, stderr=self._acknowledged.stderr)
        self._loop.watch(channel.fileno(), READABLE, self._answered)
        self._announce()

    def finish(self, done: Action) -> None:
        """The guest has ended: `done` is called when all that it wrote is in the ring and its last words are sent on.

        A reader that holds is waited for here too, FINISH_SECONDS at most: then it has gaps.
        """
        self._done = done
        self._loop.after(_FINISH, FINISH_SECONDS, self._wait_no_more)
        if not self._pipes:
            self._all_read()

    def _wait_no_more(self) -> None:
        self._acknowledged = self._acknowledged.replace(kept=NOT_KEPT)
        for pipe in list(self._pipes):
            while self._read(pipe):
                continue
        for pipe in list(self._pipes):  # held open by what the guest left behind
            self._close(pipe)

    def _all_read(self) -> None:
        """Both pipes have come to their end after the guest's."""
        self._loop.cancel(_FINISH)
        self._announce()
        self._loop.after(_LAST_WORDS, LAST_WORDS_SECONDS, self._end)
        self._pump()

    def _end(self) -> None:
        """Everything was sent on, or journald does not take it."""
        for name in (_LAST_WORDS, _JOURNAL):
            self._loop.cancel(name)
        done, self._done = self._done, None
        if done is not None:
            done()

    def close(self) -> None:
        """Closes everything but the ring."""
        self._hang_up()
        self._done = None
        for pipe in list(self._pipes):
            self._close(pipe)
        for name in (_JOURNAL, _FINISH, _LAST_WORDS):
            self._loop.cancel(name)

    def _watch(self, pipe: int) -> None:
        self._loop.watch(pipe, READABLE, lambda _events: self._readable(pipe))

    def _readable(self, pipe: int) -> None:
        for _ in range(READS_IN_A_TURN):
            if not self._read(pipe):
                break
        self._announce()
        if not self._loop.is_set(_JOURNAL):
            self._pump()

    def _read(self, pipe: int) -> bool:
        """One read of a pipe into the ring; false where there is nothing to read, or no room."""
        room = MAX_FRAME if self._drops_oldest else self._ring.room(self._acknowledged.kept)
        if not room:
            self._paused.add(pipe)
            self._loop.forget(pipe)
            return False
        try:
            data = os.read(pipe, room)
        except BlockingIOError:
            return False
        if not data:
            self._close(pipe)
            return False
        self._append(self._pipes[pipe], data)
        return True

    def _append(self, stream: int, data: bytes) -> None:
        before = self._ring.overwritten
        try:
            self._ring.append(stream, data, time.monotonic_ns())
        except OSError as error:
            if not any(self.lost):
                log(f"output is lost, as it cannot be written: {error.strerror}")
            self.lost[stream - 1] += len(data)
        seen = (self._acknowledged.stdout, self._acknowledged.stderr)
        for place, (old, new) in enumerate(zip(before, self._ring.overwritten, strict=True)):
            self.lost[place] += max(0, new - max(old, seen[place]))

    def _close(self, pipe: int) -> None:
        self._loop.forget(pipe)
        self._paused.discard(pipe)
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

    def _hang_up(self) -> None:
        """The manager is gone, or does not speak as it must: nobody is waited for."""
        if self._channel is not None:
            self._loop.forget(self._channel.fileno())
            self._channel.close()
            self._channel = None
            self._acknowledged = self._acknowledged.replace(kept=NOT_KEPT)
            self._resume()

    def _resume(self) -> None:
        """Reads the pipes again that waited for room, where there is some."""
        if self._paused and self._ring.room(self._acknowledged.kept):
            paused, self._paused = self._paused, set()
            for pipe in paused:
                self._watch(pipe)

    def _pump(self) -> None:
        last = self._done is not None and not self._pipes
        seconds = None
        if self._journal is not None:
            try:
                seconds = self._journal.pump(time.monotonic(), last=last)
            except (KeepfleetError, OSError) as error:
                log(f"the journal gets no more of the output: {error}")
                self._journal = None
        if seconds is not None:
            self._loop.after(_JOURNAL, seconds, self._pump)
        elif last:
            self._end()
