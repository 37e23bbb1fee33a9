"""What to do about the runs of one job: which is due, which is skipped, which is made up for. Pure.

The record of a job says up to which moment its calendar was attended to, and its latest runs; it is on disk before
anything is done. Its keeps say in their units which run they are, so that a manager that was killed between the two is
followed by one that goes on. Time is the host's clock, as a calendar's is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from keep_manager.declared.decision import ENDED, Life, Seen
from keep_protocol.fields import Record
from keep_protocol.runs import Missed, Overlap, Run, RunState, RunWhy

GRACE_SECONDS = 60.0
"""What begins so long after its time begins in time: a manager that is restarted, or a host that is busy."""
SET_BACK_SECONDS = 3 * 3600.0
"""A clock that is set back by less runs nothing twice, as of summer time or of a correction; by more it is a new time,
in which a job must not wait until the old one comes again (as of cron, man 8 cron)."""
MOST_CONCURRENT = 10
"""Runs of one job that may overlap: one that never ends must not fill the host."""
RUNS_KEPT = 50
"""Runs in a job's history: seven weeks of nights."""
GIVE_UP_SECONDS = 600.0
"""For so long a keep is tried to be made for a run; the next run begins again."""
_ENDS = {Life.DONE: RunState.DONE, Life.STOPPED: RunState.STOPPED, Life.LOST: RunState.LOST}


class JobRecord(Record):
    """What is known of a job. handled: the moment up to which its calendar was attended to; runs: the oldest first."""

    handled: float
    runs: tuple[Run, ...] = ()

    @property
    def living(self) -> tuple[Run, ...]:
        """Runs that go on, or are still to begin."""
        return tuple(run for run in self.runs if run.living)


class WantedJob(Record):
    """A job as its manifest says."""

    missed: Missed = Missed.RUN
    overlap: Overlap = Overlap.FORBID


class Due(Record):
    """Moments of its calendar. first: the first one after what was attended to; recent: the first one that is no longer
    ago than GRACE_SECONDS; each None where it is still to come."""

    first: float | None = None
    recent: float | None = None


class SeenRun(Record):
    """One keep of a job. run: which of its runs it is, 0 for a keep of before it was a job."""

    run: int
    keep: Seen
    exit_code: int | None = None
    output_bytes: int | None = None
    ended_at: float | None = None
    lines: tuple[str, ...] = ()

    def with_lines(self, lines: tuple[str, ...]) -> SeenRun:
        """The same with the last lines of its output."""
        return self.replace(lines=lines)


class JobDecision(Record):
    """What follows: the record to write first, the runs to make keeps for, and the keeps to remove, with why."""

    record: JobRecord
    make: tuple[int, ...] = ()
    remove: tuple[tuple[int, str], ...] = ()


def attended(record: JobRecord, now: float) -> float:
    """From which moment on the calendar counts: never one that is far in the future, of a clock that was set back."""
    return record.handled if record.handled - now <= SET_BACK_SECONDS else now


def decide_runs(
    wanted: WantedJob, record: JobRecord, seen: Iterable[SeenRun], now: float, due: Due, failure: str = ""
) -> JobDecision:
    """What follows. failure: why no keep could be made for the runs that have none, "" where that was not tried, or is
    to be tried again."""
    keeps = sorted(seen, key=lambda each: each.keep.kuuid)
    runs = _adopted(record.runs, keeps, now)
    runs, again = _settled(runs, keeps, now, failure)
    if again and wanted.missed is Missed.RUN:
        runs = _with_run(runs, wanted, again[-1].scheduled, RunWhy.MISSED, now)
    handled = attended(record, now)
    if due.first is not None and due.first <= now:
        runs, handled = _due(runs, wanted, due.first, due.recent, now), now
    runs = _kept(runs)
    made = {each.run for each in keeps}
    make = tuple(run.number for run in runs if run.living and run.kuuid is None and run.number not in made)
    return JobDecision(JobRecord(handled, runs), make, _removed(runs, keeps))


def asked(record: JobRecord, wanted: WantedJob, now: float) -> JobRecord:
    """The record with a run that a person wants now; as it is where another one goes on that it may not overlap."""
    if why_not(record.runs, wanted):
        return record
    return JobRecord(record.handled, _kept(_with_run(record.runs, wanted, None, RunWhy.ASKED, now)))


def why_not(runs: Sequence[Run], wanted: WantedJob) -> str:
    """Why no run may begin now, or ""."""
    living = [run for run in runs if run.living]
    if living and wanted.overlap is Overlap.FORBID:
        return f"run {living[0].number} goes on"
    return f"{len(living)} runs go on" if len(living) >= MOST_CONCURRENT else ""


