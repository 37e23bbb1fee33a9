"""Events as they are written, followed, read again and resumed; of the fake event log and of one in a real journal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

import pytest

from keep_manager.keeps import interfaces, logs
from keep_manager.model import Visible
from keep_manager.systemd.event_log import MANAGER_UNIT, EventLog
from keep_manager.systemd.journal import Journal
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.sse import EventType, KeepEvent
from keep_protocol.states import State
from tests.fakes.fake_event_log import FakeEventLog
from tests.fakes.real_systemd import RealSystemd

ENOUGH = 20.0
OUTSIDE = f"""
for word; do shift; [ "$word" = _SYSTEMD_UNIT={MANAGER_UNIT} ] || set -- "$@" "$word"; done; exec journalctl "$@"
"""
"""The tests write from outside, where they are no unit of that systemd's."""
EMPTIES = "journalctl --sync && journalctl --rotate --vacuum-time=1us"
"""Removes what the test before has written, also what journald would not have read before it rotates."""


class Log(interfaces.EventLog, logs.Events, Protocol):
    """An event log."""


@dataclass(frozen=True)
class Subject:
    """An event log under test. settled: waits until what was written can be read."""

    log: Log
    settled: Callable[[], Awaitable[object]]


@pytest.fixture(params=["fake", "systemd"])
async def subject(request: pytest.FixtureRequest) -> Subject:
    if request.param == "fake":
        fake = FakeEventLog()

        async def nothing() -> None:
            return

        return Subject(fake, nothing)
    systemd: RealSystemd = request.getfixturevalue("systemd")
    systemd.run("sh", "-c", EMPTIES)
    journal = Journal("system", systemd.sandbox.command(("sh", "-c", OUTSIDE, "journalctl")))
    log = EventLog(journal, "system", f"{systemd.runtime_root}/systemd/journal/socket")

    async def synced() -> None:
        while not await journal.sync():  # which waits for two seconds at most
            continue

    return Subject(log, synced)


async def write(subject: Subject, kuuid: int, type_: EventType, owner: str = "alice", restarts: int = 0) -> None:
    keep = KeepInfo(kuuid, State.LISTENING, "a\nb", owner=owner, restarts=restarts)
    await subject.log.write(KeepEvent(1.5, type_, keep, "bob"), f"keep@{kuuid}.service: {type_.value}")


async def stored(
    subject: Subject,
    kuuid: int | None = None,
    *,
    last: int | None = None,
    after: str = "",
    visible: Visible | None = None,
) -> list[KeepEvent]:
    await subject.settled()
    async with subject.log.events(kuuid, last=last, after=after, visible=visible) as events:
        return [event async for event in events]


def words(events: list[KeepEvent]) -> list[tuple[int, str]]:
    return [(event.keep.kuuid, event.type.value) for event in events]


@pytest.fixture
async def written(subject: Subject) -> Subject:
    await write(subject, 1, EventType.CREATED)
    await write(subject, 2, EventType.CREATED, owner="bob")
    await write(subject, 1, EventType.STARTED)
    await write(subject, 1, EventType.RUNNING, restarts=1)
    return subject


async def test_events_are_read_whole_and_in_the_order_in_which_they_were_written(written: Subject) -> None:
    found = await stored(written)
    assert words(found) == [(1, "created"), (2, "created"), (1, "started"), (1, "running")]
    first = found[0]
    assert (first.at, first.by, first.keep.detail, first.keep.owner) == (1.5, "bob", "a\nb", "alice")
    assert len({event.cursor for event in found}) == 4


async def test_the_last_those_of_one_keep_and_those_that_are_visible_are_read(written: Subject) -> None:
    assert words(await stored(written, last=2)) == [(1, "started"), (1, "running")]
    assert words(await stored(written, 1)) == [(1, "created"), (1, "started"), (1, "running")]
    assert words(await stored(written, visible=lambda keep: keep.owner == "bob")) == [(2, "created")]


