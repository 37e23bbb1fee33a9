"""A forked process of the keep: the upload endpoint or the runner. It gets descriptors by name, is watched by pidfd,
ended by TERM then KILL, and heard over its report socket, bounded: both are a stranger's sooner or later. A spare has
both of its forked before the start that they are for.

Import rule: that of keep_loader. What the fork runs is named by its kind's row of ENTRIES and imported there alone.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # as in keep_protocol.forking
import os
import time
from _collections_abc import Callable, Mapping, Sequence

from keep_loader.loop import READABLE, Action, Handler, Loop, log, plain
from keep_loader.state import close_all, descriptors_in
from keep_protocol import forking
from keep_protocol import sockets as socket
from keep_protocol.constants import MAX_CONTROL_FRAME, TERM_SECONDS
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.forking import PREPARED_NAME
from keep_protocol.reports import (
    MAX_BEGIN_PACKET,
    MAX_REPORT_DESCRIPTORS,
    Report,
    ReportType,
    decode_begin,
    decode_report,
    encode_begin,
    encode_report,
)

MAX_RUNNING_REPORTS = 16
"""Reports read of a running workload; an honest one sends two."""
MAX_LAST_REPORTS = 64
"""Reports read of a process that has ended; what it forked could go on sending for ever."""
_DESCRIPTOR_SPACE = socket.CMSG_SPACE(4 * MAX_REPORT_DESCRIPTORS)
_MAX_COMPLAINT = 400
_OF_A_PROCESS = 2
"""The clock that counts what a process has used, in the kernel's own nanoseconds (CPUCLOCK_SCHED)."""


class Exit(Record):
    """How a process ended: its exit code, or the signal that ended it; its own CPU time, and the most memory that it or
    one of its children had."""

    code: int | None
    signal: int | None
    cpu_seconds: float = 0.0
    peak_bytes: int = 0

    @property
    def words(self) -> str:
        """ "exited 1", or "was killed by SIGKILL"."""
        return f"exited {self.code}" if self.signal is None else f"was killed by {signal_name(self.signal)}"


def signal_name(number: int) -> str:
    """`SIGKILL` for 9; a real-time signal has a number alone."""
    try:
        import signal  # here: its numbers as enumerations are 2 ms of every start

        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def own_processor_seconds(pid: int) -> float | None:
    """What the process itself has used so far, without its children, exactly; None once it has been collected.

    The clock of another process (man clock_getcpuclockid), which /proc does not show of one that cannot be looked into.
    """
    try:
        return time.clock_gettime(~pid << 3 | _OF_A_PROCESS)
    except (OSError, OverflowError, TypeError):  # for a number that no process can have; from 3.14 on a TypeError
        return None


class Child:
    """One forked process that has not been reaped; owns its pidfd and our end of its report socket."""

    def __init__(self, pid: int, reports: socket.socket) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.reports = reports

    def __repr__(self) -> str:
        return f"Child(pid {self.pid})"

    def receive(self) -> tuple[bytes | None, list[int]] | None:
        """The next packet, None for one that is too long, and its descriptors; None alone when there is none now.

        Raises EOFError when there never will be one again.
        """
        try:
            data, ancillary, flags, _ = self._received()
        except BlockingIOError:
            return None
        except OSError as error:
            raise EOFError from error
        descriptors = descriptors_in(ancillary)
        if not data and not descriptors:
            raise EOFError
        return None if flags & socket.MSG_TRUNC else data, descriptors

    def _received(self) -> tuple[bytes, list[tuple[int, int, bytes]], int, object]:
        space = MAX_CONTROL_FRAME + 1, _DESCRIPTOR_SPACE, socket.MSG_CMSG_CLOEXEC
        try:
            return self.reports.recvmsg(*space)
        except ConnectionResetError:  # it ended with something of ours unread: that comes once, before what it said
            return self.reports.recvmsg(*space)

    def send(self, packet: bytes, descriptors: list[int]) -> None:
        """Sends one packet; to one that has ended, or takes none, it is lost, and its end says why."""
        try:
            socket.send_fds(self.reports, [packet], descriptors)
        except OSError as error:
            log(f"cannot reach process {self.pid}: {error.strerror}")

    def send_signal(self, number: int) -> None:
        """Signals the process and its process group, which holds what it forked; one that has ended is no error.

        The process has not been reaped, so its number cannot have become another's.
        """
        _signal.pidfd_send_signal(self.pidfd, number)
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            return  # it has left its group, and nothing else is in it

    def reap(self) -> Exit:
        """Collects the ended process and what is left of its group, and closes everything."""
        self.send_signal(_signal.SIGKILL)
        os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOWAIT)
        # Its own time alone, while it can still be asked: what wait4 says counts the checkers, too.
        own = own_processor_seconds(self.pid)
        _, status, usage = os.wait4(self.pid, 0)
        os.close(self.pidfd)
        self.reports.close()
        killed = os.WIFSIGNALED(status)
        return Exit(
            code=None if killed else os.waitstatus_to_exitcode(status),
            signal=os.WTERMSIG(status) if killed else None,
            cpu_seconds=usage.ru_utime + usage.ru_stime if own is None else own,
            peak_bytes=usage.ru_maxrss * 1024,
        )


