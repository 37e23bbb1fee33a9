"""Every keep as it is now, in memory: what listing, looking, waiting, counting and events read.

It is fed by the watch and by what the manager itself does, and rebuilt at a start from the units and the loaders that
answer, or of those that do not from the records that they left: nothing in it is lost with the process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from keep_manager.keeps import decide
from keep_manager.keeps.interfaces import Folders, Units
from keep_manager.model import Answer, LoaderGone, UnitEnd, UnitState, missing
from keep_manager.tasks import carried_on
from keep_protocol.constants import unit_name
from keep_protocol.errors import KeepfleetError
from keep_protocol.keep import KeepInfo, KeepReport, merge
from keep_protocol.record import KeepRecord
from keep_protocol.spec import KeepSpec
from keep_protocol.states import State

NO_SPEC = KeepSpec()


@dataclass
class Entry:
    """One keep. spec: None until a keep of the version before has said what it is; report: its loader's latest; since:
    when it reached the phase it is in, in seconds since boot; unit_ended: when its unit failed, or None; passing: its
    unit was on its way from one state to another when it was looked at; resting: it has no process any more;
    has_unit: not of a keep of an earlier boot."""

    spec: KeepSpec | None
    info: KeepInfo
    report: KeepReport | None = None
    since: float = field(default_factory=time.monotonic)
    unit_ended: float | None = None
    removing: bool = False
    passing: bool = False
    resting: bool = False
    has_unit: bool = True
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class View:
    """All keeps of one manager."""

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}
        self.on_change: Callable[[KeepSpec | None], None] = lambda spec: None
        """Called with the spec of a keep that is another than before, or there, or gone."""
        self.on_unfit: Callable[[KeepSpec], None] = lambda spec: None
        """Called with the spec of a keep whose engine did not take the compiled code that came with its start."""

    def __repr__(self) -> str:
        return f"View({len(self._entries)} keeps)"

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, kuuid: int) -> bool:
        return kuuid in self._entries

    def __iter__(self) -> Iterator[KeepInfo]:
        return iter([entry.info for entry in self._entries.values()])

    def entry(self, kuuid: int) -> Entry:
        """All that is known of one keep. Raises KeepfleetError(NOT_FOUND)."""
        try:
            return self._entries[kuuid]
        except KeyError:
            raise missing(kuuid) from None

    def entries(self) -> list[Entry]:
        """All that is known of every keep."""
        return list(self._entries.values())

    def any_living(self) -> bool:
        """Whether there is a keep whose unit has a process."""
        return any(not entry.resting for entry in self._entries.values())

    def find(self, kuuid: int) -> KeepInfo:
        """One keep. Raises KeepfleetError(NOT_FOUND)."""
        return self.entry(kuuid).info

    def begin(self, kuuid: int, spec: KeepSpec | None) -> KeepInfo:
        """There is a keep, whose loader has not said anything yet."""
        known = spec or NO_SPEC
        info = merge(known, decide.starting(kuuid, known), unit_name(kuuid))
        self._entries[kuuid] = Entry(spec, info)
        self.on_change(spec)
        return info

    def answered(self, kuuid: int, answer: Answer) -> KeepInfo:
        """The keep, now that its loader has answered. Raises KeepfleetError(NOT_FOUND)."""
        entry = self.entry(kuuid)
        entry.spec = decide.adopted(entry.spec, answer.claims)
        self._heard(entry, answer.report)
        entry.unit_ended, entry.passing, entry.resting = None, False, False
        return self._set(entry, answer.report)

    def recorded(self, kuuid: int, report: KeepReport, ended: float | None, *, has_unit: bool = True) -> KeepInfo:
        """The keep, which has no loader any more, by what that has written down; `ended`: when its unit did, where that
        is known, in seconds since boot. Raises KeepfleetError(NOT_FOUND)."""
        entry = self.entry(kuuid)
        self._heard(entry, report)
        entry.unit_ended, entry.passing, entry.resting = ended, False, True
        entry.has_unit = has_unit
        return self._set(entry, report)

    def silent(self, unit: UnitState, end: UnitEnd, error: KeepfleetError | None) -> KeepInfo:
        """The keep, now that its loader does not answer. Raises KeepfleetError(NOT_FOUND)."""
        entry = self.entry(unit.kuuid)
        entry.passing = unit.active != "failed" and (not decide.answers(unit) or decide.between_loaders(unit, error))
        entry.resting = decide.at_rest(unit)
        if entry.resting:
            entry.unit_ended = end.inactive_since
        return self._set(entry, decide.silent(unit, end, error, entry.spec or NO_SPEC, entry.report))

    def drop(self, kuuid: int) -> None:
        """There is no such keep any more."""
        entry = self._entries.pop(kuuid, None)
        if entry is not None:
            entry.changed.set()
            self.on_change(entry.spec)

    def holder(self, owner: str, name: str) -> int | None:
        """The ID of the owner's living keep of that name: one that has ended, or is being removed, gives it up."""
        for kuuid, entry in self._entries.items():
            info = entry.info
            if (info.owner, info.name) == (owner, name) and info.state not in decide.ENDED and not entry.removing:
                return kuuid
        return None

    def made_with(self, key: str) -> tuple[int, KeepSpec] | None:
        """The keep that was asked for with the idempotency key of that digest, and what it is."""
        for kuuid, entry in self._entries.items():
            if entry.spec is not None and entry.spec.key == key and not entry.removing:
                return kuuid, entry.spec
        return None

    async def changed(self, kuuid: int, changed_from: State, seconds: float) -> KeepInfo:
        """The keep once its state is another than `changed_from`, or as it is after `seconds`.

        Raises KeepfleetError(NOT_FOUND) when there is none, or none any more.
        """
        return await self.until(kuuid, lambda info: info.state is not changed_from, seconds)

    async def until(self, kuuid: int, reached: Callable[[KeepInfo], bool], seconds: float) -> KeepInfo:
        """The keep once it is as `reached` says, or as it is after `seconds`. Raises as `changed` does."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not reached(self.find(kuuid)):
                    await self._entries[kuuid].changed.wait()
        return self.find(kuuid)

    def _heard(self, entry: Entry, report: KeepReport) -> None:
        before, entry.report = entry.report, report
        if report.unfit and entry.spec is not None and not (before is not None and before.unfit):
            self.on_unfit(entry.spec)

    def _set(self, entry: Entry, report: KeepReport) -> KeepInfo:
        info = merge(entry.spec or NO_SPEC, report, entry.info.unit)
        if info.phase != entry.info.phase:
            entry.since = time.monotonic()
        if info != entry.info:
            entry.info = info
            entry.changed.set()
            entry.changed = asyncio.Event()
            self.on_change(entry.spec)
        return entry.info


async def clear_away(folders: Folders, kuuid: int) -> None:
    """Removes the files of a keep whose unit has gone, as soon as there are descriptors for that."""
    await carried_on(lambda: asyncio.to_thread(folders.remove, kuuid), f"removing the files of {unit_name(kuuid)}")


class Rest:
    """Shows keeps whose loader does not answer in the view: by their unit, and by the record that the loader left."""

    def __init__(self, units: Units, folders: Folders, view: View) -> None:
        self._units, self._folders, self._view = units, folders, view

    def __repr__(self) -> str:
        return f"Rest({self._folders!r})"

    async def look(self, unit: UnitState, error: KeepfleetError | None) -> KeepInfo:
        """The keep, whose loader does not answer for the reason of `error`. Raises KeepfleetError(NOT_FOUND)."""
        record = None
        if decide.at_rest(unit) or isinstance(error, LoaderGone):
            record = await asyncio.to_thread(self._folders.record, unit.kuuid)
        return await self._show(unit, record, error)

    async def look_at_all(self, units: Sequence[UnitState]) -> None:
        """The same of many keeps whose units have no process any more, in one thread. Raises KeepfleetError."""
        records = await asyncio.to_thread(self._folders.records, [unit.kuuid for unit in units])
        for unit in units:
            await self._show(unit, records.get(unit.kuuid), None)

    async def look_at_remains(self, with_unit: set[int]) -> None:
        """Shows the keeps of earlier boots, which have no unit, and removes the files of those that were being removed
        when a manager ended."""
        without = await asyncio.to_thread(self._folders.kuuids) - with_unit
        now = time.monotonic()
        for kuuid, remains in (await asyncio.to_thread(self._folders.remains, sorted(without), now)).items():
            self._view.begin(kuuid, remains.spec)
            report = decide.before_boot(remains.record, kuuid, now)
            self._view.recorded(kuuid, report, remains.found_at, has_unit=False)

    async def _show(self, unit: UnitState, record: KeepRecord | None, error: KeepfleetError | None) -> KeepInfo:
        now, over = time.monotonic(), record is not None and record.phase in decide.OVER
        report = decide.recorded(record, "", now) if over else None
        if report is not None and report.outcome is not None and report.outcome.ended_monotonic is not None:
            return self._shown(unit, report, None)
        end = await self._units.end(unit.kuuid)
        if report is None and decide.at_rest(unit):
            report = decide.recorded(record, decide.why_lost(end), now)
        if report is None:
            return self._view.silent(unit, end, error)
        return self._shown(unit, report, end.inactive_since)

    def _shown(self, unit: UnitState, report: KeepReport, ended: float | None) -> KeepInfo:
        info = self._view.recorded(unit.kuuid, report, ended)
        self._view.entry(unit.kuuid).resting = decide.at_rest(unit)  # else systemd has not noticed yet
        return info
