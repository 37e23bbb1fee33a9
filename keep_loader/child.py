"""The app-loader as a process: spawned with descriptors at exact numbers, watched by pidfd, ended by TERM then KILL.

Import rule: that of keep_loader; `os.posix_spawn` in place of `subprocess`, which costs 5 ms.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket

from keep_loader.fdstore import descriptors_in
from keep_protocol.constants import MAX_CONTROL_FRAME
from keep_protocol.fields import Record

STATUS_DESCRIPTOR = 3
"""Where the app-loader finds its end of the report socket; what it is handed follows from 4 on."""
_CLEAR_OF_TARGETS = 64
"""Sources are copied to numbers from here, so that placing one never overwrites another."""
_DESCRIPTOR_SPACE = socket.CMSG_SPACE(4)


class Exit(Record):
    """How a process ended: its exit code, or the signal that ended it; its CPU time and the memory it once had."""

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
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Packet(Record):
    """One packet of the child's: its bytes (None where it was over the limit) and the descriptors it carried."""

    data: bytes | None
    descriptors: list[int]


class Child:
    """One spawned process that has not been reaped; owns its pidfd and our end of its report socket."""

    def __init__(self, pid: int, reports: socket.socket) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.reports = reports

    def __repr__(self) -> str:
        return f"Child(pid {self.pid})"

    def receive(self) -> Packet | None:
        """The next packet; None when there is none now. Raises EOFError when there never will be one again."""
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
        return Packet(None if flags & socket.MSG_TRUNC else data, descriptors)

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
        _, status, usage = os.wait4(self.pid, 0)
        os.close(self.pidfd)
        self.reports.close()
        killed = os.WIFSIGNALED(status)
        return Exit(
            code=None if killed else os.waitstatus_to_exitcode(status),
            signal=os.WTERMSIG(status) if killed else None,
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            peak_bytes=usage.ru_maxrss * 1024,
        )


def spawn(command: tuple[str, ...], environment: dict[str, str], handed: list[int | None]) -> Child:
    """Starts `command` with `environment` and nothing else of ours.

    Its standard input is /dev/null, its output ours, 3 its report socket, and `handed[i]` its descriptor 4 + i
    (None: closed). The caller keeps its own copies. Raises OSError.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    copies: list[int] = []
    actions: list[tuple[object, ...]] = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)]
    try:
        with theirs:
            for number, source in enumerate([theirs.fileno(), *handed], STATUS_DESCRIPTOR):
                if source is not None:
                    copies.append(fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, _CLEAR_OF_TARGETS))
                    actions.append((os.POSIX_SPAWN_DUP2, copies[-1], number))
            pid = os.posix_spawn(
                command[0], command, environment, file_actions=actions, setpgroup=0, setsigdef=[signal.SIGPIPE]
            )
    except OSError:
        ours.close()
        raise
    finally:
        for copy in copies:
            os.close(copy)
    ours.setblocking(False)
    return Child(pid, ours)
