"""Keeps that ended long ago are removed, whoever was there when they ended."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from keep_manager import grants
from keep_manager.keeps import retention
from keep_manager.keeps.manager import Keeps
from keep_manager.keeps.retention import expired, retain
from keep_manager.keeps.terms import Terms
from keep_manager.loader_client import Loaders
from keep_manager.model import Caller
from keep_protocol.api import NewKeep, StartKeep
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.identity import Role
from keep_protocol.keep import KeepInfo, Outcome, OutcomeKind
from keep_protocol.states import State
from tests.fakes.fake_ledger import FakeWitness
from tests.fakes.fake_pki import FakeAuthority
from tests.fakes.fake_units import FakeUnits

ALICE = Caller("alice", Role.OPERATOR, "127.0.0.1", "alice")
NOW = 1_000_000.0
SET = 400 * 86400.0
"""How far a clock may be off that somebody has set."""


def ended(kuuid: int, ago: float | None, state: State = State.COMPLETE, ended_at: float = 0.0) -> KeepInfo:
    at = None if ago is None else NOW - ago
    outcome = Outcome(OutcomeKind.EXITED, "exited 0", ended_at=ended_at, ended_monotonic=at)
    return KeepInfo(kuuid, state, outcome=outcome)


def test_those_that_ended_long_enough_ago_are_due_and_the_next_look_is_when_one_is() -> None:
    keeps = [ended(1, 100), ended(2, 99), ended(3, 30), ended(4, 200, State.ERROR)]
    due, wait = expired(keeps, NOW, 100)
    assert (due, wait) == ([1, 4], 100 / 60)
    assert expired([ended(3, 30)], NOW, 100) == ([], 70)


@pytest.mark.parametrize(
    "keep",
    [
        KeepInfo(1, State.STARTED),
        KeepInfo(1, State.LISTENING),
        KeepInfo(1, State.ERROR),
        ended(1, None),
        ended(1, 500, State.STARTED),
    ],
)
def test_what_has_not_ended_is_never_due(keep: KeepInfo) -> None:
    assert expired([keep], NOW, 100) == ([], 100)


@pytest.mark.parametrize("off", [-SET, -3600.0, 3600.0, SET])
def test_a_clock_that_was_set_neither_removes_a_keep_early_nor_keeps_it(off: float) -> None:
    at = time.time() + off
    assert expired([ended(1, 30, ended_at=at)], NOW, 100) == ([], 70)
    assert expired([ended(1, 100, ended_at=at)], NOW, 100)[0] == [1]


@pytest.fixture
def keeps(units: FakeUnits, place: Path, authority: FakeAuthority) -> Keeps:
    terms = Terms(f"{place}/pki/ca.crt", f"{place}/pki/revoked", 44000, 44999)
    return Keeps(units, Loaders(str(place)), terms, grants.opened, FakeWitness())


async def test_a_keep_goes_when_its_time_is_over_and_others_stay(keeps: Keeps, units: FakeUnits) -> None:
    one, two = [(await keeps.create(NewKeep(), ALICE)).kuuid for _ in range(2)]
    await keeps.start(StartKeep(one), ALICE)
    await keeps.stop(one, ALICE)
    watch = asyncio.create_task(retain(keeps, 0.2))
    try:
        await asyncio.wait_for(units.gone.wait(), 5)
    finally:
        watch.cancel()
        await asyncio.wait({watch})
    assert units.kuuids() == {two}


async def test_a_manager_that_starts_anew_removes_what_ended_before(keeps: Keeps, units: FakeUnits) -> None:
    kuuid = (await keeps.create(NewKeep(), ALICE)).kuuid
    await keeps.start(StartKeep(kuuid), ALICE)
    await keeps.stop(kuuid, ALICE)
    watch = asyncio.create_task(retain(keeps, 3600, lambda: time.monotonic() + 3601))
    try:
        await asyncio.wait_for(units.gone.wait(), 5)
    finally:
        watch.cancel()
        await asyncio.wait({watch})
    assert units.kuuids() == set()


async def test_a_service_manager_that_is_away_is_asked_again(
    keeps: Keeps, units: FakeUnits, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers, asked = [KeepfleetError(ErrorKind.UNAVAILABLE, "cannot list: away")], asyncio.Event()
    listed = units.listed

    async def away_once() -> object:
        if answers:
            raise answers.pop()
        asked.set()
        return await listed()

    monkeypatch.setattr(units, "listed", away_once)
    monkeypatch.setattr(retention, "LOOKS_PER_RETENTION", 1000)
    watch = asyncio.create_task(retain(keeps, 1.0))
    try:
        await asyncio.wait_for(asked.wait(), 5)
    finally:
        watch.cancel()
        await asyncio.wait({watch})
    assert "cannot list: away" in caplog.text
