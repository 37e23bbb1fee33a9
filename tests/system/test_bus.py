"""The adapter to systemd on a real PID 1: what it does under load, and when bus or systemd go away."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator

import pytest

from keep_manager.model import UnitState
from keep_manager.systemd.bus import Call
from keep_manager.systemd.connection import BusLost
from keep_manager.systemd.message import Message
from keep_manager.systemd.units import SystemdUnits
from keep_manager.tasks import Group
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.spec import KeepSpec
from tests.fakes.real_systemd import RealSystemd
from tools.sandbox.sandbox import Sandbox

ENOUGH = 30.0
SOON = 20.0
"""Bus and systemd are back after 0.3 s; nothing may wait longer than this."""


@pytest.fixture(scope="module")
def systemd() -> Iterator[RealSystemd]:
    """A systemd of this module's own: its bus is killed, which no other test should have to bear."""
    with Sandbox(f"bus-{os.getpid()}") as sandbox:
        yield RealSystemd(sandbox)


@pytest.fixture
async def units(systemd: RealSystemd) -> AsyncIterator[SystemdUnits]:
    async with Group() as tasks:
        made = SystemdUnits(tasks, systemd.address, "system", systemd.runtime_root)
        await made.open()
        yield made
        await made.close()
    systemd.clear()


async def inside(systemd: RealSystemd, *command: str) -> str:
    return await asyncio.to_thread(systemd.run, *command)


async def kill_bus(systemd: RealSystemd) -> None:
    await inside(systemd, "systemctl", "kill", "--signal=KILL", "dbus.service")


async def test_two_thousand_concurrent_calls_are_all_answered(units: SystemdUnits) -> None:
    answers = await asyncio.gather(*(units.look(5) for _ in range(2000)))
    assert answers == [None] * 2000


FORGED = {
    "org.freedesktop.DBus.NameOwnerChanged": ("string:org.freedesktop.systemd1", "string::1.0", "string:"),
    "org.freedesktop.systemd1.Manager.JobRemoved": (
        "uint32:1", "objpath:/org/freedesktop/systemd1/job/1", "string:keep@33.service", "string:failed",
    ),
}  # fmt: skip


async def test_signals_that_a_user_of_the_host_sends_in_others_names_are_nothing(
    systemd: RealSystemd, units: SystemdUnits
) -> None:
    connection, heard, came = units._bus._connection, list[object](), asyncio.Queue[str]()
    assert connection is not None
    received = connection._on_signal

    def watched(message: Message) -> None:
        received(message)
        came.put_nowait(message.member)

    connection._on_signal = watched
    units._bus._on_end = heard.append
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    for name, words in FORGED.items():
        send = ("dbus-send", "--system", "--type=signal", f"--dest={connection.name}", "/org/freedesktop/systemd1")
        await inside(systemd, *nobody, *send, name, *words)
        assert await asyncio.wait_for(came.get(), ENOUGH) == name.rpartition(".")[2]
    assert units._bus._ready.is_set()
    assert heard == []
    assert await units.look(5) is None


async def test_a_unit_runs_in_its_slice(systemd: RealSystemd, units: SystemdUnits) -> None:
    await units.start(33, ENOUGH)
    shown = await inside(systemd, "systemctl", "show", "keep@33.service", "--property=Slice,SubState,FragmentPath")
    assert "Slice=keep-g01.slice" in shown
    assert "SubState=running" in shown


async def test_nothing_is_left_in_systemd_s_directories_after_a_stop(systemd: RealSystemd, units: SystemdUnits) -> None:
    await units.start(34, ENOUGH)
    await units.stop(34)
    assert await inside(systemd, "find", "/run", "-name", "*34*", "-path", "*keep*") == ""


async def test_the_bus_may_die_between_calls(systemd: RealSystemd, units: SystemdUnits) -> None:
    await units.start(41, ENOUGH)
    await kill_bus(systemd)
    async with asyncio.timeout(SOON):
        assert [state.kuuid for state in await units.listed()] == [41]
        await units.stop(41)
        assert await units.look(41) is None


