"""A keep's lines from a real journal: whole, in order, as they come, and only its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from keep_manager.systemd.journal import Journal
from keep_manager.systemd.units import SystemdUnits
from keep_protocol.sse import LogLine
from tests.contract.conftest import systemd_units
from tests.fakes.real_systemd import WORDS, RealSystemd

ENOUGH = 20.0


@pytest.fixture
async def units(systemd: RealSystemd) -> AsyncIterator[SystemdUnits]:
    systemd.run("sh", "-c", f"rm -f {WORDS}; mkfifo {WORDS}")
    systemd.behave("prints")
    async with systemd_units(systemd) as made:
        yield made
    systemd.clear()


@pytest.fixture
def journal(systemd: RealSystemd) -> Journal:
    return Journal("system", systemd.sandbox.command(("journalctl",)))


async def test_lines_come_as_they_are_written_and_can_be_resumed(
    systemd: RealSystemd, units: SystemdUnits, journal: Journal
) -> None:
    await units.start(5002, ENOUGH)
    systemd.run("sh", "-c", f"echo for the other >{WORDS}")
    await units.start(5001, ENOUGH)
    async with journal.lines(5001, follow=True) as coming:
        first, second = [await asyncio.wait_for(anext(coming), ENOUGH) for _ in range(2)]
        assert [first.text, second.text] == ["one", "t\vwo\ufffd"]
        systemd.run("sh", "-c", f"echo three >{WORDS}")
        third = await asyncio.wait_for(anext(coming), ENOUGH)
    await journal.sync()
    assert third.text == "three"
    async with journal.lines(5001, after=first.cursor) as rest:
        assert [line async for line in rest] == [second, third]
    async with journal.lines(5001, last=1) as rest:
        assert [line async for line in rest] == [third]


async def test_a_line_has_its_time_and_is_the_workload_s_unless_it_is_a_loader_s(
    units: SystemdUnits, journal: Journal
) -> None:
    await units.start(5003, ENOUGH)
    await journal.sync()
    async with journal.lines(5003) as found:
        lines: list[LogLine] = [line async for line in found]
    assert [line.source for line in lines] == ["workload", "workload"]
    assert 1.7e9 < lines[0].at <= lines[1].at


async def test_a_keep_that_never_was_has_no_lines(journal: Journal, systemd: RealSystemd) -> None:
    async with journal.lines(5999) as found:
        assert [line async for line in found] == []
