"""The gate: silent, slow and too many clients cannot keep others out."""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import gc
import ssl
from contextlib import suppress
from pathlib import Path

import pytest

from keep_manager.http import gate
from keep_manager.http.gate import listen
from keep_protocol.errors import ErrorKind, KeepfleetError
from tests.fakes.manager_house import ManagerHouse


async def quiet(house: ManagerHouse) -> None:
    """Returns when no connection is open; the gate tells nobody."""
    while "Gate(0 connections, 0 handshakes)" not in repr(house.server):  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def served(house: ManagerHouse) -> bool:
    async with house.client() as client, client.get("/") as response:
        return response.status == 200


async def test_a_silent_handshake_is_closed(house: ManagerHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "HANDSHAKE_SECONDS", 0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.transport.abort()
    assert await served(house)


async def test_garbage_instead_of_a_handshake_is_closed(house: ManagerHouse) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await asyncio.wait_for(reader.read(), 5)
    writer.transport.abort()
    assert await served(house)


async def test_a_failed_handshake_is_freed_without_the_garbage_collector(house: ManagerHouse) -> None:
    def protocols() -> int:
        return sum(isinstance(thing, asyncio.sslproto.SSLProtocol) for thing in gc.get_objects())

    assert await served(house)
    gc.collect()
    gc.disable()
    try:
        before = protocols()
        for garbage in (b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
            writer.write(garbage)
            writer.close()
            await reader.read()
        await quiet(house)
        assert protocols() == before
    finally:
        gc.enable()


async def test_old_tls_is_refused(house: ManagerHouse) -> None:
    context = house.context(house.operator)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection("127.0.0.1", house.port, ssl=context)


async def test_connections_of_one_address_are_capped_and_freed(
    house: ManagerHouse, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gate, "MAX_CONNECTIONS_OF_ONE", 3)
    held = [await asyncio.open_connection("127.0.0.1", house.port) for _ in range(3)]
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    with suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), 5) == b""
    assert "refused a connection from 127.0.0.1: 3 are open" in caplog.text
    for _, one in [*held, (reader, writer)]:
        one.transport.abort()
    await quiet(house)
    assert await served(house)


async def test_a_connection_is_freed_after_its_requests_too(house: ManagerHouse) -> None:
    for _ in range(5):
        assert await served(house)
    await quiet(house)


async def test_three_hundred_silent_clients_do_not_keep_one_out(
    house: ManagerHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "MAX_CONNECTIONS_OF_ONE", 1000)
    held = [await asyncio.open_connection("127.0.0.1", house.port) for _ in range(300)]
    assert await asyncio.wait_for(served(house), 5)
    for _, writer in held:
        writer.transport.abort()


async def test_out_of_descriptors_is_a_pause_and_not_an_end(
    house: ManagerHouse, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gate, "PAUSE_SECONDS", 0.05)
    assert house.server is not None
    assert house.server._gate is not None
    gate_of_house: gate.Gate = house.server._gate
    real = gate_of_house._listener

    class Exhausted:
        def fileno(self) -> int:
            return real.fileno()

        def close(self) -> None:
            real.close()

        def accept(self) -> object:
            gate_of_house._listener = real
            raise OSError(24, "Too many open files")

    gate_of_house._listener = Exhausted()  # type: ignore[assignment] # one accept() that fails
    assert await asyncio.wait_for(served(house), 5)
    assert "cannot accept connections for 0.05 s: Too many open files" in caplog.text


async def test_a_second_manager_fails_at_its_port_with_a_clear_reason(house: ManagerHouse) -> None:
    with pytest.raises(KeepfleetError, match="is another keep-manager running") as caught:
        listen("127.0.0.1", house.port)
    assert caught.value.kind is ErrorKind.PORT_UNAVAILABLE
    assert await served(house)


async def test_closing_lets_a_request_under_way_finish(house: ManagerHouse, place: Path) -> None:
    async with house.client() as client:
        async with client.post("/v1/keeps") as response:
            kuuid = (await response.json())["kuuid"]
        loader = house.units.loaders[kuuid]
        loader.hold = asyncio.Event()
        loader.heard.clear()
        starting = asyncio.create_task(client.post(f"/v1/keeps/{kuuid}/start"))
        await loader.heard.wait()
        assert house.server is not None
        closing = asyncio.create_task(house.server.close())
        await asyncio.sleep(0)
        loader.hold.set()
        async with await starting as response:
            assert response.status == 200
        await closing
    house.server = None
