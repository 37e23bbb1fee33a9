"""How many lines of a keep the journal dropped, asked when it has ended and kept with its outcome."""

from __future__ import annotations

import asyncio
import logging
import time

from keep_manager.keeps.interfaces import EventLog, Loaders
from keep_manager.keeps.view import View
from keep_manager.model import LoaderGone
from keep_protocol.constants import unit_name
from keep_protocol.control import Command, CommandType
from keep_protocol.errors import KeepfleetError
from keep_protocol.keep import KeepInfo, Outcome

LOG = logging.getLogger("keepfleet.watch")
INTERVAL_SECONDS = 1.05
"""The unit's LogRateLimitIntervalSec=, and a little: a line said after it makes journald say what it dropped."""
LOOKED_THROUGH = 20_000
"""Lines read to see whether there were too many; a keep with a higher limit just says a line more."""
COUNTED_CONCURRENTLY = 4
"""Each reads the journal by two or three processes of 20 ms."""


class Counter:
    """Counts the dropped lines of ended keeps, and has their loaders keep the number."""

    def __init__(self, loaders: Loaders, log: EventLog, view: View) -> None:
        self._loaders, self._log, self._view = loaders, log, view
        self._places = asyncio.Semaphore(COUNTED_CONCURRENTLY)

    def __repr__(self) -> str:
        return f"Counter({self._log!r})"

    async def settled(self, info: KeepInfo) -> KeepInfo:
        """The ended keep with the number in its outcome; as it was, where that is known or cannot be."""
        outcome = info.outcome
        if outcome is None or outcome.started_at is None or outcome.dropped_lines is not None:
            return info
        if not self._log.counts:
            return info
        try:
            async with self._places:
                lines = await self._count(info, outcome)
                kept = await self._loaders.ask(info.kuuid, Command(CommandType.DROPPED, str(lines)))
        except LoaderGone:
            return info  # the keep is going, and with it its outcome
        except KeepfleetError as error:
            LOG.warning("cannot count the dropped lines of %s: %s", unit_name(info.kuuid), error.message)
            return info
        return self._view.answered(info.kuuid, kept) if info.kuuid in self._view else info

    async def _count(self, info: KeepInfo, outcome: Outcome) -> int:
        """The number; where the last second brought as many lines as the limit lets through, only after another line
        has made journald say what it dropped in that second."""
        now, limit = time.monotonic(), info.limits.log_lines_per_second
        ended = now if outcome.ended_monotonic is None else min(outcome.ended_monotonic, now)
        if limit > LOOKED_THROUGH or await self._log.taken(info.kuuid, ended - INTERVAL_SECONDS, limit) >= limit:
            await asyncio.sleep(max(ended + INTERVAL_SECONDS - time.monotonic(), 0))
            await self._loaders.ask(info.kuuid, Command(CommandType.DROPPED))
        return await self._log.dropped(info.kuuid)
