"""Runs declared jobs when their schedules say so: decides at each change, and does what was decided.

Systemd's timers say when it is time, over a socket; what is due is read from the calendar and from the job's record on
disk, which says up to when its calendar was attended to. So a timer that fires while there is no manager loses nothing,
and neither does a reboot. The record is written before a keep is made, and a keep's unit says which run it is.
One task at a time works for a job.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from keep_manager.declared.decision import ENDED, Seen, Standing, pause
from keep_manager.declared.history import History
from keep_manager.declared.interfaces import Keeps, manager_as
from keep_manager.declared.job_timers import Calendar, JobTimers, Timers
from keep_manager.declared.reconciler import Reconciler
from keep_manager.declared.requests import caller_of, request_for
from keep_manager.declared.rounds import Rounds
from keep_manager.declared.runs import (
    GRACE_SECONDS,
    Due,
    JobDecision,
    JobRecord,
    SeenRun,
    WantedJob,
    asked,
    attended,
    decide_runs,
)
from keep_manager.declared.runs import why_not as why_not_now
from keep_manager.declared.seen import seen_of
from keep_manager.declared.specification import Specification
from keep_manager.failpoints import Failpoint, reach
from keep_manager.keeps.view import Entry
from keep_manager.model import exhaustion_explained
from keep_manager.tasks import Group
from keep_protocol.declared import DeclaredState
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.runs import Missed, Overlap, Run, RunState, check_schedule
from keep_protocol.spec import Declaration

LOG = logging.getLogger("keepfleet.declared")
SETTLED = (RunState.DONE, RunState.RUNNING)
"""Runs of which nothing need be said."""


@dataclass
class _State:
    """What is known of one job. record: None until it was read; base and next: from when on the calendar counts, and
    when it comes first after that, a base of None where that is to be asked; until: before that nothing is tried again,
    times: how often in a row it failed, why: the latest time; waiting: those who want a run now."""

    record: JobRecord | None = None
    base: float | None = None
    next: float | None = None
    times: int = 0
    until: float = 0.0
    why: str = ""
    waiting: list[asyncio.Future[None]] = field(default_factory=list)


class Jobs:
    """The declared jobs of one manager. last_lines: the last lines of a keep's output, for threads."""

    def __init__(
        self,
        tasks: Group,
        reconciler: Reconciler,
        keeps: Keeps,
        entries: Callable[[], Iterable[Entry]],
        history: History,
        calendar: Calendar,
        timers: Timers,
        last_lines: Callable[[int], tuple[str, ...]] = lambda _: (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._reconciler, self._keeps, self._entries = reconciler, keeps, entries
        self._history, self._calendar, self._last_lines = history, calendar, last_lines
        self._clock = clock
        self._states: dict[str, _State] = {}
        self._rounds = Rounds(tasks, self._round, "job")
        reconciler.jobs = self
        self.timers = JobTimers(calendar, timers, self._jobs, self._rounds.wake)

    def __repr__(self) -> str:
        return f"Jobs({len(self._states)})"

    async def open(self) -> None:
        """Makes ready. Raises KeepfleetError."""
        await asyncio.to_thread(self._history.open)
        self.timers.schedules_changed()

    async def check(self, schedule: str) -> None:
        """Raises KeepfleetError(BAD_REQUEST) unless a job may have this schedule."""
        await self._calendar.check(check_schedule(schedule))

    def changed(self, name: str) -> None:
        """The specification is another than before, or has gone."""
        if (state := self._states.get(name)) is not None:
            state.base, state.until = None, 0.0
        self.timers.schedules_changed()
        self._rounds.wake()

    def wake(self) -> None:
        """A keep is another than before."""
        self._rounds.wake()

    def due(self, name: str) -> None:
        """The job's timer has fired."""
        if (state := self._states.get(name)) is not None:
            state.base = None  # asked again: the host's time zone may be another one now
        self._rounds.wake()

    def standing(self, name: str) -> Standing:
        """How a job is."""
        state = self._states.get(name)
        if state is None or (state.record is None and not state.why):
            return Standing(DeclaredState.STARTING)
        if state.why:
            return Standing(DeclaredState.UNMET, state.why)
        runs = () if state.record is None else state.record.runs
        living = [run for run in runs if run.living]
        if living:
            made = [run.kuuid for run in living if run.kuuid is not None]
            return Standing(DeclaredState.RUNNING if made else DeclaredState.STARTING, "", made[0] if made else None)
        last = next((run for run in reversed(runs) if run.state is not RunState.SKIPPED), None)
        text = "" if last is None or last.state in SETTLED else f"run {last.number}: {last.state.value}: {last.text}"
        return Standing(DeclaredState.SCHEDULED, text.removesuffix(": "), None if last is None else last.kuuid)

    def next_run(self, name: str) -> float | None:
        """When the job is due next, in seconds of the epoch; None where that is not known."""
        state = self._states.get(name)
        return None if state is None else state.next

    async def runs(self, name: str) -> tuple[Run, ...]:
        """The job's runs, the oldest first. Raises KeepfleetError."""
        state = self._states.get(name)
        record = state.record if state is not None else None
        if record is None:
            record = await asyncio.to_thread(self._history.read, name, self._clock())
        return () if record is None else record.runs

    def last_run(self, name: str) -> Run | None:
        """The latest of them that is known."""
        state = self._states.get(name)
        runs = () if state is None or state.record is None else state.record.runs
        return runs[-1] if runs else None

    async def run_now(self, name: str) -> None:
        """Begins a run of the job; what it needs is on disk when this returns. Raises KeepfleetError: CONFLICT where
        another one goes on that it may not overlap."""
        state = self._states.setdefault(name, _State())
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        state.waiting.append(done)
        state.until = 0.0
        self._rounds.wake()
        await done

    async def forget(self, name: str) -> None:
        """The job is declared no more. Raises KeepfleetError."""
        await asyncio.to_thread(self._history.forget, name)
        state = self._states.pop(name, None)
        for waiting in [] if state is None else state.waiting:
            waiting.cancel()

    async def run(self) -> None:
        """Goes on until it is cancelled."""
        await self._rounds.run()

    async def close(self) -> None:
        """Begins nothing any more, and ends what is under way while its rollback still has a group to run in."""
        await self._rounds.close()

    def _jobs(self) -> dict[str, Specification]:
        return {each.name: each for each in self._reconciler.declared.readable() if each.job.schedule}

    def _round(self, names: frozenset[str] | None) -> dict[str, float]:
        """Begins to work for each of these jobs, or of all, that has something to do; until when there is nothing else
        for each."""
        every = self._jobs()
        for name in [name for name in self._states if name not in every]:
            del self._states[name]
        jobs = {name: each for name, each in every.items() if names is None or name in names}
        seen, waits = self._seen(jobs), dict[str, float]()
        for name, wanted in jobs.items():
            state = self._states.setdefault(name, _State())
            if name in self._rounds.busy:
                continue
            if state.until > time.monotonic():
                waits[name] = state.until
                continue
            if self.timers.missing and state.next is not None:
                waits[name] = time.monotonic() + max(state.next - self._clock(), 0.0)
            if self._has_work(wanted, state, seen.get(name, [])):
                self._rounds.begin(name, self._work(name, wanted, state))
        return waits

    def _has_work(self, wanted: Specification, state: _State, seen: list[SeenRun]) -> bool:
        now = self._clock()
        if state.record is None or state.base is None or state.waiting or state.why:
            return True
        if state.base != self._base(wanted, state.record, now) or (state.next is not None and state.next <= now):
            return True
        decision = decide_runs(wanted_of(wanted), state.record, seen, now, Due())
        return bool(decision.make or decision.remove) or decision.record.runs != state.record.runs

    def _seen(self, jobs: Mapping[str, Specification]) -> dict[str, list[SeenRun]]:
        """The keeps of each job. One that was made for another owner of the name is none of its runs."""
        found: dict[str, list[SeenRun]] = {name: [] for name in jobs}
        now = time.monotonic()
        for entry in self._entries():
            keep = seen_of(entry, now)
            if keep is not None and keep.name in found:
                found[keep.name].append(seen_run(entry, keep, jobs[keep.name].header.owner))
        return found

    async def _work(self, name: str, wanted: Specification, state: _State) -> None:
        try:
            with exhaustion_explained("run what is declared"):
                await self._attend(name, wanted, state)
        except KeepfleetError as error:
            self._failed(name, state, error)
        else:
            if state.why:
                LOG.info("declared job %s: it can be run again", name)
            state.times, state.why = 0, ""
        finally:
            self._reconciler.standings.speak()

    def _failed(self, name: str, state: _State, error: KeepfleetError) -> None:
        state.times += 1
        state.until = time.monotonic() + pause(state.times, hash(name))
        for waiting in state.waiting:
            if not waiting.done():
                waiting.set_exception(KeepfleetError(error.kind, error.message, error.evidence))
        state.waiting.clear()
        if state.why != error.message:
            LOG.warning("declared job %s, trying again: %s", name, error.message)
        state.why = error.message

    async def _attend(self, name: str, wanted: Specification, state: _State) -> None:
        """Does for one job what there is to do now. Raises KeepfleetError."""
        record, event, now = await self._read(name, wanted, state), check_schedule(wanted.job.schedule), self._clock()
        due = await self._due(wanted, event, record, state, now)
        seen = await self._with_lines(self._seen({name: wanted})[name], record)
        decision = decide_runs(wanted_of(wanted), record, seen, now, due, state.why)
        decision = self._with_asked(decision, wanted, state, now)
        if decision.record != record:
            await asyncio.to_thread(self._history.write, name, decision.record)
            self._say(name, record, decision.record)
            reach(Failpoint.JOB_AFTER_RECORD)
        state.record = decision.record
        for waiting in state.waiting:
            if not waiting.done():
                waiting.set_result(None)
        state.waiting.clear()
        base = self._base(wanted, state.record, now)
        if base != state.base:
            state.next, state.base = await self._calendar.after(event, base), base
        self._reconciler.standings.speak()
        await self._do(wanted, decision)

    async def _read(self, name: str, wanted: Specification, state: _State) -> JobRecord:
        if state.record is not None:
            return state.record
        record = await asyncio.to_thread(self._history.read, name, self._clock())
        if record is None:  # declared, and never attended to: what was due since is due
            record = JobRecord(wanted.header.applied_at)
            await asyncio.to_thread(self._history.write, name, record)
        return record

    def _base(self, wanted: Specification, record: JobRecord, now: float) -> float:
        """From when on its calendar counts: what another schedule would have had before does not count."""
        return max(attended(record, now), attended(JobRecord(wanted.header.applied_at), now))

    async def _due(self, wanted: Specification, event: str, record: JobRecord, state: _State, now: float) -> Due:
        base = self._base(wanted, record, now)
        if state.base != base:
            state.next, state.base = await self._calendar.after(event, base), base
        if state.next is None or state.next > now:
            return Due()
        recent = await self._calendar.after(event, max(base, now - GRACE_SECONDS))
        return Due(state.next, recent if recent is not None and recent <= now else None)

    async def _with_lines(self, seen: list[SeenRun], record: JobRecord) -> list[SeenRun]:
        """Those that have ended, and are not in the record as such, with the last of what they wrote."""
        living = {run.number for run in record.living}
        return [
            each.with_lines(await asyncio.to_thread(self._last_lines, each.keep.kuuid))
            if each.run in living and each.keep.life in ENDED
            else each
            for each in seen
        ]

    def _with_asked(self, decision: JobDecision, wanted: Specification, state: _State, now: float) -> JobDecision:
        """The decision with a run for each who asked, where it may begin; the others are refused."""
        record, make = decision.record, decision.make
        for waiting in state.waiting:
            if refused := why_not_now(record.runs, wanted_of(wanted)):
                if not waiting.done():
                    why = f"cannot run {wanted.name} now: {refused}; `overlap: allow` in its manifest would let it"
                    waiting.set_exception(KeepfleetError(ErrorKind.CONFLICT, why))
                continue
            record = asked(record, wanted_of(wanted), now)
            make = (*make, record.runs[-1].number)
        return JobDecision(record, make, decision.remove)

    async def _do(self, wanted: Specification, decision: JobDecision) -> None:
        for kuuid, why in decision.remove:
            who = f"the manager: declared job {wanted.name}: {why}"
            try:
                await self._keeps.remove(kuuid, manager_as(who))
            except KeepfleetError as error:
                if error.kind is not ErrorKind.NOT_FOUND:
                    raise
        for number in decision.make:
            await self._reconciler.pin(wanted)
            current = self._reconciler.declared.get(wanted.name)
            if current is None or not current.job.schedule:
                return
            if not await self._reconciler.prepare(current):
                return
            declared = Declaration(current.header.version, current.digest, 0, number)
            made = await self._keeps.create(request_for(current), caller_of(current), declared=declared)
            reach(Failpoint.JOB_AFTER_CREATE)
            LOG.info("declared job %s: run %d is keep %d", wanted.name, number, made.kuuid)

    def _say(self, name: str, before: JobRecord, after: JobRecord) -> None:
        known = {run.number: run for run in before.runs}
        for run in after.runs:
            old = known.get(run.number)
            if old is None or old.state is not run.state:
                level = logging.INFO if run.state in SETTLED else logging.WARNING
                why = f": {run.text}" if run.text else ""
                LOG.log(level, "declared job %s: run %d is %s%s", name, run.number, run.state.value, why)


def wanted_of(wanted: Specification) -> WantedJob:
    """What the manifest says of its runs. Pure."""
    return WantedJob(Missed(wanted.job.missed), Overlap(wanted.job.overlap))


def seen_run(entry: Entry, keep: Seen, owner: str) -> SeenRun:
    """One keep of a job. Pure."""
    declared, outcome = None if entry.spec is None else entry.spec.declared, entry.info.outcome
    number = declared.run if declared is not None and keep.owner == owner else 0
    if outcome is None:
        return SeenRun(number, keep)
    return SeenRun(number, keep, outcome.exit_code, outcome.output_bytes, outcome.ended_at)
