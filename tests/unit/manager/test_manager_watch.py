"""The watch over keeps, with a fake service manager, fake loaders on real sockets, and an event log in memory."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from keep_manager.keeps import watch
from keep_manager.keeps.policy import Policy
from keep_manager.model import LastEvent
from keep_manager.tasks import Group
from keep_protocol.api import NewKeep
from keep_protocol.control import CommandType
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo, Module, Outcome, OutcomeKind, Uploader
from keep_protocol.limits import MIB
from keep_protocol.spec import KeepSpec
from keep_protocol.sse import EventType
from keep_protocol.states import Event, State
from tests.fakes.callers import ALICE
from tests.fakes.fake_event_log import FakeEventLog
from tests.fakes.fake_loader import FakeLoader
from tests.fakes.fake_units import FakeUnits
from tests.fakes.manager_parts import ManagerParts

CREATED, STARTED, RUNNING, ENDED = EventType.CREATED, EventType.STARTED, EventType.RUNNING, EventType.ENDED
LOUD = Outcome(OutcomeKind.EXITED, "exited 0", exit_code=0, output_bytes=10**6, started_at=5.0, ended_at=6.0)
POLICY = Policy("none", "none", 43000, 43999, 60.0)


class WatchedManager:
    """A watched manager, which can be ended and followed by another."""

    def __init__(self, units: FakeUnits, place: Path, events: FakeEventLog) -> None:
        self.units, self.events, self._place = units, events, place

    async def begin(self) -> None:
        """What a new manager does."""
        self._tasks = await Group().__aenter__()
        self.parts = ManagerParts(self._tasks, self.units, str(self._place), POLICY, self.events)
        self.keeps, self.watch = self.parts.keeps, self.parts.watch
        await self.keeps.rediscover()
        await self.watch.open()

    async def end(self) -> None:
        """The manager is no more."""
        await self._tasks.__aexit__(None, None, None)

    async def new(self) -> tuple[KeepInfo, FakeLoader]:
        """A keep, once its creation is recorded."""
        info = await self.keeps.create(NewKeep(name=f"web-{len(self.units.loaders)}"), ALICE)
        await self.events.until(CREATED, info.kuuid)
        return info, self.units.loaders[info.kuuid]

    @property
    def recorded(self) -> list[EventType]:
        return [event.type for event in self.events.written]


async def run(loader: FakeLoader, *events: Event) -> None:
    for event in events:
        await loader.move(event)


@pytest.fixture
async def manager(units: FakeUnits, place: Path, events: FakeEventLog) -> AsyncIterator[WatchedManager]:
    made = WatchedManager(units, place, events)
    await made.begin()
    yield made
    await made.end()


async def test_the_life_of_a_keep_is_recorded_in_order_and_once(manager: WatchedManager) -> None:
    info, loader = await manager.new()
    await run(loader, Event.START, Event.ENDPOINT_READY)
    await manager.events.until(STARTED)
    await run(loader, Event.ACCEPT)
    await manager.events.until(RUNNING)
    loud = LOUD.replace(ended_at=time.time())
    await loader.move(Event.FINISH, loud)
    ended = await manager.events.until(ENDED)
    await manager.keeps.remove(info.kuuid, ALICE)
    removed = manager.events.written[-1]
    assert manager.recorded == [CREATED, STARTED, RUNNING, ENDED, EventType.REMOVED]
    assert (ended.at, ended.keep.outcome, ended.keep.name) == (loud.ended_at, loud, "web-0")
    assert (removed.by, removed.keep.outcome) == ("alice", loud)
    assert manager.events.lines[0] == f"keep@{info.kuuid}.service: created by alice"


async def test_a_keep_whose_loader_is_slow_to_answer_a_new_manager_has_not_failed(
    manager: WatchedManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, loader = await manager.new()
    await run(loader, Event.START, Event.ENDPOINT_READY)
    await manager.events.until(STARTED)
    await manager.end()
    monkeypatch.setattr("keep_manager.loader_client.CONTROL_REPLY_SECONDS", 0.02)
    loader.silent = True
    await manager.begin()
    loader.silent = False
    await run(loader, Event.ACCEPT)
    await loader.move(Event.FINISH, LOUD)
    await manager.events.until(ENDED)
    assert manager.recorded == [CREATED, STARTED, RUNNING, ENDED]


async def test_what_passes_between_two_looks_is_recorded_all_the_same(manager: WatchedManager) -> None:
    _, loader = await manager.new()
    # Without a pause in which the watch could look.
    await run(loader, Event.START, Event.ENDPOINT_READY, Event.ACCEPT)
    await loader.move(Event.FINISH, LOUD)
    await manager.events.until(ENDED)
    assert manager.recorded == [CREATED, STARTED, RUNNING, ENDED]


async def test_a_new_manager_records_what_happened_while_there_was_none_and_nothing_twice(
    manager: WatchedManager,
) -> None:
    _, stays = await manager.new()
    gone, _ = await manager.new()
    await manager.end()
    await run(stays, Event.START, Event.ENDPOINT_READY)
    await manager.units.stop(gone.kuuid)
    await manager.begin()
    await manager.events.until(STARTED)
    await manager.events.until(EventType.REMOVED)
    assert sorted(event.type.value for event in manager.events.written) == [
        "created",
        "created",
        "removed",
        "started",
    ]
    removed = next(e for e in manager.events.written if e.type is EventType.REMOVED).keep
    assert (removed.kuuid, removed.owner) == (gone.kuuid, "alice"), "its owner sees it, too"


async def test_a_keep_that_another_manager_recorded_is_not_recorded_again(manager: WatchedManager) -> None:
    info, loader = await manager.new()
    await manager.end()
    manager.events.written.clear()
    manager.events.before[info.kuuid] = LastEvent(CREATED)
    await manager.begin()
    await run(loader, Event.START, Event.ENDPOINT_READY)
    await manager.events.until(STARTED)
    assert manager.recorded == [STARTED]


async def test_a_keep_that_goes_without_our_doing_is_recorded(
    manager: WatchedManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "FIRST_PAUSE_SECONDS", 0.01)
    info, _ = await manager.new()
    await manager.units.stop(info.kuuid)
    assert (await manager.events.until(EventType.REMOVED)).by == ""


async def test_a_keep_whose_unit_fails_has_failed_and_is_still_known(
    manager: WatchedManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "FIRST_PAUSE_SECONDS", 0.01)
    info, _ = await manager.new()
    await manager.units.crash(info.kuuid)
    failed = await manager.events.until(EventType.FAILED)
    assert (failed.keep.state, failed.keep.name) == (State.ERROR, "web-0")
    await manager.keeps.remove(info.kuuid, ALICE)
    assert (await manager.events.until(EventType.REMOVED)).by == "alice"
    assert manager.recorded.count(EventType.FAILED) == 1


async def test_a_journal_that_is_away_costs_the_record_and_not_the_watch(
    manager: WatchedManager, caplog: pytest.LogCaptureFixture
) -> None:
    manager.events.away = True
    info = await manager.keeps.create(NewKeep(), ALICE)
    await manager.events.refused.wait()
    manager.events.away = False
    await run(manager.units.loaders[info.kuuid], Event.START, Event.ENDPOINT_READY)
    await manager.events.until(STARTED)
    assert manager.recorded == [STARTED]
    assert "created by alice (recorded here alone: cannot write to the journal" in caplog.text


async def test_a_keep_that_reports_changes_without_end_is_asked_at_a_bounded_pace(
    manager: WatchedManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "MANY", 3)
    info, loader = await manager.new()
    loader.lies = True
    for _ in range(200):
        await manager.keeps.get(info.kuuid)  # each is a turn of the loop for other callers
    assert sum(command.type is CommandType.WAIT for command in loader.commands) <= 4


def test_a_pace_lets_a_burst_through_and_then_one_at_a_time_evenly() -> None:
    pace = watch.Pace(3, 6.0)
    assert [pace.wait(moment) for moment in (0.0, 1.0, 2.0, 6.0, 7.0, 20.0)] == [0.0, 0.0, 2.0, 1.0, 1.0, 0.0]
    assert [pace.wait(moment) for moment in (20.0, 20.0, 22.0, 24.0, 26.0)] == [0.0, 2.0, 2.0, 2.0, 2.0]


async def test_a_keep_that_goes_in_the_moment_it_appears_ends_no_manager(manager: WatchedManager) -> None:
    manager.parts.view.begin(5, KeepSpec(name="short", owner="alice"))
    manager.watch.appeared(5)
    manager.parts.view.drop(5)
    assert (await manager.events.until(EventType.REMOVED, 5)).keep.name == "short"


async def test_a_removal_that_comes_second_and_fails_takes_nothing_from_the_first(manager: WatchedManager) -> None:
    info, _ = await manager.new()
    async with manager.watch.removing(info.kuuid, "alice"):
        with pytest.raises(KeepfleetError):
            async with manager.watch.removing(info.kuuid, "bob"):
                raise KeepfleetError(ErrorKind.NOT_FOUND, "it has gone")
        await manager.units.stop(info.kuuid)
    assert (await manager.events.until(EventType.REMOVED)).by == "alice"


async def test_a_keep_that_has_moved_on_since_its_latest_event_is_unused_from_now_on_alone(
    manager: WatchedManager,
) -> None:
    idle, _ = await manager.new()
    started, loader = await manager.new()
    await manager.end()
    manager.events.written.clear()
    for info in (idle, started):
        manager.events.before[info.kuuid] = LastEvent(CREATED, since=1.0)
    await run(loader, Event.START, Event.ENDPOINT_READY)  # which the manager before did not live to record
    await manager.begin()
    assert manager.parts.view.entry(idle.kuuid).since == 1.0
    assert manager.parts.view.entry(started.kuuid).since > 1.0


async def test_a_failed_removal_leaves_its_remover_s_name_to_no_later_end(
    manager: WatchedManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "FIRST_PAUSE_SECONDS", 0.01)
    info, _ = await manager.new()
    manager.units.away = 1
    with pytest.raises(KeepfleetError, match="systemd has not answered"):
        await manager.keeps.remove(info.kuuid, ALICE)
    assert (await manager.keeps.get(info.kuuid)).state is State.LISTENING
    await manager.units.stop(info.kuuid)
    assert (await manager.events.until(EventType.REMOVED)).by == ""


async def test_no_descriptors_for_a_moment_end_no_watch_and_are_logged_once(
    manager: WatchedManager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """EMFILE: the manager's own trouble, of which the keep knows nothing."""
    monkeypatch.setattr(watch, "FIRST_PAUSE_SECONDS", 0.01)
    info, loader = await manager.new()
    while not any(command.type is CommandType.WAIT for command in loader.commands):
        loader.heard.clear()
        await loader.heard.wait()
    real, enough = socket.socket, asyncio.Event()
    refused: list[int] = []

    def none_left(family: int = -1, *more: int, **named: int) -> socket.socket:
        if family == socket.AF_UNIX and len(refused) < 3:
            refused.append(family)
            if len(refused) == 3:
                enough.set()
            raise OSError(errno.EMFILE, "Too many open files")
        return real(family, *more, **named)

    shim = SimpleNamespace(**{**vars(socket), "socket": none_left})
    monkeypatch.setattr("keep_manager.loader_client.socket", shim)
    await loader.hang_up()
    await asyncio.wait_for(enough.wait(), 60)
    await run(loader, Event.START, Event.ENDPOINT_READY)
    await manager.events.until(STARTED)
    assert manager.recorded == [CREATED, STARTED]
    assert caplog.text.count("Too many open files") == 1
    assert (await manager.keeps.get(info.kuuid)).state is State.STARTED


