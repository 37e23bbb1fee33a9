"""A check of an upload, from both sides: the endpoint asks for it, the runner that waits has it made.

The endpoint sends the module's file and a socket for the answer over the socket `checks`, one packet a check. The
runner forks a throw-away process, the checker, which has the engine ready from its first instruction; it has nothing
but the module's file, a file for the compiled module, the workload's description, a socket for its result and a pipe
for its last words. The runner keeps its deadline, ends it when the answer is not waited for any more, and says what its
end means where it gave no result. What was compiled goes from the runner to the loader, and never through the endpoint.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # as in keep_protocol.forking
import errno
import os
import select
import stat
from _collections_abc import Callable

from app_loader.limits import (
    CHECKER_END_SECONDS,
    CHECKER_WALL_FACTOR,
    MAX_CHECKER_ANSWER,
    MAX_EVIDENCE_LINE,
    MAX_EVIDENCE_LINES,
    RUNNER_ANSWER_SECONDS,
)
from app_loader.settings import Passed
from keep_protocol import sockets as socket
from keep_protocol import strict_json
from keep_protocol.constants import MODULE, RESULT, WORKLOAD_DESCRIPTOR
from keep_protocol.errors import ErrorKind, KeepfleetError, error_from_wire
from keep_protocol.forking import fork
from keep_protocol.limits import BOUNDS, Limits

REQUEST = b"check"
"""The packet that asks for a check; it brings the module's file and the socket for the answer."""
GOOD, REFUSED = b"+", b"-"
"""How a result begins, before its JSON object: `{"note": "…"}` for what can run, `{"error": {…}}` for what cannot. The
runner looks at no more than this of what a checker says."""
CHECKER_NAME = "keep-checker"
_SPACE = socket.CMSG_SPACE(2 * 4)
STORE_DIRECTORIES = ("/var/tmp", "/tmp")  # noqa: S108 - only files without a name are made there
"""On a disk where there is one: a tmpfs counts as the keep's memory. In its unit both are the keep's own."""
_PANIC = "panicked at "
"""How the engine says that it has met a fault of its own, before it aborts."""
_BY_THE_MODULE = (_signal.SIGABRT, _signal.SIGSEGV, _signal.SIGBUS, _signal.SIGILL)
"""How a compiler ends that gets no more memory, or meets its own fault; any other signal came from outside."""
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
    """The endpoint's side of one check. deadline: when the runner should have answered; note: what the owner of a
    module that can run should know of it."""

    def __init__(self, checks: int, module: int, limits: Limits, now: float) -> None:
        """Asks over `checks` for a check of the file `module`, which is whole. Raises KeepfleetError(UNAVAILABLE)."""
        self.deadline = now + wall_seconds(limits) + RUNNER_ANSWER_SECONDS
        self.note = ""
        self._answer, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._answer.setblocking(False)
        try:
            with theirs, socket.socket(fileno=os.dup(checks)) as requests:
                socket.send_fds(requests, [REQUEST], [module, theirs.fileno()], socket.MSG_DONTWAIT)
        except OSError as error:
            self._answer.close()
            raise _unavailable(f"the runner takes no request ({error.strerror})") from error

    def __repr__(self) -> str:
        return f"Checking({self._answer.fileno()})"

    def fileno(self) -> int:
        """The descriptor that becomes readable when the answer has come, or the runner has ended."""
        return self._answer.fileno()

    def refusal(self) -> KeepfleetError | None:
        """Why the module is refused, or None when it can run. Call it when readable."""
        try:
            packet = self._answer.recv(MAX_CHECKER_ANSWER + 1)
        except OSError:
            packet = b""
        if not packet:
            return _unavailable("the runner ended before it had")
        refusal, self.note = read_result(packet)
        return refusal

    def give_up(self) -> KeepfleetError:
        """The refusal where the runner does not answer."""
        return _unavailable("the runner does not answer")

    def close(self) -> None:
        """Ends the check, if it still runs. May be called twice."""
        self._answer.close()


