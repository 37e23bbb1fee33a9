"""The decision about a job: each moment of its calendar is answered once, and no two runs go on that may not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keep_manager.declared.decision import Life, Seen
from keep_manager.declared.runs import (
    GIVE_UP_SECONDS,
    GRACE_SECONDS,
    MOST_CONCURRENT,
    RUNS_KEPT,
    SET_BACK_SECONDS,
    Due,
    JobDecision,
    JobRecord,
    SeenRun,
    WantedJob,
    asked,
    attended,
    decide_runs,
)
from keep_protocol.runs import Missed, Overlap, Run, RunState, RunWhy

NOW = 1_000_000.0
NIGHTLY = WantedJob()
SKIPS = WantedJob(Missed.SKIP)
ALLOWS = WantedJob(overlap=Overlap.ALLOW)


def running(number: int = 1, kuuid: int | None = None, began: float = NOW - 10) -> Run:
    return Run(number, RunState.RUNNING, RunWhy.SCHEDULE, began, began, kuuid=kuuid)


def keep(run: int = 1, life: Life = Life.RUNNING, kuuid: int | None = None, text: str = "") -> SeenRun:
    return SeenRun(run, Seen(kuuid or 100 + run, "report", "alice", "d", 0, life, text=text), 0, 5, NOW - 1)


def decide(
    record: JobRecord,
    *keeps: SeenRun,
    wanted: WantedJob = NIGHTLY,
    due: Due = Due(),  # noqa: B008 - frozen
    now: float = NOW,
    failure: str = "",
) -> JobDecision:
    return decide_runs(wanted, record, keeps, now, due, failure)


def test_what_is_due_is_begun_and_then_its_moment_is_answered() -> None:
    decision = decide(JobRecord(NOW - 100), due=Due(NOW - 2, NOW - 2))
    (run,) = decision.record.runs
    assert (run.why, run.scheduled, run.began, run.state) == (RunWhy.SCHEDULE, NOW - 2, NOW, RunState.RUNNING)
    assert (decision.make, decision.record.handled) == ((1,), NOW)
    assert decide(decision.record, keep(1)).make == ()


def test_nothing_is_done_before_its_time() -> None:
    assert decide(JobRecord(NOW - 100), due=Due(NOW + 1)) == JobDecision(JobRecord(NOW - 100))


def test_missed_runs_are_made_up_for_once_or_skipped_with_the_reason() -> None:
    late = Due(NOW - 5 * GRACE_SECONDS)
    (run,) = decide(JobRecord(0.0), due=late).record.runs
    assert (run.why, run.scheduled) == (RunWhy.MISSED, late.first)
    (run,) = decide(JobRecord(0.0), wanted=SKIPS, due=late).record.runs
    assert (run.state, run.scheduled, run.text) == (RunState.SKIPPED, late.first, "no manager was there to start it")


def test_of_many_missed_ones_the_one_whose_time_is_now_is_in_time() -> None:
    due = Due(NOW - 3600, NOW - 1)
    (run,) = decide(JobRecord(0.0), due=due).record.runs
    assert (run.why, run.scheduled) == (RunWhy.SCHEDULE, NOW - 1)
    skipped, run = decide(JobRecord(0.0), wanted=SKIPS, due=due).record.runs
    assert (skipped.state, run.state, run.scheduled) == (RunState.SKIPPED, RunState.RUNNING, NOW - 1)


def test_no_two_run_concurrently_unless_allowed() -> None:
    record, due = JobRecord(NOW - 100, (running(kuuid=101),)), Due(NOW, NOW)
    last = decide(record, keep(1), due=due).record.runs[-1]
    assert (last.state, last.text) == (RunState.SKIPPED, "run 1 goes on")
    assert decide(record, keep(1), wanted=ALLOWS, due=due).make == (2,)
    full = JobRecord(NOW - 100, tuple(running(number, 100 + number) for number in range(1, MOST_CONCURRENT + 1)))
    keeps = [keep(number) for number in range(1, MOST_CONCURRENT + 1)]
    assert decide(full, *keeps, wanted=ALLOWS, due=due).record.runs[-1].text == f"{MOST_CONCURRENT} runs go on"


def test_a_run_that_ends_makes_room_in_the_same_decision() -> None:
    record = JobRecord(NOW - 100, (running(kuuid=101),))
    decision = decide(record, keep(1, Life.FAILED, text="exited 3"), due=Due(NOW, NOW))
    assert [run.state for run in decision.record.runs] == [RunState.FAILED, RunState.RUNNING]
    assert decision.record.runs[0].text == "exited 3"


@pytest.mark.parametrize(
    ("life", "state"),
    [(Life.DONE, RunState.DONE), (Life.FAILED, RunState.FAILED), (Life.STOPPED, RunState.STOPPED)],
)
def test_how_a_run_ended_is_written_down_with_its_moment(life: Life, state: RunState) -> None:
    (run,) = decide(JobRecord(NOW, (running(),)), keep(1, life)).record.runs
    assert (run.state, run.ended, run.exit_code, run.output_bytes, run.kuuid) == (state, NOW - 1, 0, 5, 101)


def test_one_that_went_with_its_host_is_made_up_for_unless_it_is_to_be_skipped() -> None:
    record = JobRecord(NOW, (running(kuuid=101),))
    decision = decide(record, keep(1, Life.LOST))
    assert [(run.state, run.why) for run in decision.record.runs] == [
        (RunState.LOST, RunWhy.SCHEDULE),
        (RunState.RUNNING, RunWhy.MISSED),
    ]
    assert [run.state for run in decide(record, keep(1, Life.LOST), wanted=SKIPS).record.runs] == [RunState.LOST]


def test_one_whose_keep_has_gone_is_lost_and_not_run_again() -> None:
    (run,) = decide(JobRecord(NOW, (running(kuuid=101),))).record.runs
    assert (run.state, run.text) == (RunState.LOST, "its keep has gone")


def test_a_manager_killed_before_it_made_the_keep_is_followed_by_one_that_makes_it() -> None:
    assert decide(JobRecord(NOW, (running(),))).make == (1,)


def test_a_keep_that_was_made_and_not_started_is_removed_and_made_again() -> None:
    decision = decide(JobRecord(NOW, (running(),)), keep(1, Life.UNFINISHED))
    assert (decision.remove, decision.make) == (((101, "it was not started"),), ())
    assert decide(decision.record).make == (1,)


def test_a_run_that_cannot_be_begun_is_given_up_with_the_reason() -> None:
    record = JobRecord(NOW, (running(began=NOW),))
    assert decide(record, now=NOW + GIVE_UP_SECONDS, failure="full").make == (1,)
    (run,) = decide(record, now=NOW + GIVE_UP_SECONDS + 1, failure="full").record.runs
    assert (run.state, run.text) == (RunState.UNMET, "full")


def test_a_run_of_a_record_that_was_lost_is_found_again_in_its_keep() -> None:
    (run,) = decide(JobRecord(NOW), keep(7)).record.runs
    assert (run.number, run.state, run.kuuid) == (7, RunState.RUNNING, 107)
    assert asked(JobRecord(NOW, (run,)), ALLOWS, NOW).runs[-1].number == 8


def test_a_keep_of_before_it_was_a_job_goes_and_the_last_run_s_keep_stays() -> None:
    runs = tuple(replace_state(running(number, 100 + number)) for number in (1, 2))
    decision = decide(JobRecord(NOW, runs), keep(0), keep(1, Life.DONE), keep(2, Life.DONE))
    assert decision.remove == ((100, "it is a job now"), (101, "a later run has ended"))


def replace_state(run: Run) -> Run:
    return run.replace(state=RunState.DONE, ended=NOW)


def test_a_clock_set_back_a_little_repeats_nothing_and_one_set_back_far_does_not_stop_the_job() -> None:
    assert attended(JobRecord(NOW + SET_BACK_SECONDS), NOW) == NOW + SET_BACK_SECONDS
    assert attended(JobRecord(NOW + 400 * 86400), NOW) == NOW
    assert decide(JobRecord(NOW + 400 * 86400)).record.handled == NOW


def test_a_person_s_run_is_refused_where_another_may_not_be_overlapped() -> None:
    record = JobRecord(NOW, (running(kuuid=101),))
    assert asked(record, NIGHTLY, NOW) is record
    assert asked(record, ALLOWS, NOW).runs[-1].why is RunWhy.ASKED


def test_the_history_is_bounded_and_keeps_what_goes_on() -> None:
    record = JobRecord(0.0, (running(kuuid=101),))
    for _ in range(3 * RUNS_KEPT):
        record = decide(record, keep(1), due=Due(NOW, NOW)).record
    assert len(record.runs) <= RUNS_KEPT + 1
    assert record.runs[0].living


class World:
    """A host as far as a job can see it, in which whatever may happen does."""

    def __init__(self, wanted: WantedJob, period: float) -> None:
        self.wanted, self.period, self.now = wanted, period, NOW
        self.record = JobRecord(NOW)
        self.keeps: dict[int, SeenRun] = {}

    def due(self) -> Due:
        base = attended(self.record, self.now)
        first = (base // self.period + 1) * self.period
        recent = (max(base, self.now - GRACE_SECONDS) // self.period + 1) * self.period
        return Due(first, recent if recent <= self.now else None)

    def attend(self, *, killed: str = "") -> None:
        """One round of a manager, which may be killed in it."""
        decision = decide_runs(self.wanted, self.record, self.keeps.values(), self.now, self.due())
        if killed == "before the record":
            return
        self.record = decision.record
        if killed == "after the record":
            return
        for kuuid, _ in decision.remove:
            del self.keeps[kuuid]
        for number in decision.make:
            assert all(each.run != number for each in self.keeps.values()), "a run was made twice"
            self.keeps[1000 + number] = keep(number, kuuid=1000 + number)

    @property
    def living(self) -> list[SeenRun]:
        return [each for each in self.keeps.values() if each.keep.life is Life.RUNNING]

    def end(self, life: Life) -> None:
        for kuuid, each in self.keeps.items():
            if each.keep.life is Life.RUNNING:
                self.keeps[kuuid] = each.replace(keep=each.keep.replace(life=life))
                return


STEPS = st.one_of(
    st.tuples(st.just("pass"), st.floats(0, 5000)),
    st.tuples(st.just("back"), st.floats(0, 2 * SET_BACK_SECONDS)),
    st.tuples(st.just("end"), st.sampled_from([Life.DONE, Life.FAILED, Life.STOPPED, Life.LOST])),
    st.tuples(st.just("attend"), st.sampled_from(["", "before the record", "after the record"])),
    st.tuples(st.just("ask"), st.none()),
)


@given(
    st.sampled_from(list(Missed)),
    st.sampled_from(list(Overlap)),
    st.sampled_from([7.0, 60.0, 3600.0]),
    st.lists(STEPS, max_size=40),
)
@settings(max_examples=100, deadline=None)
def test_whatever_happens_runs_do_not_overlap_where_they_may_not_and_a_second_round_does_nothing(
    missed: Missed, overlap: Overlap, period: float, steps: list[tuple[str, object]]
) -> None:
    world = World(WantedJob(missed, overlap), period)
    for what, how in steps:
        if what == "pass":
            world.now += float(str(how))
        elif what == "back":
            world.now = max(world.now - float(str(how)), 1.0)
        elif what == "end" and isinstance(how, Life):
            world.end(how)
        elif what == "ask":
            world.record = asked(world.record, world.wanted, world.now)
        else:
            world.attend(killed=str(how))
        most = 1 if overlap is Overlap.FORBID else MOST_CONCURRENT
        assert len(world.living) <= most
        assert len(world.record.living) <= most
    world.attend()
    world.attend()  # it sees the keeps that the first one made
    settled, keeps = world.record, dict(world.keeps)
    decision = decide_runs(world.wanted, settled, keeps.values(), world.now, world.due())
    assert decision == JobDecision(settled)
    numbers = [run.number for run in settled.runs]
    assert numbers == sorted(set(numbers))
    first = world.due().first
    assert first is not None
    assert first > world.now, "no moment is left unanswered"
    assert first <= max(settled.handled, world.now) + period, "and none is waited for that is not its next one"


@given(st.integers(1, 200), st.sampled_from([60.0, 600.0]))
def test_with_a_manager_that_is_always_there_each_moment_has_its_run(count: int, period: float) -> None:
    world = World(NIGHTLY, period)
    begun: list[float | None] = []
    for at in range(1, count + 1):
        world.now = (NOW // period + at) * period + 0.5
        world.attend()
        world.end(Life.DONE)
        world.attend()
        begun.append(world.record.runs[-1].scheduled)
    assert begun == [(NOW // period + at) * period for at in range(1, count + 1)]
