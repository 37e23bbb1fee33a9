"""The runner: it waits next to the upload endpoint, has uploads checked, and when the loader says so maps and links the
compiled guest, gives up the right to make code, and runs it.

A fork of the keep-loader, it has never held a key or read a byte of a stranger's: no TLS, no HTTP, no listener. It
makes its engine ready before that is needed, so that neither a checker, which is its fork, nor the run waits for it.
Loading comes before the lock, the first instruction of the guest (its start section, at instantiation) after it.
What the loader kept to run a workload again may be of another version's engine; then it is compiled again from the
module it was made of.
Import rule: no engine and no `_ctypes` at the top, so that a process that cannot import them reports why; and their
libraries may open files of their own, for which `claim` must not be too late.
"""

from __future__ import annotations

import os
import select
import sys
import time
from _collections_abc import Callable

from app_loader.check.checking import GOOD, Check, read_result, receive_request, refused
from app_loader.limits import EXACT_CPU_SECONDS
from app_loader.run import outcome as outcomes
from app_loader.run.meter import Meter, bound, end_after
from app_loader.settings import Grants, Passed, Reporter, claim, read_grants, read_limits, read_workload
from keep_protocol import sockets as socket
from keep_protocol.constants import (
    CHECKS,
    COMPILED,
    MAX_CONTROL_FDS,
    MODULE,
    STATUS,
    STDERR,
    STDOUT,
    WORKLOAD_DESCRIPTOR,
)
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.forking import FIRST_DESCRIPTOR
from keep_protocol.limits import Limits
from keep_protocol.outcome import Outcome, OutcomeKind
from keep_protocol.reports import COMPILED_AGAIN, MAX_RUN_PACKET, Report, ReportType, decode_run
from keep_protocol.workload import Workload

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module `typing` would be 5 ms of every run
    from app_loader.run.guest import Guest

_RUNNING = "running the workload"
_SPACE = socket.CMSG_SPACE(4 * MAX_CONTROL_FDS)
_OF_THE_MODULE = (ErrorKind.INVALID_MODULE, ErrorKind.TOO_COMPLEX)
"""What a module is refused for; anything else a check ends with is the keep's own trouble."""
_FREE_FOR_CHECKERS = FIRST_DESCRIPTOR + 4
"""What the engine's libraries keep open lies from here on: below, a checker has its own descriptors."""


def run() -> int:
    """The process: wait, load, link, lock, run, report, end. Returns the exit code where there is nothing to run."""
    reporter = Reporter()
    try:
        passed = claim(os.environ)  # before the engine's libraries open files of their own
        if _ready:  # it is older than its loader's lock on files, and would have that now
            from keep_isolation.locks import lock_waiting_runner

            lock_waiting_runner((_directory(),))
        limits = read_limits(os.environ)
        given = Waiting(passed, limits, reporter).until_run()
    except Refused as refused:
        reporter.send(Report(ReportType.ENDED, refused.outcome.text, outcome=refused.outcome))
        return 1
    except KeepfleetError as error:
        reporter.fail(error, "the runner failed")
        return 1
    except BaseException as error:
        reporter.fail(error, "the runner failed")
        raise
    if given is not None:
        _run_to_end(given, limits, reporter, Meter())
    return 0  # the loader has gone


_ready: list[tuple[Callable[[Passed], int], frozenset[int]]] = []
"""What a fork that was prepared has made ready: see `prepare`."""


def prepare() -> None:
    """Makes the engine ready, with the default limits: what a keep of others does with it is the same code. For a fork
    that waits. Raises KeepfleetError."""
    _ready.append(_engine(Limits(), Workload()))


class Refused(Exception):
    """A module that came to be run, and cannot be; `outcome` says why."""

    def __init__(self, error: KeepfleetError) -> None:
        super().__init__(error.message)
        self.outcome = Outcome(OutcomeKind.REFUSED, f"refused: {error.message}", backtrace=error.evidence)


