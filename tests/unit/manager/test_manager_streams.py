"""Logs as server-sent events: what is sent, when it ends, and that nothing is left when a client goes away."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import pytest

from keep_manager.http import streams as http_streams
from keep_protocol import sse
from keep_protocol.control import CommandType
from keep_protocol.identity import Identity, Role
from keep_protocol.keep import KeepInfo
from keep_protocol.output import ALIVE, CONTENT_TYPE, END, encode_frame
from keep_protocol.ring import HEADER, MAX_FRAME, STDERR, STDOUT, Frame
from keep_protocol.states import Event, State
from tests.fakes.fake_loader import FakeLoader
from tests.fakes.fake_output import FakeOutput
from tests.fakes.running_manager import RunningManager
from tests.output_decoder import OutputDecoder

ENOUGH = 60.0
MANY_PARTS, HELD_SECONDS = 96, 0.5
"""Twelve megabytes, of which sockets and the client hold some; and how long none is answered once they do."""
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


async def started(
    manager: RunningManager, client: aiohttp.ClientSession, **workload: object
) -> tuple[int, FakeLoader, FakeOutput]:
    kuuid, loader = await new_keep(manager, client)
    return kuuid, loader, await start(client, kuuid, loader, **workload)


async def start(client: aiohttp.ClientSession, kuuid: int, loader: FakeLoader, **workload: object) -> FakeOutput:
    request = {"workload": workload} if workload else {}
    async with client.post(f"/v1/keeps/{kuuid}/start", json=request) as response:
        assert response.status == 200, await response.text()
    assert loader.output is not None
    loader.output.say()
    return loader.output


async def test_the_lines_there_are_come_and_the_stream_ends(manager: RunningManager) -> None:
    async with manager.client() as client:
        kuuid, _, output = await started(manager, client)
        output.write(STDOUT, b"one\ntwo\n")
        output.write(STDERR, b"three\nfo")
        async with reading(client, kuuid) as reader:
            name, line, mark = await reader.next()
            assert (name, line["source"], line["text"]) == ("line", "stdout", "one")
            assert line["at"] == pytest.approx(time.time(), abs=60)
            assert await reader.texts() == ["two", "three", "fo"]
        async with reading(client, kuuid, "?lines=2") as reader:
            assert await reader.texts() == ["three", "fo"]
        async with reading(client, kuuid, after=mark) as reader:
            assert await reader.texts() == ["two", "three", "fo"]
        async with reading(client, kuuid, "?stream=stderr") as reader:
            assert await reader.texts() == ["three", "fo"]
        async with reading(client, kuuid, f"?since={time.time() + 100:.3f}") as reader:
            assert await reader.texts() == []
        async with reading(client, kuuid, f"?until={time.time() + 100:.3f}&lines=1") as reader:
            assert await reader.texts() == ["fo"]


async def test_the_loaders_own_lines_come_where_they_are_asked_for(manager: RunningManager) -> None:
    async with manager.client() as client:
        kuuid, _, output = await started(manager, client)
        output.write(STDOUT, b"mine\n")
        output.say("its own")
        async with reading(client, kuuid) as reader:
            assert await reader.texts() == ["mine"]
        async with reading(client, kuuid, "?all=true&lines=1") as reader:
            assert (await reader.next())[1]["source"] == "keep"


async def test_a_follower_gets_what_comes_and_the_end_after_the_last_line(manager: RunningManager) -> None:
    async with manager.client() as client:
        kuuid, loader, output = await started(manager, client)
        output.write(STDOUT, b"before\n")
        async with reading(client, kuuid, "?follow=true") as reader:
            assert (await reader.next())[1]["text"] == "before"
            output.write(STDOUT, b"while\n")
            assert (await reader.next())[1]["text"] == "while"
            output.write(STDOUT, b"last words")
            await loader.move(Event.FAIL)
            assert await reader.texts() == ["last words", "end 15"]


async def test_what_a_reader_misses_is_a_line_of_its_own(manager: RunningManager) -> None:
    async with manager.client() as client:
        kuuid, _, output = await started(manager, client)
        for _ in range(80):
            output.write(STDOUT, b"x" * (MAX_FRAME - 1) + b"\n")
        async with reading(client, kuuid) as reader:
            first = (await reader.next())[1]
            assert first["source"] == "gap"
            assert re.fullmatch("[0-9]+ bytes are missing here", first["text"])


async def test_following_a_keep_that_has_ended_sends_all_and_ends(manager: RunningManager) -> None:
    async with manager.client() as client:
        kuuid, loader, output = await started(manager, client)
        output.write(STDOUT, b"".join(b"line %d\n" % number for number in range(500)))
        await loader.move(Event.ACCEPT)
        await loader.move(Event.FINISH)
        async with reading(client, kuuid, "?follow=true") as reader:
            assert await reader.texts() == [*(f"line {number}" for number in range(500)), "end 3"]


async def test_the_removal_of_a_keep_ends_its_streams(manager: RunningManager) -> None:
    async with manager.client() as client:
        kuuid, _ = await new_keep(manager, client)
        async with (
            reading(client, kuuid, "?follow=true") as reader,
            client.get(f"/v1/keeps/{kuuid}/output?follow=true") as response,
        ):
            async with client.delete(f"/v1/keeps/{kuuid}") as answer:
                assert answer.status == 204
            name, data, _ = await reader.next()
            assert (name, data["state"], data["detail"]) == ("end", 0, "it was removed")
            (end,) = OutputDecoder().feed(await response.read())
            assert json.loads(end.data)["detail"] == "it was removed"


async def test_clients_that_go_away_in_the_midst_of_a_torrent_leave_no_reader(manager: RunningManager) -> None:
    gc.disable()  # what only it frees may be there for as long as the manager has little to do
    try:
        async with manager.client() as client:
            kuuid, _, output = await started(manager, client)
            for _ in range(TORRENT // 100):
                output.write(STDOUT, (b"x" * 999 + b"\n") * 100)
            for path in ("logs", "output"):
                for _ in range(5):
                    async with client.get(f"/v1/keeps/{kuuid}/{path}?follow=true") as response:
                        await response.content.readany()
                        assert response.connection is not None
                        assert response.connection.transport is not None
                        response.connection.transport.abort()
                    await no_readers(manager)
    finally:
        gc.enable()


async def no_readers(manager: RunningManager) -> None:
    async with asyncio.timeout(ENOUGH):
        while manager.parts.readers.followed:  # noqa: ASYNC110 - nothing says when the last of them has gone
            await asyncio.sleep(0)


async def test_a_silent_stream_shows_that_it_lives(manager: RunningManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_streams, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(sse, "ALIVE_SECONDS", 0.01)
    monkeypatch.setattr("keep_protocol.output.ALIVE_SECONDS", 0.01)
    async with manager.client() as client:
        kuuid, _ = await new_keep(manager, client)
        async with reading(client, kuuid, "?follow=true") as reader:
            for _ in range(3):
                assert await asyncio.wait_for(reader.response.content.readline(), ENOUGH) == b": alive\n"
                await reader.response.content.readline()
        async with client.get(f"/v1/keeps/{kuuid}/output?follow=true") as response:
            assert await response.content.readexactly(2 * HEADER) == 2 * encode_frame(ALIVE, b"")


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A manager that would wait for its streams longer than the test does."""
    monkeypatch.setattr("keep_manager.http.app.STOP_SECONDS", 3600.0)


