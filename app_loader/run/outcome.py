"""How a workload ended, from what its engine said: exit code, trap or error to one Outcome. Pure; imports no engine."""

from __future__ import annotations

from _collections_abc import Iterable

from app_loader.limits import MAX_BACKTRACE_FRAMES, MAX_EVIDENCE_LINE, MAX_EXIT_CODE
from keep_protocol.fields import Record
from keep_protocol.limits import Limits
from keep_protocol.outcome import Outcome, OutcomeKind
from keep_protocol.patterns import matches

_TRAP = "wasm trap: "
_WHILE_EXECUTING = "error while executing at wasm backtrace:"
_NUMBER, _OFFSET = "[0-9]{1,3}", "0x[0-9a-f]{1,16}"
_LONGEST_FRAME = 800
_OVER_MEMORY = "memory minimum size of ", " pages exceeds memory limits"
_OVER_TABLE = "table minimum size of ", " elements exceeds table limits"
"""What the engine says before a number and behind it."""
_OVER_EXCEPTIONS = "GC heap out of memory"
"""What holds exceptions is as large as a memory may be."""
_THROWN = "thrown Wasm exception"
_UNKNOWN_OFFSET = (1 << 64) - 1
"""What wasmtime says of the frame in which a call did not get to begin, for want of stack."""
Frame = tuple[str | None, int, int]
"""A frame of a trap: the function's name, its index, and the offset in the module."""


class Usage(Record):
    """What a run has used: wall and processor seconds, the process's largest memory where known; and from when to when,
    in seconds of the epoch."""

    wall: float
    cpu: float
    peak: int | None
    started: float | None = None
    ended: float | None = None


def _outcome(
    kind: OutcomeKind, text: str, usage: Usage, code: int | None = None, backtrace: tuple[str, ...] = ()
) -> Outcome:
    return Outcome(
        kind,
        text,
        exit_code=code,
        backtrace=backtrace,
        wall_seconds=round(usage.wall, 6),
        cpu_seconds=round(usage.cpu, 6),
        peak_bytes=usage.peak,
        started_at=usage.started,
        ended_at=usage.ended,
    )


def exited(code: int, usage: Usage) -> Outcome:
    """The guest has returned, or called proc_exit."""
    return _outcome(OutcomeKind.EXITED, f"exited {code}", usage, code)


def trap_reason(message: str) -> str:
    """The trap's own words in wasmtime's message: "out of bounds memory access"."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    for line in reversed(lines):
        if _TRAP in line:
            return line.split(_TRAP, 1)[1][:MAX_EVIDENCE_LINE]
    if _THROWN in lines:
        return "uncaught exception"
    return (lines[-1] if lines else "the engine gave no reason")[:MAX_EVIDENCE_LINE]


def backtrace(frames: Iterable[Frame]) -> tuple[str, ...]:
    """One line a frame, innermost first; names are the guest's own and are shown in ASCII."""
    lines = []
    for number, (name, index, offset) in enumerate(frames):
        if number == MAX_BACKTRACE_FRAMES:
            lines.append("…")
            break
        shown = f"function {index}" if name is None else name
        where = "" if offset == _UNKNOWN_OFFSET else f" at {offset:#x}"
        lines.append(f"{number}: {_printable(shown)}{where}")
    return tuple(lines)


def _printable(name: str) -> str:
    shown = name.encode("ascii", "backslashreplace").decode()
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in shown[:MAX_EVIDENCE_LINE])


def trapped(message: str, frames: Iterable[Frame], usage: Usage) -> Outcome:
    """The guest has done what WebAssembly forbids."""
    return _outcome(OutcomeKind.TRAPPED, f"trapped: {trap_reason(message)}", usage, backtrace=backtrace(frames))


def _exceeds(message: str, before: str, behind: str) -> bool:
    """Whether the engine says so of a number."""
    rest = message.partition(before)[2]
    number = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    return bool(number) and rest.startswith(behind, len(number))


def _frame(line: str) -> str:
    """The frame in a line of an error's message, `   1:     0x91 - module!function`, as it is shown; "" for none.

    Without `re`: a runner that is locked can import nothing.
    """
    number, _, rest = line.lstrip(" ").partition(":")
    offset, dash, name = rest.lstrip(" ").partition(" - ")
    if not dash or not matches(_OFFSET, offset):
        offset, name = "?", rest.lstrip(" ")
    if not matches(_NUMBER, number) or rest[:1] != " " or "!" not in name[1:-1] or len(name) > _LONGEST_FRAME:
        return ""
    return f"{number}: {_printable(name)} at {offset}"


def not_started(message: str, limits: Limits, usage: Usage) -> Outcome:
    """The module could not be instantiated: it needs more than it may have, or its loading failed."""
    if _exceeds(message, *_OVER_MEMORY):
        return _outcome(OutcomeKind.LIMITED, f"over its memory limit of {in_bytes(limits.memory_bytes)}", usage)
    if _exceeds(message, *_OVER_TABLE):
        return _outcome(OutcomeKind.LIMITED, f"over its limit of {limits.table_elements} table elements", usage)
    lines = [line.strip() for line in message.splitlines() if line.strip() and line.strip() != "Caused by:"]
    return _outcome(OutcomeKind.REFUSED, f"refused: {': '.join(lines)[: 2 * MAX_EVIDENCE_LINE]}", usage)


def in_bytes(number: int) -> str:
    """A number of bytes in the largest unit that leaves it whole: 64 MiB."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if number >= size and number % size == 0:
            return f"{number // size} {unit}"
    return f"{number} bytes"


def of_error(message: str, limits: Limits, usage: Usage, *, started: bool) -> Outcome:
    """What stopped a guest where the engine has one message alone: a trap in a component, no start at all, or where it
    has `started`, a result that is invalid."""
    if _OVER_EXCEPTIONS in message:
        text = f"over its memory limit of {in_bytes(limits.memory_bytes)}, with its exceptions"
        return _outcome(OutcomeKind.LIMITED, text, usage)
    if not started and _TRAP not in message and _WHILE_EXECUTING not in message:
        return not_started(message, limits, usage)
    reason = trap_reason(message)
    if _TRAP not in message and _WHILE_EXECUTING not in message:
        reason = f"the engine cannot take its result: {reason}"
    frames = [frame for line in message.split("\n") if (frame := _frame(line))]
    more = ["…"] if len(frames) > MAX_BACKTRACE_FRAMES else []
    shown = (*frames[:MAX_BACKTRACE_FRAMES], *more)
    return _outcome(OutcomeKind.TRAPPED, f"trapped: {reason}", usage, backtrace=shown)


def lost(reason: str, usage: Usage) -> Outcome:
    """The runner itself has failed."""
    return _outcome(OutcomeKind.LOST, f"lost: {reason[: 2 * MAX_EVIDENCE_LINE]}", usage)


def process_code(outcome: Outcome) -> int:
    """The runner's own exit code: the guest's up to MAX_EXIT_CODE, and 1 for everything else that went wrong."""
    if outcome.kind is OutcomeKind.EXITED and outcome.exit_code is not None:
        return min(outcome.exit_code, MAX_EXIT_CODE)
    return 1
