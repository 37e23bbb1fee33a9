"""How a workload ended, from what its engine said: exit code, trap or error to one Outcome. Pure; imports no engine."""

from __future__ import annotations

from collections.abc import Iterable

from app_loader.limits import MAX_BACKTRACE_FRAMES, MAX_EVIDENCE_LINE, MAX_EXIT_CODE
from keep_protocol.keep import Outcome, OutcomeKind
from keep_protocol.record import Record

_TRAP = "wasm trap: "
Frame = tuple[str | None, int, int]
"""A frame of a trap: the function's name, its index, and the offset in the module."""


class Spent(Record):
    """What a run has used: wall and processor seconds, and the process's largest memory in bytes, where known."""

    __slots__ = ("cpu", "peak", "wall")
    wall: float
    cpu: float
    peak: int | None

    def __init__(self, wall: float, cpu: float, peak: int | None) -> None:
        self._freeze(wall=wall, cpu=cpu, peak=peak)


def _outcome(
    kind: OutcomeKind, text: str, spent: Spent, code: int | None = None, backtrace: tuple[str, ...] = ()
) -> Outcome:
    return Outcome(
        kind,
        text,
        exit_code=code,
        backtrace=backtrace,
        wall_seconds=round(spent.wall, 6),
        cpu_seconds=round(spent.cpu, 6),
        peak_bytes=spent.peak,
    )


def exited(code: int, spent: Spent) -> Outcome:
    """The guest has returned, or called proc_exit."""
    return _outcome(OutcomeKind.EXITED, f"exited {code}", spent, code)


def trap_reason(message: str) -> str:
    """The trap's own words in wasmtime's message: "out of bounds memory access"."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    for line in reversed(lines):
        if _TRAP in line:
            return line.split(_TRAP, 1)[1][:MAX_EVIDENCE_LINE]
    return (lines[-1] if lines else "the engine gave no reason")[:MAX_EVIDENCE_LINE]


def backtrace(frames: Iterable[Frame]) -> tuple[str, ...]:
    """One line a frame, innermost first; names are the guest's own and are shown in ASCII."""
    lines = []
    for number, (name, index, offset) in enumerate(frames):
        if number == MAX_BACKTRACE_FRAMES:
            lines.append("…")
            break
        shown = f"function {index}" if name is None else name.encode("ascii", "backslashreplace").decode()
        printable = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in shown[:MAX_EVIDENCE_LINE])
        lines.append(f"{number}: {printable} at {offset:#x}")
    return tuple(lines)


def trapped(message: str, frames: Iterable[Frame], spent: Spent) -> Outcome:
    """The guest has done what WebAssembly forbids."""
    return _outcome(OutcomeKind.TRAPPED, f"trapped: {trap_reason(message)}", spent, backtrace=backtrace(frames))


def refused(message: str, spent: Spent) -> Outcome:
    """The module could not be started, as its memory is over the limit."""
    lines = [line.strip() for line in message.splitlines() if line.strip() and line.strip() != "Caused by:"]
    return _outcome(OutcomeKind.REFUSED, f"refused: {': '.join(lines)[: 2 * MAX_EVIDENCE_LINE]}", spent)


def lost(reason: str, spent: Spent) -> Outcome:
    """The runner itself has failed."""
    return _outcome(OutcomeKind.LOST, f"lost: {reason[: 2 * MAX_EVIDENCE_LINE]}", spent)


def process_code(outcome: Outcome) -> int:
    """The runner's own exit code: the guest's up to MAX_EXIT_CODE, and 1 for everything else that went wrong."""
    if outcome.kind is OutcomeKind.EXITED and outcome.exit_code is not None:
        return min(outcome.exit_code, MAX_EXIT_CODE)
    return 1
