"""The app-loader as a process: spawned with descriptors by name, watched by pidfd, ended by TERM then KILL, and heard
over its report socket, bounded: from ACCEPTED on it runs foreign code.

Import rule: that of keep_loader; `os.posix_spawn` in place of `subprocess`, which costs 5 ms.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import time
from collections.abc import Callable

from keep_loader.descriptors import close_all, descriptors_in
from keep_loader.log import log, plain
from keep_loader.loop import READABLE, Action, Loop
from keep_protocol.constants import APPLOADER_START_SECONDS, MAX_CONTROL_FRAME, TERM_SECONDS
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.outcome import Outcome
from keep_protocol.reports import MAX_REPORT_DESCRIPTORS, Report, decode_report

STATUS_DESCRIPTOR = 3
"""Where the app-loader finds its end of the report socket; what is passed follows from 4 on."""
LINGER_SECONDS = 5.0
"""A workload that has reported its end has nothing left to do but exit."""
MAX_RUNNING_REPORTS = 16
"""Reports read of a running workload; an honest one sends two."""
MAX_LAST_REPORTS = 64
"""Reports read of a process that has ended; what it spawned could go on sending for ever."""
_CLEAR_OF_TARGETS = 64
"""Sources are copied to numbers from here, so that placing one never overwrites another."""
_DESCRIPTOR_SPACE = socket.CMSG_SPACE(4 * MAX_REPORT_DESCRIPTORS)
_MAX_COMPLAINT = 400
_OF_A_PROCESS = 2
"""The clock that counts what a process has used, in the kernel's own nanoseconds (CPUCLOCK_SCHED)."""
_START, _END, _LINGER = "app-loader start", "app-loader end", "workload linger"


class Exit(Record):
    """How a process ended: its exit code, or the signal that ended it; its CPU time, with that of the children it had
    collected and without; and the most memory it had."""

    code: int | None
    signal: int | None
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    own_seconds: float | None = None

    @property
    def words(self) -> str:
        """ "exited 1", or "was killed by SIGKILL"."""
        return f"exited {self.code}" if self.signal is None else f"was killed by {signal_name(self.signal)}"


