"""Events of keeps, reported once and in order, across the manager's death; and the count of lines dropped."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import islice

import pytest

from keep_protocol.sse import EventType, KeepEvent
from keep_protocol.states import State
from tests.system import modules
from tests.system.fleet import MANAGER, Fleet
from tests.system.host import message_of
from tests.system.life import Life, example
from tests.system.output import lines

CREATED, STARTED, RUNNING = EventType.CREATED, EventType.STARTED, EventType.RUNNING
ENDED, FAILED, REMOVED = EventType.ENDED, EventType.FAILED, EventType.REMOVED
DEADLINE = 60
"""Seconds for a whole test, each of which takes two or three."""
ALL = (CREATED, STARTED, RUNNING, ENDED, REMOVED)


@contextmanager
def following(
    fleet: Fleet, kuuid: int | None = None, last: int | None = None, after: str = ""
) -> Iterator[Iterator[KeepEvent]]:
    """The events that one client gets while the block runs."""
    with closing(fleet.client().events(kuuid, last, after)) as events:
        yield events


@pytest.fixture(autouse=True)
def deadline() -> Iterator[None]:
    """An event that never comes ends the test: a stream of events has no end."""

    def give_up(*_: object) -> None:
        raise TimeoutError("no such event came")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(DEADLINE)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def reported(fleet: Fleet, life: Life, count: int) -> list[KeepEvent]:
    """The first events of a keep, from the journal's beginning on."""
    with following(fleet, life.kuuid, 1000) as events:
        return list(islice(events, count))


def words(events: list[KeepEvent]) -> tuple[EventType, ...]:
    return tuple(event.type for event in events)


def test_a_keeps_life_is_reported_in_order_with_its_outcome_and_who_removed_it(fleet: Fleet) -> None:
    life = Life.ended(fleet)
    life.remove()
    events = reported(fleet, life, len(ALL))
    assert words(events) == ALL
    assert [event.at for event in events] == sorted(event.at for event in events)
    running, ended, removed = events[-3:]
    assert ended.keep.outcome is not None
    assert ended.keep.outcome.text == "exited 3"
    # On a busy host that it runs may be noticed when it has ended already.
    assert ended.at == max(running.at, ended.keep.outcome.ended_at or 0)
    assert removed.by == "admin"


def test_a_follower_gets_all_across_the_managers_death_and_nothing_twice(fleet: Fleet) -> None:
    before = Life.awaiting(fleet)
    with following(fleet, last=1000) as events:
        mine = (event for event in events if event.keep.kuuid == before.kuuid)
        assert words(list(islice(mine, 2))) == (CREATED, STARTED)
        fleet.kill()
        assert before.upload(modules.says(code=3)).status == 200
        before.until(State.STARTED, State.COMPLETE)
        before.remove()
        assert words(list(islice(mine, 3))) == (RUNNING, ENDED, REMOVED)
    assert words(reported(fleet, before, len(ALL))) == ALL


def test_a_new_manager_reports_what_happened_while_there_was_none(fleet: Fleet) -> None:
    ends, goes = Life.awaiting(fleet), Life.create(fleet)
    assert words(reported(fleet, ends, 2)) == (CREATED, STARTED)
    assert words(reported(fleet, goes, 1)) == (CREATED,)
    fleet.host.systemctl("stop", MANAGER)
    assert ends.upload(modules.says(code=3)).status == 200
    ends.line("running -> ended")
    fleet.host.systemctl("stop", goes.unit)
    fleet.host.systemctl("start", MANAGER)
    assert words(reported(fleet, ends, 4)) == (CREATED, STARTED, RUNNING, ENDED)
    assert words(reported(fleet, goes, 2)) == (CREATED, REMOVED)


def test_a_keep_whose_loader_is_killed_while_it_runs_has_failed(fleet: Fleet) -> None:
    life = Life.running(fleet)
    fleet.host.run(["kill", "-KILL", str(life.loader_pid)])
    failed = reported(fleet, life, 4)[-1]
    assert failed.type is FAILED
    assert failed.keep.outcome is not None
    assert failed.keep.outcome.text == "the loader was killed while the workload ran"


def test_the_journal_has_the_outcome_as_one_record_among_the_units_lines(fleet: Fleet) -> None:
    life = Life.ended(fleet)
    reported(fleet, life, 4)
    fleet.host.assistant.synchronize()  # who follows the events hears of it before journald has written it
    printed = fleet.host.run(["journalctl", "--output=json", "--all", f"--unit={life.unit}", "KEEP_EVENT=ended"]).stdout
    (entry,) = map(json.loads, printed.splitlines())
    assert message_of(entry) == f"{life.unit}: ended: exited 3"
    assert json.loads(entry["KEEP_RECORD"])["keep"] == life.look().to_wire()


def test_a_flooded_keeps_end_says_what_the_journal_was_not_given(fleet: Fleet) -> None:
    client = fleet.client()
    life = Life(
        fleet, client.create(limits={"wall_seconds": 2, "log_lines_per_second": 2}).kuuid
    )  # of a slow flood, too
    life.start()
    assert life.upload(example("flood-wat/flood")).status == 200
    life.until(State.STARTED, State.ERROR)
    outcome = life.info.outcome
    assert outcome is not None
    assert outcome.text == "over its time limit of 2 s"
    assert outcome.journal_skipped_bytes and outcome.output_bytes
    assert outcome.journal_skipped_bytes < outcome.output_bytes
    of_journald = [message_of(entry) for entry in fleet.host.journal("systemd-journald.service")]
    assert not [text for text in of_journald if life.unit in text], "it never had more than it takes"
    (failed,) = [event for event in reported(fleet, life, 4) if event.type is FAILED]
    assert failed.keep.outcome == outcome


@pytest.mark.parametrize("count", [1, 900])
def test_a_keep_that_keeps_to_its_limit_has_lost_no_line_and_knows_it(fleet: Fleet, count: int) -> None:
    life = Life.awaiting(fleet)
    assert life.upload(modules.says(*[b"a line\n"] * count)).status == 200
    life.until(State.STARTED, State.COMPLETE)
    assert lines(fleet, life.kuuid) == [("stdout", "a line")] * count
    outcome = life.look().outcome
    assert outcome is not None
    assert (outcome.lost_bytes, outcome.journal_skipped_bytes) == (0, 0)
