"""What says when it is time for a job: a timer of systemd's for each, made to be as the specifications say."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Protocol

from keep_manager.declared.specification import Specification
from keep_protocol.errors import KeepfleetError
from keep_protocol.runs import check_schedule

LOG = logging.getLogger("keepfleet.declared")
AGAIN_SECONDS = 10.0
"""Between two tries to have systemd's timers as they should be."""


class Calendar(Protocol):
    """What calendar events mean. Both raise KeepfleetError alone."""

    async def check(self, event: str) -> str:
        """The event in systemd's own form."""

    async def after(self, event: str, moment: float) -> float | None:
        """When it comes first after `moment`, None for never."""


class Timers(Protocol):
    """The timers of systemd."""

    async def apply(self, wanted: Mapping[str, str]) -> None:
        """Has there be a timer for each of these jobs, with its event, and no others. Raises KeepfleetError."""


class JobTimers:
    """The timers of the jobs that there are. missing: whether they cannot be had now; who needs them looks at the clock
    then, and is woken when that has changed."""

    def __init__(
        self,
        calendar: Calendar,
        timers: Timers,
        jobs: Callable[[], Mapping[str, Specification]],
        wake: Callable[[], None],
    ) -> None:
        self._calendar, self._timers, self._jobs, self._wake = calendar, timers, jobs, wake
        self._changed = asyncio.Event()
        self._events: dict[str, str] = {}
        self.missing = False

    def __repr__(self) -> str:
        return f"JobTimers({len(self._events)} schedules)"

    def schedules_changed(self) -> None:
        """There are other jobs than before, or other schedules."""
        self._changed.set()

    async def tend(self) -> None:
        """Has the timers be as they should. For ever."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self._timers.apply(await self._wanted())
                self.missing = False
            except KeepfleetError as error:
                self.missing = True  # the manager looks at the clock itself, which must not be set meanwhile
                self._wake()
                LOG.warning("cannot have the timers of jobs as they should be, trying again: %s", error.message)
                self._changed.set()
                await asyncio.sleep(AGAIN_SECONDS)

    async def _wanted(self) -> dict[str, str]:
        wanted: dict[str, str] = {}
        for name, each in self._jobs().items():
            schedule = each.job.schedule
            with suppress(KeepfleetError):  # which the job itself says
                if schedule not in self._events:
                    self._events[schedule] = await self._calendar.check(check_schedule(schedule))
                wanted[name] = self._events[schedule]
        return wanted