def signal_name(number: int) -> str:
    """`SIGKILL` for 9; a real-time signal has a number alone."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Child:
    """One spawned process that has not been reaped; owns its pidfd and our end of its report socket."""

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
            data, ancillary, flags, _ = self.reports.recvmsg(
                MAX_CONTROL_FRAME + 1, _DESCRIPTOR_SPACE, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        except OSError as error:
            raise EOFError from error
        descriptors = descriptors_in(ancillary)
        if not data and not descriptors:
            raise EOFError
        return None if flags & socket.MSG_TRUNC else data, descriptors

    def send_signal(self, number: int) -> None:
        """Signals the process and its process group, which holds what it spawned; one that has ended is no error.

        The process has not been reaped, so its number cannot have become another's.
        """
        signal.pidfd_send_signal(self.pidfd, number)
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            return  # it has left its group, and nothing else is in it

    def reap(self) -> Exit:
        """Collects the ended process and what is left of its group, and closes everything."""
        self.send_signal(signal.SIGKILL)
        own = own_processor_seconds(self.pid)  # an ended process has its clock until it is collected
        _, status, usage = os.wait4(self.pid, 0)
        os.close(self.pidfd)
        self.reports.close()
        killed = os.WIFSIGNALED(status)
        return Exit(
            code=None if killed else os.waitstatus_to_exitcode(status),
            signal=os.WTERMSIG(status) if killed else None,
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            peak_bytes=usage.ru_maxrss * 1024,
            own_seconds=own,
        )


def own_processor_seconds(pid: int) -> float | None:
    """What the process itself has used so far, without its children, exactly; None once it has been collected.

    The clock of another process (man clock_getcpuclockid), which /proc does not show.
    """
    try:
        return time.clock_gettime(~pid << 3 | _OF_A_PROCESS)
    except (OSError, OverflowError):
        return None


def spawn(command: tuple[str, ...], environment: dict[str, str], passed: dict[str, int]) -> Child:
    """Starts `command` with `environment`, `passed`, and nothing else of ours. Raises OSError.

    Its standard input is /dev/null, its output ours, and 3 its report socket. KEEPFLEET_DESCRIPTORS has the names of
    what is passed: the i-th is its descriptor 4 + i. The caller keeps its own copies.
    """
    _keep_strays_back()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    copies: list[int] = []
    actions: list[tuple[object, ...]] = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)]
    try:
        with theirs:
            for number, source in enumerate([theirs.fileno(), *passed.values()], STATUS_DESCRIPTOR):
                copies.append(fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, _CLEAR_OF_TARGETS))
                actions.append((os.POSIX_SPAWN_DUP2, copies[-1], number))
            pid = os.posix_spawn(
                command[0],
                command,
                {**environment, "KEEPFLEET_DESCRIPTORS": ",".join(passed)},
                file_actions=actions,
                setpgroup=0,
                setsigdef=[signal.SIGPIPE],
            )
    except OSError:
        ours.close()
        raise
    finally:
        for copy in copies:
            os.close(copy)
    ours.setblocking(False)
    return Child(pid, ours)


def _keep_strays_back() -> None:
    """Makes every descriptor beyond standard error close-on-exec: also one that we were started with, or that a library
    has opened, and that nothing here knows of. Raises OSError."""
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > 2:
            try:
                os.set_inheritable(number, False)
            except OSError:
                continue  # the listing's own, closed meanwhile


class Run:
    """Owns one app-loader from its spawn until `finish`, which must follow the call of `exited`.

    Each report and its descriptors go to `take`, which takes those that it keeps out of the list. What cannot be read
    is ignored, and logged once.

    reported: the outcome its workload reported; stopped_by: who asked for its end; limited: the limit it was ended
    for; failure: why its upload endpoint was given up; final: another one could not do better.
    """

    def __init__(
        self, loop: Loop, child: Child, take: Callable[[Report, list[int]], None], exited: Callable[[], None]
    ) -> None:
        self._loop, self._child, self._take, self._exited = loop, child, take, exited
        self._look: Action | None = None
        self._reports_left: int | None = None
        self._complained = self._deaf = False
        self.reported: Outcome | None = None
        self.stopped_by: str | None = None
        self.limited: str | None = None
        self.failure: KeepfleetError | None = None
        self.final = False
        loop.watch(child.reports.fileno(), READABLE, self._ready)
        loop.watch(child.pidfd, READABLE, self._ended)
        loop.after(_START, APPLOADER_START_SECONDS, self._too_slow)

    def __repr__(self) -> str:
        return f"Run({self._child})"

    @property
    def pid(self) -> int:
        """The process, until `finish`."""
        return self._child.pid

    @property
    def ending(self) -> bool:
        """Whether its end has been asked for: nothing that it says counts any more."""
        return self.stopped_by is not None or self.failure is not None or self.limited is not None

    def opened(self) -> None:
        """Its upload endpoint is open: the deadline for that is met."""
        self._loop.cancel(_START)

    def accepted(self, look: Action) -> None:
        """It is the workload, or becoming it: from here on it may say little, and `look` is called before a signal."""
        self._look = look
        self._loop.cancel(_START)
        self._reports_left = MAX_RUNNING_REPORTS

    def has_reported(self, outcome: Outcome) -> None:
        """Its workload has reported its end: it is heard no more, and must exit."""
        self.reported = outcome
        self._reports_left = 0
        self._loop.after(_LINGER, LINGER_SECONDS, self._kill)

    def stop(self, by: str) -> None:
        """Ends it, by TERM and then by KILL; asked twice, the first who asked is named."""
        if self.stopped_by is None:
            self.stopped_by = by
            self._signal(signal.SIGTERM)
            self._loop.after(_END, TERM_SECONDS, self._kill)

    def limit(self, why: str) -> None:
        """Kills a workload that is over a limit; `why` says which. One that is ending anyway is let end."""
        if not self.ending and self.reported is None:
            self.limited = why
            self._kill()

    def abandon(self, error: KeepfleetError, *, final: bool = False) -> None:
        """Ends an upload endpoint that cannot serve."""
        self.failure, self.final = error, final
        self._kill()

    def finish(self) -> Exit:
        """Collects the ended process and closes everything."""
        self._hear_no_more()
        self._loop.forget(self._child.pidfd)
        for name in (_START, _END, _LINGER):
            self._loop.cancel(name)
        return self._child.reap()

    def _ready(self, _events: int) -> None:
        self._read()

    def _ended(self, _events: int) -> None:
        for _ in range(MAX_LAST_REPORTS):
            if not self._read():
                break
        self._exited()

    def _kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self._look is not None:
            self._look()
        self._child.send_signal(number)

    def _too_slow(self) -> None:
        why = f"the app-loader did not listen within {APPLOADER_START_SECONDS:g} s"
        self.abandon(KeepfleetError(ErrorKind.TOO_SLOW, f"cannot open the keep's upload endpoint: {why}"))

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
                self._kill()  # an upload endpoint that can no longer report is of no use
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
