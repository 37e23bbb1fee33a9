"""The watch over keeps, with a fake service manager, fake loaders on real sockets, and a ledger in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from keep_manager import grants
from keep_manager.keeps import dropped, watch
from keep_manager.keeps.manager import Keeps
from keep_manager.keeps.terms import Terms
from keep_manager.keeps.watch import Watch
from keep_manager.loader_client import Loaders
from keep_manager.model import Caller, Told
from keep_protocol.api import NewKeep
from keep_protocol.control import CommandType
from keep_protocol.identity import Role
from keep_protocol.keep import KeepInfo, Outcome, OutcomeKind
from keep_protocol.sse import EventType
from keep_protocol.states import Event, State
from tests.fakes.fake_ledger import FakeLedger
from tests.fakes.fake_loader import FakeLoader
from tests.fakes.fake_units import FakeUnits

ALICE = Caller("alice", Role.OPERATOR, "127.0.0.1", "alice (serial a1) at 127.0.0.1")
CREATED, STARTED, RUNNING, ENDED = EventType.CREATED, EventType.STARTED, EventType.RUNNING, EventType.ENDED
LOUD = Outcome(OutcomeKind.EXITED, "exited 0", exit_code=0, output_bytes=10**6, started_at=5.0, ended_at=6.0)
QUIET = LOUD.with_dropped(0)
TERMS = Terms("none", "none", 43000, 43999, 2.0)


class House:
    """A watched manager, whose watch can be ended and begun anew."""

    def __init__(self, units: FakeUnits, place: Path, ledger: FakeLedger) -> None:
        self.units, self.ledger = units, ledger
        self._loaders = Loaders(str(place))
        self.begin()

    def begin(self) -> None:
        self.watch = Watch(self.units, self._loaders, self.ledger)
        self.keeps = Keeps(self.units, self._loaders, TERMS, grants.opened, self.watch)

    async def again(self) -> None:
        """What a new manager does."""
        self.begin()
        await self.watch.open((await self.keeps.list()).keeps)

    async def new(self) -> tuple[KeepInfo, FakeLoader]:
        """A keep, once it is told that there is one."""
        info = await self.keeps.create(NewKeep(name="web"), ALICE)
        await self.ledger.until(CREATED, info.kuuid)
        return info, self.units.loaders[info.kuuid]

    @property
    def told(self) -> list[EventType]:
        return [event.type for event in self.ledger.written]


async def run(loader: FakeLoader, *events: Event) -> None:
    for event in events:
        await loader.move(event)


@pytest.fixture
def ledger() -> FakeLedger:
    return FakeLedger()


@pytest.fixture
async def house(units: FakeUnits, place: Path, ledger: FakeLedger) -> AsyncIterator[House]:
    made = House(units, place, ledger)
    yield made
    await made.watch.close()


async def test_the_life_of_a_keep_is_told_in_order_and_once(house: House) -> None:
    info, loader = await house.new()
    await run(loader, Event.START, Event.ENDPOINT_READY)
    await house.ledger.until(STARTED)
    await run(loader, Event.ACCEPT)
    await house.ledger.until(RUNNING)
    await loader.move(Event.FINISH, QUIET)
    ended = await house.ledger.until(ENDED)
    await house.keeps.remove(info.kuuid, ALICE)
    removed = house.ledger.written[-1]
    assert house.told == [CREATED, STARTED, RUNNING, ENDED, EventType.REMOVED]
    assert (ended.at, ended.keep.outcome, ended.keep.name) == (6.0, QUIET, "web")
    assert (removed.by, removed.keep.outcome) == ("alice", QUIET)
    assert house.ledger.lines[0] == f"keep@{info.kuuid}.service: created by alice"


async def test_what_passes_between_two_looks_is_told_all_the_same(house: House) -> None:
    _, loader = await house.new()
    # Without a pause in which the watch could look.
    await run(loader, Event.START, Event.ENDPOINT_READY, Event.ACCEPT)
    await loader.move(Event.FINISH, QUIET)
    await house.ledger.until(ENDED)
    assert house.told == [CREATED, STARTED, RUNNING, ENDED]


async def test_a_new_manager_tells_what_happened_while_there_was_none_and_nothing_twice(house: House) -> None:
    _, stays = await house.new()
    gone, _ = await house.new()
    await house.watch.close()
    await run(stays, Event.START, Event.ENDPOINT_READY)
    await house.units.stop(gone.kuuid)
    await house.again()
    await house.ledger.until(STARTED)
    await house.ledger.until(EventType.REMOVED)
    assert sorted(event.type.value for event in house.ledger.written) == [
        "created",
        "created",
        "removed",
        "started",
    ]
    assert next(e for e in house.ledger.written if e.type is EventType.REMOVED).keep.kuuid == gone.kuuid


async def test_a_keep_that_another_manager_told_of_is_not_told_of_again(house: House) -> None:
    info, loader = await house.new()
    await house.watch.close()
    house.ledger.written.clear()
    house.ledger.before[info.kuuid] = Told(CREATED)
    await house.again()
    await run(loader, Event.START, Event.ENDPOINT_READY)
    await house.ledger.until(STARTED)
    assert house.told == [STARTED]


async def test_a_keep_that_goes_without_our_doing_is_told(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "FIRST_PAUSE_SECONDS", 0.01)
    info, _ = await house.new()
    await house.units.stop(info.kuuid)
    assert (await house.ledger.until(EventType.REMOVED)).by == ""


async def test_a_keep_whose_unit_fails_has_failed_and_is_still_known(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "FIRST_PAUSE_SECONDS", 0.01)
    info, _ = await house.new()
    await house.units.crash(info.kuuid)
    failed = await house.ledger.until(EventType.FAILED)
    assert (failed.keep.state, failed.keep.name) == (State.ERROR, "web")
    await house.keeps.remove(info.kuuid, ALICE)
    assert (await house.ledger.until(EventType.REMOVED)).by == "alice"
    assert house.told.count(EventType.FAILED) == 1


async def test_a_flooded_keep_says_one_more_line_before_its_lost_ones_are_counted(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dropped, "INTERVAL_SECONDS", 0.01)
    info, loader = await house.new()
    house.ledger.accepted, house.ledger.lost = 1000, 4321
    await run(loader, Event.START, Event.ENDPOINT_READY, Event.ACCEPT)
    await loader.move(Event.FINISH, LOUD)
    event = await house.ledger.until(ENDED)
    assert event.keep.outcome == LOUD.with_dropped(4321)
    assert (await house.keeps.counted(info.kuuid)).outcome == LOUD.with_dropped(4321)
    assert [c.contents for c in loader.commands if c.type is CommandType.DROPPED] == ["", "4321"]


async def test_a_keep_that_was_quiet_at_its_end_says_no_further_line(house: House) -> None:
    _, loader = await house.new()
    house.ledger.accepted, house.ledger.lost = 999, 5
    await run(loader, Event.START, Event.ENDPOINT_READY, Event.ACCEPT)
    await loader.move(Event.FINISH, LOUD)
    assert (await house.ledger.until(ENDED)).keep.outcome == LOUD.with_dropped(5)
    assert [c.contents for c in loader.commands if c.type is CommandType.DROPPED] == ["5"]


@pytest.mark.parametrize("ledger", [FakeLedger(counts=False)])
async def test_where_nobody_can_know_what_was_dropped_nothing_is_said_of_it(house: House) -> None:
    _, loader = await house.new()
    await run(loader, Event.START, Event.ENDPOINT_READY, Event.ACCEPT)
    await loader.move(Event.FINISH, LOUD)
    assert (await house.ledger.until(ENDED)).keep.outcome == LOUD


async def test_a_journal_that_is_away_costs_the_telling_and_not_the_watch(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.ledger.away = True
    info = await house.keeps.create(NewKeep(), ALICE)
    await house.ledger.refused.wait()
    house.ledger.away = False
    await run(house.units.loaders[info.kuuid], Event.START, Event.ENDPOINT_READY)
    await house.ledger.until(STARTED)
    assert house.told == [STARTED]
    assert "created by alice (told here alone: cannot write to the journal" in caplog.text


async def test_a_keep_that_tells_of_changes_without_end_is_asked_at_a_bounded_pace(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "MANY", 3)
    info, loader = await house.new()
    loader.lies = True
    for _ in range(200):
        await house.keeps.get(info.kuuid)  # each is a turn of the loop for whoever else asks
    assert sum(command.type is CommandType.WAIT for command in loader.commands) <= 4


def test_a_pace_lets_a_burst_through_and_then_one_at_a_time() -> None:
    pace = watch.Pace(3, 6.0)
    assert [pace.wait(moment) for moment in (0.0, 1.0, 2.0, 6.0, 7.0, 20.0)] == [0.0, 0.0, 4.0, 1.0, 1.0, 0.0]


async def test_nobody_waits_for_the_count_of_a_keep_that_is_not_watched(house: House) -> None:
    await house.watch.counted(5)
