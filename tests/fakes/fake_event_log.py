"""Events of keeps, written down in memory and followed as the real log's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from keep_manager.model import LastEvent, Visible
from keep_manager.systemd.journal import check_cursor
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.sse import EventType, KeepEvent

DEADLINE = 20.0
"""Seconds until a test gives up; each event is written in milliseconds."""


def cursor(number: int) -> str:
    """The cursor of event `number`, in the journal's own form."""
    return f"s={'0' * 32};i={number:x};b={'0' * 32};m=1;t=1;x=1"


class FakeEventLog:
    """`written` are the events so far and `lines` their lines; `before` is what another manager recorded; `away` makes
    each call fail, whereupon `refused` is set; `readers` are those that follow now."""

    def __init__(self) -> None:
        self.written: list[KeepEvent] = []
        self.lines: list[str] = []
        self.before: dict[int, LastEvent] = {}
        self.away = False
        self.readers = 0
        self.refused = asyncio.Event()
        self._changed = asyncio.Condition()

    def __repr__(self) -> str:
        return f"FakeEventLog({len(self.written)} events, {self.readers} readers)"

    def _reach(self) -> None:
        if self.away:
            self.refused.set()
            raise KeepfleetError(ErrorKind.UNAVAILABLE, "cannot write to the journal: it takes nothing")

    async def write(self, event: KeepEvent, text: str) -> None:
        """See EventLog."""
        self._reach()
        async with self._changed:
            mark = cursor(len(self.written) + 1)
            self.written.append(KeepEvent(event.at, event.type, event.keep, event.by, mark))
            self.lines.append(text)
            self._changed.notify_all()

    async def until(self, type_: EventType, kuuid: int | None = None) -> KeepEvent:
        """The first such event, of the keep where one is named, once it is written."""

        def found() -> KeepEvent | None:
            mine = (event for event in self.written if kuuid in (None, event.keep.kuuid))
            return next((event for event in mine if event.type is type_), None)

        async with asyncio.timeout(DEADLINE), self._changed:
            await self._changed.wait_for(found)
        event = found()
        assert event is not None
        return event

    async def latest(self) -> dict[int, LastEvent]:
        """See EventLog."""
        self._reach()
        return {
            **self.before,
            **{
                event.keep.kuuid: LastEvent(event.type, event.keep.restarts, 1.0, event.keep.owner)
                for event in self.written
            },
        }

    @asynccontextmanager
    async def events(
        self,
        kuuid: int | None = None,
        *,
        last: int | None = None,
        after: str = "",
        follow: bool = False,
        visible: Visible | None = None,
        caller: str = "",
    ) -> AsyncIterator[AsyncGenerator[KeepEvent, None]]:
        """See EventLog."""
        self._reach()
        there = len(self.written)
        start = there - last if last is not None else there if follow else 0
        if after:
            start = int(check_cursor(after).split(";")[1].removeprefix("i="), 16)
        await self._count(1)
        try:
            yield self._read(kuuid, max(start, 0), follow, visible)
        finally:
            await self._count(-1)

    async def read_by(self, readers: int) -> None:
        """Waits until so many follow."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.readers == readers)

    async def _count(self, number: int) -> None:
        async with self._changed:
            self.readers += number
            self._changed.notify_all()

    async def _read(
        self, kuuid: int | None, seen: int, follow: bool, visible: Visible | None
    ) -> AsyncGenerator[KeepEvent, None]:
        while follow or seen < len(self.written):
            async with self._changed:
                while len(self.written) == seen:
                    await self._changed.wait()
            new, seen = self.written[seen:], len(self.written)
            for event in new:
                if kuuid in (None, event.keep.kuuid) and (visible is None or visible(event.keep)):
                    yield event
