"""What flows into and out of a started keep, from its start to its end: its standard input where that is streamed, the
recording of its output, in a ring and the journal, the channel over which that is announced, and what the keep's
processes say of themselves.

Imported with the first start. Import rule: that of keep_loader.
"""

from __future__ import annotations

import os
import time

from keep_loader.journal import JournalFollower, JournalSocket, Pace
from keep_loader.loop import HANG_UP, READABLE, WRITABLE, Action, Loop, log, log_also_to, plain
from keep_loader.output import FINISH_SECONDS, STOPPED_SECONDS, Output
from keep_loader.settings import Settings
from keep_loader.state import PIPE_NAMES, DescriptorStore, Keep, check_socket, close_all
from keep_protocol import sockets as socket
from keep_protocol.constants import FOLLOW, INPUT, JOURNAL, OUTPUT
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.outcome import Outcome
from keep_protocol.ring import STDERR, STDOUT, RingWriter
from keep_protocol.spec import OutputPolicy
from keep_protocol.workload import COMPLETE, DATA, MAX_DATA, NO_MORE

_STREAMS = dict(zip(PIPE_NAMES, (STDOUT, STDERR), strict=True))
MAX_PACKET = len(DATA) + MAX_DATA
MAX_THROWN_AWAY = 64
"""Packets; a socket's queue holds a few."""
IN_A_TURN = 4096
"""Bytes of one turn, before the next pause: a traceback is 2 KiB."""
LINES_IN_A_TURN = 24
PAUSE_SECONDS = 0.1
IN_ALL = 1024 * 1024
"""Bytes that are logged of one keep's processes; what comes after them is read, and forgotten."""
MAX_LINE = 1000
_PREFIX = "app-loader: "
_LAST_TURNS = 16
"""A pipe holds 64 KiB: what a process said before it ended."""
_NEXT = "words"


