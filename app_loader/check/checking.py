"""The parent's side of the check: a throw-away process that validates and compiles one module, and its result.

The endpoint starts it when an upload's headers have come, so that its imports overlap the body; a runner does where the
compiled module it was passed does not fit its engine. The process has nothing but the module's file, a file for the
compiled module, the workload's description, a socket for its result and a pipe for its last words.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import sys

from app_loader.check.budget import GO, budget, result_of_end, too_complex
from app_loader.limits import CHECKER_END_SECONDS, FIRST_DESCRIPTOR, MAX_CHECKER_ANSWER, REPORT_FD
from app_loader.settings import VARIABLE
from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError, error_from_wire
from keep_protocol.limits import DEFAULT_LIMITS, Limits

ENTRY = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "__main__.py")
"""The way in to all three processes, see `__main__`."""
STORE_DIRECTORIES = ("/var/tmp", "/tmp")  # noqa: S108 - only files without a name are made there
"""On a disk where there is one: a tmpfs counts as the keep's memory. In its unit both are the keep's own."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def store_error(error: OSError) -> KeepfleetError:
    """The refusal that says why the module could not be stored."""
    kind = ErrorKind.NO_SPACE if error.errno in _FULL else ErrorKind.INTERNAL
    return KeepfleetError(kind, f"cannot store the module: {error.strerror}")


def unnamed_file(directories: tuple[str, ...] = STORE_DIRECTORIES) -> int:
    """A new file without a name, in the first directory that can hold one: it is gone with its last descriptor.

    Raises KeepfleetError(NO_SPACE, or INTERNAL where no directory will do).
    """
    reason = OSError(errno.ENOENT, "no directory for it")
    for directory in directories:
        try:
            return os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600)
        except OSError as error:
            reason = error
    raise store_error(reason)


def read_only(descriptor: int) -> int:
    """The same file, open for reading alone; `descriptor` is closed."""
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(descriptor)


class Checking:
    """One checker at work. result: the file the compiled module is written to; deadline: once `go` was called; note:
    what the owner of a module that can run should know of it."""

    def __init__(self, module: int, limits: Limits = DEFAULT_LIMITS, description: int | None = None) -> None:
        """Starts the process for the module's file, and for the workload described in that file, if one is.

        Raises KeepfleetError(NO_SPACE, INTERNAL).
        """
        self.result = unnamed_file()
        self.deadline: float | None = None
        self.note = ""
        self._module, self._limits, self._budget = module, limits, budget(0, limits.unit_memory_bytes)
        passed = {"module": module, "result": self.result}
        if description is not None:
            passed["workload"] = description
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        self._errors, errors = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            null = os.open("/dev/null", os.O_RDWR)
            try:
                self._pid = os.posix_spawn(
                    sys.executable,
                    [sys.executable, "-I", "-S", ENTRY, "check"],
                    {"LANG": "C.UTF-8", "KEEPFLEET_LIMITS": limits.to_text(), VARIABLE: ",".join(passed)},
                    file_actions=[
                        (os.POSIX_SPAWN_DUP2, null, 0),
                        (os.POSIX_SPAWN_DUP2, null, 1),
                        (os.POSIX_SPAWN_DUP2, errors, 2),
                        *_moves([(REPORT_FD, theirs.fileno()), *enumerate(passed.values(), FIRST_DESCRIPTOR)]),
                    ],
                )
            finally:
                os.close(null)
        except OSError as error:
            self._pid = 0
            self.close()
            raise KeepfleetError(ErrorKind.INTERNAL, f"cannot start the checker: {error}") from error
        finally:
            theirs.close()
            os.close(errors)

    def __repr__(self) -> str:
        return f"Checking({self._pid})"

    def fileno(self) -> int:
        """The descriptor that becomes readable when the result has come, or the process has ended."""
        return self._socket.fileno()

    def go(self, now: float) -> None:
        """The module is whole: the check begins."""
        self._budget = budget(os.fstat(self._module).st_size, self._limits.unit_memory_bytes)
        self.deadline = now + self._budget.seconds
        try:
            self._socket.send(GO)
        except OSError:
            return  # it has ended already: its end is readable, and `refusal` says why

    def refusal(self) -> KeepfleetError | None:
        """Why the module is refused, or None when it can run. Call it when readable; the process has then ended."""
        try:
            packet = self._socket.recv(MAX_CHECKER_ANSWER)
        except OSError:
            packet = b""
        if not packet:
            return self._refusal_of_end()
        self._kill()
        try:
            value = strict_json.loads_object(packet, MAX_CHECKER_ANSWER, "the checker's result")
        except KeepfleetError as error:
            return KeepfleetError(ErrorKind.INTERNAL, error.message)
        self.note = str(value.get("note", ""))
        return error_from_wire(value["error"]) if "error" in value else None

    def give_up(self) -> KeepfleetError:
        """Kills the process; the refusal for one that took too long."""
        self._kill()
        return too_complex(f"takes over {self._budget.seconds:g} s")

    def _refusal_of_end(self) -> KeepfleetError:
        """What the end of a process means that has closed its socket; one that does not end is killed."""
        waiter = os.pidfd_open(self._pid)
        try:
            poll = select.poll()
            poll.register(waiter, select.POLLIN)
            ended = bool(poll.poll(CHECKER_END_SECONDS * 1000))
        finally:
            os.close(waiter)
        if not ended:
            self._kill()
            return KeepfleetError(ErrorKind.INTERNAL, "cannot check the module: the checker gave no result, and hung")
        return result_of_end(self._reap(), self._budget, self._said())

    def wait(self, now: float) -> KeepfleetError | None:
        """Checks a module that is whole, and waits for that: the refusal, or None when it can run."""
        self.go(now)
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return self.refusal() if poll.poll(self._budget.seconds * 1000) else self.give_up()

    def _said(self) -> str:
        """What the process has written to its standard error: the allocator's or Python's last words."""
        try:
            return os.read(self._errors, MAX_CHECKER_ANSWER).decode("ascii", "backslashreplace")
        except BlockingIOError:
            return ""

    def _kill(self) -> None:
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            self._reap()

    def _reap(self) -> int:
        pid, self._pid = self._pid, 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def take_result(self) -> int:
        """The compiled module's file, open for reading alone; the caller closes it."""
        result, self.result = self.result, -1
        return read_only(result)

    def close(self) -> None:
        """Ends the process, if it still runs, and drops its files. May be called twice."""
        self._kill()
        self._socket.close()
        if self._errors >= 0:
            os.close(self._errors)
            self._errors = -1
        if self.result >= 0:
            os.close(self.result)
            self.result = -1


def _moves(moves: list[tuple[int, int]]) -> list[tuple[int, int, int] | tuple[int, int]]:
    """File actions for (target, source) pairs, by way of numbers above all: a target may be another's source."""
    base = max(number for move in moves for number in move) + 1
    actions: list[tuple[int, int, int] | tuple[int, int]] = []
    actions += [(os.POSIX_SPAWN_DUP2, source, base + index) for index, (_, source) in enumerate(moves)]
    actions += [(os.POSIX_SPAWN_DUP2, base + index, target) for index, (target, _) in enumerate(moves)]
    actions += [(os.POSIX_SPAWN_CLOSE, base + index) for index in range(len(moves))]
    return actions
