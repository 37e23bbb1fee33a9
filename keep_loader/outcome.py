"""How a workload's end is told, from what it reported and what the kernel saw.

Pure: decides, does nothing. Import rule: that of keep_loader.
"""

from __future__ import annotations

from keep_loader.child import Exit, signal_name
from keep_loader.log import plain
from keep_protocol.errors import KeepfleetError
from keep_protocol.keep import Outcome, OutcomeKind
from keep_protocol.states import Event

MAX_TEXT = 1000
"""Characters of a sentence of the child's; what it says goes to logs, terminals and HTTP answers."""
MAX_LINES = 64
MAX_LINE = 200
"""Lines of evidence and their length. In JSON a character takes twelve bytes at most, and half of
MAX_CONTROL_FRAME stays for the certificate."""
MAX_LINES_TOTAL = 2400
"""Characters of evidence in all."""
MAX_EXIT_CODE = (1 << 32) - 1
"""A guest's exit code is an unsigned 32-bit number in WASI."""
_ITS_OWN_TO_TELL = (OutcomeKind.EXITED, OutcomeKind.TRAPPED, OutcomeKind.KILLED, OutcomeKind.REFUSED)
"""That it was stopped or lost is ours to say."""


def plain_lines(lines: tuple[str, ...]) -> tuple[str, ...]:
    """`lines` made printable and bounded, from the first on."""
    kept: list[str] = []
    room = MAX_LINES_TOTAL
    for line in lines[:MAX_LINES]:
        text = plain(line, min(MAX_LINE, room))
        room -= len(text)
        kept.append(text)
        if room <= 0:
            break
    return tuple(kept)


def plain_error(error: KeepfleetError) -> KeepfleetError:
    """The child's error, bounded and printable."""
    return KeepfleetError(error.kind, plain(error.message, MAX_TEXT), plain_lines(error.evidence))


def believe(reported: Outcome | None) -> Outcome | None:
    """What may stand of an outcome that a process running foreign code reported; None where nothing may."""
    if reported is None or reported.kind not in _ITS_OWN_TO_TELL:
        return None
    code = reported.exit_code
    if code is not None and not 0 <= code <= MAX_EXIT_CODE:
        return None
    if reported.kind is OutcomeKind.EXITED and code is None:
        return None
    return Outcome(
        kind=reported.kind,
        text=plain(reported.text, MAX_TEXT) or reported.kind.value,
        exit_code=code,
        backtrace=plain_lines(reported.backtrace),
    )


def outcome_of(
    reported: Outcome | None, stopped_by: str | None, end: Exit, wall_seconds: float, killed_for_memory: bool
) -> Outcome:
    """The outcome of a workload whose process ended as `end`.

    Its own report counts first; then who stopped it; then the signal that ended it. A process that just went away
    without a word is LOST.
    """
    kind, text, code, number = OutcomeKind.LOST, f"the process {end.words} without a report", None, end.signal
    backtrace: tuple[str, ...] = ()
    if reported is not None:
        kind, text, code, number = reported.kind, reported.text, reported.exit_code, None
        backtrace = reported.backtrace
    elif stopped_by is not None:
        kind, text, number = OutcomeKind.STOPPED, f"stopped by {stopped_by}", None
    elif number is not None:
        kind, text = OutcomeKind.KILLED, f"killed by {signal_name(number)}"
        if killed_for_memory:
            text += ": the kernel ended it because the keep's memory limit was reached"
    return Outcome(
        kind=kind,
        text=text,
        exit_code=code,
        signal=number,
        backtrace=backtrace,
        wall_seconds=round(wall_seconds, 6),
        cpu_seconds=round(end.cpu_seconds, 6),
        peak_bytes=end.peak_bytes,
    )


def event_of(outcome: Outcome) -> Event:
    """Exited, with any code, is a finished keep; stopped is a stopped one; every other end is an error."""
    if outcome.kind is OutcomeKind.EXITED:
        return Event.FINISH
    return Event.STOP if outcome.kind is OutcomeKind.STOPPED else Event.FAIL
