"""The runner: maps and links the compiled guest, gives up the right to make code, and runs it. Nothing else is left in
this process: no key, no HTTP, no listener.

Loading comes before the lock, the first instruction of the guest (its start section, at instantiation) after it.
It is what the door becomes, or what the keep-loader starts to run a workload again.
"""

from __future__ import annotations

import math
import os
import resource
import time

import wasmtime

from app_loader import outcome as outcomes
from app_loader.belongings import Belongings
from app_loader.engine import GuestExit
from app_loader.guest import Guest, load_guest
from app_loader.handover import handed_over
from app_loader.limits import COMPILED_FD, OS_STACK_SPARE_BYTES, RUNNER_WORKLOAD_FD
from app_loader.lock import lock
from app_loader.reports import Reporter
from app_loader.settings import read_limits
from keep_protocol.control import Report, ReportType
from keep_protocol.errors import KeepfleetError
from keep_protocol.keep import Outcome
from keep_protocol.limits import Limits
from keep_protocol.workload import Workload


class Meter:
    """Measures the run; peak memory and output are read from files that `open` has to open before the lock."""

    def __init__(self) -> None:
        self._status = self._io = -1
        self.begin()

    def __repr__(self) -> str:
        return f"Meter({self.spent()!r})"

    def open(self) -> None:
        """Opens the files; not before what was handed over has been found by its numbers."""
        self._status = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
        self._io = os.open("/proc/self/io", os.O_RDONLY | os.O_CLOEXEC)

    def begin(self, *, output: bool = False) -> None:
        """The run begins now. `output`: whether what the process writes from here on is its output alone."""
        self._wall, self._cpu, self._started = time.monotonic(), time.process_time(), time.time()
        self._written = self._number(self._io, b"wchar:") if output else None

    def spent(self) -> outcomes.Spent:
        """What has been used so far."""
        written = None if self._written is None else self._number(self._io, b"wchar:")
        kib = self._number(self._status, b"VmHWM:")
        wall = time.monotonic() - self._wall
        return outcomes.Spent(
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


def _bound(limits: Limits) -> None:
    """The limits the kernel keeps: processor time, ended by SIGXCPU, and room for the guest's stack."""
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


def _live(guest: Guest, limits: Limits, meter: Meter) -> Outcome:
    """Runs the guest to its end, whichever that is."""
    try:
        code, returned = guest.run()
    except GuestExit as left:
        return outcomes.exited(left.code, meter.spent())
    except wasmtime.Trap as trap:
        frames = ((frame.func_name, frame.func_index, frame.module_offset) for frame in trap.frames)
        return outcomes.trapped(trap.message, frames, meter.spent())
    except wasmtime.ExitTrap as left:
        return outcomes.exited(left.code, meter.spent())
    except wasmtime.WasmtimeError as error:
        return outcomes.of_error(str(error), limits, meter.spent())
    if returned:
        _say(f"returned: {returned}")
    return outcomes.exited(code, meter.spent())


def _say(line: str) -> None:
    """One line on the journal's stream, where the guest's own output goes."""
    text = (line + "\n").encode("ascii", "backslashreplace")
    while text:
        text = text[os.write(1, text) :]


def _run(reporter: Reporter, meter: Meter) -> Outcome:
    limits = read_limits(dict(os.environ))
    given = handed_over(RUNNER_WORKLOAD_FD)
    meter.open()
    workload = Workload() if given is None else given.workload
    belongings = Belongings(given, os.environ.get("KEEPFLEET_RUNTIME_DIRECTORY", "/nonexistent"))
    try:
        _bound(limits)
        guest = load_guest(COMPILED_FD, limits, workload, belongings.wasi)
        os.close(COMPILED_FD)
        lock(executable_memory=False, files=belongings.has_files)
        reporter.send(Report(ReportType.RUNNING, "running the workload"))
        meter.begin(output=not belongings.writes_files)
        return _live(guest, limits, meter)
    finally:
        belongings.wipe()


def run() -> int:
    """The process: load, link, lock, run, report, end; it never returns to its caller."""
    reporter, meter = Reporter(), Meter()
    try:
        outcome = _run(reporter, meter)
    except (KeepfleetError, wasmtime.WasmtimeError, OSError, MemoryError, ValueError) as error:
        outcome = outcomes.lost(str(error) or type(error).__name__, meter.spent())
    except BaseException as error:
        outcome = outcomes.lost(f"{type(error).__name__}: {error}", meter.spent())
        reporter.send(Report(ReportType.ENDED, outcome.text, outcome=outcome))
        raise
    reporter.send(Report(ReportType.ENDED, outcome.text, outcome=outcome))
    os._exit(outcomes.process_code(outcome))  # wasmtime's own clean-up could only fail