async def test_a_manager_that_stops_ends_its_streams_immediately(patient: None, manager: RunningManager) -> None:
    async with manager.client() as client:
        kuuid, _ = await new_keep(manager, client)
        async with reading(client, kuuid, "?follow=true"), client.get(f"/v1/keeps/{kuuid}/output?follow=true"):
            assert manager.server is not None
            await asyncio.wait_for(manager.server.close(), 60)
            await no_readers(manager)
            manager.server = None


async def all_of(response: aiohttp.ClientResponse) -> bytes:
    """What comes of an answer until it ends or is broken off."""
    seen = b""
    with suppress(aiohttp.ClientPayloadError):
        async for piece in response.content.iter_any():
            seen += piece
    return seen


async def test_a_certificate_revoked_meanwhile_gets_nothing_more(
    manager: RunningManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_streams, "CHECK_SECONDS", 0.0)  # or two checks just before it are enough for some output
    async with manager.client() as client:
        kuuid, _, output = await started(manager, client)
        async with (
            reading(client, kuuid, "?follow=true") as reader,
            client.get(f"/v1/keeps/{kuuid}/output?follow=true") as response,
        ):
            manager.revoke(manager.operator)
            output.write(STDOUT, b"not for you\n")
            assert b"not for you" not in await all_of(reader.response)
            assert b"not for you" not in await all_of(response)


