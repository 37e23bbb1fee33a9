"""A calendar and timers for tests: an event is `every N`, at each multiple of N seconds; its clock is set by hand."""

from __future__ import annotations

from collections.abc import Mapping

from keep_protocol.errors import ErrorKind, KeepfleetError

STARTED_AT = 1_000_000_000.0


class FakeCalendar:
    """See keep_manager.declared.jobs.Calendar; now: what its clock shows."""

    def __init__(self) -> None:
        self.now = STARTED_AT

    async def check(self, event: str) -> str:
        """The event itself."""
        self._period(event)
        return event

    async def after(self, event: str, moment: float) -> float | None:
        """The next multiple."""
        period = self._period(event)
        return (moment // period + 1) * period

    def _period(self, event: str) -> int:
        word, _, number = event.partition(" ")
        if word != "every" or not number.isdecimal():
            raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot use the schedule OnCalendar={event}")
        return int(number)


class FakeTimers:
    """See keep_manager.declared.jobs.Timers; wanted: what was asked for last."""

    def __init__(self) -> None:
        self.wanted: dict[str, str] = {}

    async def apply(self, wanted: Mapping[str, str]) -> None:
        """Notes it."""
        self.wanted = dict(wanted)
