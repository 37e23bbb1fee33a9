"""What systemd's replies and signals mean, decided from data, and the waits for the ends of its jobs. No I/O: who has
the connection feeds a wait with signals, and awaits it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum

from keep_manager.model import UnitEnd, UnitState
from keep_protocol.constants import kuuid_of_unit
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record


class JobEnd(Record):
    """A job has left systemd's queue: its object path, its unit, and "done", "failed", "timeout", "canceled", …"""

    job: str
    unit: str
    result: str


class Aim(Enum):
    """What a job is to bring a unit to."""

    START = "start"
    STOP = "stop"


def job_end(body: Sequence[object]) -> JobEnd | None:
    """The meaning of Manager.JobRemoved(u id, o job, s unit, s result), or None for another shape."""
    match body:
        case [int(), str(job), str(unit), str(result)]:
            return JobEnd(job, unit, result)
    return None


def unit_path(unit: str) -> str:
    """The object of a unit (man org.freedesktop.systemd1, "Unit Objects"): what is no letter or digit is `_` and two
    hexadecimal digits."""
    label = "".join(c if c.isascii() and c.isalnum() else f"_{ord(c):02x}" for c in unit)
    return f"/org/freedesktop/systemd1/unit/{label}"


def unit_states(rows: object) -> list[UnitState]:
    """The keeps in a reply of ListUnitsByPatterns, a(ssssssouso). Units that are not keeps are left out."""
    states: list[UnitState] = []
    for row in rows if isinstance(rows, list) else []:
        match row:
            case [str(name), _, str(load), str(active), str(sub), _, _, _, str(job), _]:
                kuuid = kuuid_of_unit(name)
                if kuuid is not None:
                    states.append(UnitState(kuuid, load, active, sub, job))
    return states


def settled(state: UnitState | None, aim: Aim) -> str | None:
    """The result a lost job must have had, judged by the unit as it is now; None while that is still open."""
    if state is not None and state.job:
        return "canceled" if aim is Aim.START and state.job == "stop" else None
    if state is None or state.load != "loaded" or state.active in ("inactive", "failed"):
        return "done" if aim is Aim.STOP else "failed"
    return "done" if aim is Aim.START and state.active in ("active", "reloading") else None


_KINDS = {
    "org.freedesktop.systemd1.UnitExists": ErrorKind.CONFLICT,
    "org.freedesktop.systemd1.NoSuchUnit": ErrorKind.NOT_FOUND,
    "org.freedesktop.systemd1.BadUnitSetting": ErrorKind.CONFIGURATION,
    "org.freedesktop.systemd1.LoadFailed": ErrorKind.CONFIGURATION,
    "org.freedesktop.systemd1.UnitMasked": ErrorKind.CONFIGURATION,
    "org.freedesktop.systemd1.ShuttingDown": ErrorKind.UNAVAILABLE,
    "org.freedesktop.systemd1.TransactionIsDestructive": ErrorKind.UNAVAILABLE,
    "org.freedesktop.DBus.Error.AccessDenied": ErrorKind.SYSTEMD,
    "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired": ErrorKind.SYSTEMD,
    "org.freedesktop.DBus.Error.LimitsExceeded": ErrorKind.TOO_MANY,
    "org.freedesktop.DBus.Error.NoReply": ErrorKind.UNAVAILABLE,
    "org.freedesktop.DBus.Error.ServiceUnknown": ErrorKind.UNAVAILABLE,
    "org.freedesktop.DBus.Error.NameHasNoOwner": ErrorKind.UNAVAILABLE,
    "org.freedesktop.DBus.Error.Disconnected": ErrorKind.UNAVAILABLE,
}


def translate(name: str, text: str, what: str) -> KeepfleetError:
    """The error systemd answered, by its D-Bus name, as ours; `what` completes "cannot …"."""
    kind = _KINDS.get(name, ErrorKind.SYSTEMD)
    step = ""
    if name == "org.freedesktop.systemd1.UnitMasked":
        step = "; unmask it: systemctl unmask keep@.service"
    elif kind is ErrorKind.CONFIGURATION:
        step = "; the keep units are not installed: run keepctl install"
    return KeepfleetError(kind, f"cannot {what}: systemd says: {text or name}{step}")


