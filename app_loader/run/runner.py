"""The runner: maps and links the compiled guest, gives up the right to make code, and runs it. Nothing else is left in
this process: no key, no HTTP, no listener.

Loading comes before the lock, the first instruction of the guest (its start section, at instantiation) after it.
It is what the endpoint becomes, or what the keep-loader starts to run a workload again; then the compiled module may be
of another version's engine, and is compiled again from the module it was made of.
Import rule: no engine and no `_ctypes` at the top, so that a process that cannot import them reports why; and their
libraries may open files of their own, for which `claim` must not be too late.
"""

from __future__ import annotations

import math
import os
import resource
import sys
import time
from _thread import start_new_thread
from typing import TYPE_CHECKING

from app_loader.limits import EXACT_CPU_SECONDS, OS_STACK_SPARE_BYTES
from app_loader.reports import Reporter
from app_loader.run import outcome as outcomes
from app_loader.run.outcome import Usage
from app_loader.settings import Grants, Passed, claim, read_grants, read_limits
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.limits import Limits
from keep_protocol.outcome import Outcome
from keep_protocol.reports import COMPILED, MODULE, Report, ReportType
from keep_protocol.workload import Workload

if TYPE_CHECKING:
    from app_loader.run.guest import Guest

_RUNNING = "running the workload"
_TIMER_ABSTIME, _SIGXCPU = 1, 24
"""As Linux has them on every architecture of `lock`."""


def run() -> int:
    """The process: load, link, lock, run, report, end; it never returns to its caller."""
    reporter, meter = Reporter(), Meter()
    try:
        outcome = _run(reporter, meter)
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


def _run(reporter: Reporter, meter: Meter) -> Outcome:
    passed = claim(os.environ)  # before the engine's libraries open files of their own
    limits, grants = read_limits(os.environ), read_grants(passed)
    meter.open()
    from app_loader.run.context import GuestContext
    from app_loader.run.guest import run_guest
    from keep_isolation.locks import lock_runner

    guest, text = _load(passed, limits, grants)
    context = GuestContext(grants, os.environ.get("KEEPFLEET_RUNTIME_DIRECTORY", "/nonexistent"))
    try:
        guest.link(context.wasi)
        _bound(limits)
        lock_runner(context.files)
        context.close_files()
        reporter.send(Report(ReportType.RUNNING, text))
        if limits.cpu_seconds <= EXACT_CPU_SECONDS:
            end_after(limits.cpu_seconds)
        meter.begin(output=not context.writes_files)
        return run_guest(guest, limits, meter)
    finally:
        context.wipe()


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
        text = f"{_RUNNING}, compiled again: what was compiled before does not fit this engine: {error}"
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
    from app_loader.check.checking import Checking

    checking = Checking(module, limits, None if grants is None else grants.description)
    try:
        refusal = checking.wait(time.monotonic())
        if refusal is not None:
            raise refusal
        return checking.take_result()
    finally:
        checking.close()


def _bound(limits: Limits) -> None:
    """The limits the kernel keeps: processor time in whole seconds, see `end_after`, and room for the guest's stack."""
    cpu = math.ceil(time.process_time()) + limits.cpu_seconds
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(
        resource.RLIMIT_CPU, (cpu, cpu + 1) if hard == resource.RLIM_INFINITY else (min(cpu, hard), hard)
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    wanted = limits.stack_bytes + OS_STACK_SPARE_BYTES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_STACK, (wanted, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Meter:
    """Measures the run; peak memory and output are read from files that `open` has to open before the lock."""

    def __init__(self) -> None:
        self._status = self._io = -1
        self.begin()

    def __repr__(self) -> str:
        return f"Meter({self.usage()!r})"

    def open(self) -> None:
        """Opens the files; not before the passed descriptors are claimed, which closes all others."""
        self._status = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
        self._io = os.open("/proc/self/io", os.O_RDONLY | os.O_CLOEXEC)

    def begin(self, *, output: bool = False) -> None:
        """The run begins now. `output`: whether what the process writes from here on is its output alone."""
        self._wall, self._cpu, self._started = time.monotonic(), time.process_time(), time.time()
        self._written = self._number(self._io, b"wchar:") if output else None

    def usage(self) -> Usage:
        """The resource usage so far."""
        written = None if self._written is None else self._number(self._io, b"wchar:")
        kib = self._number(self._status, b"VmHWM:")
        wall = time.monotonic() - self._wall
        return Usage(
            wall=wall,
            cpu=time.process_time() - self._cpu,
            peak=None if kib is None else kib * 1024,
            output=None if written is None or self._written is None else written - self._written,
            started=self._started,
            ended=self._started + wall,
        )

    @staticmethod
    def _number(file: int, name: bytes) -> int | None:
        """A kernel's figure; None where it does not keep it."""
        try:
            lines = os.pread(file, 8192, 0).splitlines()
        except OSError:
            return None
        return next((int(line.split()[1]) for line in lines if line.startswith(name)), None)


def end_after(seconds: int) -> None:
    """Ends this process by SIGXCPU, to the millisecond, once it has used `seconds` more of processor time.

    RLIMIT_CPU counts whole seconds from the process's start, so it comes up to a second late; it still holds for a
    guest that has broken out of its engine. A timer would be exact, too, but the unit's system call filter has none.
    """
    from _ctypes import byref  # the engine has brought these: no file can be opened behind the lock

    from app_loader.engine.binding import Int64, bind, open_program

    deadline = time.clock_gettime_ns(time.CLOCK_PROCESS_CPUTIME_ID) + seconds * 1_000_000_000
    wanted = (Int64 * 2)(*divmod(deadline, 1_000_000_000))  # struct timespec
    program = open_program()
    sleep = bind(program, "clock_nanosleep", "int int int void* void*")
    end = bind(program, "raise", "int int")

    def wait() -> None:
        if sleep(time.CLOCK_PROCESS_CPUTIME_ID, _TIMER_ABSTIME, byref(wanted), None) == 0:
            end(_SIGXCPU)

    start_new_thread(wait, ())
