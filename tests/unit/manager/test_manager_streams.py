"""Logs as server-sent events: what is told, when it ends, and that nothing is left when a client goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from keep_manager.http import streams as http_streams
from keep_manager.keeps import logs
from keep_manager.systemd import lines
from keep_protocol import streams
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.states import Event, State
from tests.fakes.fake_journal import cursor
from tests.fakes.fake_loader import FakeLoader
from tests.fakes.manager_house import ManagerHouse

ENOUGH = 5.0


class Reader:
    """One stream's events, as (name, data, id), and its comments."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def next(self) -> tuple[str, dict[str, Any], str]:
        """The next event, comments passed over; ("", {}, "") at the end."""
        fields: dict[str, str] = {}
        while True:
            raw = await asyncio.wait_for(self.response.content.readline(), ENOUGH)
            if not raw:
                return "", {}, ""
            name, _, value = raw.decode().rstrip("\n").partition(": ")
            if not raw.strip() and fields:
                return fields["event"], json.loads(fields["data"]), fields.get("id", "")
            if name:
                fields[name] = value

    async def texts(self) -> list[str]:
        """The text of each line until the stream ends; an `end` event as its state."""
        found: list[str] = []
        while (event := await self.next())[0]:
            found.append(event[1]["text"] if event[0] == "line" else f"end {event[1]['state']}")
        return found


@asynccontextmanager
async def reading(client: aiohttp.ClientSession, kuuid: int, query: str = "", after: str = "") -> AsyncIterator[Reader]:
    headers = {"Last-Event-ID": after} if after else {}
    async with client.get(f"/v1/keeps/{kuuid}/logs{query}", headers=headers) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        yield Reader(response)


async def new_keep(house: ManagerHouse, client: aiohttp.ClientSession) -> tuple[int, FakeLoader]:
    async with client.post("/v1/keeps") as response:
        kuuid = (await response.json())["kuuid"]
    return kuuid, house.units.loaders[kuuid]


async def test_the_lines_there_are_come_and_the_stream_ends(house: ManagerHouse) -> None:
    async with house.client() as client:
        kuuid, _ = await new_keep(house, client)
        await house.journal.write(kuuid, "one", "two")
        await house.journal.write(kuuid + 1, "another's")
        await house.journal.write(kuuid, "three")
        async with reading(client, kuuid) as reader:
            assert await reader.next() == ("line", {"at": 1.5, "source": "workload", "text": "one"}, cursor(1))
            assert await reader.texts() == ["two", "three"]
        async with reading(client, kuuid, "?lines=1") as reader:
            assert await reader.texts() == ["three"]
        async with reading(client, kuuid, after=cursor(1)) as reader:
            assert await reader.texts() == ["two", "three"]


async def test_a_follower_gets_what_comes_and_the_end_after_the_last_line(house: ManagerHouse) -> None:
    async with house.client() as client:
        kuuid, loader = await new_keep(house, client)
        await house.journal.write(kuuid, "before")
        async with reading(client, kuuid, "?follow=true") as reader:
            assert (await reader.next())[1]["text"] == "before"
            await house.journal.write(kuuid, "while")
            assert (await reader.next())[1]["text"] == "while"
            house.journal.late.append((kuuid, "last words"))
            await loader.move(Event.FAIL)
            assert await reader.texts() == ["last words", "end 15"]
        await house.journal.read_by(0)


async def test_following_a_keep_that_has_ended_tells_all_and_ends(house: ManagerHouse) -> None:
    async with house.client() as client:
        kuuid, loader = await new_keep(house, client)
        await loader.move(Event.FAIL)
        await house.journal.write(kuuid, *(f"line {number}" for number in range(500)))
        async with reading(client, kuuid, "?follow=true") as reader:
            assert await reader.texts() == [*(f"line {number}" for number in range(500)), "end 15"]


async def test_the_removal_of_a_keep_ends_its_stream(house: ManagerHouse) -> None:
    async with house.client() as client:
        kuuid, _ = await new_keep(house, client)
        async with reading(client, kuuid, "?follow=true") as reader:
            await house.journal.read_by(1)
            async with client.delete(f"/v1/keeps/{kuuid}") as response:
                assert response.status == 204
            name, data, _ = await reader.next()
            assert (name, data["state"], data["detail"]) == ("end", 0, "it was removed")
        await house.journal.read_by(0)


