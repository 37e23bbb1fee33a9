"""Keeps as systemd units: start, stop, list and look, each with a deadline and its result awaited by signal."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

from keep_manager.failpoints import Failpoint, reach
from keep_manager.model import UnitEnd, UnitState
from keep_manager.systemd import journal, replies
from keep_manager.systemd.bus import CALL_SECONDS, MANAGER, Bus, Call, ReplyError, array_of, string_lists
from keep_manager.systemd.connection import BusLost
from keep_manager.systemd.fields import FieldFiles
from keep_manager.systemd.properties import (
    claim_properties,
    claimed_in,
    credential_properties,
    keep_properties,
    log_fields,
    narrowed,
    spec_in,
)
from keep_manager.systemd.replies import Aim, JobWaits
from keep_manager.systemd.roots import Roots
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
_GROUPS = "/sys/fs/cgroup"
MEMORY_GROUPS = _GROUPS if os.path.exists(f"{_GROUPS}/cgroup.controllers") else f"{_GROUPS}/memory"
"""Where the control groups that count memory are mounted: version 2 has one hierarchy, 1 one for each controller (man 7
cgroups)."""


class SystemdUnits:
    """The keeps of one systemd instance, on the bus at `address`; `runtime_root` is /run or $XDG_RUNTIME_DIR.

    `roots` says what root a keep gets. Without it units name none, and the installed ones then start nothing.
    """

    def __init__(
        self, tasks: Group, address: str, instance: str, runtime_root: str, roots: Roots | None = None
    ) -> None:
        self._tasks = tasks
        self._jobs = JobWaits()
        self._bus = Bus(tasks, address, self._jobs.ended)
        self._bus.on_return = self._returned
        self._address, self._instance = address, instance
        self._directory = f"{runtime_root}/keepfleet"
        self._private = f"{runtime_root}/private/keepfleet"
        self._fields = FieldFiles(runtime_root)
        self._roots = roots
        self._root_of: dict[int, str] = {}
        self.credentials: Callable[[Iterable[str]], Mapping[str, tuple[str, bool]]] = lambda _: {}
        """Where secrets lie, and whether encrypted; for threads. Raises KeepfleetError."""
        self._groups: str | None = None
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
            except OSError as error:
                why = error.strerror
                raise KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot list the keeps' directories: {why}") from error
        return found

    async def start(self, kuuid: int, seconds: float, spec: KeepSpec = NO_SPEC, *, start_follows: bool = False) -> None:
        """Makes the unit of the keep that `spec` describes, and waits until its loader has said READY; start_follows:
        the loader begins what a start takes before that.

        Raises KeepfleetError: CONFLICT when the unit exists, KEEP_FAILED with evidence when it does not get ready in
        `seconds`, CONFIGURATION when the keep units are not installed, or masked, or no root can be made for it. The
        caller must then `stop` it.
        """
        unit = unit_name(kuuid)
        what = f"start {unit}"
        root = None if self._roots is None else await self._roots.path()
        wanted = keep_properties(kuuid, spec, root, await self._memory_groups(), start_follows=start_follows)
        if spec.credentials:
            wanted += credential_properties(await asyncio.to_thread(self.credentials, spec.credentials))
        call = Call("StartTransientUnit", "ssa(sv)a(sa(sv))", (unit, "fail", array_of(wanted), []))
        try:
            async with asyncio.timeout(seconds):
                result = await self._job(kuuid, call, Aim.START, what, spec)
        except TimeoutError:
            result = "timeout"
        if result != "done":
            raise replies.failure(result, what, await journal.last_lines(unit, self._instance))
        if root is not None:
            self._root_of[kuuid] = root

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
                self._has_gone(kuuid)
            raise
        if result not in ("done", "canceled"):
            raise replies.failure(result, what, await journal.last_lines(unit, self._instance))
        await self._forget(unit)
        self._has_gone(kuuid)

    async def listed(self) -> list[UnitState]:
        """Every keep's unit that systemd has; tidies up after those it had. Raises KeepfleetError."""
        before = self._fields.kuuids()
        states = await self._list(UNIT_PATTERN)
        for kuuid in before - {state.kuuid for state in states}:
            self._has_gone(kuuid)
        return states

    async def look(self, kuuid: int) -> UnitState | None:
        """The keep's unit as it is now, or None; tidies up after one that has gone. Raises KeepfleetError."""
        states = await self._list(unit_name(kuuid))
        if not states:
            self._has_gone(kuuid)
        return states[0] if states else None

    def _has_gone(self, kuuid: int) -> None:
        self._fields.remove(kuuid)
        self._root_of.pop(kuuid, None)
        if self._roots is not None:
            self._roots.keep_has_gone()

    async def tend_roots(self) -> None:
        """Removes roots as their last keep goes. For ever."""
        if self._roots is not None:
            await self._roots.tend(self._used_roots)

    async def _used_roots(self) -> set[str]:
        """The root of every keep's unit, each asked for once, as it never changes. Raises KeepfleetError."""
        states = await self._list(UNIT_PATTERN)
        for unit in (state for state in states if state.kuuid not in self._root_of):
            try:
                path = await self._path(unit_name(unit.kuuid))
                root = await self._property(path, "Service", "RootDirectory", unit_name(unit.kuuid))
            except KeepfleetError as error:
                if error.kind is not ErrorKind.NOT_FOUND:
                    raise
                continue  # it has gone meanwhile
            self._root_of[unit.kuuid] = str(root)
        return {self._root_of[state.kuuid] for state in states if state.kuuid in self._root_of}

    async def _memory_groups(self) -> str:
        """Where the control groups of this service manager are that count memory. Raises KeepfleetError."""
        if self._groups is None:
            call = Call("Get", "ss", ("org.freedesktop.systemd1.Manager", "ControlGroup"), interface=_PROPERTIES)
            root = str(getattr((await self._ask(call, "ask systemd for its control group"))[0], "value", ""))
            self._groups = f"{MEMORY_GROUPS}{root.rstrip('/')}"
        return self._groups

    async def spec(self, kuuid: int) -> KeepSpec | None:
        """What the unit says the keep is; None where it says nothing that can be read. Raises KeepfleetError."""
        unit = unit_name(kuuid)
        made = spec_in(await self._property(await self._path(unit), "Service", "Environment", unit), unit)
        return await self._as_claimed(kuuid, made)

    async def _as_claimed(self, kuuid: int, made: KeepSpec | None) -> KeepSpec | None:
        """What a keep is whose unit was made with the spec `made`: of a spare, what it has become. Raises
        KeepfleetError, NOT_FOUND too."""
        if made is None or not made.spare:
            return made
        unit = unit_name(kuuid)
        description = await self._property(replies.unit_path(unit), "Unit", "Description", unit)
        try:
            return claimed_in(description) or made
        except KeepfleetError as error:
            LOG.error("%s: only operators may touch it, as nothing says whose it is: %s", unit, error.message)
            return None

    async def claim(self, kuuid: int, spec: KeepSpec) -> None:
        """Makes a spare the keep that `spec` describes, in one step: from then on its unit says so.

        Raises KeepfleetError: NOT_FOUND when the unit has gone, UNAVAILABLE where it is not known whether it is done.
        """
        unit = unit_name(kuuid)
        what = f"claim {unit}"
        properties = array_of(claim_properties(kuuid, spec))
        try:
            await asyncio.to_thread(self._fields.write, kuuid, log_fields(kuuid, spec))
        except OSError as error:
            raise KeepfleetError(ErrorKind.SYSTEMD, f"cannot {what}: its journal fields: {error.strerror}") from error
        await self._ask(Call("SetUnitProperties", "sba(sv)", (unit, True, properties)), what)

    async def narrow(self, kuuid: int, spec: KeepSpec) -> None:
        """Takes from the unit, whose guest runs, the memory that compiling needed. Raises KeepfleetError, NOT_FOUND
        too."""
        unit = unit_name(kuuid)
        now = await self._property(replies.unit_path(unit), "Service", "MemoryMax", unit)
        wanted = narrowed(spec, now if isinstance(now, int) else 0)
        if wanted:
            await self._ask(Call("SetUnitProperties", "sba(sv)", (unit, True, array_of(wanted))), f"narrow {unit}")

    async def settings_mark(self, kuuid: int) -> str:
        """What changes when a new keep's unit would have other settings than that one's has: systemd has read its files
        again, or would have to, or there is another root for keeps. Raises KeepfleetError."""
        unit = unit_name(kuuid)
        call = Call("Get", "ss", (MANAGER, "UnitsLoadTimestampMonotonic"), interface=_PROPERTIES)
        path = replies.unit_path(unit)
        async with Group() as asking:
            reading = asking.start(self._ask(call, "ask systemd when it has read its units"))
            comparing = asking.start(self._property(path, "Unit", "NeedDaemonReload", unit))
            (loaded,), stale = await reading, await comparing
        root = self._root_of.get(kuuid) or await self._property(path, "Service", "RootDirectory", unit)
        current = root if self._roots is None else await self._roots.path()
        return f"{getattr(loaded, 'value', 0)} {stale} {root == current}"

    async def specs(self, kuuids: Sequence[int]) -> Mapping[int, KeepSpec | None]:
        """What each of these units says its keep is, as `spec` does; those that have gone are left out. Raises
        KeepfleetError."""
        paths = {replies.unit_path(unit_name(kuuid)): kuuid for kuuid in kuuids}
        environments: Mapping[str, list[str]] = {}
        try:
            environments = await asyncio.to_thread(string_lists, self._address, list(paths), _SERVICE, "Environment")
        except (OSError, ValueError, KeyError) as error:
            LOG.info("cannot read the keeps' units together, reading one by one: %s", error)
        made = {paths[path]: spec_in(value, unit_name(paths[path])) for path, value in environments.items()}
        found = {kuuid: spec for kuuid, spec in made.items() if spec is None or not spec.spare}
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
            result, status, restarts, since, exited = [
                await self._property(path, interface, name, unit)
                for interface, name in (
                    ("Service", "Result"),
                    ("Service", "ExecMainStatus"),
                    ("Service", "NRestarts"),
                    ("Unit", "InactiveEnterTimestampMonotonic"),
                    ("Service", "ExecMainExitTimestampMonotonic"),  # of a unit that stays active without a process
                )
            ]
        except KeepfleetError as error:
            LOG.debug("%s", error.message)
            return UnitEnd()
        return replies.unit_end(result, status, restarts, since or exited)

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
        """The reply to a call that may be made twice. Raises KeepfleetError."""
        return await self._bus.ask(call, what, CALL_SECONDS)

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
