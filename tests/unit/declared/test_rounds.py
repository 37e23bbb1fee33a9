"""Rounds: who is looked at when, and that one task at a time works for a name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from collections.abc import Set as AbstractSet

import pytest

from keep_manager.declared.rounds import WHOLE_SECONDS, Rounds
from keep_manager.tasks import Group

SECONDS = 20


class Decider:
    """Writes down for whom it was asked to decide; waits: what it answers."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[frozenset[str] | None] = asyncio.Queue()
        self.waits: dict[str, float] = {}
        self.now = 100.0

    def decide(self, names: frozenset[str] | None) -> Mapping[str, float]:
        self.asked.put_nowait(names)
        return {name: until for name, until in self.waits.items() if names is None or name in names}

    async def next(self) -> AbstractSet[str] | None:
        async with asyncio.timeout(SECONDS):
            return await self.asked.get()


@pytest.fixture
def decider() -> Decider:
    return Decider()


@pytest.fixture
async def rounds(decider: Decider) -> AsyncIterator[Rounds]:
    """Rounds that have looked at all once."""
    async with Group() as tasks:
        found = Rounds(tasks, decider.decide, "test", lambda: decider.now)
        tasks.start(found.run())
        assert await decider.next() is None
        yield found
        await found.close()


async def test_a_change_of_one_name_is_looked_at_alone_and_a_change_of_who_knows_what_with_all(
    decider: Decider, rounds: Rounds
) -> None:
    rounds.wake("web")
    rounds.wake("db")
    assert await decider.next() == {"web", "db"}
    rounds.wake()
    assert await decider.next() is None


async def test_all_are_looked_at_some_time_after_one_was_and_then_no_more(decider: Decider, rounds: Rounds) -> None:
    rounds.wake("web")
    assert await decider.next() == {"web"}
    decider.now += WHOLE_SECONDS
    rounds.wake("web")
    assert await decider.next() is None
    rounds.wake("web")
    assert await decider.next() == {"web"}


async def test_a_name_is_looked_at_when_its_pause_is_over_and_forgotten_with_its_pause(
    decider: Decider, rounds: Rounds
) -> None:
    decider.waits = {"web": 101.0, "db": 900.0}
    rounds.wake("web")
    rounds.wake("db")
    await decider.next()
    decider.now, decider.waits = 101.0, {}
    rounds.wake("other")
    assert await decider.next() == {"web", "other"}
    rounds.wake("other")
    assert await decider.next() == {"other"}


async def test_the_end_of_a_name_s_task_is_a_change_of_the_name_also_where_it_is_cancelled_before_it_began(
    decider: Decider, rounds: Rounds
) -> None:
    going = asyncio.Event()

    async def work() -> None:
        await going.wait()

    rounds.begin("web", work())
    assert rounds.busy == {"web"}
    going.set()
    assert await decider.next() == {"web"}
    assert rounds.busy == set()
    rounds.begin("web", work())
    await rounds.close()
    assert rounds.busy == set()
