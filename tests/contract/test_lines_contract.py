"""A keep's lines: whole, in order, as they come, and only its own; of the fake journal and of a real one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest

from keep_manager.keeps.logs import Journal
from keep_manager.systemd import journal as real
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.sse import LogLine
from tests.contract.conftest import systemd_units
from tests.fakes.fake_journal import FakeJournal
from tests.fakes.real_systemd import WORDS, RealSystemd

ENOUGH = 20.0


@dataclass(frozen=True)
class Subject:
    """A journal under test. begin: has a keep write its first two lines; say: has one that has begun write another."""

    journal: Journal
    begin: Callable[[int], Awaitable[None]]
    say: Callable[[int, str], Awaitable[None]]


@pytest.fixture(params=["fake", "systemd"])
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    if request.param == "fake":
        fake = FakeJournal()
        yield Subject(fake, lambda kuuid: fake.write(kuuid, "one", "t\vwo\ufffd"), fake.write)
        return
    systemd: RealSystemd = request.getfixturevalue("systemd")
    systemd.run("sh", "-c", f"rm -f {WORDS}; mkfifo {WORDS}")
    systemd.behave("prints")

    async def say(_: int, text: str) -> None:
        systemd.run("sh", "-c", f"echo {text} >{WORDS}")

    async with systemd_units(systemd) as units:
        journal = real.Journal("system", systemd.sandbox.command(("journalctl",)))
        yield Subject(journal, lambda kuuid: units.start(kuuid, ENOUGH), say)
    systemd.clear()


async def lines(subject: Subject, kuuid: int, last: int | None = None, after: str = "") -> list[LogLine]:
    await subject.journal.sync()
    async with subject.journal.lines(kuuid, last=last, after=after) as found:
        return [line async for line in found]


async def test_lines_come_as_they_are_written_and_can_be_resumed(subject: Subject) -> None:
    await subject.begin(5002)
    await subject.say(5002, "other")
    await subject.begin(5001)
    async with subject.journal.lines(5001, follow=True) as coming:
        first, second = [await asyncio.wait_for(anext(coming), ENOUGH) for _ in range(2)]
        assert [first.text, second.text] == ["one", "t\vwo\ufffd"]
        await subject.say(5001, "three")
        third = await asyncio.wait_for(anext(coming), ENOUGH)
    assert third.text == "three"
    assert await lines(subject, 5001, after=first.cursor) == [second, third]
    assert await lines(subject, 5001, last=1) == [third]
    assert await lines(subject, 5001, after=third.cursor) == []


async def test_a_second_reader_of_one_that_follows_reads_the_rest(subject: Subject) -> None:
    await subject.begin(5004)
    async with subject.journal.lines(5004, follow=True) as coming:
        first = await asyncio.wait_for(anext(coming), ENOUGH)
        await subject.journal.sync()
        async with subject.journal.lines(5004, after=first.cursor, second=True) as rest:
            assert [line.text async for line in rest] == ["t\vwo\ufffd"]


async def test_a_line_has_its_time_and_is_the_workload_s_unless_it_is_a_loader_s(subject: Subject) -> None:
    await subject.begin(5003)
    found = await lines(subject, 5003)
    assert [line.source for line in found] == ["workload", "workload"]
    assert 0 < found[0].at <= found[1].at


async def test_a_keep_that_never_was_has_no_lines(subject: Subject) -> None:
    assert await lines(subject, 5999) == []


async def test_what_is_no_cursor_is_refused(subject: Subject) -> None:
    with pytest.raises(KeepfleetError) as caught:
        await lines(subject, 5999, after="somewhere")
    assert caught.value.kind is ErrorKind.BAD_REQUEST
