"""Keeps that ended long ago, or stay unused, are removed, whichever manager was there before."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from keep_manager.keeps import upkeep
from keep_manager.keeps.manager import Keeps
from keep_manager.keeps.policy import Policy
from keep_manager.keeps.upkeep import Due, Retention, due
from keep_manager.keeps.view import Entry
from keep_manager.model import Caller, LastEvent
from keep_manager.tasks import Group
from keep_protocol.api import NewKeep, StartKeep
from keep_protocol.keep import KeepInfo, Outcome, OutcomeKind
from keep_protocol.spec import Lease
from keep_protocol.sse import EventType
from keep_protocol.states import STATE_OF, Phase, State
from tests.fakes.callers import ALICE
from tests.fakes.fake_event_log import FakeEventLog
from tests.fakes.fake_units import FakeUnits
from tests.fakes.manager_parts import ManagerParts, manager_parts

NOW = 1_000_000.0
SET = 400 * 86400.0
"""How far a clock may be off that was set."""


def ended(kuuid: int, ago: float | None, state: State = State.COMPLETE, ended_at: float = 0.0) -> Entry:
    at = None if ago is None else NOW - ago
    outcome = Outcome(OutcomeKind.EXITED, "exited 0", ended_at=ended_at, ended_monotonic=at)
    return Entry(None, KeepInfo(kuuid, state, outcome=outcome))


def died(kuuid: int, ago: float | None) -> Entry:
    """A keep whose loader died, which had no outcome; its unit has failed."""
    return Entry(None, KeepInfo(kuuid, State.ERROR), unit_ended=None if ago is None else NOW - ago)


def unused(phase: Phase, since: float, lease: Lease) -> Entry:
    info = KeepInfo(1, STATE_OF[phase], phase=phase.value, lease=lease)
    return Entry(None, info, since=NOW - since)


def kuuids(found: list[Due]) -> list[int]:
    return [one.kuuid for one in found]


def test_those_that_ended_long_enough_ago_are_due_and_the_next_look_is_when_one_is() -> None:
    found, wait = due([ended(1, 100), ended(2, 99), ended(3, 30), ended(4, 200, State.ERROR)], NOW, 100)
    assert (kuuids(found), wait) == ([1, 4], 1.0)
    assert found[0].why == "ended 100 s ago"
    assert due([ended(3, 90)], NOW, 100) == ([], 10)


def test_a_unit_that_has_failed_is_collected_after_its_retention_also_without_an_outcome() -> None:
    assert kuuids(due([died(1, 100), died(2, 50), died(3, None)], NOW, 100)[0]) == [1]


@pytest.mark.parametrize(
    "entry",
    [
        Entry(None, KeepInfo(1, State.STARTED, phase="running"), since=0.0),
        Entry(None, KeepInfo(1, State.LISTENING), since=0.0),
        died(1, None),
        ended(1, None),
        ended(1, 500, State.STARTED),
        unused(Phase.IDLE, 1e6, Lease()),
        unused(Phase.RUNNING, 1e6, Lease(1, 1)),
    ],
)
def test_what_has_neither_ended_nor_a_lease_is_never_due(entry: Entry) -> None:
    assert due([entry], NOW, 50) == ([], 50)


def test_a_keep_that_stays_unused_for_longer_than_its_lease_is_due() -> None:
    lease = Lease(idle_seconds=10, await_seconds=20)
    assert due([unused(Phase.IDLE, 10, lease)], NOW, 3600)[0] == [Due(1, "unused for 10 s")]
    assert due([unused(Phase.IDLE, 4, lease)], NOW, 3600) == ([], 6)
    assert due([unused(Phase.AWAITING, 20, lease)], NOW, 3600)[0] == [Due(1, "unused for 20 s")]
    assert due([unused(Phase.AWAITING, 10, lease)], NOW, 3600) == ([], 10)


@pytest.mark.parametrize("off", [-SET, -3600.0, 3600.0, SET])
def test_a_clock_that_was_set_neither_removes_a_keep_early_nor_keeps_it(off: float) -> None:
    at = time.time() + off
    assert due([ended(1, 30, ended_at=at)], NOW, 50) == ([], 20)
    assert kuuids(due([ended(1, 100, ended_at=at)], NOW, 100)[0]) == [1]


@pytest.fixture
def keeps(parts: ManagerParts) -> Keeps:
    return parts.keeps


async def test_a_keep_goes_when_its_time_is_over_and_others_stay(
    keeps: Keeps, units: FakeUnits, parts: ManagerParts
) -> None:
    one, two = [(await keeps.create(NewKeep(), ALICE)).kuuid for _ in range(2)]
    await keeps.start(StartKeep(one), ALICE)
    await keeps.stop(one, ALICE)
    async with Group() as tasks:
        tasks.start(Retention(keeps, parts.view.entries, 0.2).run())
        await asyncio.wait_for(units.gone.wait(), 60)
    assert units.kuuids() == {two}


async def test_a_new_manager_removes_what_ended_before(keeps: Keeps, units: FakeUnits, parts: ManagerParts) -> None:
    kuuid = (await keeps.create(NewKeep(), ALICE)).kuuid
    await keeps.start(StartKeep(kuuid), ALICE)
    await keeps.stop(kuuid, ALICE)
    async with Group() as tasks:
        tasks.start(Retention(keeps, parts.view.entries, 3600, lambda: time.monotonic() + 3601).run())
        await asyncio.wait_for(units.gone.wait(), 60)
    assert units.kuuids() == set()


async def test_a_removal_that_fails_is_tried_again_and_its_reason_logged(
    parts: ManagerParts, units: FakeUnits, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(upkeep, "LONGEST_PAUSE_SECONDS", 0.06)
    kuuid = (await parts.keeps.create(NewKeep(lease=Lease(idle_seconds=1)), ALICE)).kuuid
    units.away = 1
    async with Group() as tasks:
        tasks.start(Retention(parts.keeps, parts.view.entries, 3600, lambda: time.monotonic() + 2).run())
        await asyncio.wait_for(units.gone.wait(), 60)
    assert f"cannot remove keep {kuuid}, unused for 1 s: cannot stop" in caplog.text


async def test_the_event_of_an_unused_keep_s_end_says_so_and_a_new_manager_goes_on_counting(
    policy: Policy, units: FakeUnits, events: FakeEventLog, place: Path
) -> None:
    async with manager_parts(units, str(place), policy, events) as before:
        kuuid = (await before.keeps.create(NewKeep(lease=Lease(idle_seconds=100)), ALICE)).kuuid
        await events.until(EventType.CREATED, kuuid)
    events.before[kuuid] = LastEvent(EventType.CREATED, 0, time.monotonic() - 101)
    events.written.clear()
    async with manager_parts(units, str(place), policy, events) as after, Group() as tasks:
        tasks.start(Retention(after.keeps, after.view.entries, 3600).run())
        removed = await events.until(EventType.REMOVED, kuuid)
    assert removed.by == "the manager: unused for 100 s"


async def test_a_keep_that_is_started_while_another_is_removed_stays(parts: ManagerParts, units: FakeUnits) -> None:
    lease = Lease(idle_seconds=1)
    first, second = [(await parts.keeps.create(NewKeep(lease=lease), ALICE)).kuuid for _ in range(2)]

    class Removing:
        """Takes so long that the other keep is started meanwhile."""

        async def remove(self, kuuid: int, caller: Caller) -> None:
            await parts.keeps.start(StartKeep(second if kuuid == first else first), ALICE)
            await parts.keeps.remove(kuuid, caller)

    async with Group() as tasks:
        tasks.start(Retention(Removing(), parts.view.entries, 3600, lambda: time.monotonic() + 2).run())
        await asyncio.wait_for(units.gone.wait(), 60)
        for _ in range(100):
            await parts.keeps.list()  # each is a turn of the loop for what is due still
    assert units.kuuids() == {second}
