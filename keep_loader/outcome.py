"""What a workload's end means: its outcome, from what it said, what the kernel saw and what it used; and what runs
again, by the restart policy after it, and by the record after the loader's own end.

It is systemd that starts a workload again, by starting the loader that exits for it: Restart=, its delay and its limit
hold. Pure: decides, does nothing. Imported with the first record or start. Import rule: that of keep_loader.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # as in keep_protocol.forking

from keep_loader.loop import plain
from keep_loader.process import Exit, signal_name
from keep_loader.state import ENDPOINT_NAMES, MODULE_NAMES, OUTPUT_NAMES
from keep_protocol.constants import DIRECTORY, INPUT
from keep_protocol.errors import KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.limits import MIB, Limits
from keep_protocol.outcome import Outcome, OutcomeKind
from keep_protocol.record import KeepRecord
from keep_protocol.spec import RestartPolicy
from keep_protocol.states import Event, Phase

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
MAX_RERUNS = 4
RERUN_SECONDS = 60.0
"""The unit's StartLimitBurst=5 in StartLimitIntervalSec=60, less the keep's first start: just before systemd would give
the unit up and its last outcome with it, the loader gives the workload up and reports that outcome."""


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


def wanted(policy: RestartPolicy, outcome: Outcome) -> bool:
    """Whether the policy asks for another run after `outcome`.

    Not once it was stopped, and not where it could not even be started: it never could.
    """
    if policy is RestartPolicy.NO or outcome.kind in (OutcomeKind.STOPPED, OutcomeKind.REFUSED):
        return False
    return policy is RestartPolicy.ALWAYS or outcome.kind is not OutcomeKind.EXITED or outcome.exit_code != 0


def recent(reruns: tuple[float, ...], now: float) -> tuple[float, ...]:
    """Those of the times of earlier starts that still count at `now`; both on the monotonic clock, since boot."""
    return tuple(moment for moment in reruns if 0 <= now - moment < RERUN_SECONDS)


def too_often(reruns: tuple[float, ...], now: float) -> str | None:
    """Why another run is not tried; None when it may be."""
    if len(recent(reruns, now)) < MAX_RERUNS:
        return None
    return f"gave it up after starting it again {MAX_RERUNS} times within {RERUN_SECONDS:g} s"


_CUT = "lost: its input was cut"


class Resumption(Record):
    """How a starting loader goes on: the event to move by, and for an end what to show."""

    event: Event
    why: str = ""
    outcome: Outcome | None = None


def resume_from(
    saved: KeepRecord,
    stored: frozenset[str],
    now: float,
    failures: tuple[str, ...],
    user: int,
    needs: tuple[str, ...] = MODULE_NAMES,
) -> Resumption:
    """What follows from the record and the names of the descriptors systemd kept for us, at `now` seconds of the
    epoch; `failures` are the isolation check's, `user` is who the keep is now, `needs` is what its kind must
    have to run again. Pure.

    A start that was not yet answered is forgotten; an upload endpoint is opened again with all it had; a workload is
    run again where its policy says so, else it is lost; an end stays an end. Neither happens with a failure: the unit
    may have changed since the start. Nor for another user, to whom the granted directories show another's files.
    """
    resumption = _without_check(saved, stored, now, needs)
    faults = [f"the isolation check failed: {'; '.join(failures)}"] if failures else []
    if saved.private.user not in (None, user) and any(
        name.startswith(f"{DIRECTORY}-") for name in saved.private.granted
    ):
        faults.append(f"the keep was user {saved.private.user}, for whom its directories are, and is now {user}")
    if not faults or resumption.event not in (Event.RESUME, Event.RERUN):
        return resumption
    why = f"cannot go on after a restart of the loader: {'; '.join(faults)}"
    return Resumption(Event.FAIL, why, resumption.outcome or Outcome(OutcomeKind.LOST, why, ended_at=now))


def _without_check(saved: KeepRecord, stored: frozenset[str], now: float, needs: tuple[str, ...]) -> Resumption:
    report = saved.report
    if saved.phase in (Phase.BOOTING, Phase.IDLE, Phase.OPENING):
        return Resumption(Event.READY)
    if saved.phase is Phase.ENDED:
        return Resumption(Event.RESTORE, report.detail, report.outcome)
    if saved.phase is Phase.FAILED:
        return Resumption(Event.FAIL, report.detail, report.outcome)
    if saved.phase in (Phase.RUNNING, Phase.RESTARTING):
        return _run_again(saved, stored, now, needs)
    if INPUT in saved.private.granted:  # whose manager has seen the loader go
        return Resumption(Event.FAIL, _CUT, Outcome(OutcomeKind.LOST, _CUT, ended_at=now))
    wanted_names = (*ENDPOINT_NAMES, *OUTPUT_NAMES, *saved.private.granted)
    missing = [name for name in wanted_names if name not in stored]
    if missing:
        why = f"cannot open the keep's upload endpoint again: systemd did not keep its {' and '.join(missing)}"
        return Resumption(Event.FAIL, why, Outcome(OutcomeKind.LOST, why, ended_at=now))
    return Resumption(Event.RESUME)


def _run_again(saved: KeepRecord, stored: frozenset[str], now: float, needs: tuple[str, ...]) -> Resumption:
    outcome, started_at = saved.report.outcome, saved.private.started_at
    if outcome is None:  # it was running
        why = "the loader was killed while the workload ran"
        ended_at = max(now, started_at or now)  # the clock may have been set back since
        outcome = Outcome(OutcomeKind.LOST, why, started_at=started_at, ended_at=ended_at)
        if not wanted(saved.report.restart, outcome):
            return Resumption(Event.FAIL, why, outcome)
    missing = [name for name in (*needs, *OUTPUT_NAMES, *saved.private.granted) if name not in stored]
    if missing:
        why = f"cannot run the workload again: systemd did not keep its {' and '.join(missing)}"
        return Resumption(Event.FAIL, why, outcome)
    return Resumption(Event.RERUN, outcome=outcome)
