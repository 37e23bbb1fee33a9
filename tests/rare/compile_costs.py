"""What compiling costs, by the very checker: `python -m tests.rare.compile_costs FILE.wasm…` prints a table.

Processor time and the peak of resident memory are the kernel's of a process of its own, which has the limits that a
keep's checker has by default; ready is what mapping and linking the compiled file takes after that.
"""

from __future__ import annotations

import os
import sys
import time

from app_loader.check.compiler import COMPONENT_VERSION, MAGIC, budget, examine, limit, warm_up
from app_loader.check.outline import HEAD_BYTES, code_bytes
from app_loader.engine.store import Wasi
from app_loader.run.guest import load_guest
from keep_protocol.errors import KeepfleetError
from keep_protocol.limits import DEFAULT_LIMITS
from keep_protocol.workload import Workload

HEADINGS = ("program", "MB", "code, MB", "processor s", "may have", "peak MiB", "may have", "ready, ms")
MEGABYTE, MIB = 1e6, 1 << 20


def _check(module: int, result: int) -> None:
    """The forked process: checks, and ends."""
    allowed = budget(code_bytes(module, component=_is_component(module)), DEFAULT_LIMITS)
    limit(allowed)
    found = examine(module, result, DEFAULT_LIMITS, Workload())
    if isinstance(found, KeepfleetError):
        print(found.message, file=sys.stderr, flush=True)
    os._exit(isinstance(found, KeepfleetError))


def _is_component(module: int) -> bool:
    return os.pread(module, HEAD_BYTES, 0) == MAGIC + COMPONENT_VERSION


def _load(result: int) -> float:
    """Milliseconds until the guest could begin."""
    began = time.perf_counter()
    load_guest(result, DEFAULT_LIMITS, Workload()).link(Wasi())
    return (time.perf_counter() - began) * 1000


def row(path: str) -> tuple[str, ...]:
    """What one file costs."""
    module, result = os.open(path, os.O_RDONLY), os.open("/var/tmp", os.O_TMPFILE | os.O_RDWR, 0o600)
    code = code_bytes(module, component=_is_component(module))
    allowed = budget(code, DEFAULT_LIMITS)
    if not (pid := os.fork()):
        _check(module, result)
    _, status, used = os.wait4(pid, 0)
    ready = f"{_load(result):.0f}" if status == 0 else "refused"
    size = os.fstat(module).st_size
    os.close(module)
    os.close(result)
    return (
        os.path.basename(path).removesuffix(".wasm"),
        f"{size / MEGABYTE:.1f}",
        f"{code / MEGABYTE:.1f}",
        f"{used.ru_utime + used.ru_stime:.1f}",
        str(allowed.cpu_seconds),
        str(used.ru_maxrss * 1024 // MIB),
        str(allowed.data_bytes // MIB),
        ready,
    )


def main() -> int:
    import app_loader.check.components  # noqa: F401  # as the checker has it before it is locked

    warm_up(DEFAULT_LIMITS, Workload())
    print(f"| {' | '.join(HEADINGS)} |", "|---|" + "--:|" * (len(HEADINGS) - 1), sep="\n", flush=True)
    for path in sys.argv[1:]:
        print(f"| {' | '.join(row(path))} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