async def test_an_upload_is_one_line_of_the_security_log(
    manager: WatchedManager, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "keepfleet.security")
    info, loader = await manager.new()
    loader.uploaded_by = Uploader("sha256:" + "a" * 64, "ci", "1f")
    loader.module = Module("sha256:" + "b" * 64, "hello", 77)
    await run(loader, Event.START, Event.ENDPOINT_READY, Event.ACCEPT)
    await loader.move(Event.FINISH, LOUD)
    await manager.events.until(ENDED)
    lines = [record.getMessage() for record in caplog.records if record.name == "keepfleet.security"]
    assert lines == [
        f"keep@{info.kuuid}.service of alice: module sha256:{'b' * 64} of 77 bytes was uploaded by ci "
        f"(serial 1f, sha256:{'a' * 64})"
    ]


async def test_a_change_of_the_sentence_alone_is_shown(manager: WatchedManager) -> None:
    info, loader = await manager.new()
    await run(loader, Event.START, Event.ENDPOINT_READY)
    await manager.events.until(STARTED)
    await loader.say("receiving a workload")
    async with asyncio.timeout(60):
        while (await manager.keeps.get(info.kuuid)).detail != "receiving a workload":  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert manager.recorded == [CREATED, STARTED]


@pytest.mark.parametrize("away", [0, 2])
async def test_a_keep_whose_guest_runs_keeps_no_memory_for_compiling_also_where_systemd_is_away_first(
    manager: WatchedManager, monkeypatch: pytest.MonkeyPatch, away: int
) -> None:
    monkeypatch.setattr(watch, "FIRST_PAUSE_SECONDS", 0.01)
    info, loader = await manager.new()
    await run(loader, Event.START, Event.ENDPOINT_READY, Event.ACCEPT)
    await manager.events.until(RUNNING)
    assert manager.units.narrowed == {}, "it may be compiling still"
    manager.units.away = away
    loader.begun = True
    await loader.say("running the workload")
    async with asyncio.timeout(60):
        while not manager.units.narrowed:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert manager.units.narrowed == {info.kuuid: info.limits.running_memory_bytes}