def _adopted(runs: tuple[Run, ...], keeps: Sequence[SeenRun], now: float) -> tuple[Run, ...]:
    """The runs with those that a keep says it is and the record does not know: it was damaged, and begun again. What
    went before the oldest run that is known was forgotten."""
    known = {run.number for run in runs}
    oldest = min(known, default=0)
    strays = [
        Run(each.run, RunState.RUNNING, RunWhy.SCHEDULE, began=now, kuuid=each.keep.kuuid)
        for each in keeps
        if each.run > oldest and each.run not in known and each.keep.life is not Life.UNFINISHED
    ]
    return tuple(sorted((*runs, *strays), key=lambda run: run.number)) if strays else runs


def _settled(
    runs: tuple[Run, ...], keeps: Sequence[SeenRun], now: float, failure: str
) -> tuple[tuple[Run, ...], list[Run]]:
    """The runs as their keeps show them, and those of them that went with their host."""
    by_run = {each.run: each for each in keeps if each.keep.life is not Life.UNFINISHED}
    after: list[Run] = []
    again: list[Run] = []
    for run in runs:
        each = by_run.get(run.number)
        if not run.living:
            after.append(run)
        elif each is not None:
            after.append(_as_seen(run, each, now))
            if each.keep.life is Life.LOST:
                again.append(run)
        elif run.kuuid is not None:
            after.append(run.replace(state=RunState.LOST, ended=now, text="its keep has gone"))
        elif failure and now - (run.began or now) > GIVE_UP_SECONDS:
            after.append(run.replace(state=RunState.UNMET, ended=now, text=failure[:1000]))
        else:
            after.append(run)
    return tuple(after), again


def _as_seen(run: Run, each: SeenRun, now: float) -> Run:
    keep = each.keep
    if keep.life not in ENDED:
        return run.replace(kuuid=keep.kuuid)
    return run.replace(
        kuuid=keep.kuuid,
        state=_ENDS.get(keep.life, RunState.FAILED),
        ended=now if each.ended_at is None else each.ended_at,
        exit_code=each.exit_code,
        output_bytes=each.output_bytes,
        text=keep.text[:1000],
        lines=each.lines,
    )


def _due(runs: tuple[Run, ...], wanted: WantedJob, first: float, recent: float | None, now: float) -> tuple[Run, ...]:
    """The runs with the one that is due; of those that were missed there is one at most."""
    if recent is not None and recent <= now:
        if first < recent and wanted.missed is Missed.SKIP:
            runs = _with_skipped(runs, first, "no manager was there to start it", now)
        return _with_run(runs, wanted, recent, RunWhy.SCHEDULE, now)
    if wanted.missed is Missed.RUN:
        return _with_run(runs, wanted, first, RunWhy.MISSED, now)
    return _with_skipped(runs, first, "no manager was there to start it", now)


def _with_run(
    runs: tuple[Run, ...], wanted: WantedJob, scheduled: float | None, why: RunWhy, now: float
) -> tuple[Run, ...]:
    refused = why_not(runs, wanted)
    if refused:
        return _with_skipped(runs, scheduled, refused, now, why)
    return (*runs, Run(_next(runs), RunState.RUNNING, why, scheduled, began=now))


def _with_skipped(
    runs: tuple[Run, ...], scheduled: float | None, text: str, now: float, why: RunWhy = RunWhy.SCHEDULE
) -> tuple[Run, ...]:
    return (*runs, Run(_next(runs), RunState.SKIPPED, why, scheduled, ended=now, text=text))


def _next(runs: Sequence[Run]) -> int:
    return max((run.number for run in runs), default=0) + 1


def _kept(runs: tuple[Run, ...]) -> tuple[Run, ...]:
    """The latest runs, and every one that goes on."""
    old = set(runs[:-RUNS_KEPT])
    return tuple(run for run in runs if run.living or run not in old) if old else runs


def _removed(runs: Sequence[Run], keeps: Sequence[SeenRun]) -> tuple[tuple[int, str], ...]:
    """Keeps that are not needed: the one of the latest run that has ended stays for people to look at."""
    ended = {run.number for run in runs if not run.living}
    last = max((each.run for each in keeps if each.run in ended), default=0)
    found: list[tuple[int, str]] = []
    seen: set[int] = set()
    for each in keeps:
        if each.run == 0:
            found.append((each.keep.kuuid, "it is a job now"))
        elif each.keep.life is Life.UNFINISHED:
            found.append((each.keep.kuuid, "it was not started"))
        elif each.run in seen or (each.run in ended and each.run != last):
            found.append((each.keep.kuuid, "a later run has ended"))
        elif not any(run.number == each.run for run in runs):
            found.append((each.keep.kuuid, "its run is forgotten"))
        else:
            seen.add(each.run)
    return tuple(found)