def _unavailable(why: str) -> KeepfleetError:
    return KeepfleetError(
        ErrorKind.UNAVAILABLE, f"cannot check the module: {why}, which says nothing of the module: send it again"
    )


def receive_request(checks: socket.socket) -> tuple[int, socket.socket] | None:
    """The next request's module, open for reading alone, and the socket for its answer.

    None for what is no request: the endpoint that sends it may be a stranger's. Raises EOFError when there is none.
    """
    data, ancillary, flags, _ = checks.recvmsg(len(REQUEST) + 1, _SPACE, socket.MSG_CMSG_CLOEXEC)
    found = [int(number) for _, _, item in ancillary for number in memoryview(item).cast("i")]
    if not data and not found:
        raise EOFError
    try:
        if data != REQUEST or len(found) != 2 or flags & socket.MSG_CTRUNC:
            return None
        if not stat.S_ISREG(os.fstat(found[0]).st_mode) or not stat.S_ISSOCK(os.fstat(found[1]).st_mode):
            return None
        answer = socket.socket(fileno=found.pop())
        answer.setblocking(False)
        return read_only(found.pop()), answer
    except OSError:
        return None
    finally:
        for number in found:
            os.close(number)


class Check:
    """The runner's side: one checker at work on `module`, which is closed with it.

    result: the file the compiled module is written to; deadline: when it has taken too long.
    """

    def __init__(
        self,
        begin: Callable[[Passed], int],
        module: int,
        limits: Limits,
        description: int | None,
        kept: frozenset[int],
        now: float,
    ) -> None:
        """Forks the process, which calls `begin`, for the module's file, and for the workload described in that file,
        if one is. `kept` are descriptors of libraries that stay open. Takes `module` over in any case.

        Raises KeepfleetError(NO_SPACE, INTERNAL).
        """
        self.module, self.result = module, -1
        self._pid, self._errors = 0, -1
        self._limits = limits
        self.deadline = now + wall_seconds(limits)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        self._errors, errors = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            self.result = unnamed_file()
            passed = {MODULE: module, RESULT: self.result}
            if description is not None:
                passed[WORKLOAD_DESCRIPTOR] = description
            names = tuple(passed)
            self._pid = fork(
                lambda: begin(Passed(names)),
                CHECKER_NAME,
                passed,
                {"LANG": "C.UTF-8", "KEEPFLEET_LIMITS": limits.to_text()},
                reports=theirs.fileno(),
                output=(null, errors),
                kept=kept,
                own_group=False,
            )
        except KeepfleetError:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise KeepfleetError(ErrorKind.INTERNAL, f"cannot start the checker: {error}") from error
        finally:
            theirs.close()
            os.close(errors)
            os.close(null)

    def __repr__(self) -> str:
        return f"Check({self._pid})"

    def fileno(self) -> int:
        """The descriptor that becomes readable when the result has come, or the process has ended."""
        return self._socket.fileno()

    def end(self) -> bytes:
        """The result, as it is answered. Call it when readable; the process has then ended."""
        try:
            packet = self._socket.recv(MAX_CHECKER_ANSWER + 1)
        except OSError:
            packet = b""
        if packet[:1] not in (GOOD, REFUSED):
            return refused(self._refusal_of_end())
        self._kill()
        return packet

    def give_up(self) -> bytes:
        """Kills the process; the result of one that took too long."""
        self._kill()
        return refused(took_too_long(self._limits))

    def wait(self) -> bytes:
        """Waits for the result."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return self.end() if poll.poll(wall_seconds(self._limits) * 1000) else self.give_up()

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
        return result_of_end(self._reap(), self._limits, self._said())

    def _said(self) -> str:
        """What the process has written to its standard error: the allocator's or Python's last words."""
        try:
            return os.read(self._errors, MAX_CHECKER_ANSWER).decode("ascii", "backslashreplace")
        except BlockingIOError:
            return ""

    def _kill(self) -> None:
        if self._pid:
            os.kill(self._pid, _signal.SIGKILL)
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
        for number in (self._errors, self.result, self.module):
            if number >= 0:
                os.close(number)
        self._errors = self.result = self.module = -1


def read_result(packet: bytes) -> tuple[KeepfleetError | None, str]:
    """Why the module cannot run, and where it can, what its owner should know of it."""
    try:
        value = strict_json.loads_object(packet[1:], MAX_CHECKER_ANSWER, "the checker's result")
    except KeepfleetError as error:
        return KeepfleetError(ErrorKind.INTERNAL, error.message), ""
    if packet[:1] == GOOD:
        return None, str(value.get("note", ""))
    return error_from_wire(value.get("error")), ""


def refused(error: KeepfleetError) -> bytes:
    """The result that says why a module cannot run."""
    return REFUSED + strict_json.dumps({"error": error.to_wire()})


def wall_seconds(limits: Limits) -> float:
    """How long the check of any module may take: its processor time is its limit, and this ends what hangs. A unit with
    half a processor takes twice as long."""
    return limits.compile_seconds * CHECKER_WALL_FACTOR * 100 / min(100, limits.cpu_percent)


def over(name: str, limits: Limits) -> str:
    """How compiling went over the limit `name`, and what to do, in words that follow "compiling it"."""
    what = {"compile_seconds": "processor time", "compile_memory_bytes": "memory"}[name]
    given, most = limits.fields()[name], BOUNDS[name][1]
    more = f"; raise it, to {name}={min(2 * given, most)}" if given < most else ", which is the most there is"
    return f"takes more {what} than {name}={given} gives a module with this much code{more}"


def too_complex(how: str, evidence: tuple[str, ...] = ()) -> KeepfleetError:
    """The refusal of a module that cannot be checked within the limits."""
    return KeepfleetError(ErrorKind.TOO_COMPLEX, f"cannot take the module: compiling it {how}", evidence)


def took_too_long(limits: Limits) -> KeepfleetError:
    """The refusal where a checker is not done and has not used up its processor time."""
    return KeepfleetError(
        ErrorKind.UNAVAILABLE,
        f"cannot check the module: that is not done after {wall_seconds(limits):g} s, which says nothing of the "
        "module; the host is too busy, or has stopped the keep: send it again, or raise compile_seconds",
    )


def result_of_end(code: int, limits: Limits, said: str = "") -> KeepfleetError:
    """Why a checker that ended with `code` (negative: a signal), and wrote `said`, gave no result. Pure.

    Nothing kills a checker with SIGKILL for what its module is: its processor time ends by SIGXCPU before that.
    """
    lines = tuple(line[:MAX_EVIDENCE_LINE] for line in said.splitlines() if line and not line.startswith("note: "))
    if code == -_signal.SIGXCPU:
        return too_complex(over("compile_seconds", limits))
    if code == -_signal.SIGABRT and _PANIC in said:
        return KeepfleetError(
            ErrorKind.INVALID_MODULE,
            "cannot take the module: the engine has failed on it, by a fault of its own",
            lines[:MAX_EVIDENCE_LINES],
        )
    if -code in _BY_THE_MODULE:
        why = over("compile_memory_bytes", limits)
        return too_complex(f"{why} (it ended by {_signal_name(-code)})", lines[:MAX_EVIDENCE_LINES])
    if code < 0:
        return KeepfleetError(
            ErrorKind.UNAVAILABLE,
            f"cannot check the module: the checker was killed from outside ({_signal_name(-code)}), which says nothing "
            "of the module; the keep or its host may be out of memory: send it again",
        )
    return KeepfleetError(
        ErrorKind.INTERNAL, f"cannot check the module: the checker ended with {code}", lines[-MAX_EVIDENCE_LINES:]
    )


def _signal_name(number: int) -> str:
    import signal  # here: its numbers as enumerations are 2 ms of every checker

    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