async def frames(response: aiohttp.ClientResponse) -> list[Frame]:
    assert (response.status, response.content_type) == (200, CONTENT_TYPE), await response.text()
    return OutputDecoder().feed(await response.read())


async def test_output_comes_as_it_was_written_and_ends_with_the_keep(manager: RunningManager) -> None:
    async with manager.client() as client:
        kuuid, _, output = await started(manager, client)
        output.write(STDOUT, b"a\0\r\n\xff")
        output.write(STDERR, b" \t")
        async with client.get(f"/v1/keeps/{kuuid}/output") as response:
            _, first, second, end = await frames(response)
        assert [(one.stream, one.data) for one in (first, second)] == [(STDOUT, b"a\0\r\n\xff"), (STDERR, b" \t")]
        assert (end.stream, json.loads(end.data)["kuuid"]) == (END, kuuid)
        async with client.get(f"/v1/keeps/{kuuid}/output?from={second.position}") as response:
            again, _ = await frames(response)
        assert again == second


async def test_a_reader_that_comes_before_the_start_misses_nothing_and_is_waited_for(manager: RunningManager) -> None:
    async with manager.client() as client:
        kuuid, loader = await new_keep(manager, client)
        async with client.get(f"/v1/keeps/{kuuid}/output?follow=true&hold=true") as response:
            assert response.status == 200
            output = await start(client, kuuid, loader)
            assert output.channel is not None, "it is attached before the start is answered"
            output.write(STDOUT, b"first")
            await loader.move(Event.ACCEPT)
            await loader.move(Event.FINISH)
            *_, first, end = await frames(response)
        assert (first.data, json.loads(end.data)["outcome"]["kind"]) == (b"first", "exited")


