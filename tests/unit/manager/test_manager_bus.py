"""The bus connection against peers that are not there, hang up, or say nothing."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from keep_manager.systemd import bus
from keep_manager.systemd.bus import Bus, Call
from keep_manager.systemd.connection import BusLost, Connection
from keep_manager.tasks import Group
from keep_protocol.errors import ErrorKind, KeepfleetError


async def refused(path: Path) -> KeepfleetError:
    async with Group() as tasks:
        made = Bus(tasks, f"unix:path={path}", lambda end: None)
        with pytest.raises(KeepfleetError, match="cannot reach systemd on") as caught:
            await asyncio.wait_for(made.open(), 60)
        await made.close()
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    return caught.value


async def test_no_bus_is_an_error_with_the_reason(place: Path) -> None:
    assert "No such file" in (await refused(place / "none")).message


async def test_a_bus_that_hangs_up_during_the_handshake_is_an_error_and_not_an_endless_loop(place: Path) -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_unix_server(hang_up, place / "bus"):
        await refused(place / "bus")


async def test_a_bus_that_says_nothing_is_given_up(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus, "CONNECT_SECONDS", 0.05)
    hung_up = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()
        hung_up.set()

    async with await asyncio.start_unix_server(say_nothing, place / "bus"):
        await refused(place / "bus")
        await hung_up.wait()


async def test_an_address_that_is_no_unix_socket_is_refused() -> None:
    async with Group() as tasks:
        made = Bus(tasks, "tcp:host=127.0.0.1,port=1", lambda end: None)
        with pytest.raises(KeepfleetError, match="names no Unix socket"):
            await made.open()
        await made.close()


async def test_who_asks_again_right_after_a_loss_waits_for_the_bus_and_lets_the_loop_go_on() -> None:
    async with Group() as tasks:
        made = Bus(tasks, "unix:path=/none", lambda end: None)
        made._connection = None
        made._ready.set()
        call = Call("ListUnits")
        with pytest.raises(BusLost):
            await made.call(call)
        with pytest.raises(KeepfleetError, match=r"no answer in 0\.01 s"):
            await made.call(call, 0.01)


async def test_a_call_that_is_cancelled_before_it_has_gone_sends_no_other_files_than_its_own(place: Path) -> None:
    (place / "its-own").write_text("its own")
    (place / "another").write_text("another")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place / "bus"))
        listener.listen()
        connection = Connection(f"unix:path={place}/bus", lambda _: None, files=True)
        bus, _ = listener.accept()
    with bus:
        bus.setblocking(False)
        filled = asyncio.create_task(connection.call("a.b", "/", "a.b", "Fill", "s", ["x" * 4_000_000]))
        number = os.open(place / "its-own", os.O_RDONLY)
        call = asyncio.create_task(connection.call("a.b", "/", "a.b", "Pass", "h", [0], [number]))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        os.close(number)
        another = os.open(place / "another", os.O_RDONLY)
        assert another == number
        files: list[int] = []
        while not files:
            with suppress(BlockingIOError):
                _, files, _, _ = socket.recv_fds(bus, 1 << 16, 1)
            await asyncio.sleep(0)
        assert os.read(files[0], 16) == b"its own"
        for file in (another, *files):
            os.close(file)
        connection.end()
        with pytest.raises(BusLost):
            await filled
