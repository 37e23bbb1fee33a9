"""A keep's lines as they come, and its end after the last of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from keep_manager.keeps import logs
from keep_protocol.errors import KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.sse import LogLine
from keep_protocol.states import State
from tests.fakes.fake_journal import FakeJournal


async def test_the_rest_of_a_stream_does_not_wait_for_the_end_of_its_reader_that_follows() -> None:
    sent = asyncio.Event()

    class SlowToEnd(FakeJournal):
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
            async with super().lines(kuuid, last=last, after=after, follow=follow, second=second) as found:
                yield found
            if follow:
                await sent.wait()

    class Ended:
        async def get(self, kuuid: int) -> KeepInfo:
            return KeepInfo(kuuid, State.COMPLETE)

        async def wait(self, kuuid: int, changed_from: State, seconds: float) -> KeepInfo:
            raise AssertionError("it has ended")

        async def counted(self, kuuid: int) -> KeepInfo:
            raise AssertionError("a keep without an outcome has no lines to count")

    journal = SlowToEnd()
    journal.late.append((5, "last words"))
    items: list[LogLine | KeepInfo] = []

    async def send(item: LogLine | KeepInfo) -> None:
        items.append(item)
        if isinstance(item, KeepInfo):
            sent.set()

    async with asyncio.timeout(10):
        await logs.follow(Ended(), journal, 5, None, "", send)
    assert getattr(items[0], "text", None) == "last words"
    assert isinstance(items[1], KeepInfo)


async def test_a_reader_that_ends_ends_the_stream_with_the_reason() -> None:
    class Ends(FakeJournal):
        @asynccontextmanager
        async def lines(self, kuuid: int, **_: object) -> AsyncIterator[AsyncIterator[LogLine]]:
            yield self._read(kuuid, 0, None, False)

    class Goes:
        async def get(self, kuuid: int) -> KeepInfo:
            return KeepInfo(kuuid, State.STARTED)

        async def wait(self, kuuid: int, changed_from: State, seconds: float) -> KeepInfo:
            await asyncio.Event().wait()
            raise AssertionError("it was ended")

        async def counted(self, kuuid: int) -> KeepInfo:
            raise AssertionError("it has not ended")

    async def send(item: LogLine | KeepInfo) -> None:
        raise AssertionError("there is no line")

    with pytest.raises(KeepfleetError, match="its reader ended"):
        await logs.follow(Goes(), Ends(), 5, None, "", send)