def fork(
    entry: str,
    name: str,
    environment: dict[str, str],
    passed: dict[str, int],
    words: int,
    *,
    prepared: bool = False,
) -> Child:
    """Forks a process that imports `entry`, "module:function", and calls it. Raises OSError.

    It has `environment`, `passed`, `words` as standard output and error, and nothing else of ours, see `forking.fork`.
    What it cannot even import it reports as FAILED. prepared: first it calls the module's `prepare`, if there is one,
    and waits for the packet that says with what to begin.
    """
    call = _call_prepared if prepared else _call
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with theirs:
            pid = forking.fork(
                lambda: call(entry), name, passed, environment, reports=theirs.fileno(), output=(words, words)
            )
    except OSError:
        ours.close()
        raise
    ours.setblocking(False)
    return Child(pid, ours)


def _call(entry: str) -> int:
    module, _, function = entry.partition(":")
    try:
        begin = getattr(__import__(module, fromlist=[function]), function)
    except BaseException as error:
        text = f"cannot import {module}: {type(error).__name__}: {error}"
        failed = Report(ReportType.FAILED, text, error=KeepfleetError(ErrorKind.INTERNAL, text))
        os.write(forking.REPORT_DESCRIPTOR, encode_report(failed))
        raise
    return int(begin())


def _call_prepared(entry: str) -> int:
    module = entry.partition(":")[0]
    held = forking.reserved_numbers()
    try:
        prepare = getattr(__import__(module, fromlist=["prepare"]), "prepare", None)
        if prepare is not None:
            prepare()
    finally:
        close_all(held)
    with socket.socket(fileno=os.dup(forking.REPORT_DESCRIPTOR)) as reports:
        packet, ancillary, _, _ = reports.recvmsg(
            MAX_BEGIN_PACKET, socket.CMSG_SPACE(4 * (forking.RESERVED + 1)), socket.MSG_CMSG_CLOEXEC
        )
    descriptors = descriptors_in(ancillary)
    if not packet or not descriptors:
        return 0  # the loader has gone
    name, environment, names = decode_begin(packet)
    forking.begin(name, descriptors[0], descriptors[1:], names, environment)
    return _call(entry)


