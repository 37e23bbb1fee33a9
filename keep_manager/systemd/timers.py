"""The timers of jobs: one transient unit keep-job@NAME.timer each, which starts keep-job@NAME.service when it is time.

That service is installed, and only notifies the manager: what is due is read from the calendar and the job's record, so
that a notification that does not arrive loses nothing. Units made over D-Bus go with the host: a manager that starts
makes them again, and leaves those alone that are as they should be. A connection to the bus of its own.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping
from contextlib import suppress

from keep_manager.systemd import replies
from keep_manager.systemd.bus import CALL_SECONDS, Bus, Call, array_of
from keep_manager.systemd.properties import Property
from keep_manager.systemd.replies import JobWaits
from keep_manager.tasks import Group
from keep_protocol.errors import ErrorKind, KeepfleetError

LOG = logging.getLogger("keepfleet.declared")
PATTERN = "keep-job@*.timer"
_UNIT = re.compile(r"keep-job@([a-z0-9-]{1,63})\.timer")
_WAITS = ("waiting", "running")
"""What a timer does that is as it should be; else its service was masked, or it was stopped by hand."""
ACCURACY_USEC = 1_000_000
"""The manager is woken for it anyway; systemd's own minute would be late by that much."""
_TIMER, _PROPERTIES = "org.freedesktop.systemd1.Timer", "org.freedesktop.DBus.Properties"


def timer_of(name: str) -> str:
    """The timer of the job `name`."""
    return f"keep-job@{name}.timer"


def timer_properties(name: str, event: str) -> tuple[Property, ...]:
    """The transient properties of a job's timer (man systemd.timer), which starts the service of its own name. Pure."""
    return (
        ("Description", "s", f"Timer of the job {name}"),
        ("TimersCalendar", "a(ss)", [["OnCalendar", event]]),
        ("AccuracyUSec", "t", ACCURACY_USEC),
    )


class Timers:
    """The timers of one systemd instance, on the bus at `address`."""

    def __init__(self, tasks: Group, address: str) -> None:
        self._jobs = JobWaits()
        self._bus = Bus(tasks, address, self._jobs.ended)
        self._bus.on_return = self._jobs.doubt

    def __repr__(self) -> str:
        return f"Timers({self._bus!r})"

    async def open(self) -> None:
        """Connects. Raises KeepfleetError(UNAVAILABLE)."""
        await self._bus.open()

    async def close(self) -> None:
        """Ends the connection."""
        await self._bus.close()

    async def apply(self, wanted: Mapping[str, str]) -> None:
        """Has there be a timer for each job, with its event in systemd's own form, and no others. Raises
        KeepfleetError: CONFIGURATION where the units are not installed."""
        there = await self._there()
        for name, event in there.items():
            if wanted.get(name) != event:
                await self._stop(name)
        for name, event in wanted.items():
            if there.get(name) != event:
                await self._start(name, event)

    async def _there(self) -> dict[str, str]:
        """The events of the timers that there are, by job; "" of one that does not wait for its time."""
        reply = await self._ask(Call("ListUnitsByPatterns", "asas", ([], [PATTERN])), "list the timers of jobs")
        found: dict[str, str] = {}
        for row in reply[0] if isinstance(reply[0], list) else []:
            match = _UNIT.fullmatch(str(row[0]))
            if match is not None:
                found[match[1]] = await self._event(match[1]) if row[4] in _WAITS else ""
        return found

    async def _event(self, name: str) -> str:
        unit = timer_of(name)
        call = Call("Get", "ss", (_TIMER, "TimersCalendar"), replies.unit_path(unit), _PROPERTIES)
        try:
            value = getattr((await self._ask(call, f"look at {unit}"))[0], "value", [])
        except KeepfleetError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
            return ""
        return str(value[0][1]) if isinstance(value, list) and len(value) == 1 else ""

    async def _start(self, name: str, event: str) -> None:
        wanted, unit = array_of(timer_properties(name, event)), timer_of(name)
        try:
            await self._ask(
                Call("StartTransientUnit", "ssa(sv)a(sa(sv))", (unit, "replace", wanted, [])), f"start {unit}"
            )
        except KeepfleetError as error:
            if error.kind is not ErrorKind.CONFLICT:  # our own call that was made twice, or another manager's
                raise
        LOG.info("%s waits for %s", unit, event)

    async def _stop(self, name: str) -> None:
        """Ends a timer; systemd has forgotten it when this returns."""
        unit = timer_of(name)
        with suppress(TimeoutError):  # it says of itself at the next look whether it is still there
            async with asyncio.timeout(CALL_SECONDS):
                with self._jobs.expect(unit) as wait:
                    await self._asked_of(unit, "StopUnit", unit, "replace")
                    await wait.result(None)
        await self._asked_of(unit, "ResetFailedUnit", unit)

    async def _asked_of(self, unit: str, member: str, *arguments: str) -> None:
        try:
            await self._ask(Call(member, "s" * len(arguments), arguments), f"stop {unit}")
        except KeepfleetError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise

    async def _ask(self, call: Call, what: str) -> list[object]:
        return await self._bus.ask(call, what, CALL_SECONDS)
