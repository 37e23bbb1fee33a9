"""A creation asked for twice with one key happens once."""

from __future__ import annotations

import asyncio

import pytest

from keep_manager.keeps import manager
from keep_manager.keeps.creation import key_digest
from keep_manager.keeps.manager import KEPT_SECONDS, IdempotencyCache
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.states import State
from tests.fakes.callers import ALICE, BOB, STRANGER
from tests.fakes.running_manager import RunningManager


class Maker:
    """Makes keeps 1, 2, 3…; `barrier` holds them back, `fail` makes the next one fail."""

    def __init__(self) -> None:
        self.made = 0
        self.barrier: asyncio.Event | None = None
        self.fail = False
        self.begun = asyncio.Event()

    async def __call__(self) -> KeepInfo:
        self.begun.set()
        if self.barrier is not None:
            await self.barrier.wait()
        if self.fail:
            self.fail = False
            raise KeepfleetError(ErrorKind.KEEP_FAILED, "cannot make it")
        self.made += 1
        return KeepInfo(self.made, State.LISTENING)


@pytest.fixture
def maker() -> Maker:
    return Maker()


async def test_one_key_names_one_keep(maker: Maker) -> None:
    cache = IdempotencyCache()
    made = [(await cache.once("k", "a", maker)).kuuid for _ in range(3)]
    assert made == [1, 1, 1]


async def test_another_key_and_another_caller_get_a_keep_of_their_own(maker: Maker) -> None:
    cache = IdempotencyCache()
    strangers = [STRANGER.replace(where=where) for where in ("192.0.2.1", "192.0.2.2")]
    callers = [(ALICE, "k"), (ALICE, "l"), (BOB, "k"), *((stranger, "k") for stranger in strangers)]
    made = [(await cache.once(key_digest(caller, key), "a", maker)).kuuid for caller, key in callers]
    assert made == [1, 2, 3, 4, 5]


async def test_a_key_with_another_request_is_a_conflict(maker: Maker) -> None:
    cache = IdempotencyCache()
    await cache.once("k", "a", maker)
    with pytest.raises(KeepfleetError) as caught:
        await cache.once("k", "b", maker)
    assert caught.value.kind is ErrorKind.CONFLICT


async def test_fifty_concurrent_ones_make_one(maker: Maker) -> None:
    cache = IdempotencyCache()
    made = await asyncio.gather(*(cache.once("k", "a", maker) for _ in range(50)))
    assert {keep.kuuid for keep in made} == {1}


async def test_what_failed_is_tried_again(maker: Maker) -> None:
    cache = IdempotencyCache()
    maker.fail = True
    with pytest.raises(KeepfleetError, match="cannot make it"):
        await cache.once("k", "a", maker)
    assert (await cache.once("k", "a", maker)).kuuid == 1


async def test_one_who_waits_for_a_client_that_went_away_makes_its_own(maker: Maker) -> None:
    cache = IdempotencyCache()
    maker.barrier = asyncio.Event()
    first = asyncio.create_task(cache.once("k", "a", maker))
    await maker.begun.wait()
    second = asyncio.create_task(cache.once("k", "a", maker))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first})
    maker.barrier.set()
    assert (await second).kuuid == 1
    assert first.cancelled()


async def test_a_key_is_forgotten_after_its_time(maker: Maker) -> None:
    now = 0.0
    cache = IdempotencyCache(lambda: now)
    await cache.once("k", "a", maker)
    now = KEPT_SECONDS - 1
    assert (await cache.once("k", "a", maker)).kuuid == 1
    now = KEPT_SECONDS
    assert (await cache.once("k", "a", maker)).kuuid == 2


async def test_the_oldest_keys_are_forgotten_above_a_bound(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "MAX_KEPT", 3)
    cache = IdempotencyCache()
    for number in range(10):
        await cache.once(f"k{number}", "a", maker)
    assert repr(cache) == "IdempotencyCache(4 keys)"
    assert (await cache.once("k9", "a", maker)).kuuid == 10


async def test_v1_answers_a_repeated_creation_with_the_same_keep(manager: RunningManager) -> None:
    async with manager.client() as client:
        answers = []
        for _ in range(2):
            async with client.post("/v1/keeps", headers={"Idempotency-Key": "a-b-c"}) as response:
                answers.append((response.status, response.headers["Location"], await response.json()))
        assert answers[0] == answers[1]
        assert len(manager.units.kuuids()) == 1
        headers = {"Idempotency-Key": "a-b-c"}
        async with client.post("/v1/keeps", headers=headers, json={"name": "x"}) as response:
            assert response.status == 409


@pytest.mark.parametrize("key", ["", "a b", "x" * 129, "é"])
async def test_v1_refuses_a_key_that_is_none(manager: RunningManager, key: str) -> None:
    async with manager.client() as client, client.post("/v1/keeps", headers={"Idempotency-Key": key}) as response:
        assert response.status == 400
        assert not manager.units.kuuids()