class Waiting:
    """The runner until there is something to run: makes the engine ready, and has modules checked, one after the other.

    The endpoint that asks for checks may be a stranger's: nothing that it sends is more than a file to be checked.
    """

    def __init__(self, passed: Passed, limits: Limits, reporter: Reporter) -> None:
        self._limits, self._reporter = limits, reporter
        self._loader = socket.socket(fileno=os.dup(reporter.descriptor))
        self._checks = socket.socket(fileno=passed.number(CHECKS)) if CHECKS in passed else None
        self._description = passed.number(WORKLOAD_DESCRIPTOR) if WORKLOAD_DESCRIPTOR in passed else None
        self._workload = Workload() if self._description is None else read_workload(self._description)
        self._work: tuple[Check, socket.socket] | None = None  # a check, and where its result goes
        self._libraries: frozenset[int] = frozenset()
        self._begin: Callable[[Passed], int] | None = None

    def __repr__(self) -> str:
        return f"Waiting({self._work or 'no check'})"

    def until_run(self) -> Passed | None:
        """What is to be run, by name, compiled; None once the loader has gone. Raises KeepfleetError, Refused."""
        try:
            if not self._poll(0):  # else the engine's first work is the run itself
                self._try_to_be_ready()
            while True:
                ready = self._poll(self._patience())
                if self._loader.fileno() in ready:
                    given = self._receive_run()
                    return given if given is None or COMPILED in given else self._compiled(given)
                if self._work is not None:
                    self._go_on(*self._work, ready)
                elif self._checks is not None and ready:
                    self._next_check(self._checks)
        finally:
            self._end_work()
            for held in (self._loader, self._checks):
                if held is not None:
                    held.close()
            if self._description is not None:
                os.close(self._description)

    def _poll(self, milliseconds: int | None) -> set[int]:
        """What is ready of that which is waited for."""
        poll = select.poll()
        poll.register(self._loader, select.POLLIN)
        if self._work is not None:
            check, answer = self._work
            poll.register(check, select.POLLIN)
            poll.register(answer, 0)  # its hang-up
        elif self._checks is not None:
            poll.register(self._checks, select.POLLIN)
        return {descriptor for descriptor, _ in poll.poll(milliseconds)}

    def _patience(self) -> int | None:
        """Milliseconds until the check has taken too long."""
        return None if self._work is None else max(0, int((self._work[0].deadline - time.monotonic()) * 1000) + 1)

    def _receive_run(self) -> Passed | None:
        data, ancillary, _, _ = self._loader.recvmsg(MAX_RUN_PACKET, _SPACE, socket.MSG_CMSG_CLOEXEC)
        if not data:
            return None
        numbers = [int(number) for _, _, item in ancillary for number in memoryview(item).cast("i")]
        names = decode_run(data)
        if len(names) != len(numbers):
            raise KeepfleetError(
                ErrorKind.BAD_REQUEST, f"cannot run: {len(names)} descriptors are named and {len(numbers)} came"
            )
        return Passed(names, numbers)

    def _compiled(self, given: Passed) -> Passed:
        """The same with the module compiled, which did not come so: by a checker, as an upload's is."""
        module = os.dup(given.number(MODULE))
        check = Check(self._be_ready(), module, self._limits, self._description, self._libraries, time.monotonic())
        try:
            refusal, _ = read_result(check.wait())
            if refusal is not None and refusal.kind in _OF_THE_MODULE:
                raise Refused(refusal)
            if refusal is not None:
                raise refusal
            compiled = self._say_checked(check)
        finally:
            check.close()
        names = (*given.names, COMPILED)
        return Passed(names, [*(given.number(name) for name in given.names), compiled])

    def _next_check(self, checks: socket.socket) -> None:
        try:
            request = receive_request(checks)
        except (EOFError, ConnectionError):
            checks.close()  # the endpoint has gone, which the loader sees to
            self._checks = None
            return
        if request is None:
            return
        module, answer = request
        try:
            begin = self._be_ready()
            check = Check(begin, module, self._limits, self._description, self._libraries, time.monotonic())
        except KeepfleetError as error:
            _reply(answer, refused(error))
            answer.close()
        else:
            self._work = check, answer

    def _go_on(self, check: Check, answer: socket.socket, ready: set[int]) -> None:
        if check.fileno() in ready:
            result = check.end()
        elif answer.fileno() in ready:
            self._end_work()  # it is not waited for any more
            return
        elif time.monotonic() >= check.deadline:
            result = check.give_up()
        else:
            return
        if result.startswith(GOOD):
            os.close(self._say_checked(check))
        _reply(answer, result)
        self._end_work()

    def _say_checked(self, check: Check) -> int:
        """What was compiled goes to the loader, and before the endpoint can know of it; the caller closes it."""
        compiled = check.take_result()
        report = Report(ReportType.CHECKED, descriptors=(COMPILED, MODULE))
        self._reporter.send(report, (compiled, check.module))
        return compiled

    def _end_work(self) -> None:
        if self._work is not None:
            for held in self._work:
                held.close()
            self._work = None

    def _try_to_be_ready(self) -> None:
        try:
            self._be_ready()
        except KeepfleetError as error:
            # Who asks for a check hears why, if it still is so then.
            print(f"app-loader: {error.message}", file=sys.stderr, flush=True)

    def _be_ready(self) -> Callable[[Passed], int]:
        """What a checker is to call, with the engine imported and used once.

        Raises KeepfleetError(INTERNAL) where that fails; the next call tries again.
        """
        if self._begin is None:
            self._begin, self._libraries = _ready[0] if _ready else _engine(self._limits, self._workload)
        return self._begin


def _engine(limits: Limits, workload: Workload) -> tuple[Callable[[Passed], int], frozenset[int]]:
    """What a checker is to call, with the engine imported and used once, and the descriptors that its libraries hold.
    Raises KeepfleetError(INTERNAL)."""
    before, reserved = _open_descriptors(), [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)]
    while reserved[-1] < _FREE_FOR_CHECKERS:
        reserved.append(os.dup(reserved[0]))
    try:
        from app_loader.check.compiler import check, warm_up

        warm_up(limits, workload)
    except Exception as error:
        raise KeepfleetError(ErrorKind.INTERNAL, f"cannot use the engine: {error}") from error
    finally:
        for number in reserved:
            os.close(number)
    return check, frozenset(_open_descriptors() - before)


