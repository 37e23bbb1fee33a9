"""Waiting for a keep's end, and ending the tasks that wait."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from keep_manager.keeps import logs
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.sse import LogLine
from keep_protocol.states import State
from tests.fakes.fake_journal import FakeJournal


async def test_whoever_ends_a_task_and_is_cancelled_meanwhile_still_waits_for_its_end() -> None:
    ending, free, ends = asyncio.Event(), asyncio.Event(), []

    async def holds() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ending.set()
            await free.wait()
            ends.append("task")

    async def ender(task: asyncio.Task[None]) -> None:
        try:
            await logs.end_task(task)
        finally:
            ends.append("ender")

    held = asyncio.create_task(holds())
    await asyncio.wait({held}, timeout=0)
    waiting = asyncio.create_task(ender(held))
    await ending.wait()
    for _ in range(2):
        waiting.cancel()
        await asyncio.wait({waiting}, timeout=0)
    free.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ends == ["task", "ender"]


async def test_a_task_that_failed_before_it_was_ended_is_not_complained_of(caplog: pytest.LogCaptureFixture) -> None:
    async def fails() -> None:
        raise KeepfleetError(ErrorKind.UNAVAILABLE, "cannot follow")

    task = asyncio.create_task(fails())
    await asyncio.wait({task})
    await logs.end_task(task)
    del task
    gc.collect()
    assert caplog.messages == []


async def test_a_keep_whose_loader_is_away_is_not_asked_in_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    class Away:
        asked = 0

        async def get(self, kuuid: int) -> KeepInfo:
            return KeepInfo(kuuid, State.UNDEFINED)

        async def wait(self, kuuid: int, changed_from: State, seconds: float) -> KeepInfo:
            self.asked += 1
            return KeepInfo(kuuid, State.COMPLETE if self.asked == 3 else State.UNDEFINED)

        async def counted(self, kuuid: int) -> KeepInfo:
            raise AssertionError("a keep without an outcome has no lines to count")

    monkeypatch.setattr(logs, "AGAIN_SECONDS", 0.02)
    loop, keeps = asyncio.get_running_loop(), Away()
    began = loop.time()
    assert (await logs.ended(keeps, 5)).state is State.COMPLETE
    assert loop.time() - began >= 0.04


async def test_the_rest_of_a_stream_does_not_wait_for_the_end_of_its_reader_that_follows() -> None:
    told = asyncio.Event()

    class SlowToEnd(FakeJournal):
        @asynccontextmanager
        async def lines(
            self, kuuid: int, *, last: int | None = None, after: str = "", follow: bool = False, beside: bool = False
        ) -> AsyncIterator[AsyncIterator[LogLine]]:
            async with super().lines(kuuid, last=last, after=after, follow=follow, beside=beside) as found:
                yield found
            if follow:
                await told.wait()

    class Ended:
        async def get(self, kuuid: int) -> KeepInfo:
            return KeepInfo(kuuid, State.COMPLETE)

        async def wait(self, kuuid: int, changed_from: State, seconds: float) -> KeepInfo:
            raise AssertionError("it has ended")

        async def counted(self, kuuid: int) -> KeepInfo:
            raise AssertionError("a keep without an outcome has no lines to count")

    journal = SlowToEnd()
    journal.late.append((5, "last words"))
    async with asyncio.timeout(10), aclosing(logs.followed(Ended(), journal, 5, None, "")) as stream:
        assert getattr(await anext(stream), "text", None) == "last words"
        assert isinstance(await anext(stream), KeepInfo)
        told.set()