class Streams:
    """Owns a keep's input and its recording.

    recording: what takes the output, from `record` to `end`; None before and after.
    """

    def __init__(self, keep: Keep, loop: Loop, store: DescriptorStore, settings: Settings) -> None:
        self._keep, self._loop, self._store, self._settings = keep, loop, store, settings
        self.recording: Recording | None = None
        self._input_socket: list[int] = []  # of a streamed input, until the run
        self._channel: list[int] = []  # over which output is announced from the first byte on, until `record`
        self._input: Input | None = None

    def __repr__(self) -> str:
        return f"Streams({self.recording}, {self._input})"

    def own(self, name: str, descriptor: int) -> bool:
        """Takes over one of a start's descriptors; false, and nothing, where it is none of these."""
        place = {INPUT: self._input_socket, FOLLOW: self._channel}.get(name)
        if place is None:
            return False
        place.append(descriptor)
        return True

    def record(self) -> Recording:
        """What takes the output from now on. Raises KeepfleetError, OSError."""
        settings = self._settings.replace(spec=self._keep.spec)  # which of a spare became another's
        self.recording = Recording(self._loop, self._store, settings, self._journal_gone)
        if self._channel:
            self.recording.follow(self._channel.pop())
        return self.recording

    @property
    def words(self) -> int:
        """Where a fork's own words go. Raises KeepfleetError(CONFLICT) where there is no start."""
        if self.recording is None:
            raise KeepfleetError(ErrorKind.CONFLICT, "cannot start a process of a keep that was not started")
        return self.recording.words.theirs

    def follow(self, descriptors: list[int]) -> None:
        """Announces output over the channel that has come, which it takes. Raises KeepfleetError."""
        recording = self._recorded(descriptors)
        check_socket(descriptors[0], socket.SOCK_SEQPACKET)
        recording.follow(descriptors.pop())

    def take_journal(self, descriptors: list[int]) -> None:
        """Takes another socket to journald. Raises KeepfleetError."""
        recording = self._recorded(descriptors)
        check_socket(descriptors[0], socket.SOCK_DGRAM)
        if self._keep.report.journal_gone:
            self._keep.change(journal_gone=False)
            self._keep.set_detail("")
        recording.take_journal(descriptors.pop())

    def _recorded(self, descriptors: list[int]) -> Recording:
        if self.recording is None:
            raise KeepfleetError(ErrorKind.CONFLICT, "cannot take over a socket: the keep does not run")
        if len(descriptors) != 1:
            raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot take over {len(descriptors)} sockets: it is one")
        return self.recording

    def _journal_gone(self) -> None:
        if not self._keep.report.journal_gone:
            self._keep.change(journal_gone=True)
            self._keep.set_detail("the journal gets no output: journald's socket is gone")

    def open(self, cut: Action) -> dict[str, int]:
        """A run begins: the guest's ends of its pipes by name, which the caller closes. cut: called where the input
        breaks off. Raises KeepfleetError, OSError."""
        found: dict[str, int] = {}
        if self.recording is not None:
            found |= dict(zip(PIPE_NAMES, self.recording.open(), strict=True))
        if self._input_socket:
            try:
                self._input = Input(self._loop, self._input_socket.pop(), cut)
            except BaseException:
                close_all(list(found.values()))
                raise
            found[INPUT] = self._input.theirs
        return found

    def finish(self, done: Action, *, stopped: bool = False) -> None:
        """The workload has ended: `done` is called when all it wrote is kept. One that was `stopped` is waited for by
        someone."""
        if self.recording is None:
            done()
        else:
            self.recording.finish(done, STOPPED_SECONDS if stopped else FINISH_SECONDS)

    def hurry(self) -> None:
        """No reader is waited for any more."""
        if self.recording is not None:
            self.recording.hurry()

    def measured(self, outcome: Outcome) -> Outcome:
        """The outcome with what became of the output, where there is any."""
        if self.recording is None:
            return outcome
        return self.recording.measured(outcome, stored=not self._keep.private.unstored)

    def close_input(self) -> None:
        """The run has no input any more, nor is any channel of before it needed."""
        close_all(self._input_socket)
        close_all(self._channel)
        if self._input is not None:
            self._input.close()
            self._input = None

    def end(self) -> None:
        """Nothing is recorded any more."""
        recording, self.recording = self.recording, None
        if recording is not None:
            recording.close()


