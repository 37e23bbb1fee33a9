"""Events as entries of the journal, with a socket in journald's place and a script in journalctl's."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from keep_manager.model import LastEvent
from keep_manager.systemd import event_log
from keep_manager.systemd.event_log import EventLog
from keep_manager.systemd.journal import Journal
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.sse import EventType, KeepEvent
from keep_protocol.states import State
from tests.fakes.fake_event_log import cursor

EVENT = KeepEvent(1.5, EventType.FAILED, KeepInfo(7, State.ERROR, "lost\nits way", restarts=2, phase="failed"), "alice")

UNIT = f"_SYSTEMD_UNIT=keep-manager.service MESSAGE_ID={event_log.MESSAGE_ID}"


def with_journalctl(place: Path, *records: Mapping[str, object], follows: bool = False) -> EventLog:
    """An event log whose journalctl writes `records`, and its arguments into the file `arguments`, one call a line."""
    script, lines = place / "journalctl", "".join(json.dumps(record) + "\n" for record in records)
    (place / "records").write_text(lines)
    end = "exec sleep 1000" if follows else "exit 0"
    script.write_text(f'#!/bin/sh\necho "$@" >> {place}/arguments\ncase "$*" in *--sync*) exit 0;; esac\n'
                      f'cat {place}/records\n{end}\n')  # fmt: skip
    script.chmod(0o755)
    return EventLog(Journal("system", (str(script),)), "system", str(place / "socket"))


async def test_an_event_is_an_entry_with_fields_about_the_keeps_unit(tmp_path: Path, journald: socket.socket) -> None:
    await with_journalctl(tmp_path).write(EVENT, "keep@7.service: failed")
    said = dict(line.split("=", 1) for line in journald.recv(65536).decode().splitlines())
    assert (said["MESSAGE"], said["KEEP_EVENT_KEEP"], said["KEEP_EVENT"]) == ("keep@7.service: failed", "7", "failed")
    assert (said["OBJECT_SYSTEMD_UNIT"], said["PRIORITY"], said["KEEP_RESTARTS"]) == ("keep@7.service", "4", "2")
    assert said["KEEP_EVENT_OWNER"] == EVENT.keep.owner
    record = {**said, "__CURSOR": cursor(3)}
    assert event_log.read_event(json.dumps(record).encode()) == EVENT.replace(cursor=said["KEEP_EVENT_ID"])
    del record["KEEP_EVENT_ID"]
    assert event_log.read_event(json.dumps(record).encode()) == EVENT.replace(cursor=cursor(3)), "of the version before"


def test_a_value_with_a_newline_cannot_add_a_field() -> None:
    assert event_log.entry({"MESSAGE": "a\nPRIORITY=0"}) == b"MESSAGE\n\x0c\0\0\0\0\0\0\0a\nPRIORITY=0\n"


async def test_a_journald_that_is_not_there_or_takes_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "WRITE_SECONDS", 0.05)
    book = with_journalctl(tmp_path)
    with pytest.raises(KeepfleetError, match="cannot write to the journal: No such file") as caught:
        await book.write(EVENT, "x")
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as full:
        full.bind(str(tmp_path / "socket"))
        with pytest.raises(KeepfleetError, match="cannot write to the journal: it takes nothing"):
            while True:
                await book.write(EVENT, "x")


async def test_a_keep_s_latest_event_is_the_first_found_from_the_newest_back(tmp_path: Path) -> None:
    records = [
        {
            "KEEP_EVENT_KEEP": "7",
            "KEEP_EVENT": word,
            "KEEP_RESTARTS": "1",
            "KEEP_EVENT_OWNER": "alice",
            "__MONOTONIC_TIMESTAMP": "2500000",
            "__REALTIME_TIMESTAMP": "1795248000500000",
        }
        for word in ("running", "started", "created")
    ]
    book = with_journalctl(
        tmp_path, *records, {"KEEP_EVENT_KEEP": "8", "KEEP_EVENT": "melted"}, {"KEEP_EVENT_KEEP": None}
    )
    assert await book.latest() == {7: LastEvent(EventType.RUNNING, 1, 2.5, "alice", 1795248000.5)}
    assert "--reverse" in (tmp_path / "arguments").read_text()


def stored(number: int, **more: object) -> dict[str, object]:
    return {"__CURSOR": cursor(number), "KEEP_RECORD": json.dumps(EVENT.to_wire()), **more}


async def test_followers_share_what_is_written_and_start_no_process(tmp_path: Path, journald: socket.socket) -> None:
    book = with_journalctl(tmp_path)
    async with asyncio.timeout(60), AsyncExitStack() as stack:
        followers = [await stack.enter_async_context(book.events(kuuid, follow=True)) for kuuid in (None, 7, 8)]
        await book.write(EVENT, "x")
        await book.write(EVENT.replace(keep=EVENT.keep.replace(kuuid=8)), "y")
        seen = [(await anext(events)).keep.kuuid for events in followers]
        assert seen == [7, 7, 8]
        assert (await anext(followers[0])).keep.kuuid == 8
    assert not (tmp_path / "arguments").exists()
    assert repr(book) == "EventLog(system, 0 followers)"


async def test_who_was_away_for_moments_resumes_from_memory(tmp_path: Path, journald: socket.socket) -> None:
    book = with_journalctl(tmp_path)
    async with asyncio.timeout(60):
        for number in (1, 2, 3):
            await book.write(EVENT.replace(at=float(number)), "x")
        async with book.events(follow=True) as events:
            await book.write(EVENT.replace(at=4.0), "x")
            last = await anext(events)
        await book.write(EVENT.replace(at=5.0), "x")
        async with book.events(after=last.cursor, follow=True) as events:
            assert (await anext(events)).at == 5.0
    assert not (tmp_path / "arguments").exists()


async def test_who_resumes_at_a_new_manager_is_answered_from_the_journal_and_then_from_memory(
    tmp_path: Path, journald: socket.socket
) -> None:
    before = "m=0123456789abcdef;n=5;t=64"
    book = with_journalctl(tmp_path, stored(3, KEEP_EVENT_ID=before), {"KEEP_RECORD": "{"}, stored(4))
    async with asyncio.timeout(60), book.events(7, after=before, follow=True) as events:
        await book.write(EVENT.replace(at=9.0), "x")
        assert (await anext(events)).cursor == cursor(4), "not the event itself, and not what cannot be read"
        assert (await anext(events)).at == 9.0
    look, read = (tmp_path / "arguments").read_text().splitlines()
    assert look.endswith(f"--lines=1 {UNIT} KEEP_EVENT_ID={before}")
    assert read.endswith(f"--cursor={cursor(3)} --no-tail {UNIT} KEEP_EVENT_KEEP=7")


async def test_an_event_that_journald_has_not_written_down_yet_is_not_lost_to_who_asks_for_the_last(
    tmp_path: Path, journald: socket.socket
) -> None:
    book = with_journalctl(tmp_path, stored(3))
    await book.write(EVENT.replace(at=8.0), "x")
    async with asyncio.timeout(60), book.events(last=5, follow=True) as events:
        assert [(await anext(events)).at for _ in range(2)] == [1.5, 8.0]
        await book.write(EVENT.replace(at=9.0), "x")
        assert (await anext(events)).at == 9.0


async def test_where_the_event_has_gone_its_moment_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = "m=0123456789abcdef;n=1;t=1e8480", "m=0123456789abcdef;n=9;t=3d0900"
    book = with_journalctl(tmp_path, stored(3, KEEP_EVENT_ID=old), stored(4, KEEP_EVENT_ID=new))
    monkeypatch.setattr(book._journal, "cursor", nothing)  # its journal does not have that event
    async with book.events(after="m=fedcba9876543210;n=3;t=2dc6c0") as events:
        assert [event.cursor async for event in events] == [new]
    assert "--since=@3 --no-tail" in (tmp_path / "arguments").read_text()


async def nothing(_: object) -> str:
    return ""


async def test_a_caller_gets_only_events_of_keeps_that_it_may_see(tmp_path: Path, journald: socket.socket) -> None:
    theirs = json.dumps(EVENT.replace(keep=EVENT.keep.replace(owner="bob")).to_wire())
    book = with_journalctl(tmp_path, stored(3), {**stored(4), "KEEP_RECORD": theirs}, stored(5))
    async with asyncio.timeout(60), book.events(last=1, visible=lambda keep: keep.owner == "bob") as events:
        assert [event.cursor async for event in events] == [cursor(4)]
    async with asyncio.timeout(60), book.events(follow=True, visible=lambda keep: keep.owner == "bob") as events:
        await book.write(EVENT, "x")
        await book.write(EVENT.replace(keep=EVENT.keep.replace(owner="bob")), "x")
        assert (await anext(events)).keep.owner == "bob"


async def test_a_follower_that_does_not_read_is_cut_off_and_costs_the_others_nothing(
    tmp_path: Path, journald: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "MAX_BEHIND", 2)
    book = with_journalctl(tmp_path)
    async with asyncio.timeout(60), book.events(follow=True) as slow, book.events(follow=True) as quick:
        for number in range(4):
            await book.write(EVENT.replace(at=float(number)), "x")
            assert (await anext(quick)).at == number
        assert (await anext(slow)).at == 1.0
        with pytest.raises(KeepfleetError, match="does not read them"):
            await anext(slow)


async def test_followers_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "MAX_FOLLOWERS", 1)
    book = with_journalctl(tmp_path)
    async with book.events(follow=True):
        with pytest.raises(KeepfleetError) as caught:
            async with book.events(follow=True):
                pytest.fail("it was served")
    assert caught.value.kind is ErrorKind.TOO_MANY


async def test_an_id_that_is_no_cursor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeepfleetError, match="cannot resume after"):
        async with with_journalctl(tmp_path).events(after="--help", follow=True):
            pytest.fail("it was taken")
