"""A workload that runs: its reports, which are a stranger's words, its time, and at its end its outcome.

Import rule: that of keep_loader.
"""

from __future__ import annotations

from keep_loader.child import Exit
from keep_loader.keep import Keep
from keep_loader.loop import Loop
from keep_loader.meter import Meter
from keep_loader.outcome import Death, all_lines_taken, believe, outcome_of
from keep_loader.run import Run
from keep_protocol.control import Report, ReportType
from keep_protocol.keep import Outcome, OutcomeKind

_WALL = "workload's time"


class Running:
    """Owns the accepted workload of `run` until `ended`; `fresh` says that its process was never a door."""

    def __init__(self, keep: Keep, loop: Loop, run: Run, *, fresh: bool) -> None:
        self._keep, self._loop, self._run = keep, loop, run
        self._meter = Meter(run.pid, fresh=fresh)
        keep.started_at = round(self._meter.started_at, 3)
        run.accepted(self._meter.look)
        loop.after(_WALL, keep.limits.wall_seconds, self._out_of_time)

    def __repr__(self) -> str:
        return f"Running({self._run})"

    def take(self, report: Report) -> None:
        """Obeys one report; what a workload has no say in is ignored."""
        told: Outcome | None = None
        if report.type is ReportType.RUNNING:
            self._keep.tell(report.text)
        elif report.type is ReportType.FAILED and report.error is not None:
            told = believe(Outcome(OutcomeKind.REFUSED, report.error.message, backtrace=report.error.evidence))
        elif report.type is ReportType.ENDED:
            told = believe(report.outcome)
        if told is not None:
            self._run.tell(told)

    def ended(self, end: Exit, stopped_by: str | None) -> Outcome:
        """The outcome, once the process has ended as `end`."""
        self._loop.cancel(_WALL)
        death = Death(end, self._run.told, stopped_by, self._run.limited)
        outcome = outcome_of(death, self._meter.used(end), self._keep.limits)
        whole = not self._keep.restarts and all_lines_taken(outcome, self._keep.limits)
        return outcome.with_dropped(0) if whole else outcome

    def _out_of_time(self) -> None:
        """A kill, and not the engine's epochs: those double a tight loop's time, and bind no host call."""
        self._run.limit(f"over its time limit of {self._keep.limits.wall_seconds} s")