class Recording:
    """Owns a started keep's output from its start on: made at START, and again by each loader after it, of what systemd
    keeps.

    words: the pipe that its processes speak into.
    """

    def __init__(self, loop: Loop, store: DescriptorStore, settings: Settings, journal_gone: Action) -> None:
        """Of the store's descriptors, which stay there. Raises
        KeepfleetError(KEEP_FAILED), OSError."""
        output, journal = store.get(OUTPUT), store.get(JOURNAL)
        if output is None or journal is None:
            raise KeepfleetError(ErrorKind.KEEP_FAILED, "cannot go on with the keep's output: systemd did not keep it")
        self._store = store
        self._ring = RingWriter.resume(output)
        self._journal = JournalSocket(os.dup(journal))
        pace = Pace(settings.journal_entries or settings.spec.limits.log_lines_per_second, time.monotonic())
        self._follower = JournalFollower(
            self._ring, pace, self._journal.send, self._journal.all_read, _fields(settings)
        )
        self._output = Output(
            loop,
            self._ring,
            self._follower,
            drops_oldest=settings.spec.output is OutputPolicy.DROP_OLDEST,
            journal_gone=journal_gone,
        )
        self._before = self._written
        self._exact = True
        self.words = Words(loop)
        if not self._ring.head:
            self._output.say()
        log_also_to(self._output.say)

    def __repr__(self) -> str:
        return f"Recording({self._output!r})"

    @property
    def _written(self) -> int:
        return sum(self._ring.totals[:STDERR])

    def take_up(self) -> None:
        """Goes on after a loader before us: what the guest of a run that it did not see to its end had left in the
        pipes is read. What no one got before that is not known any more."""
        self._before = 0
        for name, descriptor in self._store.select(PIPE_NAMES).items():
            self._exact = False
            self._output.adopt(os.dup(descriptor), _STREAMS[name])

    def open(self) -> tuple[int, int]:
        """A run begins: the ends of its pipes for stdout and stderr, which the caller closes; ours are parked.

        Raises KeepfleetError(SYSTEMD), OSError.
        """
        self._store.drop(PIPE_NAMES)
        self._before = self._written
        theirs = self._output.open()
        names = {stream: name for name, stream in _STREAMS.items()}
        try:
            for descriptor, stream in list(self._output.pipes.items())[-2:]:
                self._store.park(names[stream], os.dup(descriptor))
        except (KeepfleetError, OSError):
            for descriptor in theirs:
                os.close(descriptor)
            raise
        return theirs

    def follow(self, descriptor: int) -> None:
        """Announces output over the channel `descriptor`, which it takes over."""
        self._output.attach(socket.socket(fileno=descriptor))

    def take_journal(self, descriptor: int) -> None:
        """Goes on with another socket to journald, which it takes over. Raises KeepfleetError(SYSTEMD)."""
        self._journal.replace(os.dup(descriptor))
        self._store.park(JOURNAL, descriptor)
        self._output.journal_is_back()

    def finish(self, done: Action, seconds: float) -> None:
        """The workload has ended: `done` is called when all it wrote is kept, and its last words are in the journal.
        A reader is waited for so long."""
        self.words.read_all()
        self._output.finish(done, seconds)

    def hurry(self) -> None:
        """No reader is waited for any more."""
        self._output.hurry()

    def measured(self, outcome: Outcome, *, stored: bool) -> Outcome:
        """The outcome with what became of the output. stored: false where journald was not known to store what it took,
        at least for a time: then no one knows what the journal has."""
        exact = self._exact
        skipped = sum(self._follower.skipped.values()) + self._follower.waiting  # journald stood still to the end
        return outcome.replace(
            output_bytes=self._written - self._before + self._output.unwritten,
            lost_bytes=sum(self._output.lost) if exact else None,
            journal_skipped_bytes=skipped if exact and stored else None,
        )

    def close(self) -> None:
        """Closes everything but what the store owns."""
        log_also_to(None)
        self._output.close()
        self.words.close()
        self._journal.close()


def _fields(settings: Settings) -> list[tuple[str, bytes]]:
    """What each entry says of the keep; where systemd adds its LogExtraFields= to it, only what is not there. Of a unit
    that was a spare's journald has those of the spare for a second more."""
    spec, fields = settings.spec, [("SYSLOG_IDENTIFIER", f"keep-{settings.kuuid}")]
    if settings.journal_entries or spec.spare:
        own = [("KEEP_ID", str(settings.kuuid)), ("KEEP_NAME", spec.name), ("KEEP_OWNER", spec.owner)]
        fields += [(name, value) for name, value in own if value]
    return [(name, value.encode()) for name, value in fields]