async def test_a_client_that_goes_away_leaves_no_reader(house: ManagerHouse) -> None:
    async with house.client() as client:
        kuuid, _ = await new_keep(house, client)
        async with reading(client, kuuid, "?follow=true"):
            await house.journal.read_by(1)
    await asyncio.wait_for(house.journal.read_by(0), ENOUGH)


async def test_a_silent_stream_shows_that_it_lives(house: ManagerHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_streams, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(streams, "ALIVE_SECONDS", 0.01)
    async with house.client() as client:
        kuuid, _ = await new_keep(house, client)
        async with reading(client, kuuid, "?follow=true") as reader:
            for _ in range(3):
                assert await asyncio.wait_for(reader.response.content.readline(), ENOUGH) == b": alive\n"
                await reader.response.content.readline()


async def test_a_manager_that_stops_ends_its_streams_at_once(house: ManagerHouse) -> None:
    async with house.client() as client:
        kuuid, _ = await new_keep(house, client)
        async with reading(client, kuuid, "?follow=true"):
            await house.journal.read_by(1)
            assert house.server is not None
            await asyncio.wait_for(house.server.close(), 2)
            await house.journal.read_by(0)
            house.server = None


async def test_a_certificate_revoked_meanwhile_gets_nothing_more(house: ManagerHouse) -> None:
    async with house.client() as client:
        kuuid, _ = await new_keep(house, client)
        async with reading(client, kuuid, "?follow=true") as reader:
            await house.journal.read_by(1)
            house.revoke(house.operator)
            await house.journal.write(kuuid, "not for you")
            assert await reader.texts() == []


@asynccontextmanager
async def happening(client: aiohttp.ClientSession, query: str = "", after: str = "") -> AsyncIterator[Reader]:
    headers = {"Last-Event-ID": after} if after else {}
    async with client.get(f"/v1/events{query}", headers=headers) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream"), await response.text()
        yield Reader(response)


def event(kuuid: int, happened: streams.Happening) -> streams.KeepEvent:
    return streams.KeepEvent(1.5, happened, KeepInfo(kuuid, State.LISTENING), "alice")


async def test_what_happens_to_keeps_is_told_and_can_be_taken_up_again(house: ManagerHouse) -> None:
    await house.ledger.write(event(5, streams.Happening.CREATED), "before")
    async with house.client() as client:
        async with happening(client) as reader:
            await house.ledger.write(event(5, streams.Happening.ENDED), "now")
            name, data, mark = await reader.next()
            assert (name, data["event"], data["by"], data["keep"]["kuuid"]) == ("keep", "ended", "alice", 5)
        await house.ledger.read_by(0)
        await house.ledger.write(event(5, streams.Happening.REMOVED), "meanwhile")
        async with happening(client, after=mark) as reader:
            assert (await reader.next())[1]["event"] == "removed"
        async with happening(client, "?lines=3") as reader:
            assert [(await reader.next())[1]["event"] for _ in range(3)] == ["created", "ended", "removed"]


async def test_what_happens_to_one_keep_is_told_alone(house: ManagerHouse) -> None:
    async with house.client() as client, happening(client, "?keep=6") as reader:
        await house.ledger.write(event(5, streams.Happening.CREATED), "another")
        await house.ledger.write(event(6, streams.Happening.CREATED), "this one")
        assert (await reader.next())[1]["keep"]["kuuid"] == 6


async def test_a_journal_that_is_away_refuses_who_asks_for_events(house: ManagerHouse) -> None:
    house.ledger.away = True
    async with house.client() as client, client.get("/v1/events") as response:
        assert response.status == 503


@pytest.mark.parametrize("query", ["?keep=x", "?keep=0", "?lines=0", "?follow=true", "?lines=1&lines=1"])
async def test_events_that_cannot_be_asked_for_are_refused(house: ManagerHouse, query: str) -> None:
    async with house.client() as client, client.get(f"/v1/events{query}") as response:
        assert response.status == 400


@pytest.mark.parametrize(
    ("query", "after", "status"),
    [
        ("?follow=yes", "", 400),
        ("?lines=0", "", 400),
        ("?lines=x", "", 400),
        ("?lines=1&lines=2", "", 400),
        ("?colour=red", "", 400),
        ("", "s=1;--help", 400),
        ("?follow=true", "x", 400),
    ],
)
async def test_what_cannot_be_read_is_refused(house: ManagerHouse, query: str, after: str, status: int) -> None:
    async with house.client() as client:
        kuuid, _ = await new_keep(house, client)
        headers = {"Last-Event-ID": after} if after else {}
        async with client.get(f"/v1/keeps/{kuuid}/logs{query}", headers=headers) as response:
            assert response.status == status
            assert (await response.json())["error"]["message"].startswith("cannot ")
        async with client.get("/v1/keeps/5/logs?follow=true") as response:
            assert response.status == 404


async def test_a_keep_whose_loader_is_away_is_not_asked_in_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    class Away:
        asked = 0

        async def get(self, kuuid: int) -> KeepInfo:
            return KeepInfo(kuuid, State.UNDEFINED)

        async def wait(self, kuuid: int, changed_from: State, seconds: float) -> KeepInfo:
            self.asked += 1
            return KeepInfo(kuuid, State.COMPLETE if self.asked == 3 else State.UNDEFINED)

        async def counted(self, kuuid: int) -> KeepInfo:
            raise AssertionError("a keep without an outcome has no lines to count")

    monkeypatch.setattr(logs, "AGAIN_SECONDS", 0.02)
    loop, keeps = asyncio.get_running_loop(), Away()
    began = loop.time()
    assert (await logs.ended(keeps, 5)).state is State.COMPLETE
    assert loop.time() - began >= 0.04


RECORD = {"__CURSOR": cursor(7), "__REALTIME_TIMESTAMP": "1500000", "MESSAGE": "hello", "_CMDLINE": "python x run"}


def test_what_the_journal_dropped_is_a_line_of_its_own() -> None:
    record = {**RECORD, "MESSAGE": "Suppressed 7 messages from keep@5.service", "N_DROPPED": "7"}
    line = lines.read_record(json.dumps(record).encode())
    assert line == streams.LogLine(1.5, "journal", "7 lines were dropped here", cursor(7))


def test_a_record_of_journalctl_s_is_a_line() -> None:
    line = lines.read_record(json.dumps(RECORD).encode())
    assert line == streams.LogLine(1.5, "workload", "hello", cursor(7))
    raw = lines.read_record(json.dumps({**RECORD, "MESSAGE": [27, 91, 255, 65]}).encode())
    assert raw is not None
    assert raw.text == "\x1b[\ufffdA"


@pytest.mark.parametrize(
    "change",
    [
        {"MESSAGE": None},
        {"MESSAGE": [300]},
        {"MESSAGE": 5},
        {"__CURSOR": "x"},
        {"__CURSOR": None},
        {"__REALTIME_TIMESTAMP": "x"},
    ],
)
def test_a_record_of_another_shape_is_none(change: dict[str, object]) -> None:
    assert lines.read_record(json.dumps({**RECORD, **change}).encode()) is None
    assert lines.read_record(b"{") is None
    assert lines.read_record(b"[]") is None


@pytest.mark.parametrize(
    ("text", "command", "written_by"),
    [
        ("started", "/usr/bin/python3 -I -S /x/keep_loader/__main__.py 5", "keep"),
        ("app-loader: listening", "/usr/bin/python3 -I -S /x/app_loader/__main__.py", "keep"),
        ("app-loader: forged", "/usr/bin/python3 -I -S /x/app_loader/__main__.py run", "workload"),
        ("hello", "/usr/bin/python3 -I -S /x/app_loader/__main__.py", "workload"),
        ("hello", "", "workload"),
    ],
)
def test_who_wrote_a_line_is_told(text: str, command: str, written_by: str) -> None:
    assert lines.source(text, command) == written_by


async def test_readers_are_bounded_and_end_with_their_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_FOLLOWED", 1)
    script = tmp_path / "journalctl"
    script.write_text(f"#!/bin/sh\nprintf '%s\\n' '{json.dumps(RECORD)}'; exec sleep 1000\n")
    script.chmod(0o755)
    journal = lines.Journal("system", (str(script),))
    async with journal.lines(5, follow=True) as found:
        assert (await anext(found)).text == "hello"
        with pytest.raises(KeepfleetError) as caught:
            async with journal.lines(6, follow=True):
                pytest.fail("it was let in")
        assert caught.value.kind is ErrorKind.TOO_MANY
    async with journal.lines(5, follow=True) as found:
        assert (await anext(found)).text == "hello"


async def test_a_host_without_journalctl_says_so(tmp_path: Path) -> None:
    journal = lines.Journal("system", (str(tmp_path / "none"),))
    with pytest.raises(KeepfleetError) as caught:
        async with journal.lines(5):
            pytest.fail("it was read")
    assert caught.value.kind is ErrorKind.UNAVAILABLE