async def test_a_new_manager_takes_from_a_keep_that_runs_what_the_one_before_could_not(manager: WatchedManager) -> None:
    info, loader = await manager.new()
    await run(loader, Event.START, Event.ENDPOINT_READY, Event.ACCEPT)
    await manager.end()
    loader.begun = True
    await manager.begin()
    async with asyncio.timeout(60):
        while not manager.units.narrowed:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert manager.units.narrowed == {info.kuuid: info.limits.running_memory_bytes}


async def test_a_keep_whose_guest_has_ended_already_is_left_as_it_is(manager: WatchedManager) -> None:
    info, loader = await manager.new()
    await manager.end()
    loader.begun = True
    await run(loader, Event.START, Event.ENDPOINT_READY, Event.ACCEPT, Event.FINISH)
    await manager.begin()
    await manager.events.until(ENDED)
    await manager.keeps.remove(info.kuuid, ALICE)
    assert manager.units.narrowed == {}


async def test_a_keep_with_as_much_memory_as_compiling_needs_is_left_as_it_is(manager: WatchedManager) -> None:
    limits = {"memory_bytes": 512 * MIB, "compile_memory_bytes": 512 * MIB}
    info = await manager.keeps.create(NewKeep(name="large", limits=tuple(limits.items())), ALICE)
    loader = manager.units.loaders[info.kuuid]
    loader.begun = True
    await run(loader, Event.START, Event.ENDPOINT_READY, Event.ACCEPT, Event.FINISH)
    await manager.events.until(ENDED)
    assert manager.units.narrowed == {}
