"""The runner: maps and links the compiled guest, gives up the right to make code, and runs it. Nothing else is left in
this process: no key, no HTTP, no listener.

Loading comes before the lock, the first instruction of the guest (its start section, at instantiation) after it.
It is what the endpoint becomes, or what the keep-loader starts to run a workload again; then the compiled module may be
of another version's engine, and is compiled again from the module it was made of.
Import rule: no engine at the top, so that a process that cannot even import it reports why.
"""

from __future__ import annotations

import math
import os
import resource
import sys
import time
from typing import TYPE_CHECKING

from app_loader.descriptors import Grants, Passed, claim, read_grants
from app_loader.limits import EXACT_CPU_SECONDS, OS_STACK_SPARE_BYTES
from app_loader.reports import Reporter
from app_loader.run import outcome as outcomes
from app_loader.run.meter import Meter, end_after
from app_loader.settings import read_limits
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.limits import Limits
from keep_protocol.outcome import Outcome
from keep_protocol.reports import COMPILED, MODULE, Report, ReportType
from keep_protocol.workload import Workload

if TYPE_CHECKING:
    from app_loader.run.guest import Guest

_RUNNING = "running the workload"


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
    from app_loader.run.lock import lock

    guest, text = _load(passed, limits, grants)
    context = GuestContext(grants, os.environ.get("KEEPFLEET_RUNTIME_DIRECTORY", "/nonexistent"))
    try:
        guest.link(context.wasi)
        _bound(limits)
        lock(executable_memory=False, files=context.has_files)
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
