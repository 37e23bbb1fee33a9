"""Calendar events as systemd means them: `systemd-analyze calendar` is asked, which knows what its timers know.

Import rule: that of keep_manager.systemd.
"""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from itertools import pairwise

from keep_manager.systemd.programs import ask
from keep_protocol.errors import ErrorKind, KeepfleetError

SECONDS = 10.0
"""It takes 5 ms; a busy host is slower."""
CONCURRENT = 2
"""As many as there are processors on a small host: a manager that starts asks for each of its jobs."""
SHORTEST_PERIOD = 1.0
"""Seconds between two moments: a keep takes a third of one to begin."""
LOOKED_AT = 5
"""Moments that are looked at for that."""
_MOMENT = r"\w{3} ([0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}) UTC"
_NORMALIZED = re.compile(r"^\s*Normalized form: (.+)$", re.MULTILINE)
_ELAPSES = re.compile(rf"^\s*(?:Next elapse|Iter\. #[0-9]+|\(in UTC\)): {_MOMENT}$", re.MULTILINE)


class Calendar:
    """Asks `program`."""

    def __init__(self, program: str = "systemd-analyze") -> None:
        self._program, self._places = program, asyncio.Semaphore(CONCURRENT)

    def __repr__(self) -> str:
        return f"Calendar({self._program!r})"

    async def check(self, event: str) -> str:
        """The event in systemd's own form. Raises KeepfleetError: BAD_REQUEST for what is none, never comes, or comes
        more often than once a second; UNSUPPORTED where systemd-analyze is not there."""
        text = await self._ask(event, f"--iterations={LOOKED_AT}")
        moments, normalized = moments_in(text), _NORMALIZED.search(text)
        if normalized is None or not moments:
            raise _bad(event, "it never comes")
        if any(later - before < SHORTEST_PERIOD for before, later in pairwise(moments)):
            raise _bad(event, "it comes more often than once a second")
        return normalized[1].strip()

    async def after(self, event: str, moment: float) -> float | None:
        """When the event comes first after `moment`, in seconds of the epoch; None for never. Raises KeepfleetError."""
        moments = moments_in(await self._ask(event, f"--base-time=@{moment:.6f}"))
        return moments[0] if moments else None

    async def _ask(self, event: str, *options: str) -> str:
        command = (self._program, "calendar", *options, "--", event)
        async with self._places:
            cannot = "cannot understand a schedule"
            ended, said, lines = await ask(command, SECONDS, cannot, ErrorKind.UNSUPPORTED)
        if ended:
            raise _bad(event, lines[-1][:200] if lines else "systemd does not understand it")
        return said.decode("utf-8", "replace")


def moments_in(text: str) -> list[float]:
    """The moments in what systemd-analyze prints, in order; where the local time is another than UTC a line follows
    each with the same moment there. Pure."""
    return [datetime.fromisoformat(found).replace(tzinfo=UTC).timestamp() for found in _ELAPSES.findall(text)]


def _bad(event: str, why: str) -> KeepfleetError:
    return KeepfleetError(
        ErrorKind.BAD_REQUEST, f"cannot use the schedule OnCalendar={event[:100]}: {why} (man 7 systemd.time)"
    )