async def test_reading_goes_on_after_any_event(written: Subject) -> None:
    found = await stored(written)
    assert words(await stored(written, after=found[1].cursor)) == [(1, "started"), (1, "running")]
    assert await stored(written, after=found[3].cursor) == []
    with pytest.raises(KeepfleetError) as caught:
        await stored(written, after="nonsense")
    assert caught.value.kind is ErrorKind.BAD_REQUEST


async def test_who_follows_gets_what_happens_from_then_on(written: Subject) -> None:
    async with written.log.events(follow=True) as coming:
        await write(written, 3, EventType.CREATED)
        event = await asyncio.wait_for(anext(coming), ENOUGH)
    assert words([event]) == [(3, "created")]
    assert [kept.cursor for kept in await stored(written, 3)] == [event.cursor]


async def test_who_follows_after_an_event_misses_none_and_gets_none_twice(written: Subject) -> None:
    second = (await stored(written))[1]
    async with written.log.events(follow=True, after=second.cursor) as coming:
        await write(written, 2, EventType.STARTED)
        found = [await asyncio.wait_for(anext(coming), ENOUGH) for _ in range(3)]
    assert words(found) == [(1, "started"), (1, "running"), (2, "started")]


async def test_what_happens_while_the_last_events_are_read_is_sent_once(written: Subject) -> None:
    async with written.log.events(follow=True, last=10) as coming:
        await write(written, 2, EventType.STARTED)
        await written.settled()
        found = [await asyncio.wait_for(anext(coming), ENOUGH) for _ in range(5)]
        await write(written, 3, EventType.CREATED)
        found.append(await asyncio.wait_for(anext(coming), ENOUGH))
    assert words(found[-3:]) == [(1, "running"), (2, "started"), (3, "created")]


@pytest.mark.parametrize("subject", ["systemd"], indirect=True)  # the fake reads nothing from anywhere
async def test_what_is_written_just_before_the_last_events_are_read_sends_none_of_them_twice(
    written: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(written.log, EventLog)
    stored = written.log._stored

    async def later(*arguments: Any) -> AsyncGenerator[KeepEvent, None]:
        await write(written, 2, EventType.STARTED)
        await written.settled()
        async for event in stored(*arguments):
            yield event

    monkeypatch.setattr(written.log, "_stored", later)
    for last, expected in (
        (10, [(1, "running"), (2, "started"), (3, "created")]),
        (1, [(2, "started"), (3, "created")]),
    ):
        async with written.log.events(follow=True, last=last) as coming:
            found = [await asyncio.wait_for(anext(coming), ENOUGH) for _ in range(min(last, 5))]
            await write(written, 3, EventType.CREATED)
            found.append(await asyncio.wait_for(anext(coming), ENOUGH))
        assert words(found[-len(expected) :]) == expected


@pytest.mark.parametrize("subject", ["systemd"], indirect=True)
async def test_what_journald_has_not_yet_written_is_read_behind_what_is_stored(
    written: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(written.log, EventLog)
    stored_so_far = written.log._stored
    every = await stored(written)

    async def without_the_last(*arguments: Any) -> AsyncGenerator[KeepEvent, None]:
        async for event in stored_so_far(*arguments):
            if event != every[3]:
                yield event

    monkeypatch.setattr(written.log, "_stored", without_the_last)
    assert await stored(written) == every
    assert await stored(written, 1, last=2) == every[2:]
    assert await stored(written, last=0) == []
    assert await stored(written, after=every[2].cursor) == every[3:]
    assert await stored(written, visible=lambda keep: keep.owner == "bob") == every[1:2]


async def test_the_latest_event_of_each_keep_is_known(written: Subject) -> None:
    await written.settled()
    latest = await written.log.latest()
    assert sorted(latest) == [1, 2]
    assert (latest[1].type, latest[1].restarts, latest[1].owner) == (EventType.RUNNING, 1, "alice")
    assert (latest[2].type, latest[2].restarts, latest[2].owner) == (EventType.CREATED, 0, "bob")