async def test_what_comes_seldom_waits_too_for_a_client_that_takes_nothing(manager: RunningManager) -> None:
    """Each part is announced when the one before was answered: it finds a reader that waits."""
    async with manager.client() as client:
        kuuid, _, output = await started(manager, client)
        async with client.get(f"/v1/keeps/{kuuid}/output?follow=true&hold=true") as response:
            assert response.status == 200
            parts = 0
            with suppress(TimeoutError):
                for parts in range(MANY_PARTS):  # noqa: B007 - how many were answered
                    output.answered.clear()
                    output.write(STDOUT, bytes(MAX_FRAME // 2))
                    while output.acknowledged.seen < output.ring.head:
                        await asyncio.wait_for(output.answered.wait(), HELD_SECONDS)
                        output.answered.clear()
            assert parts < MANY_PARTS - 1, "the manager has all of it in its memory"
            assert output.acknowledged.kept < output.ring.head


async def test_a_workload_is_made_to_wait_by_those_alone_who_may_stop_it(manager: RunningManager) -> None:
    viewer = manager.authority.issue("eve", uri=Identity(Role.VIEWER, "eve").uri())
    async with manager.client() as client, manager.client(viewer) as other:
        kuuid, _, _ = await started(manager, client)
        async with other.get(f"/v1/keeps/{kuuid}/output") as response:
            assert response.status == 200
        async with other.get(f"/v1/keeps/{kuuid}/output?hold=true") as response:
            assert response.status == 403


async def heard(loader: FakeLoader) -> None:
    """Waits for the loader's next command; that was obeyed when it is there."""
    loader.heard.clear()
    await loader.heard.wait()
    await asyncio.sleep(0)


async def test_another_loader_of_a_keep_that_is_followed_is_given_a_channel(manager: RunningManager) -> None:
    async with manager.client() as client:
        kuuid, loader, output = await started(manager, client)
        async with client.get(f"/v1/keeps/{kuuid}/output?follow=true") as response:
            manager.parts.watch.appeared(kuuid)
            async with asyncio.timeout(ENOUGH):
                while not any(command.type is CommandType.WAIT for command in loader.commands):
                    await heard(loader)
            output._hang_up()
            await loader.hang_up()
            async with asyncio.timeout(ENOUGH):
                while output.channel is None:
                    await heard(loader)
            output.write(STDOUT, b"on")
            await loader.move(Event.FAIL)
            *_, last, end = await frames(response)
        assert (last.data, end.stream) == (b"on", END)


async def test_the_output_of_a_keep_of_the_version_before_is_in_the_journal(manager: RunningManager) -> None:
    async with manager.client() as client:
        kuuid, loader = await new_keep(manager, client)
        loader.version = 2
        async with client.post(f"/v1/keeps/{kuuid}/start", json={}) as response:
            assert response.status == 200
        for path in ("output", "logs"):
            async with client.get(f"/v1/keeps/{kuuid}/{path}") as response:
                assert response.status == 409
                assert f"journalctl -u keep@{kuuid}" in (await response.json())["error"]["message"]


@pytest.mark.parametrize("query", ["?from=x", "?from=-1", "?from=99999", "?follow=1", "?hold=yes", "?lines=3"])
async def test_output_that_cannot_be_asked_for_is_refused(manager: RunningManager, query: str) -> None:
    async with manager.client() as client:
        kuuid, _, _ = await started(manager, client)
        async with client.get(f"/v1/keeps/{kuuid}/output{query}") as response:
            assert response.status == 400


async def test_a_ring_that_was_damaged_is_refused_and_ends_a_stream(manager: RunningManager) -> None:
    async with manager.client() as client:
        kuuid, _, output = await started(manager, client)
        os.ftruncate(output.ring.descriptor, 10)
        async with client.get(f"/v1/keeps/{kuuid}/output") as response:
            assert response.status == 502


async def test_input_is_passed_on_to_its_end(manager: RunningManager) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"one "
        yield b"x" * 200_000

    async with manager.client() as client:
        kuuid, _, output = await started(manager, client, stdin={"stream": True})
        async with client.put(f"/v1/keeps/{kuuid}/input", data=body()) as response:
            assert (response.status, await response.json()) == (200, {"bytes": 200_004, "complete": True})
        async with asyncio.timeout(ENOUGH):
            while not output.complete:
                await output.input_changed.wait()
                output.input_changed.clear()
        assert output.input == b"one " + b"x" * 200_000
        async with client.put(f"/v1/keeps/{kuuid}/input", data=b"again") as response:
            assert response.status == 409


async def test_a_guest_that_takes_no_more_input_ends_its_sending(manager: RunningManager) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"one"
        output.refuse_input()
        await asyncio.Event().wait()

    async with manager.client() as client:
        kuuid, _, output = await started(manager, client, stdin={"stream": True})
        async with client.put(f"/v1/keeps/{kuuid}/input", data=body()) as response:
            assert (response.status, await response.json()) == (200, {"bytes": 3, "complete": False})


async def test_a_client_that_goes_away_cuts_the_input_off(manager: RunningManager) -> None:
    begun = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"half"
        begun.set()
        await asyncio.Event().wait()

    async with manager.client() as client:
        kuuid, _, output = await started(manager, client, stdin={"stream": True})
        sending = asyncio.ensure_future(client.put(f"/v1/keeps/{kuuid}/input", data=body()))
        await begun.wait()
        async with asyncio.timeout(ENOUGH):
            while output.input != b"half":
                await output.input_changed.wait()
                output.input_changed.clear()
            sending.cancel()
            while not output.broken_off:
                await output.input_changed.wait()
                output.input_changed.clear()
        assert not output.complete


async def test_a_keep_without_a_streamed_input_takes_none(manager: RunningManager) -> None:
    async with manager.client() as client:
        kuuid, _, _ = await started(manager, client)
        async with client.put(f"/v1/keeps/{kuuid}/input", data=b"x") as response:
            assert response.status == 409


@asynccontextmanager
async def following(client: aiohttp.ClientSession, query: str = "", after: str = "") -> AsyncIterator[Reader]:
    headers = {"Last-Event-ID": after} if after else {}
    async with client.get(f"/v1/events{query}", headers=headers) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream"), await response.text()
        yield Reader(response)


def event(kuuid: int, happened: sse.EventType) -> sse.KeepEvent:
    return sse.KeepEvent(1.5, happened, KeepInfo(kuuid, State.LISTENING), "alice")


async def test_events_of_keeps_are_sent_and_can_be_resumed(manager: RunningManager) -> None:
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
            names = [(await reader.next())[1].get("event") for _ in range(4)]
        assert names == ["created", "ended", "removed", None]


async def test_events_of_one_keep_are_sent_alone(manager: RunningManager) -> None:
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
        ("?stream=both", "", 400),
        ("?since=yesterday", "", 400),
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
