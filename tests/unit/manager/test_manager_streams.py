"""Logs as server-sent events: what is told, when it ends, and that nothing is left when a client goes away."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from keep_manager.http import streams as http_streams
from keep_protocol import sse
from keep_protocol.keep import KeepInfo
from keep_protocol.states import Event, State
from tests.fakes.fake_journal import cursor
from tests.fakes.fake_loader import FakeLoader
from tests.fakes.running_manager import RunningManager

ENOUGH = 5.0
TORRENT = 10_000
"""Lines of 1,000 characters that no socket holds: the manager is about to write, or to read on, when a client goes."""


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


async def new_keep(manager: RunningManager, client: aiohttp.ClientSession) -> tuple[int, FakeLoader]:
    async with client.post("/v1/keeps") as response:
        kuuid = (await response.json())["kuuid"]
    return kuuid, manager.units.loaders[kuuid]


async def test_the_lines_there_are_come_and_the_stream_ends(manager: RunningManager) -> None:
    async with manager.client() as client:
        kuuid, _ = await new_keep(manager, client)
        await manager.journal.write(kuuid, "one", "two")
        await manager.journal.write(kuuid + 1, "another's")
        await manager.journal.write(kuuid, "three")
        async with reading(client, kuuid) as reader:
            assert await reader.next() == ("line", {"at": 1.5, "source": "workload", "text": "one"}, cursor(1))
            assert await reader.texts() == ["two", "three"]
        async with reading(client, kuuid, "?lines=1") as reader:
            assert await reader.texts() == ["three"]
        async with reading(client, kuuid, after=cursor(1)) as reader:
            assert await reader.texts() == ["two", "three"]


async def test_a_follower_gets_what_comes_and_the_end_after_the_last_line(manager: RunningManager) -> None:
    async with manager.client() as client:
        kuuid, loader = await new_keep(manager, client)
        await manager.journal.write(kuuid, "before")
        async with reading(client, kuuid, "?follow=true") as reader:
            assert (await reader.next())[1]["text"] == "before"
            await manager.journal.write(kuuid, "while")
            assert (await reader.next())[1]["text"] == "while"
            manager.journal.late.append((kuuid, "last words"))
            await loader.move(Event.FAIL)
            assert await reader.texts() == ["last words", "end 15"]
        await manager.journal.read_by(0)


async def test_following_a_keep_that_has_ended_tells_all_and_ends(manager: RunningManager) -> None:
    async with manager.client() as client:
        kuuid, loader = await new_keep(manager, client)
        await loader.move(Event.FAIL)
        await manager.journal.write(kuuid, *(f"line {number}" for number in range(500)))
        async with reading(client, kuuid, "?follow=true") as reader:
            assert await reader.texts() == [*(f"line {number}" for number in range(500)), "end 15"]


async def test_the_removal_of_a_keep_ends_its_stream(manager: RunningManager) -> None:
    async with manager.client() as client:
        kuuid, _ = await new_keep(manager, client)
        async with reading(client, kuuid, "?follow=true") as reader:
            await manager.journal.read_by(1)
            async with client.delete(f"/v1/keeps/{kuuid}") as response:
                assert response.status == 204
            name, data, _ = await reader.next()
            assert (name, data["state"], data["detail"]) == ("end", 0, "it was removed")
        await manager.journal.read_by(0)


async def test_a_client_that_goes_away_leaves_no_reader(manager: RunningManager) -> None:
    async with manager.client() as client:
        kuuid, _ = await new_keep(manager, client)
        async with reading(client, kuuid, "?follow=true"):
            await manager.journal.read_by(1)
    await asyncio.wait_for(manager.journal.read_by(0), ENOUGH)


async def test_clients_that_go_away_in_the_midst_of_a_torrent_leave_no_reader(manager: RunningManager) -> None:
    gc.disable()  # what only it frees may be there for as long as the manager has little to do
    try:
        async with manager.client() as client:
            kuuid, _ = await new_keep(manager, client)
            await manager.journal.write(kuuid, *["x" * 1000] * TORRENT)
            for _ in range(10):
                async with reading(client, kuuid, "?follow=true") as reader:
                    await reader.next()
                    assert reader.response.connection is not None
                    assert reader.response.connection.transport is not None
                    reader.response.connection.transport.abort()
                await asyncio.wait_for(manager.journal.read_by(0), ENOUGH)
    finally:
        gc.enable()


async def test_a_silent_stream_shows_that_it_lives(manager: RunningManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_streams, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(sse, "ALIVE_SECONDS", 0.01)
    async with manager.client() as client:
        kuuid, _ = await new_keep(manager, client)
        async with reading(client, kuuid, "?follow=true") as reader:
            for _ in range(3):
                assert await asyncio.wait_for(reader.response.content.readline(), ENOUGH) == b": alive\n"
                await reader.response.content.readline()


async def test_a_manager_that_stops_ends_its_streams_at_once(manager: RunningManager) -> None:
    async with manager.client() as client:
        kuuid, _ = await new_keep(manager, client)
        async with reading(client, kuuid, "?follow=true"):
            await manager.journal.read_by(1)
            assert manager.server is not None
            await asyncio.wait_for(manager.server.close(), 2)
            await manager.journal.read_by(0)
            manager.server = None


async def test_a_certificate_revoked_meanwhile_gets_nothing_more(manager: RunningManager) -> None:
    async with manager.client() as client:
        kuuid, _ = await new_keep(manager, client)
        async with reading(client, kuuid, "?follow=true") as reader:
            await manager.journal.read_by(1)
            manager.revoke(manager.operator)
            await manager.journal.write(kuuid, "not for you")
            assert await reader.texts() == []


@asynccontextmanager
async def following(client: aiohttp.ClientSession, query: str = "", after: str = "") -> AsyncIterator[Reader]:
    headers = {"Last-Event-ID": after} if after else {}
    async with client.get(f"/v1/events{query}", headers=headers) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream"), await response.text()
        yield Reader(response)


def event(kuuid: int, happened: sse.EventType) -> sse.KeepEvent:
    return sse.KeepEvent(1.5, happened, KeepInfo(kuuid, State.LISTENING), "alice")


async def test_what_happens_to_keeps_is_told_and_can_be_taken_up_again(manager: RunningManager) -> None:
    await manager.events.write(event(5, sse.EventType.CREATED), "before")
    async with manager.client() as client:
        async with following(client, "?follow=true") as reader:
            await manager.events.write(event(5, sse.EventType.ENDED), "now")
            name, data, mark = await reader.next()
            assert (name, data["event"], data["by"], data["keep"]["kuuid"]) == ("keep", "ended", "alice", 5)
        await manager.events.read_by(0)
        await manager.events.write(event(5, sse.EventType.REMOVED), "meanwhile")
        async with following(client, "?follow=true", after=mark) as reader:
            assert (await reader.next())[1]["event"] == "removed"
        async with following(client) as reader:
            told = [(await reader.next())[1].get("event") for _ in range(4)]
        assert told == ["created", "ended", "removed", None]


async def test_what_happens_to_one_keep_is_told_alone(manager: RunningManager) -> None:
    async with manager.client() as client, following(client, "?keep=6&follow=true") as reader:
        await manager.events.write(event(5, sse.EventType.CREATED), "another")
        await manager.events.write(event(6, sse.EventType.CREATED), "this one")
        assert (await reader.next())[1]["keep"]["kuuid"] == 6


async def test_a_journal_that_is_away_refuses_who_asks_for_events(manager: RunningManager) -> None:
    manager.events.away = True
    async with manager.client() as client, client.get("/v1/events") as response:
        assert response.status == 503


@pytest.mark.parametrize("query", ["?keep=x", "?keep=0", "?lines=0", "?follow=yes", "?lines=1&lines=1"])
async def test_events_that_cannot_be_asked_for_are_refused(manager: RunningManager, query: str) -> None:
    async with manager.client() as client, client.get(f"/v1/events{query}") as response:
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
async def test_what_cannot_be_read_is_refused(manager: RunningManager, query: str, after: str, status: int) -> None:
    async with manager.client() as client:
        kuuid, _ = await new_keep(manager, client)
        headers = {"Last-Event-ID": after} if after else {}
        async with client.get(f"/v1/keeps/{kuuid}/logs{query}", headers=headers) as response:
            assert response.status == status
            assert (await response.json())["error"]["message"].startswith("cannot ")
        async with client.get("/v1/keeps/5/logs?follow=true") as response:
            assert response.status == 404