def _open_descriptors() -> set[int]:
    return set(map(int, os.listdir("/proc/self/fd")))


def _reply(answer: socket.socket, result: bytes) -> None:
    try:
        answer.send(result)
    except OSError:
        return  # it is not waited for any more


def _run_to_end(given: Passed, limits: Limits, reporter: Reporter, meter: Meter) -> None:
    """Runs what was given, and ends the process."""
    try:
        outcome = _run(given, limits, reporter, meter)
    except KeepfleetError as error:
        outcome = outcomes.lost(": ".join((error.message, *error.evidence[:1])), meter.usage())
    except (OSError, MemoryError, ValueError, ImportError) as error:
        outcome = outcomes.lost(str(error) or type(error).__name__, meter.usage())
    except BaseException as error:
        outcome = outcomes.lost(f"{type(error).__name__}: {error}", meter.usage())
        reporter.send(Report(ReportType.ENDED, outcome.text, outcome=outcome))
        raise
    reporter.send(Report(ReportType.ENDED, outcome.text, outcome=outcome))
    os._exit(outcomes.process_code(outcome))  # wasmtime's own clean-up could only fail


def _run(given: Passed, limits: Limits, reporter: Reporter, meter: Meter) -> Outcome:
    grants = read_grants(given)
    meter.open()
    from app_loader.run.context import GuestContext
    from app_loader.run.guest import run_guest
    from keep_isolation.locks import lock_runner

    guest, text = _load(given, limits, grants)
    context = GuestContext(grants, _directory(), guest.words)
    try:
        guest.link(context.wasi)
        _give_output(given)
        bound(guest.limits)
        lock_runner(context.files)
        context.close_files()
        reporter.send(Report(ReportType.RUNNING, text, descriptors=(STATUS,)), (meter.status,))
        if limits.cpu_seconds <= EXACT_CPU_SECONDS:
            end_after(limits.cpu_seconds)
        meter.begin()
        return run_guest(guest, limits, meter)
    finally:
        context.wipe()


def _directory() -> str:
    """The keep's own directory."""
    return os.environ.get("KEEPFLEET_RUNTIME_DIRECTORY", "/nonexistent")


def _give_output(given: Passed) -> None:
    """Standard output and error are the guest's from now on; our own words still go where they went."""
    words = os.dup(2)
    for place, name in ((1, STDOUT), (2, STDERR)):
        os.dup2(given.number(name), place, inheritable=False)
        os.close(given.number(name))
    sys.stderr = os.fdopen(words, "w", encoding="utf-8", errors="backslashreplace")


def _load(passed: Passed, limits: Limits, grants: Grants | None) -> tuple[Guest, str]:
    """The guest, and what is to be reported of it. The descriptors it was loaded from are closed."""
    from app_loader.run.guest import Unfit, load_guest

    workload = Workload() if grants is None else grants.workload
    compiled, text = passed.number(COMPILED), _RUNNING
    try:
        guest = load_guest(compiled, limits, workload)
    except Unfit as error:
        if MODULE not in passed:
            raise KeepfleetError(ErrorKind.KEEP_FAILED, f"cannot load the compiled module: {error}") from error
        text = f"{_RUNNING}, {COMPILED_AGAIN}: what was compiled before does not fit this engine: {error}"
        print(f"app-loader: {text}", file=sys.stderr, flush=True)
        os.close(compiled)
        compiled = _compile_again(passed.number(MODULE), limits, grants)
        guest = _load_fresh(compiled, limits, workload)
    os.close(compiled)
    if MODULE in passed:
        os.close(passed.number(MODULE))
    return guest, text


def _load_fresh(compiled: int, limits: Limits, workload: Workload) -> Guest:
    from app_loader.run.guest import Unfit, load_guest

    try:
        return load_guest(compiled, limits, workload)
    except Unfit as error:
        raise KeepfleetError(ErrorKind.INTERNAL, f"cannot load the module just compiled: {error}") from error


def _compile_again(module: int, limits: Limits, grants: Grants | None) -> int:
    """The module's new compiled file, made by a checker as at its upload. Raises KeepfleetError when it is refused."""
    from app_loader.check.compiler import check

    description = None if grants is None else grants.description
    checking = Check(check, os.dup(module), limits, description, frozenset(), time.monotonic())
    try:
        refusal, _ = read_result(checking.wait())
        if refusal is not None:
            raise _not_again(refusal, limits)
        return checking.take_result()
    finally:
        checking.close()


def _not_again(refusal: KeepfleetError, limits: Limits) -> KeepfleetError:
    """The refusal of what was compiled before: the keep has no more memory for it than its guest."""
    if refusal.kind not in (ErrorKind.TOO_COMPLEX, ErrorKind.UNAVAILABLE):
        return refusal
    has = f"a keep that has run has {limits.running_memory_bytes >> 20} MiB for that; run the module in a new keep"
    return KeepfleetError(refusal.kind, f"cannot compile the module again: {has} ({refusal.message})", refusal.evidence)
