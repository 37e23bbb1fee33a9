"""The acceptor: silent, slow and too many clients cannot keep others out, nor cost memory."""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import errno
import gc
import logging
import os
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from keep_manager.http import acceptor, handshakes
from keep_manager.http.acceptor import listen
from keep_manager.http.handshakes import Quota
from keep_manager.tasks import Group
from keep_protocol.errors import ErrorKind, KeepfleetError
from tests.fakes.running_manager import RunningManager, running_manager
from tests.fakes.strangers import client_hello, ended, resident_bytes, rolling, stranger


async def quiet(manager: RunningManager) -> None:
    """Returns when no connection is open; the acceptor has no event for it."""
    while "Acceptor(0 connections, 0 handshakes)" not in repr(manager.server):  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def open_now(manager: RunningManager) -> list[acceptor.Established]:
    assert manager.server is not None
    return list(manager.server._acceptor.established())


async def until_handshakes(manager: RunningManager, count: int) -> None:
    while f"{count} handshakes)" not in repr(manager.server):  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def served(manager: RunningManager) -> bool:
    async with manager.client() as client, client.get("/") as response:
        return response.status == 200


async def test_a_silent_handshake_is_closed(manager: RunningManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "HANDSHAKE_SECONDS", 0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", manager.port)
    assert await asyncio.wait_for(reader.read(), 60) == b""
    writer.transport.abort()
    assert await served(manager)


async def test_garbage_instead_of_a_handshake_is_closed(manager: RunningManager) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", manager.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await asyncio.wait_for(reader.read(), 60)
    writer.transport.abort()
    assert await served(manager)


def tls_protocols() -> int:
    return sum(isinstance(thing, asyncio.sslproto.SSLProtocol) for thing in gc.get_objects())


@pytest.mark.parametrize("seconds", [5.0, 0.05])
async def test_a_failed_handshake_is_freed_without_the_garbage_collector(
    manager: RunningManager, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    assert await served(manager)
    await quiet(manager)
    monkeypatch.setattr(acceptor, "HANDSHAKE_SECONDS", seconds)
    gc.collect()
    gc.disable()
    try:
        before = tls_protocols()
        for garbage in (b"", b"\x16", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", client_hello(manager)):
            held = await stranger(manager, garbage)
            if seconds < 1:
                assert await ended(held)
            held.close()
        await quiet(manager)
        assert tls_protocols() == before
    finally:
        gc.enable()


async def test_old_tls_is_refused(manager: RunningManager) -> None:
    context = manager.context(manager.operator)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection("127.0.0.1", manager.port, ssl=context)


async def test_a_connection_is_freed_after_its_requests_too(manager: RunningManager) -> None:
    for _ in range(5):
        assert await served(manager)
    await quiet(manager)


async def test_a_handshake_given_up_for_another_is_freed_without_the_garbage_collector(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshakes, "UNFINISHED", Quota(1, 1))
    async with running_manager(place) as manager:
        assert await served(manager)
        await quiet(manager)
        gc.collect()
        gc.disable()
        try:
            before = tls_protocols()
            for said in (b"", b"\x16", client_hello(manager)):
                held = await stranger(manager, said)
                await until_handshakes(manager, 1)
                other = await stranger(manager)
                assert await ended(held)
                held.close()
                other.close()
                await quiet(manager)
            assert tls_protocols() == before
        finally:
            gc.enable()


async def test_two_hundred_rolling_silent_connections_of_a_client_s_own_address_fail_none_of_its_requests(
    manager: RunningManager,
) -> None:
    async with rolling(manager, 200, ["127.0.0.1"]):
        assert [await served(manager) for _ in range(100)] == [True] * 100


async def test_more_silent_connections_than_there_is_room_for_fail_no_request(manager: RunningManager) -> None:
    async with rolling(manager, handshakes.UNFINISHED.of_one + 5, ["127.0.0.1"]):
        assert [await served(manager) for _ in range(20)] == [True] * 20
    async with rolling(manager, handshakes.UNFINISHED.in_all + 5, [f"127.0.0.{number}" for number in range(1, 5)]):
        assert [await served(manager) for _ in range(20)] == [True] * 20


class PassesOfTheLoop:
    """A loop's clock and its one timer, for turns: a hundredth of a second goes by with each few passes of the loop,
    and none while the process waits for a processor. By the real one a good client, too, lost its turn to that."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.create_future = loop.create_future
        self._now = 0.0
        self._due: tuple[float, Callable[[], object]] | None = None

    def time(self) -> float:
        return self._now

    def call_at(self, when: float, callback: Callable[[], object]) -> PassesOfTheLoop:
        self._due = when, callback
        return self

    def cancel(self) -> None:
        self._due = None

    async def go_on(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(0.005)
            self._now += 0.01
            if self._due is not None and self._due[0] <= self._now:
                due, self._due = self._due[1], None
                due()


@pytest.mark.parametrize("addresses", [["127.0.0.1"], [f"127.0.0.{number}" for number in range(1, 9)]])
async def test_clients_that_speak_and_then_fall_silent_fail_no_request(
    place: Path, monkeypatch: pytest.MonkeyPatch, addresses: list[str]
) -> None:
    monkeypatch.setattr(handshakes, "TURNS", Quota(40, 20))
    monkeypatch.setattr(acceptor, "HANDSHAKE_SECONDS", 60.0)  # in which a good client has its turn, too
    async with running_manager(place) as manager:
        assert manager.server is not None
        passes = PassesOfTheLoop(asyncio.get_running_loop())
        monkeypatch.setattr(manager.server._acceptor._handshakes, "_loop", passes)
        manager.tasks.start(passes.go_on())
        async with rolling(manager, 50, addresses, client_hello(manager)):
            assert [await served(manager) for _ in range(3)] == [True] * 3


async def test_a_handshake_under_way_holds_the_buffer_of_one_tls_record(manager: RunningManager) -> None:
    """asyncio's own is sixteen times as large, and more than malloc gives back."""
    assert await served(manager)
    held = await stranger(manager, client_hello(manager)[:5])
    begun: list[asyncio.sslproto.SSLProtocol] = []
    while not begun:
        await asyncio.sleep(0.001)
        begun = [one for one in gc.get_objects() if isinstance(one, asyncio.sslproto.SSLProtocol)]
    assert {len(vars(one)["_ssl_buffer"]) for one in begun} == {1 << 14}
    held.close()
    await quiet(manager)


async def test_a_thousand_aborted_handshakes_cost_little_memory(
    manager: RunningManager, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    hello = client_hello(manager)
    assert await served(manager)
    gc.collect()
    before = resident_bytes()
    held = [await stranger(manager, hello, f"127.0.0.{1 + number % 20}") for number in range(1000)]
    for one in held:
        one.close()
    await quiet(manager)
    for number in range(1000):
        (await stranger(manager, hello, f"127.0.0.{1 + number % 20}")).close()
    await quiet(manager)
    assert resident_bytes() - before < 50 << 20


async def test_connections_of_one_address_are_capped_and_freed(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(acceptor, "ESTABLISHED", Quota(10, 3))
    async with running_manager(place) as manager:
        context = manager.context(manager.operator)
        used = [await asyncio.open_connection("127.0.0.1", manager.port, ssl=context) for _ in range(3)]
        for _, writer in used:
            writer.write(b"POST /v1/keeps HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        while not all(one.idle_since is None for one in open_now(manager)):  # noqa: ASYNC110 # no event says so
            await asyncio.sleep(0.001)
        reader, writer = await asyncio.open_connection("127.0.0.1", manager.port, ssl=context)
        with suppress(ConnectionResetError, ssl.SSLError):
            assert await asyncio.wait_for(reader.read(), 60) == b""
        assert "refused a connection from 127.0.0.1: 3 are open" in caplog.text
        for _, one in [*used, (reader, writer)]:
            one.transport.abort()
        await quiet(manager)
        assert await served(manager)


async def test_an_idle_connection_is_closed_for_a_new_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "ESTABLISHED", Quota(10, 3))
    async with running_manager(place) as manager:
        context = manager.context(manager.operator)
        idle = []
        for number in range(3):
            idle.append(await asyncio.open_connection("127.0.0.1", manager.port, ssl=context))
            while len(open_now(manager)) <= number:  # noqa: ASYNC110 # no event says so
                await asyncio.sleep(0.001)
        assert await served(manager)
        with suppress(ConnectionResetError, ssl.SSLError):
            assert await asyncio.wait_for(idle[0][0].read(), 60) == b""
        assert not idle[1][0].at_eof()
        for _, writer in idle:
            writer.transport.abort()


class Failing:
    """A listener whose first accepts fail."""

    def __init__(self, real: socket.socket, *errors: int) -> None:
        self.real, self.errors = real, list(errors)

    def accept(self) -> object:
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))
        return self.real.accept()

    def __getattr__(self, name: str) -> object:
        return getattr(self.real, name)


async def test_out_of_descriptors_is_a_pause_and_not_an_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(acceptor, "PAUSE_SECONDS", 0.05)
    await accept_through(errno.EMFILE, errno.ECONNABORTED, errno.ENFILE)
    assert "cannot accept connections for 0.05 s: Too many open files" in caplog.text
    assert "Software caused" not in caplog.text


async def test_a_listener_that_is_broken_ends_the_process_with_its_reason() -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        await accept_through(errno.EINVAL)


async def accept_through(*errors: int) -> None:
    """Accepts one connection after these errors."""
    taken = asyncio.Event()

    def refuse(established: acceptor.Hook, ended: acceptor.Hook) -> asyncio.Protocol:
        taken.set()
        raise ConnectionAbortedError("enough")

    listener = listen("127.0.0.1", 0)
    failing = Failing(listener, *errors)
    served_by = acceptor.Acceptor(failing, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), refuse)  # type: ignore[arg-type]
    try:
        async with Group() as group:
            served_by.open(group)
            _, writer = await asyncio.open_connection("127.0.0.1", listener.getsockname()[1])
            writer.write(b"x")
            await asyncio.wait_for(taken.wait(), 60)
            writer.transport.abort()
            await served_by.close()
    finally:
        listener.close()


async def test_a_second_manager_fails_at_its_port_with_a_clear_reason(manager: RunningManager) -> None:
    with pytest.raises(KeepfleetError, match="is another keep-manager running") as caught:
        listen("127.0.0.1", manager.port)
    assert caught.value.kind is ErrorKind.PORT_UNAVAILABLE
    assert await served(manager)


async def test_closing_lets_a_request_under_way_finish(manager: RunningManager, place: Path) -> None:
    async with manager.client() as client:
        async with client.post("/v1/keeps") as response:
            kuuid = (await response.json())["kuuid"]
        loader = manager.units.loaders[kuuid]
        loader.hold = asyncio.Event()
        loader.heard.clear()
        starting = asyncio.create_task(client.post(f"/v1/keeps/{kuuid}/start"))
        await loader.heard.wait()
        assert manager.server is not None
        closing = asyncio.create_task(manager.server.close())
        await asyncio.sleep(0)
        loader.hold.set()
        async with await starting as response:
            assert response.status == 200
        await closing
    manager.server = None
