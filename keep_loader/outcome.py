"""How a workload's end is reported, from what it said, what the kernel saw, and what it used.

Pure: decides, does nothing. Import rule: that of keep_loader.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # as in keep_protocol.forking

from keep_loader.log import plain
from keep_loader.process import Exit, signal_name
from keep_protocol.errors import KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.limits import MIB, Limits
from keep_protocol.outcome import Outcome, OutcomeKind
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
CLOCK_SLACK_SECONDS = 0.02
PEAK_SLACK_BYTES = 4 * MIB
"""The kernel counts the same thing at two places at slightly different moments: processor time by the clock tick,
resident pages by the thread."""
_ITS_OWN_TO_REPORT = (
    OutcomeKind.EXITED,
    OutcomeKind.TRAPPED,
    OutcomeKind.LIMITED,
    OutcomeKind.KILLED,
    OutcomeKind.REFUSED,
    OutcomeKind.LOST,
)
"""LOST is a runner's that failed, with its reason. That it was stopped is ours to report."""


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
    if reported is None or reported.kind not in _ITS_OWN_TO_REPORT:
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
        cpu_seconds=reported.cpu_seconds,
        peak_bytes=reported.peak_bytes,
    )


class Usage(Record):
    """What one run used: seconds and bytes, None where nothing could be measured; when, in seconds of the epoch; and
    whether the kernel ended it for memory, and what it held the keep to, 0 where that is not known."""

    wall_seconds: float
    cpu_seconds: float | None
    peak_bytes: int | None
    started_at: float = 0.0
    ended_at: float = 0.0
    for_memory: bool = False
    memory_limit: int = 0


class Death(Record):
    """What is known of a workload's end: how its process ended, the outcome it reported, who stopped it, the limit it
    was ended for, and why it could not go on; None each where there is none."""

    end: Exit
    reported: Outcome | None = None
    stopped_by: str | None = None
    limited: str | None = None
    lost: str | None = None


def outcome_of(death: Death, usage: Usage, limits: Limits) -> Outcome:
    """The outcome of a workload that died so and used so much.

    Its own report counts first; then who stopped it; then why it could not go on, the limit it was over, the signal
    that ended it. A process that just went away without a word is LOST.
    """
    reported, end = death.reported, death.end
    kind, text, number = OutcomeKind.LOST, f"the process {end.words} without a report", end.signal
    if reported is not None:
        kind, text, number = reported.kind, reported.text, None
    elif death.stopped_by is not None:
        kind, text, number = OutcomeKind.STOPPED, f"stopped by {death.stopped_by}", None
    elif death.lost is not None:
        text, number = f"lost: {death.lost}", None
    elif (limited := _limit_of(death, usage, limits)) is not None:
        kind, text = OutcomeKind.LIMITED, limited
    elif number is not None:
        kind, text = OutcomeKind.KILLED, f"killed by {signal_name(number)}"
    return Outcome(
        kind=kind,
        text=text,
        exit_code=None if reported is None else reported.exit_code,
        signal=number,
        backtrace=() if reported is None else reported.backtrace,
        wall_seconds=round(usage.wall_seconds, 6),
        cpu_seconds=_processor_time(reported, usage, end),
        peak_bytes=_peak(reported, usage, end),
        started_at=round(usage.started_at, 3),
        ended_at=round(usage.ended_at, 3),
        by=death.stopped_by or "" if kind is OutcomeKind.STOPPED else "",
    )


def _limit_of(death: Death, usage: Usage, limits: Limits) -> str | None:
    """The limit that ended the process, in words; None when none did."""
    if death.limited is not None:
        return death.limited
    if usage.for_memory:
        held_to = usage.memory_limit or limits.running_memory_bytes
        return f"killed by the kernel for memory (the keep's limit is {held_to // MIB} MiB)"
    # The kernel signals SIGXCPU at the limit, and SIGKILL a second later to a process that took no notice.
    over = death.end.cpu_seconds >= limits.cpu_seconds
    if death.end.signal == _signal.SIGXCPU or (death.end.signal == _signal.SIGKILL and over):
        return f"over its processor time limit of {limits.cpu_seconds} s"
    return None


def _processor_time(reported: Outcome | None, usage: Usage, end: Exit) -> float | None:
    """The runner's own figure where it can be true; else ours."""
    if (
        reported is not None
        and reported.cpu_seconds is not None
        and reported.cpu_seconds <= end.cpu_seconds + CLOCK_SLACK_SECONDS
    ):
        return round(reported.cpu_seconds, 6)
    return None if usage.cpu_seconds is None else round(usage.cpu_seconds, 6)


def _peak(reported: Outcome | None, usage: Usage, end: Exit) -> int | None:
    """The runner's own figure where it can be true; else ours, where it was measured."""
    if (
        reported is not None
        and reported.peak_bytes is not None
        and 0 < reported.peak_bytes <= end.peak_bytes + PEAK_SLACK_BYTES
    ):
        return reported.peak_bytes
    return usage.peak_bytes


def event_of(outcome: Outcome) -> Event:
    """Exited, with any code, is a finished keep; stopped is a stopped one; every other end is an error."""
    if outcome.kind is OutcomeKind.EXITED:
        return Event.FINISH
    return Event.STOP if outcome.kind is OutcomeKind.STOPPED else Event.FAIL
