"""A journal in memory: lines of keeps, written by tests, read and followed as the real one's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from keep_manager.systemd.journal import check_cursor
from keep_protocol.sse import LogLine


def cursor(number: int) -> str:
    """The cursor of line `number`, in the journal's own form."""
    return f"s={'0' * 32};i={number:x};b={'0' * 32};m=1;t=1;x=1"


class FakeJournal:
    """`readers` are those that follow now; `late` are lines that can only be read after the next sync."""

    def __init__(self) -> None:
        self.readers = 0
        self.late: list[tuple[int, str]] = []
        self._lines: list[tuple[int, LogLine]] = []
        self._changed = asyncio.Condition()

    def __repr__(self) -> str:
        return f"FakeJournal({len(self._lines)} lines, {self.readers} readers)"

    async def write(self, kuuid: int, *texts: str) -> None:
        """Adds lines of the workload's."""
        async with self._changed:
            for text in texts:
                self._lines.append((kuuid, LogLine(1.5, "workload", text, cursor(len(self._lines) + 1))))
            self._changed.notify_all()

    async def read_by(self, readers: int) -> None:
        """Waits until so many follow."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.readers == readers)

    async def sync(self) -> None:
        """See Journal."""
        while self.late:
            await self.write(*self.late.pop(0))

    @asynccontextmanager
    async def lines(
        self,
        kuuid: int,
        *,
        last: int | None = None,
        after: str = "",
        follow: bool = False,
        second: bool = False,
        caller: str = "",
    ) -> AsyncIterator[AsyncIterator[LogLine]]:
        """See Journal."""
        assert not second or self.readers, "it is no second one"
        start = int(check_cursor(after).split(";")[1].removeprefix("i="), 16) if after else 0
        await self._count(follow)
        try:
            yield self._read(kuuid, start, None if after else last, follow)
        finally:
            await self._count(-follow)

    async def _count(self, number: int) -> None:
        async with self._changed:
            self.readers += number
            self._changed.notify_all()

    async def _read(self, kuuid: int, start: int, last: int | None, follow: bool) -> AsyncIterator[LogLine]:
        mine = [line for owner, line in self._lines[start:] if owner == kuuid]
        seen = len(self._lines)
        for line in mine if last is None else mine[-last:]:
            yield line
        while follow:
            async with self._changed:
                while len(self._lines) == seen:
                    await self._changed.wait()
            new, seen = self._lines[seen:], len(self._lines)
            for owner, line in new:
                if owner == kuuid:
                    yield line
