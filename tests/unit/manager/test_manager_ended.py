"""Keeps that have ended: without a process, answered from what their loader left, by any manager, until removed."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from keep_manager.keeps import watch
from keep_manager.keeps.policy import Policy
from keep_manager.keeps.streams import MAX_READERS
from keep_manager.keeps.upkeep import due
from keep_manager.model import UnitEnd
from keep_protocol.api import ListKeeps, NewKeep, StartKeep
from keep_protocol.control import CommandType
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo, Outcome, OutcomeKind
from keep_protocol.ring import STDOUT, frames_in
from keep_protocol.sse import EventType
from keep_protocol.states import Event, State
from tests.fakes.callers import ALICE
from tests.fakes.fake_event_log import FakeEventLog
from tests.fakes.fake_loader import FakeLoader
from tests.fakes.fake_units import FakeUnits
from tests.fakes.manager_parts import THIS_BOOT, ManagerParts, manager_parts

TRAPPED = Outcome(OutcomeKind.TRAPPED, "trapped: unreachable", started_at=5.0, ended_at=6.0)
ENOUGH = 60.0


async def started(parts: ManagerParts, name: str = "") -> tuple[int, FakeLoader]:
    info = await parts.keeps.create(NewKeep(name=name), ALICE)
    await parts.keeps.start(StartKeep(info.kuuid), ALICE)
    return info.kuuid, parts.units.loaders[info.kuuid]


async def ended(parts: ManagerParts, outcome: Outcome | None = None, name: str = "") -> int:
    """A keep whose workload has run and ended, and whose loader has exited."""
    kuuid, loader = await started(parts, name)
    await loader.move(Event.ACCEPT)
    assert loader.output is not None
    loader.output.write(STDOUT, b"last words\n")
    gone = parts.units.changed()
    await loader.move(Event.FINISH, outcome)
    async with asyncio.timeout(ENOUGH):
        await gone
    await parts.keeps.wait(kuuid, State.STARTED, ENOUGH)
    return kuuid


async def read(parts: ManagerParts, kuuid: int) -> bytes:
    async with parts.readers.reading(kuuid) as reading:
        block = reading.take()
    return b"" if block is None else b"".join(frame.data for frame in frames_in(block.data, block.position))


def files(place: Path) -> list[str]:
    return sorted(os.listdir(place / "state" / "keeps"))


@asynccontextmanager
async def next_manager(parts: ManagerParts, place: Path, boot: str = THIS_BOOT) -> AsyncIterator[ManagerParts]:
    async with manager_parts(parts.units, str(place), parts.policy, FakeEventLog(), boot=boot) as other:
        yield other


@pytest.mark.parametrize(("outcome", "active"), [(None, "active"), (TRAPPED, "failed")])
async def test_an_ended_keep_has_no_loader_and_every_manager_answers_for_it(
    parts: ManagerParts, place: Path, outcome: Outcome | None, active: str
) -> None:
    kuuid = await ended(parts, outcome, "web")
    assert kuuid not in parts.units.loaders
    unit = await parts.units.look(kuuid)
    assert unit is not None
    assert unit.active == active
    async with next_manager(parts, place) as other:
        for manager in (parts, other):
            info = await manager.keeps.get(kuuid)
            assert (info.state, info.name, info.owner) == (State.COMPLETE, "web", "alice")
            assert info.outcome is not None
            assert info.outcome.text == (outcome.text if outcome else "exited")
            assert await manager.keeps.stop(kuuid, ALICE) == info
            assert (await manager.keeps.list(ListKeeps())).keeps == (info,)
            assert await read(manager, kuuid) == b"last words\n"
        assert (await other.events.until(EventType.ENDED, kuuid)).keep == info
        await other.keeps.remove(kuuid, ALICE)
        assert await parts.units.look(kuuid) is None
        assert files(place) == []


async def test_an_ended_keep_cannot_be_started_again(parts: ManagerParts) -> None:
    kuuid = await ended(parts, TRAPPED)
    with pytest.raises(KeepfleetError, match=r"cannot start keep .*: it is complete: trapped") as caught:
        await parts.keeps.start(StartKeep(kuuid), ALICE)
    assert caught.value.kind is ErrorKind.CONFLICT


async def test_readers_by_the_hundred_are_refused_and_leave_nothing(parts: ManagerParts) -> None:
    kuuid, loader = await started(parts)
    before = len(os.listdir("/proc/self/fd"))
    async with AsyncExitStack() as held:
        for _ in range(MAX_READERS):
            await held.enter_async_context(parts.readers.reading(kuuid, follows=True))
        with pytest.raises(KeepfleetError, match="64 readers do already") as caught:
            await held.enter_async_context(parts.readers.reading(kuuid))
        assert caught.value.kind is ErrorKind.TOO_MANY
        follows = [command for command in loader.commands if command.type is CommandType.FOLLOW]
        assert len(follows) == 1, "one channel for all of them"
    assert parts.readers.followed == 0
    assert loader.output is not None
    await loader.output.answered.wait()
    assert len(os.listdir("/proc/self/fd")) <= before + 1, "what is left is the loader's, until it sees the hang-up"


async def test_the_name_of_an_ended_keep_is_free_and_its_limits_count_no_more(parts: ManagerParts) -> None:
    first = await ended(parts, TRAPPED, "web")
    second = await parts.keeps.create(NewKeep(name="web"), ALICE)
    assert second.kuuid != first


async def test_ended_keeps_count_for_the_most_there_may_be(units: FakeUnits, place: Path, policy: Policy) -> None:
    few = Policy(policy.client_ca, policy.revoked, 43000, 43999, 60.0, max_keeps=1)
    async with manager_parts(units, str(place), few) as parts:
        await ended(parts, TRAPPED)
        with pytest.raises(KeepfleetError, match="max_keeps is 1") as caught:
            await parts.keeps.create(NewKeep(), ALICE)
        assert caught.value.kind is ErrorKind.TOO_MANY


async def test_a_keep_whose_loader_was_given_up_is_lost_with_the_reason(
    parts: ManagerParts, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "FIRST_PAUSE_SECONDS", 0.01)
    kuuid, loader = await started(parts)
    await loader.move(Event.ACCEPT)
    await parts.units.crash(kuuid)
    parts.units.ends[kuuid] = UnitEnd("watchdog", 6, 5, time.monotonic())
    failed = (await parts.events.until(EventType.FAILED, kuuid)).keep
    async with next_manager(parts, place) as other:
        for info in (failed, await other.keeps.get(kuuid)):
            assert info.state is State.ERROR
            assert info.outcome is not None
            assert info.outcome.kind is OutcomeKind.LOST
            assert info.detail == "lost: its loader failed and was not started again (watchdog)"
        assert due(other.view.entries(), time.monotonic() + 50, 40.0)[0] != [], "its unit says when"


async def test_a_keep_of_an_earlier_boot_has_ended_and_is_kept_for_its_retention(
    units: FakeUnits, place: Path, policy: Policy
) -> None:
    async with manager_parts(units, str(place), policy) as parts:
        done = await ended(parts, TRAPPED)
        running, loader = await started(parts, "web")
        await loader.move(Event.ACCEPT)
    await units.close()  # the host is restarted: no unit is there, and no manager has seen them go
    async with next_manager(parts, place, boot="a later boot") as other:
        assert (await other.keeps.get(done)).detail == "trapped: unreachable"
        lost = await other.keeps.get(running)
        assert (lost.state, lost.name, lost.detail) == (State.ERROR, "web", "lost: the host was restarted")
        assert await read(other, done) == b"last words\n"
        found = other.view.entry(done).unit_ended
        assert found is not None
        assert due(other.view.entries(), found + 39.0, 40.0)[0] == []
        assert {one.kuuid for one in due(other.view.entries(), found + 41.0, 40.0)[0]} == {done, running}
        await other.keeps.remove(done, ALICE)
        await other.events.until(EventType.REMOVED, done)
        assert files(place) == [str(running)]


async def test_files_of_a_keep_that_was_being_removed_go_with_the_next_manager(
    parts: ManagerParts, place: Path
) -> None:
    kuuid = await ended(parts)
    await parts.units.stop(kuuid)  # and its manager was killed
    async with next_manager(parts, place) as other:
        assert list(other.view) == []
        assert files(place) == []


async def test_the_disk_holds_what_is_known_of_a_keep_that_has_started_and_of_its_end(
    parts: ManagerParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "DISK_SECONDS", 0.01)
    settled: list[set[int]] = []
    again = asyncio.Event()

    def settle(kuuids: set[int]) -> None:
        settled.append(kuuids)
        loop.call_soon_threadsafe(again.set)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(parts.folders, "settle", settle)
    kuuid, loader = await started(parts)
    for _ in range(2):
        async with asyncio.timeout(ENOUGH):
            await again.wait()
        again.clear()
        if len(settled) == 1:
            await loader.move(Event.ACCEPT)
            await loader.move(Event.FINISH, TRAPPED)
    assert settled == [{kuuid}, {kuuid}]


async def test_an_ended_keep_whose_unit_is_stopped_by_hand_is_gone_with_its_files(
    parts: ManagerParts, place: Path
) -> None:
    kuuid = await ended(parts, TRAPPED)
    async with asyncio.timeout(ENOUGH):
        await until_resting(parts, kuuid)
        await parts.units.stop(kuuid)
        await parts.watch.look_at_resting()
    assert (await parts.events.until(EventType.REMOVED, kuuid)).by == ""
    assert kuuid not in parts.view
    assert files(place) == []


async def test_a_unit_that_is_stopped_by_hand_is_noticed_without_a_signal(
    parts: ManagerParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.01)
    kuuid = await ended(parts)
    parts.tasks.start(parts.watch.tend_resting())
    await until_resting(parts, kuuid)
    await parts.units.stop(kuuid)
    assert (await parts.events.until(EventType.REMOVED, kuuid)).by == ""


async def until_resting(parts: ManagerParts, kuuid: int) -> None:
    """Until the watch has seen that the keep's unit has no process any more."""
    while not parts.view.entry(kuuid).resting:  # noqa: ASYNC110 - nothing is said of it
        await asyncio.sleep(0.01)


