"""Work in units of its own: one transient unit each, its files passed as descriptors, its end awaited by signal.

A connection to the bus of its own, which passes descriptors: what is asked for keeps does not wait behind it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from keep_manager.systemd import replies
from keep_manager.systemd.bus import Bus, Call, ReplyError, array_of
from keep_manager.systemd.connection import BusLost
from keep_manager.systemd.properties import Property
from keep_manager.systemd.replies import JobWait, JobWaits
from keep_manager.tasks import Group
from keep_protocol.compiling import End
from keep_protocol.errors import ErrorKind, KeepfleetError

LOG = logging.getLogger("keepfleet.units")
QUEUE_SECONDS = 15.0
"""For systemd to take a job, or to stop a unit: TimeoutStopSec= is 2 s, the rest is for a busy PID 1."""
_KILLED = (2, 3)
"""ExecMainCode=: CLD_KILLED, CLD_DUMPED (man 2 waitid); the status is then a signal's number."""
_SERVICE = "org.freedesktop.systemd1.Service"


def end_of(result: object, code: object, status: object) -> tuple[End, int]:
    """How a unit ended, by its properties Result, ExecMainCode and ExecMainStatus. Pure."""
    number = status if isinstance(status, int) else -1
    if result == "timeout":
        return End.TIMEOUT, number
    if result == "oom-kill":
        return End.MEMORY, number
    return (End.KILLED if code in _KILLED else End.EXITED), number


class Oneshots:
    """Units of one systemd instance that end by themselves, on the bus at `address`."""

    def __init__(self, tasks: Group, address: str) -> None:
        self._tasks = tasks
        self._jobs = JobWaits()
        self._bus = Bus(tasks, address, self._jobs.ended, files=True)
        self._bus.on_return = self._returned

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._bus!r}, {len(self._jobs)} awaited)"

    async def open(self) -> None:
        """Connects. Raises KeepfleetError(UNAVAILABLE)."""
        await self._bus.open()

    async def close(self) -> None:
        """Ends the connection."""
        await self._bus.close()

    async def run_unit(
        self,
        unit: str,
        properties: tuple[Property, ...],
        files: tuple[int, int, int],
        seconds: float,
        queued: Callable[[], object] = lambda: None,
    ) -> tuple[End, int] | None:
        """Runs one unit to its end, for `seconds` at most, with its standard input, output and error.

        None where it ended with 0, else how. What is left of an earlier one by this name is ended first; this one is,
        too, where the caller is cancelled. `queued` is called when systemd has it, and its files. Raises
        KeepfleetError: CONFIGURATION where the units are not installed.
        """
        call = Call("StartTransientUnit", "ssa(sv)a(sa(sv))", (unit, "fail", array_of(properties), []), files=files)
        ended = False
        try:
            with self._jobs.expect(unit) as wait:
                job = await self._queue(call, unit, f"run {unit}")
                queued()
                ended = await self._until_ended(wait, job, unit, seconds + QUEUE_SECONDS)
            if not ended:
                return End.TIMEOUT, 0
            return await self._end(unit)
        finally:
            if not ended:
                await self.stop(unit)
            await self._forget(unit)

    async def clear_units(self, pattern: str) -> list[str]:
        """Ends every unit of that pattern, of a manager that has gone, and has systemd forget it; which those were.

        Raises KeepfleetError.
        """
        reply = await self._ask(Call("ListUnitsByPatterns", "asas", ([], [pattern])), f"list {pattern}")
        units = [str(row[0]) for row in reply[0]] if isinstance(reply[0], list) else []
        for unit in units:
            await self.stop(unit)
            await self._forget(unit)
        return units

    async def set_properties(self, unit: str, properties: tuple[Property, ...]) -> None:
        """Changes a unit that runs. Raises KeepfleetError, NOT_FOUND too."""
        await self._ask(Call("SetUnitProperties", "sba(sv)", (unit, True, array_of(properties))), f"change {unit}")

    async def _queue(self, call: Call, unit: str, what: str) -> str | None:
        """The job's path; None when the connection broke and the unit is there: its end is found by looking."""
        for last in (False, True):
            try:
                return str((await self._bus.call(call, QUEUE_SECONDS))[0])
            except BusLost:
                if await self._state(unit) is not None:
                    self._jobs.doubt()
                    return None
            except ReplyError as error:
                failure = replies.translate(error.name, error.text, what)
                if failure.kind is not ErrorKind.CONFLICT or last:
                    raise failure from error
                LOG.info("ending what is left of an earlier %s", unit)
                await self.stop(unit)
                await self._forget(unit)
        raise KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot {what}: the connection to systemd broke twice")

    async def _until_ended(self, wait: JobWait, queued: str | None, unit: str, seconds: float) -> bool:
        """Whether the unit's job has ended in time."""
        try:
            async with asyncio.timeout(seconds):
                while await wait.result(queued) is None:
                    if await self._state(unit) not in ("activating", "deactivating", "reloading"):
                        break
        except TimeoutError:
            return False
        return True

    async def _end(self, unit: str) -> tuple[End, int] | None:
        """How it ended; None where that was well: systemd forgets such units immediately."""
        path = replies.unit_path(unit)
        try:
            found = [
                await self._property(path, _SERVICE, name) for name in ("Result", "ExecMainCode", "ExecMainStatus")
            ]
        except KeepfleetError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
            return None
        end = end_of(*found)
        return None if end == (End.EXITED, 0) else end

    async def _state(self, unit: str) -> str | None:
        """The unit's ActiveState; None where systemd does not have it. Raises KeepfleetError."""
        reply = await self._ask(Call("ListUnitsByPatterns", "asas", ([], [unit])), f"look at {unit}")
        rows = reply[0] if isinstance(reply[0], list) else []
        return str(rows[0][3]) if rows else None

    async def _property(self, path: str, interface: str, name: str) -> object:
        call = Call("Get", "ss", (interface, name), path, "org.freedesktop.DBus.Properties")
        return getattr((await self._ask(call, f"look at {path}"))[0], "value", None)

    async def stop(self, unit: str) -> None:
        """Ends the unit and waits for that; what cannot be ended is logged, and ends at its own time limit."""
        try:
            with self._jobs.expect(unit) as wait:
                queued = str((await self._ask(Call("StopUnit", "ss", (unit, "replace")), f"stop {unit}"))[0])
                await self._until_ended(wait, queued, unit, QUEUE_SECONDS)
        except KeepfleetError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                LOG.warning("%s", error.message)

    async def _forget(self, unit: str) -> None:
        """Clears a failed state, which would keep the unit's name taken (man systemctl, reset-failed)."""
        try:
            await self._ask(Call("ResetFailedUnit", "s", (unit,)), f"make systemd forget {unit}")
        except KeepfleetError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                LOG.warning("%s", error.message)

    async def _ask(self, call: Call, what: str) -> list[object]:
        """The reply to a call that may be made twice. Raises KeepfleetError."""
        return await self._bus.ask(call, what, QUEUE_SECONDS)

    def _returned(self) -> None:
        if len(self._jobs):
            self._tasks.start(self._look_again(), name="units' resync")

    async def _look_again(self) -> None:
        """After signals may have been lost: subscribes, because systemd reports a job's end only to the connection
        that queued it or to subscribers, and has every wait look at its unit."""
        for member in ("Subscribe", "Unsubscribe"):
            try:
                await self._bus.call(Call(member))
            except (ReplyError, BusLost, KeepfleetError) as error:
                LOG.debug("%s: %s", member, error)
            self._jobs.doubt()
            await self._jobs.drained()
