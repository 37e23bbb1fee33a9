"""What checking and compiling one upload may cost, by its size, and what a checker's end without a result means.

The same numbers for the checker, which limits itself, and for its parent, which waits and explains. Pure.
"""

from __future__ import annotations

import signal

from app_loader.limits import (
    CHECKER_CPU_SECONDS,
    CHECKER_CPU_SECONDS_PER_MIB,
    CHECKER_DATA_BYTES,
    CHECKER_DATA_FACTOR,
    CHECKER_RESERVE_BYTES,
    CHECKER_WALL_FACTOR,
    MAX_CHECKER_CPU_SECONDS,
    MAX_CHECKER_DATA_BYTES,
    MAX_EVIDENCE_LINE,
    MAX_EVIDENCE_LINES,
)
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record

_NO_VECTORS = "support for v128"
"""wasmtime's C interface aborts with these words when it is asked for a signature with a vector in it."""
_BY_THE_MODULE = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL)
"""How a compiler ends that gets no more memory, or meets its own fault; any other signal came from outside."""


class Budget(Record):
    """cpu_seconds: processor time; data_bytes: private memory; seconds: from the request to the result."""

    cpu_seconds: int
    data_bytes: int
    seconds: float

    def over_cpu(self) -> str:
        """How compiling went over, in words that follow "compiling it"."""
        return f"takes over {self.cpu_seconds} s of processor time"

    def over_data(self) -> str:
        """See `over_cpu`."""
        return f"takes over {self.data_bytes >> 20} MiB of memory"


def budget(size: int, unit_memory_bytes: int) -> Budget:
    """The budget of a module of `size` bytes in a unit with this MemoryMax=.

    It grows with the module up to a ceiling, and stays within what the unit has: a keep with a higher memory limit
    can take a larger module.
    """
    cpu = min(max(CHECKER_CPU_SECONDS, CHECKER_CPU_SECONDS_PER_MIB * (size >> 20)), MAX_CHECKER_CPU_SECONDS)
    wanted = min(max(CHECKER_DATA_BYTES, CHECKER_DATA_FACTOR * size), MAX_CHECKER_DATA_BYTES)
    return Budget(cpu, min(wanted, unit_memory_bytes - CHECKER_RESERVE_BYTES), cpu * CHECKER_WALL_FACTOR)


def too_complex(how: str, evidence: tuple[str, ...] = ()) -> KeepfleetError:
    """The refusal of a module that cannot be checked within the limits."""
    return KeepfleetError(ErrorKind.TOO_COMPLEX, f"cannot take the module: compiling it {how}", evidence)


def result_of_end(code: int, allowed: Budget, said: str = "") -> KeepfleetError:
    """Why a checker that ended with `code` (negative: a signal), and wrote `said`, gave no result. Pure.

    Nothing kills a checker with SIGKILL for what its module is: its processor time ends by SIGXCPU before that.
    """
    lines = tuple(line[:MAX_EVIDENCE_LINE] for line in said.splitlines() if line and not line.startswith("note: "))
    if code == -signal.SIGXCPU:
        return too_complex(allowed.over_cpu())
    if code == -signal.SIGABRT and _NO_VECTORS in said:
        return KeepfleetError(
            ErrorKind.INVALID_MODULE,
            "cannot call the export: it takes or returns a vector (v128), which cannot be given as text or shown",
        )
    if -code in _BY_THE_MODULE:
        return too_complex(f"{allowed.over_data()} ({signal.Signals(-code).name})", lines[:MAX_EVIDENCE_LINES])
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
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