class Process:
    """Owns one forked process from its fork until `finish`, which must follow the call of `exited`.

    what: what it is, in words; failure: why it was given up; final: another one could not do better; stopped_by: who
    asked for its end. Each report and its descriptors go to `take`, which takes those that it keeps out of the list.
    What cannot be read is ignored, and logged once.
    """

    def __init__(
        self,
        loop: Loop,
        child: Child,
        what: str,
        take: Callable[[Report, list[int]], None],
        exited: Callable[[Exit], None],
    ) -> None:
        self._loop, self._child, self.what, self._take, self._exited = loop, child, what, take, exited
        self._look: Action | None = None
        self._reports_left: int | None = None
        self._complained = self._deaf = False
        self._deadline, self._end = f"{what}'s deadline", f"{what}'s end"
        self.stopped_by: str | None = None
        self.failure: KeepfleetError | None = None
        self.final = False
        loop.watch(child.reports.fileno(), READABLE, self._ready)
        loop.watch(child.pidfd, READABLE, self._ended)

    def __repr__(self) -> str:
        return f"Process({self.what}, {self._child})"

    @property
    def pid(self) -> int:
        """The process, until it has been collected."""
        return self._child.pid

    @property
    def ending(self) -> bool:
        """Whether its end has been asked for: nothing that it says counts any more."""
        return self.stopped_by is not None or self.failure is not None

    def within(self, seconds: float, action: Action) -> None:
        """Calls `action` in `seconds`, unless it is `in_time` or ends before that."""
        self._loop.after(self._deadline, seconds, action)

    def in_time(self) -> None:
        """It has met its deadline."""
        self._loop.cancel(self._deadline)

    def send(self, packet: bytes, descriptors: list[int]) -> None:
        """Sends it a packet over its report socket."""
        self._child.send(packet, descriptors)

    def is_workload(self, look: Action) -> None:
        """From here on it may say little, and `look` is called before a signal."""
        self._look, self._reports_left = look, MAX_RUNNING_REPORTS

    def dismiss(self, seconds: float, *, hang_up: bool) -> None:
        """It has done its part: it is heard no more, and must end within `seconds`; unless we `hang_up`, it still sees
        that we are there."""
        if hang_up:
            self._hear_no_more()
        else:
            self._loop.forget(self._child.reports.fileno())
            self._deaf = True
        self.within(seconds, self.kill)

    def stop(self, by: str) -> None:
        """Ends it, by TERM and then by KILL; asked twice, the first who asked is named."""
        if self.stopped_by is None:
            self.stopped_by = by
            self._signal(_signal.SIGTERM)
            self._loop.after(self._end, TERM_SECONDS, self.kill)

    def abandon(self, error: KeepfleetError, *, final: bool = False) -> None:
        """Ends one that is of no use."""
        if self.failure is None:
            self.failure, self.final = error, final
        self.kill()

    def kill(self) -> None:
        """SIGKILL."""
        self._signal(_signal.SIGKILL)

    def read_all(self) -> None:
        """Reads what it has sent so far, without waiting for more."""
        for _ in range(MAX_LAST_REPORTS):
            if not self._read():
                break

    def finish(self) -> Exit:
        """Collects the process and closes everything; one that has not ended is killed, and no one is notified."""
        self._hear_no_more()
        self._loop.forget(self._child.pidfd)
        self._loop.cancel(self._deadline)
        self._loop.cancel(self._end)
        return self._child.reap()

    def _ready(self, _events: int) -> None:
        self._read()

    def _ended(self, _events: int) -> None:
        self.read_all()
        self._exited(self.finish())

    def _signal(self, number: int) -> None:
        if self._look is not None:
            self._look()
        self._child.send_signal(number)

    def _hear_no_more(self) -> None:
        """Reads nothing more: the sender gets EPIPE."""
        if not self._deaf:
            self._deaf = True
            self._loop.forget(self._child.reports.fileno())
            self._child.reports.close()

    def _read(self) -> bool:
        """Reads one report; false when there is none."""
        if self._deaf:
            return False
        try:
            packet = self._child.receive()
        except EOFError:
            self._hear_no_more()
            if self._look is None:
                self.kill()  # one that can no longer report is of no use
            return False
        if packet is None:
            return False
        data, descriptors = packet
        if self._reports_left is not None:
            self._reports_left -= 1
        try:
            if data is None:
                raise KeepfleetError(ErrorKind.TOO_LARGE, "cannot read the app-loader's report: it is too long")
            self._take(decode_report(data), descriptors)
        except KeepfleetError as error:
            self._complain(error)
        finally:
            close_all(descriptors)
        if self._reports_left is not None and self._reports_left <= 0:
            self._hear_no_more()
        return True

    def _complain(self, error: KeepfleetError) -> None:
        if not self._complained:
            self._complained = True
            log(plain(f"ignored a report, and will ignore more of them in silence: {error}", _MAX_COMPLAINT))


class Prepared:
    """Forks made before the start that they are for, by what they will call: they import what they will need, make what
    belongs to no one yet, and wait to learn what to be. A start then finds them ready, and costs a few milliseconds.

    One that has died, or that a start cannot use, is done without: a fork is made at the start, as for any other keep.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._waiting: dict[str, Child] = {}

    def __repr__(self) -> str:
        return f"Prepared({', '.join(self._waiting) or 'none'})"

    def fork(self, entries: Sequence[str]) -> None:
        """Forks what a start will call, where there is a name. What cannot be forked now is by the start, which says
        why."""
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)  # until a start says where their words go
        try:
            for entry in filter(None, entries):
                child = fork(entry, PREPARED_NAME, {}, {}, null, prepared=True)
                self._waiting[entry] = child
                self._loop.watch(child.pidfd, READABLE, self._dropping(entry))
        except OSError as error:
            log(f"cannot prepare for a start: {error.strerror}")
        finally:
            os.close(null)

    def begin(
        self, entry: str, name: str, environment: dict[str, str], passed: Mapping[str, int], words: int
    ) -> Child | None:
        """The fork for `entry`, from now on as one that was forked with all of this; None where there is none."""
        child = self._waiting.pop(entry, None)
        if child is None:
            return None
        self._loop.forget(child.pidfd)
        try:
            packet = encode_begin(name, environment, tuple(passed))
            socket.send_fds(child.reports, [packet], [words, *passed.values()])
        except OSError:  # it has died
            child.reap()
            return None
        return child

    def drop_all(self) -> None:
        """Ends those that wait."""
        for entry in list(self._waiting):
            self._drop(entry)

    def _dropping(self, entry: str) -> Handler:
        return lambda _: self._drop(entry)

    def _drop(self, entry: str) -> None:
        child = self._waiting.pop(entry)
        self._loop.forget(child.pidfd)
        end = child.reap()
        if end.signal is None and end.code:
            log(f"what was prepared for a start {end.words}")
