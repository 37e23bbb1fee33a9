"""systemd over D-Bus, for the floor: the same call in the same way as the manager makes it, by its connection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from types import TracebackType
from typing import Any, TypeVar

from benchmarks.measuring import MS, MeasurementFailed
from keep_manager.systemd.connection import BUS, BUS_PATH, BusLost, Connection
from keep_manager.systemd.message import ERROR, Message, Variant

ADDRESS = "unix:path=/run/dbus/system_bus_socket"
SYSTEMD, PATH = "org.freedesktop.systemd1", "/org/freedesktop/systemd1"
MANAGER = f"{SYSTEMD}.Manager"
NO_SUCH_UNIT = f"{SYSTEMD}.NoSuchUnit"
CALL_SECONDS = 60.0
"""Even the last of 200 units that are stopped concurrently has its turn within seconds."""
MAX_CALLS = 32
"""A quarter of what the bus lets one connection have pending; nothing here needs more at a time."""
Property = tuple[str, Variant]
Result = TypeVar("Result")


class NotLoaded(MeasurementFailed):
    """systemd knows no such unit."""


def slice_of(name: str) -> Property:
    """The slice a unit is to live in."""
    return "Slice", Variant("s", name)


def simple_service(program: str, *arguments: str) -> list[Property]:
    """A service with nothing but its program, started once that is executed."""
    return [
        ("Type", Variant("s", "exec")),
        ("ExecStart", Variant("a(sasb)", [[program, [program, *arguments], False]])),
    ]


async def _in_time(waited: Awaitable[Result], what: str) -> Result:
    try:
        async with asyncio.timeout(CALL_SECONDS):
            return await waited
    except TimeoutError:
        raise MeasurementFailed(f"{what} has not ended in {CALL_SECONDS:g} s") from None


class Systemd:
    """The system's service manager; a context manager that owns its connection. Not for more than one thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._ended: dict[str, str] = {}
        self._waiting: dict[str, asyncio.Future[str]] = {}
        self._places = asyncio.Semaphore(MAX_CALLS)

    def __repr__(self) -> str:
        return f"Systemd({len(self._waiting)} jobs awaited)"

    def __enter__(self) -> Systemd:
        self._loop.run_until_complete(self._connect())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bus.end()
        self._loop.close()

    async def _connect(self) -> None:
        self._bus = Connection(ADDRESS, self._received)
        await self._bus.open()
        rule = f"type='signal',sender='{SYSTEMD}',interface='{MANAGER}',member='JobRemoved',path='{PATH}'"
        await self._bus.call(BUS, BUS_PATH, BUS, "AddMatch", "s", (rule,))

    def _received(self, message: Message) -> None:
        """systemd reports a job's end to its caller, without Subscribe(); the bus wants a match even so."""
        if message.member == "JobRemoved":
            _, job, _, result = (str(word) for word in message.body())
            future = self._waiting.pop(job, None)
            if future is None:
                self._ended[job] = result
            elif not future.done():
                future.set_result(result)

    async def _call(self, member: str, signature: str, *body: object) -> list[Any]:
        try:
            reply = await _in_time(self._bus.call(SYSTEMD, PATH, MANAGER, member, signature, body), member)
        except BusLost as error:
            raise MeasurementFailed(f"{member}: the bus has gone") from error
        if reply.error_name == NO_SUCH_UNIT:
            raise NotLoaded(f"{member}: {reply.body()}")
        if reply.type == ERROR:
            raise MeasurementFailed(f"{member}: {reply.body()}")
        return reply.body()

    async def _job(self, member: str, signature: str, unit: str, *body: object) -> None:
        async with self._places:
            job = str((await self._call(member, signature, unit, *body))[0])
            result = self._ended.pop(job, None)
            if result is None:
                future = self._waiting[job] = self._loop.create_future()
                result = await _in_time(future, f"the job of {unit}")
        if result != "done":
            raise MeasurementFailed(f"{member} {unit}: the job ended as {result!r}")

    async def _start(self, unit: str, properties: Sequence[Property]) -> None:
        shown = [[name, value] for name, value in properties]
        await self._job("StartTransientUnit", "ssa(sv)a(sa(sv))", unit, "fail", shown, [])

    def start(self, unit: str, properties: Sequence[Property]) -> float:
        """Starts a transient unit; the milliseconds until its job was done. Raises MeasurementFailed."""
        began = time.perf_counter()
        self._loop.run_until_complete(self._start(unit, properties))
        return MS * (time.perf_counter() - began)

    def start_all(self, units: Sequence[tuple[str, Sequence[Property]]], at_once: int) -> float:
        """Starts all, at most `at_once` at the same time; the seconds until the last job was done."""
        began = time.perf_counter()
        self._loop.run_until_complete(self._start_all(units, at_once))
        return time.perf_counter() - began

    async def _start_all(self, units: Sequence[tuple[str, Sequence[Property]]], at_once: int) -> None:
        places = asyncio.Semaphore(at_once)

        async def one(unit: str, properties: Sequence[Property]) -> None:
            async with places:
                await self._start(unit, properties)

        await asyncio.gather(*(one(unit, properties) for unit, properties in units))

    def stop(self, *units: str) -> None:
        """Stops units and waits until they have ended; one that has failed is forgotten, one that is gone no error."""

        async def stop_one(unit: str) -> None:
            try:
                await self._job("StopUnit", "ss", unit, "replace")
                await self._call("ResetFailedUnit", "s", unit)
            except NotLoaded:
                pass

        async def stop_all() -> None:
            await asyncio.gather(*(stop_one(unit) for unit in units))

        self._loop.run_until_complete(stop_all())

    def processes(self, unit: str) -> list[int]:
        """The processes in a unit's control group."""
        rows = self._loop.run_until_complete(self._call("GetUnitProcesses", "s", unit))[0]
        return [int(pid) for _, pid, _ in rows]

    def units(self, pattern: str) -> list[str]:
        """The units that are loaded and whose name matches."""
        rows = self._loop.run_until_complete(self._call("ListUnitsByPatterns", "asas", [], [pattern]))[0]
        return [str(row[0]) for row in rows]