async def test_a_start_that_fails_before_it_is_sent_leaves_no_files(parts: ManagerParts, place: Path) -> None:
    info = await parts.keeps.create(NewKeep(), ALICE)
    with pytest.raises(KeepfleetError) as caught:
        await parts.keeps.start(StartKeep(info.kuuid, "192.0.2.1", 43000), ALICE)
    assert caught.value.kind is ErrorKind.PORT_UNAVAILABLE
    assert files(place) == []


@contextmanager
def read_only(place: Path) -> Iterator[None]:
    """The directory of the folders takes no new ones."""
    os.rename(place / "state" / "keeps", place / "state" / "elsewhere")
    (place / "state" / "keeps").write_text("")
    yield
    os.unlink(place / "state" / "keeps")
    os.rename(place / "state" / "elsewhere", place / "state" / "keeps")


async def test_a_start_without_a_place_for_its_output_is_refused_and_can_be_tried_again(
    parts: ManagerParts, place: Path
) -> None:
    info = await parts.keeps.create(NewKeep(), ALICE)
    with read_only(place), pytest.raises(KeepfleetError, match="cannot make the files for its output") as caught:
        await parts.keeps.start(StartKeep(info.kuuid), ALICE)
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    assert (await parts.keeps.start(StartKeep(info.kuuid), ALICE)).state is State.STARTED