class Input:
    """One run's standard input that is streamed, from the manager's socket into the guest's pipe. Owns the socket and
    our end of the pipe, until everything is done or `close`.

    The socket is read only while the pipe has room, so that a client sends no faster than its guest reads. A manager
    that dies closes the socket, too, and the guest must not take that for the end: the end is said, by a packet.
    """

    def __init__(self, loop: Loop, descriptor: int, cut: Action) -> None:
        """Takes `descriptor` over; `cut` is called when the manager has gone before the end. Raises OSError."""
        self._loop, self._cut = loop, cut
        self._sock: socket.socket | None = socket.socket(fileno=descriptor)
        self._sock.setblocking(False)
        self.theirs, self._ours = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._ours, False)
        self._waiting = b""
        self._complete = False
        self._settle()

    def __repr__(self) -> str:
        return f"Input({'closed' if self._sock is None else f'{len(self._waiting)} bytes waiting'})"

    def close(self) -> None:
        """The guest takes no more, or has all."""
        if self._sock is None:
            return
        if not self._complete:
            self._say_no_more(self._sock)
        for descriptor in (self._sock.fileno(), self._ours):
            self._loop.forget(descriptor)
        os.close(self._ours)
        self._sock.close()
        self._sock = None

    def _say_no_more(self, sock: socket.socket) -> None:
        """Says it, and throws away what waits: closed with that, the socket would be a reset to the manager."""
        try:
            sock.send(NO_MORE, socket.MSG_NOSIGNAL)
            for _ in range(MAX_THROWN_AWAY):
                if not sock.recv(MAX_PACKET):
                    return
        except OSError:
            return  # nothing waits, or the manager has gone, too

    def _settle(self) -> None:
        """Watches the pipe for room while something waits, else the socket; the pipe's own hang-up at any time."""
        if self._sock is not None:
            self._loop.watch(self._ours, WRITABLE if self._waiting else HANG_UP, self._writable)
            if self._waiting:
                self._loop.forget(self._sock.fileno())
            else:
                self._loop.watch(self._sock.fileno(), READABLE, self._readable)

    def _readable(self, _events: int) -> None:
        if self._sock is None:
            return
        try:
            packet = self._sock.recv(MAX_PACKET)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if packet[:1] == DATA and len(packet) > 1:
            self._waiting = packet[1:]
            self._write()
        elif packet == COMPLETE:
            self._complete = True
            self.close()
        elif packet != DATA:
            self._cut()  # which ends the guest before it can see the end of its pipe
            self._complete = True
            self.close()

    def _writable(self, events: int) -> None:
        if self._waiting and events & WRITABLE:
            self._write()
        else:
            self.close()

    def _write(self) -> None:
        try:
            written = os.write(self._ours, self._waiting)
        except BlockingIOError:
            written = 0
        except OSError:
            self.close()
            return
        self._waiting = self._waiting[written:]
        self._settle()


class Words:
    """What the endpoint, the runner and the checker say of themselves, such as a traceback: through a pipe to the
    loader, which logs it as its own lines. None of them holds a descriptor of journald's, by which it could write in
    the unit's name. All speak for strangers sooner or later, so what they say is bounded in time and in all, and
    printable.

    Owns the pipe. theirs: the end for the forks, as their standard output and error.
    """

    def __init__(self, loop: Loop) -> None:
        """Raises OSError."""
        self._loop = loop
        self._ours, self.theirs = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._ours, False)
        self._rest, self._taken = b"", 0
        loop.watch(self._ours, READABLE, self._readable)

    def __repr__(self) -> str:
        return f"Words({self._taken} bytes)"

    def read_all(self) -> None:
        """Logs what is there: one of the forks has ended, and why comes before that."""
        for _ in range(_LAST_TURNS):
            if not self._read():
                break
        self._log([self._rest])
        self._rest = b""

    def close(self) -> None:
        """Closes both ends."""
        self._loop.forget(self._ours)
        self._loop.cancel(_NEXT)
        os.close(self._ours)
        os.close(self.theirs)

    def _readable(self, _events: int) -> None:
        self._read()
        self._loop.forget(self._ours)
        self._loop.after(_NEXT, PAUSE_SECONDS, lambda: self._loop.watch(self._ours, READABLE, self._readable))

    def _read(self) -> bool:
        try:
            data = os.read(self._ours, IN_A_TURN)
        except BlockingIOError:
            return False
        before, self._taken = self._taken, self._taken + len(data)
        if before > IN_ALL:
            return True
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-IN_A_TURN:]
        self._log(lines)
        if self._taken > IN_ALL:
            log(f"{_PREFIX}says too much of itself: no more of it is logged")
            self._rest = b""
        return True

    def _log(self, lines: list[bytes]) -> None:
        for line in lines[:LINES_IN_A_TURN]:
            text = plain(line.decode("utf-8", "replace"), MAX_LINE)
            if text:
                log(text if text.startswith(_PREFIX) else _PREFIX + text)
        if len(lines) > LINES_IN_A_TURN:
            log(f"{_PREFIX}{len(lines) - LINES_IN_A_TURN} more lines")
