"""Waits for systemd's jobs: nothing is missed whatever the order, and lost signals make the wait look."""

from __future__ import annotations

import asyncio

from keep_manager.systemd.replies import JobEnd, JobWaits


async def test_an_end_that_comes_before_the_call_s_reply_is_not_missed() -> None:
    waits = JobWaits()
    with waits.expect("u") as wait:
        waits.ended(JobEnd("/1", "u", "done"))
        assert await wait.result("/1") == "done"


async def test_ends_of_other_jobs_and_units_are_not_taken() -> None:
    waits = JobWaits()
    with waits.expect("u") as wait:
        waiting = asyncio.create_task(wait.result("/2"))
        await asyncio.sleep(0)
        waits.ended(JobEnd("/1", "u", "failed"))
        waits.ended(JobEnd("/2", "v", "failed"))
        await asyncio.sleep(0)
        assert not waiting.done()
        waits.ended(JobEnd("/2", "u", "done"))
        assert await waiting == "done"


async def test_two_waits_for_one_unit_both_hear() -> None:
    waits = JobWaits()
    with waits.expect("u") as one, waits.expect("u") as two:
        assert len(waits) == 2
        waits.ended(JobEnd("/1", "u", "canceled"))
        assert await one.result("/1") == await two.result("/1") == "canceled"
    assert len(waits) == 0


async def test_a_wait_that_lost_its_job_s_path_takes_any_end_of_the_unit_s() -> None:
    waits = JobWaits()
    with waits.expect("u") as wait:
        waits.ended(JobEnd("/9", "u", "timeout"))
        assert await wait.result(None) == "timeout"


async def test_doubt_makes_a_wait_look_once_and_wait_on() -> None:
    waits = JobWaits()
    with waits.expect("u") as wait:
        waits.doubt()
        assert await wait.result("/1") is None
        waiting = asyncio.create_task(wait.result("/1"))
        await asyncio.sleep(0)
        assert not waiting.done()
        waits.ended(JobEnd("/1", "u", "done"))
        assert await waiting == "done"


async def test_drained_returns_when_the_last_wait_ends() -> None:
    waits = JobWaits()
    await waits.drained()
    with waits.expect("u"):
        draining = asyncio.create_task(waits.drained())
        await asyncio.sleep(0)
        assert not draining.done()
    await draining