async def test_a_spare_that_is_claimed_and_started_keeps_output_too(
    units: FakeUnits, place: Path, policy: Policy
) -> None:
    with_spares = Policy(policy.client_ca, policy.revoked, 43000, 43999, 60.0, spare_keeps=1)
    async with manager_parts(units, str(place), with_spares) as parts:
        parts.tasks.start(parts.keeps.tend_spares())
        await units.changed()
        async with asyncio.timeout(ENOUGH):
            while repr(parts.keeps._spares) != "Spares(1 of 1)":  # noqa: ASYNC110 - nothing is said of it
                await asyncio.sleep(0)
        (spare,) = units.loaders
        assert await ended(parts, TRAPPED) == spare


async def test_a_loader_that_journald_left_is_given_another_way_to_it(
    parts: ManagerParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "FIRST_PAUSE_SECONDS", 0.01)
    kuuid, loader = await started(parts)
    loader.journal_gone = True
    await loader.say("awaiting workload; journald has gone")
    async with asyncio.timeout(ENOUGH):
        while not any(command.type is CommandType.JOURNAL for command in loader.commands):
            loader.heard.clear()
            await loader.heard.wait()
    assert not loader.journal_gone
    assert (await parts.keeps.get(kuuid)).state is State.STARTED


async def test_loaders_hear_that_journald_stores_nothing_before_their_start_and_while_they_run(
    parts: ManagerParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, before = await started(parts)
    assert not before.unstored
    parts.providers.journal_stores = False
    await parts.watch.journal_stores_nothing()
    assert before.unstored
    _, after = await started(parts)
    heard = [command.type for command in after.commands]
    assert heard.index(CommandType.JOURNAL) < heard.index(CommandType.KEEP_START)
    assert after.unstored


async def test_what_a_record_claims_of_names_owners_and_limits_counts_for_nothing(
    parts: ManagerParts, place: Path
) -> None:
    kuuid, loader = await started(parts, "web")
    loader.spec = loader.spec.replace(name="other", owner="mallory")
    await loader.move(Event.ACCEPT)
    await loader.move(Event.FINISH, TRAPPED.replace(ended_monotonic=1e15))
    await parts.keeps.wait(kuuid, State.STARTED, ENOUGH)
    async with next_manager(parts, place) as other:
        info: KeepInfo = await other.keeps.get(kuuid)
        assert (info.name, info.owner) == ("web", "alice")
        assert due(other.view.entries(), time.monotonic() + 50, 40.0)[0] != [], "it is not kept for ever"