async def test_a_start_under_way_survives_the_death_of_the_bus(systemd: RealSystemd, units: SystemdUnits) -> None:
    systemd.behave("slow")
    starting = asyncio.create_task(units.start(42, ENOUGH))
    while await units.look(42) is None:  # noqa: ASYNC110 # the moment between queued and ready is what is wanted
        await asyncio.sleep(0)
    await kill_bus(systemd)
    async with asyncio.timeout(SOON):
        await starting
    state = await units.look(42)
    assert state is not None
    assert state.active == "active"


async def test_a_stop_under_way_survives_a_restart_of_the_bus(systemd: RealSystemd, units: SystemdUnits) -> None:
    await units.start(43, ENOUGH)
    stopping = asyncio.create_task(units.stop(43))
    await inside(systemd, "systemctl", "restart", "dbus.service")
    async with asyncio.timeout(SOON):
        await stopping
    assert await units.look(43) is None


async def test_thirty_starts_survive_the_death_of_the_bus(systemd: RealSystemd, units: SystemdUnits) -> None:
    ids = range(5000, 5030)
    starting = asyncio.gather(*(units.start(kuuid, ENOUGH) for kuuid in ids))
    await kill_bus(systemd)
    await starting
    assert {state.kuuid for state in await units.listed() if state.active == "active"} == set(ids)


async def test_the_bus_may_die_again_and_again(systemd: RealSystemd, units: SystemdUnits) -> None:
    for round_number in range(3):
        await kill_bus(systemd)
        async with asyncio.timeout(SOON):
            await units.start(60 + round_number, ENOUGH)


@pytest.mark.parametrize("verb", ["daemon-reload", "daemon-reexec"])
async def test_starts_and_stops_survive_systemd_reloading_itself(
    systemd: RealSystemd, units: SystemdUnits, verb: str
) -> None:
    async def trouble() -> None:
        for _ in range(5):
            await inside(systemd, "systemctl", verb)

    async def life(kuuid: int) -> None:
        await units.start(kuuid, ENOUGH)
        await units.stop(kuuid)

    async with asyncio.timeout(60):
        await asyncio.gather(trouble(), *(life(kuuid) for kuuid in range(7000, 7030)))
    assert systemd.units() == []


async def test_without_the_bus_a_call_fails_in_time_and_with_a_reason(
    units: SystemdUnits, systemd: RealSystemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    await inside(systemd, "systemctl", "stop", "dbus.socket", "dbus.service")
    try:
        with monkeypatch.context() as patch:
            patch.setattr("keep_manager.systemd.units.CALL_SECONDS", 0.3)
            with pytest.raises(KeepfleetError, match=r"systemd has not answered in 0\.3 s"):
                await units.look(5)
    finally:
        await inside(systemd, "systemctl", "start", "dbus.socket")
    async with asyncio.timeout(SOON):
        assert await units.look(5) is None


async def test_a_bus_that_is_not_there_is_said_immediately() -> None:
    async with Group() as tasks:
        units = SystemdUnits(tasks, "unix:path=/nonexistent/bus", "system", "/run")
        with pytest.raises(KeepfleetError, match="cannot reach systemd on unix:path=/nonexistent/bus"):
            await units.open()
        await units.close()


async def test_a_call_that_arrived_before_the_connection_broke_makes_no_second_keep(
    systemd: RealSystemd, units: SystemdUnits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is lost, the unit is not there yet when it is looked at, and the repeated call finds it."""
    call, look = units._bus.call, units.look
    lost: list[Call] = []

    async def answer_lost(what: Call, seconds: float = 10.0) -> list[object]:
        answer = await call(what, seconds)
        if what.member == "StartTransientUnit" and not lost:
            lost.append(what)
            raise BusLost(what.member)
        return answer

    async def not_yet(kuuid: int) -> UnitState | None:
        if len(lost) == 1:
            lost.append(Call("looked"))
            return None
        return await look(kuuid)

    monkeypatch.setattr(units._bus, "call", answer_lost)
    monkeypatch.setattr(units, "look", not_yet)
    spec = KeepSpec(name="web", owner="alice", created_at=1234.5)
    await units.start(4711, ENOUGH, spec)
    assert len(lost) == 2
    assert await units.spec(4711) == spec
    with pytest.raises(KeepfleetError) as caught:
        lost.clear()
        await units.start(4711, ENOUGH, spec.replace(created_at=1234.6))
    assert caught.value.kind is ErrorKind.CONFLICT, "another's"
