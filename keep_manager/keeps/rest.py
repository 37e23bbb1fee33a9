"""What is known of keeps whose loader does not answer: by their unit, and by the record that the loader left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from keep_manager.keeps import decide
from keep_manager.keeps.interfaces import Folders, Units
from keep_manager.keeps.view import View
from keep_manager.model import LoaderGone, UnitState
from keep_manager.tasks import carried_on
from keep_protocol.constants import unit_name
from keep_protocol.errors import KeepfleetError
from keep_protocol.keep import KeepInfo, KeepReport
from keep_protocol.record import KeepRecord


async def clear_away(folders: Folders, kuuid: int) -> None:
    """Removes the files of a keep whose unit has gone, as soon as there are descriptors for that."""
    await carried_on(lambda: asyncio.to_thread(folders.remove, kuuid), f"removing the files of {unit_name(kuuid)}")


class Rest:
    """Shows keeps in the view by what is left of them."""

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
