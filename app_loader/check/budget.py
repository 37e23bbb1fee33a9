"""What checking and compiling one upload may cost, and what a checker's end without a result means. Pure."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # as in keep_protocol.forking
import math

from app_loader.limits import (
    CHECKER_WALL_FACTOR,
    MAX_EVIDENCE_LINE,
    MAX_EVIDENCE_LINES,
    SMALLEST_MEMORY_SHARE,
    SMALLEST_TIME_SHARE,
    WHOLE_MEMORY_CODE_BYTES,
    WHOLE_TIME_CODE_BYTES,
)
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.limits import BOUNDS, Limits

_PANIC = "panicked at "
"""How the engine says that it has met a fault of its own, before it aborts."""
_BY_THE_MODULE = (_signal.SIGABRT, _signal.SIGSEGV, _signal.SIGBUS, _signal.SIGILL)
"""How a compiler ends that gets no more memory, or meets its own fault; any other signal came from outside."""


class Budget(Record):
    """cpu_seconds: processor time; data_bytes: private memory."""

    cpu_seconds: int
    data_bytes: int


def budget(code_bytes: int, limits: Limits) -> Budget:
    """The budget of a module with so much code: all that `limits` give to compiling, or for little code a part of it.

    A part of the limit and not an amount of its own, so that a higher limit gives more to every module.
    """
    time = min(1.0, max(SMALLEST_TIME_SHARE, code_bytes / WHOLE_TIME_CODE_BYTES))
    memory = min(1.0, max(SMALLEST_MEMORY_SHARE, code_bytes / WHOLE_MEMORY_CODE_BYTES))
    return Budget(math.ceil(limits.compile_seconds * time), int(limits.compile_memory_bytes * memory))


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