def not_pristine(file_state: str, template: str, what: str) -> KeepfleetError:
    """The error where systemd says that a new keep's unit exists, as its template has the file state `file_state`."""
    if file_state.startswith("masked"):
        why = f"{template} is masked; unmask it: systemctl unmask {template}"
    else:
        why = f"there is a file {template} ({file_state}), and keeps are made without one; remove that file"
    return KeepfleetError(ErrorKind.CONFIGURATION, f"cannot {what}: {why}")


def unit_end(result: object, status: object, restarts: object, inactive_usec: object) -> UnitEnd:
    """How a unit ended, of its properties; what has another shape counts as not known."""
    since = inactive_usec / 1e6 if isinstance(inactive_usec, int) and inactive_usec else None
    return UnitEnd(
        result if isinstance(result, str) else "",
        status if isinstance(status, int) else 0,
        restarts if isinstance(restarts, int) else 0,
        since,
    )


_RESULTS = {
    "failed": (ErrorKind.KEEP_FAILED, "its loader failed"),
    "timeout": (ErrorKind.KEEP_FAILED, "it was not ready in time"),
    "canceled": (ErrorKind.KEEP_FAILED, "it was removed meanwhile"),
    "dependency": (ErrorKind.KEEP_FAILED, "a unit it needs failed"),
}


def failure(result: str, what: str, evidence: tuple[str, ...]) -> KeepfleetError:
    """The error of a job that ended with `result`, another than "done"."""
    kind, why = _RESULTS.get(result, (ErrorKind.SYSTEMD, f"the job ended as {result!r}"))
    return KeepfleetError(kind, f"cannot {what}: {why}", evidence)


class JobWait:
    """One caller's wait for a job of one unit.

    It is made before the call that queues the job, because the job's end can arrive together with the call's reply.
    """

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self._results: dict[str, str] = {}
        self._doubt = False
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"JobWait({self.unit}, {self._results}, doubt={self._doubt})"

    def ended(self, end: JobEnd) -> None:
        """Notes the end of a job of this unit's."""
        self._results[end.job] = end.result
        self._changed.set()

    def doubt(self) -> None:
        """Notes that signals may have been lost."""
        self._doubt = True
        self._changed.set()

    async def result(self, job: str | None) -> str | None:
        """How `job` ended (None: any job of the unit's), or None once each time signals may have been lost."""
        while True:
            if job is None and self._results:
                return next(iter(self._results.values()))
            if job in self._results:
                return self._results[job]
            if self._doubt:
                self._doubt = False
                return None
            self._changed.clear()
            await self._changed.wait()


class JobWaits:
    """Every wait under way."""

    def __init__(self) -> None:
        self._waits: dict[str, set[JobWait]] = {}
        self._empty = asyncio.Event()

    def __repr__(self) -> str:
        return f"JobWaits({sorted(self._waits)})"

    async def drained(self) -> None:
        """Returns when no wait is left."""
        while self._waits:
            self._empty.clear()
            await self._empty.wait()

    def __len__(self) -> int:
        return sum(len(waits) for waits in self._waits.values())

    @contextmanager
    def expect(self, unit: str) -> Iterator[JobWait]:
        """A wait for jobs of `unit`, from now until the block ends."""
        wait = JobWait(unit)
        self._waits.setdefault(unit, set()).add(wait)
        try:
            yield wait
        finally:
            self._waits[unit].discard(wait)
            if not self._waits[unit]:
                del self._waits[unit]
            if not self._waits:
                self._empty.set()

    def ended(self, end: JobEnd) -> None:
        """Passes the end of a job on to those who wait for it."""
        for wait in self._waits.get(end.unit, ()):
            wait.ended(end)

    def doubt(self) -> None:
        """Makes every wait look at its unit: signals may have been lost."""
        for waits in self._waits.values():
            for wait in waits:
                wait.doubt()
