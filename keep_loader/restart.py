"""What runs again: after a workload's end by its restart policy, and after the loader's own by its record.

It is systemd that starts a workload again, by starting the loader that exits for it: Restart=, its delay and its limit
hold. Pure; imported with the first record or start. Import rule: that of keep_loader.
"""

from __future__ import annotations

from keep_loader.descriptors import ENDPOINT_NAMES, INPUT, MODULE_NAMES, OUTPUT_NAMES
from keep_protocol.fields import Record
from keep_protocol.outcome import Outcome, OutcomeKind
from keep_protocol.record import KeepRecord
from keep_protocol.spec import RestartPolicy
from keep_protocol.states import Event, Phase

MAX_RERUNS = 4
RERUN_SECONDS = 60.0
"""The unit's StartLimitBurst=5 in StartLimitIntervalSec=60, less the keep's first start: just before systemd would give
the unit up and its last outcome with it, the loader gives the workload up and reports that outcome."""


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
    if saved.private.user not in (None, user) and any(name.startswith("directory-") for name in saved.private.granted):
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
