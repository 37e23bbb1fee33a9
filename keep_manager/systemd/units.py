"""Keeps as systemd units: start, stop, list and look, each with a deadline and its result awaited by signal."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence

from keep_manager.failpoints import Failpoint, reach
from keep_manager.model import UnitEnd, UnitState
from keep_manager.systemd import journal, replies
from keep_manager.systemd.bus import CALL_SECONDS, Bus, BusLost, Call, ReplyError, string_lists, variant
from keep_manager.systemd.fields import FieldFiles
from keep_manager.systemd.jobs import JobWaits
from keep_manager.systemd.properties import keep_properties, spec_in
from keep_manager.systemd.replies import Aim
from keep_manager.tasks import Group
from keep_protocol.constants import UNIT_PATTERN, unit_name
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.spec import KeepSpec

LOG = logging.getLogger("keepfleet.units")
STOP_SECONDS = 20.0
"""The unit's TimeoutStopSec is 5 s, then SIGKILL; the rest is for a busy PID 1."""


TEMPLATE = "keep@.service"
"""Keeps are made without a file of this name: one that is there, or a mask, makes systemd refuse each of them."""
NO_SPEC = KeepSpec()


class SystemdUnits:
    """The keeps of one systemd instance, on the bus at `address`; `runtime_root` is /run or $XDG_RUNTIME_DIR."""

    def __init__(self, tasks: Group, address: str, instance: str, runtime_root: str) -> None:
        self._tasks = tasks
        self._bus = Bus(tasks, address, self._signal)
        self._bus.on_return = self._returned
        self._address, self._instance = address, instance
        self._directory = f"{runtime_root}/keepfleet"
        self._private = f"{runtime_root}/private/keepfleet"
        self._fields = FieldFiles(runtime_root)
        self._jobs = JobWaits()
        self._resync: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"SystemdUnits({self._instance}, {self._bus!r}, {len(self._jobs)} jobs awaited)"

    async def open(self) -> None:
        """Connects. Raises KeepfleetError(UNAVAILABLE)."""
        await self._bus.open()

    async def close(self) -> None:
        """Ends the connection. Units are untouched."""
        if self._resync is not None:
            self._resync.cancel()
        await self._bus.close()

    def kuuids(self) -> set[int]:
        """The keeps that have a runtime directory, which systemd makes before a loader runs and removes after it."""
        found: set[int] = set()
        for directory in (self._directory, self._private):
            try:
                found.update(int(name) for name in os.listdir(directory) if name.isdecimal())
            except FileNotFoundError:
                continue
        return found

    async def start(self, kuuid: int, seconds: float, spec: KeepSpec = NO_SPEC) -> None:
        """Makes the unit of the keep that `spec` describes, and waits until its loader has said READY.

        Raises KeepfleetError: CONFLICT when the unit exists, KEEP_FAILED with evidence when it does not get ready in
        `seconds`, CONFIGURATION when the keep units are not installed, or masked. The caller must then `stop` it.
        """
        unit = unit_name(kuuid)
        what = f"start {unit}"
        properties = [[name, variant(signature, value)] for name, signature, value in keep_properties(kuuid, spec)]
        call = Call("StartTransientUnit", "ssa(sv)a(sa(sv))", (unit, "fail", properties, []))
        try:
            async with asyncio.timeout(seconds):
                result = await self._job(kuuid, call, Aim.START, what, spec)
        except TimeoutError:
            result = "timeout"
        if result != "done":
            raise replies.failure(result, what, await journal.last_lines(unit, self._instance))

    async def stop(self, kuuid: int) -> None:
        """Ends the keep's unit, waits until it has, and makes systemd forget it.

        Raises KeepfleetError: NOT_FOUND when there is no such unit, KEEP_FAILED when it does not end.
        """
        unit = unit_name(kuuid)
        what = f"stop {unit}"
        try:
            async with asyncio.timeout(STOP_SECONDS):
                result = await self._job(kuuid, Call("StopUnit", "ss", (unit, "replace")), Aim.STOP, what)
        except TimeoutError:
            result = "timeout"
        except KeepfleetError as error:
            if error.kind is ErrorKind.NOT_FOUND:
                self._fields.remove(kuuid)
            raise
        if result not in ("done", "canceled"):
            raise replies.failure(result, what, await journal.last_lines(unit, self._instance))
        await self._forget(unit)
        self._fields.remove(kuuid)

    async def listed(self) -> list[UnitState]:
        """Every keep's unit that systemd has; tidies up after those it had. Raises KeepfleetError."""
        before = self._fields.kuuids()
        states = await self._list(UNIT_PATTERN)
        for kuuid in before - {state.kuuid for state in states}:
            self._fields.remove(kuuid)
        return states

    async def look(self, kuuid: int) -> UnitState | None:
        """The keep's unit as it is now, or None; tidies up after one that has gone. Raises KeepfleetError."""
        states = await self._list(unit_name(kuuid))
        if not states:
            self._fields.remove(kuuid)
        return states[0] if states else None

    async def spec(self, kuuid: int) -> KeepSpec | None:
        """What the unit says the keep is; None where it says nothing that can be read. Raises KeepfleetError."""
        unit = unit_name(kuuid)
        return spec_in(await self._property(await self._path(unit), "Service", "Environment", unit), unit)

    async def specs(self, kuuids: Sequence[int]) -> Mapping[int, KeepSpec | None]:
        """What each of these units says its keep is, as `spec` does; those that have gone are left out. Raises
        KeepfleetError."""
        paths = {replies.unit_path(unit_name(kuuid)): kuuid for kuuid in kuuids}
        environments: Mapping[str, list[str]] = {}
        try:
            environments = await asyncio.to_thread(string_lists, self._address, list(paths), _SERVICE, "Environment")
        except (OSError, ValueError, KeyError) as error:
            LOG.info("cannot read the keeps' units together, reading one by one: %s", error)
        found = {paths[path]: spec_in(value, unit_name(paths[path])) for path, value in environments.items()}
        for kuuid in kuuids:
            if kuuid not in found:
                try:
                    found[kuuid] = await self.spec(kuuid)
                except KeepfleetError as error:
                    if error.kind is not ErrorKind.NOT_FOUND:
                        raise
        return found

    async def end(self, kuuid: int) -> UnitEnd:
        """How the unit's main process ended last; nothing is known of a unit that has gone."""
        unit = unit_name(kuuid)
        try:
            path = await self._path(unit)
            result, status, restarts, since = [
                await self._property(path, interface, name, unit)
                for interface, name in (
                    ("Service", "Result"),
                    ("Service", "ExecMainStatus"),
                    ("Service", "NRestarts"),
                    ("Unit", "InactiveEnterTimestampMonotonic"),
                )
            ]
        except KeepfleetError as error:
            LOG.debug("%s", error.message)
            return UnitEnd()
        return replies.unit_end(result, status, restarts, since)

    async def _path(self, unit: str) -> str:
        """The unit's object. Raises KeepfleetError(NOT_FOUND)."""
        return str((await self._ask(Call("GetUnit", "s", (unit,)), f"look at {unit}"))[0])

    async def _property(self, path: str, interface: str, name: str, unit: str) -> object:
        call = Call("Get", "ss", (f"org.freedesktop.systemd1.{interface}", name), path, _PROPERTIES)
        return getattr((await self._ask(call, f"look at {unit}"))[0], "value", None)

    async def _list(self, pattern: str) -> list[UnitState]:
        reply = await self._ask(Call("ListUnitsByPatterns", "asas", ([], [pattern])), "list the keeps' units")
        return replies.unit_states(reply[0])

    async def _ask(self, call: Call, what: str) -> list[object]:
        """The reply to a call that may be made twice; it is, each time the connection breaks."""
        try:
            async with asyncio.timeout(CALL_SECONDS):
                while True:
                    try:
                        return await self._bus.call(call)
                    except BusLost as lost:
                        LOG.debug("asking again, the bus broke: %s", lost)
        except ReplyError as error:
            raise replies.translate(error.name, error.text, what) from error
        except TimeoutError:
            raise KeepfleetError(
                ErrorKind.UNAVAILABLE, f"cannot {what}: systemd has not answered in {CALL_SECONDS:g} s"
            ) from None

    async def _job(self, kuuid: int, call: Call, aim: Aim, what: str, spec: KeepSpec | None = None) -> str:
        """Queues a job and returns its result; `spec` is of the unit that the job makes."""
        with self._jobs.expect(unit_name(kuuid)) as wait:
            job = await self._queue(kuuid, call, aim, what, spec)
            reach(Failpoint.CREATE_AFTER_CALL if aim is Aim.START else Failpoint.REMOVE_AFTER_CALL)
            while True:
                result = await wait.result(job) or replies.settled(await self.look(kuuid), aim)
                if result is not None:
                    return result

    async def _queue(self, kuuid: int, call: Call, aim: Aim, what: str, spec: KeepSpec | None) -> str | None:
        """The job's path; None when the connection broke and the unit shows that the call had arrived.

        Signals may be lost then, too: `_look_again` makes the wait look, as `self._jobs` holds it already.
        """
        lost = False
        while True:
            try:
                return str((await self._bus.call(call))[0])
            except BusLost:
                lost = True
                if aim is Aim.START and await self._made(kuuid, spec):
                    return None
            except ReplyError as error:
                failure = replies.translate(error.name, error.text, what)
                if lost and aim is Aim.STOP and failure.kind is ErrorKind.NOT_FOUND:
                    self._jobs.doubt()
                    return None
                if aim is Aim.START and failure.kind is ErrorKind.CONFLICT:
                    # It may have arrived before the connection broke, and after the unit was looked at.
                    if lost and await self._made(kuuid, spec):
                        self._jobs.doubt()
                        return None
                    failure = await self._refusal(kuuid, what, failure)
                raise failure from error

    async def _made(self, kuuid: int, spec: KeepSpec | None) -> bool:
        """Whether the unit is the one that our own call made: what it says of the keep has the moment in it."""
        state = await self.look(kuuid)
        if state is None or state.load != "loaded":
            return False
        try:
            return await self.spec(kuuid) == spec
        except KeepfleetError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
            return False

    async def _refusal(self, kuuid: int, what: str, failure: KeepfleetError) -> KeepfleetError:
        """Why systemd says that a unit exists: it does, or the template is masked or has a file of its own."""
        state = await self.look(kuuid)
        if state is not None and state.load == "loaded":
            return failure
        try:
            file = (await self._ask(Call("GetUnitFileState", "s", (TEMPLATE,)), f"look at {TEMPLATE}"))[0]
        except KeepfleetError:
            return failure
        return replies.not_pristine(str(file), TEMPLATE, what)

    async def _forget(self, unit: str) -> None:
        """Clears a failed state, which would keep the unit's name taken (man systemctl, reset-failed)."""
        try:
            await self._ask(Call("ResetFailedUnit", "s", (unit,)), f"make systemd forget {unit}")
        except KeepfleetError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                LOG.warning("%s", error.message)

    def _signal(self, member: str, body: list[object]) -> None:
        if member == "JobRemoved":
            end = replies.job_end(body)
            if end is not None:
                self._jobs.ended(end)

    def _returned(self) -> None:
        if self._resync is not None:
            self._resync.cancel()
        self._resync = self._tasks.start(self._look_again(), name="resync")

    async def _look_again(self) -> None:
        """After signals may have been lost: subscribes, because systemd reports a job's end only to the connection
        that queued it or to subscribers, and makes every wait look at its unit. Unsubscribes when they are done."""
        if not len(self._jobs):
            return
        await self._subscription("Subscribe")
        self._jobs.doubt()
        await self._jobs.drained()
        await self._subscription("Unsubscribe")

    async def _subscription(self, member: str) -> None:
        """Subscribe or Unsubscribe. Answered with an error when it is so already, and void when the bus goes away
        again, which calls `_look_again` again."""
        try:
            await self._bus.call(Call(member))
        except (ReplyError, BusLost, KeepfleetError) as error:
            LOG.debug("%s: %s", member, error)


_PROPERTIES = "org.freedesktop.DBus.Properties"
_SERVICE = "org.freedesktop.systemd1.Service"
