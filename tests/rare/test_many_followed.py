"""As many keeps as this host has memory for, up to a thousand, each followed by a client of its own, and a manager that
is killed."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from keep_protocol.output import ALIVE_SECONDS
from keep_protocol.states import State
from tests.rare.test_output_at_its_limits import OF_ONE
from tests.system import modules
from tests.system.calm import usage_of
from tests.system.fixtures import module_s_fleet
from tests.system.fleet import MANAGER, Fleet
from tests.system.host import until
from tests.system.life import SOON, Life

MIB = 1 << 20
MOST, OF_ONE_KEEP, SPARED = 1000, 16 * MIB, 3072 * MIB
"""Keeps, more memory than one takes that waits for its workload (13 MiB, with what the kernel has for it), and what is
left for all else."""
TICKING = 20
"""Each of so many writes a line a second; a thousand that do would be a test of this host."""
FROM_ONE_ADDRESS = 100
"""Connections: the manager takes 128 of one host."""
RETRY_SECONDS = 0.5
OLD = 2
"""Lines that a client may get of what was written before it asked: it asks for one, and reads may cut a word."""
LATE = 10 * SOON
MEMORY_OF_ONE = 256 * 1024
"""Of the manager, for a keep and the client that follows it: a connection's TLS is 100 KiB."""


def fitting() -> int:
    """How many keeps this host takes."""
    with open("/proc/meminfo", encoding="ascii") as file:
        (available,) = (int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    return max(0, min(MOST, (available - SPARED) // OF_ONE_KEEP))


class Followers:
    """A client of each keep, all in one thread, which asks again where it is not served.

    served: the keeps whose answer has begun, on connections that are open; lines: how many each has had.
    """

    def __init__(self, fleet: Fleet, kuuids: list[int]) -> None:
        self.served: set[int] = set()
        self.lines = dict.fromkeys(kuuids, 0)
        self._fleet, self._context = fleet, fleet.tls()
        self._writers: set[asyncio.StreamWriter] = set()
        self._stop = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._all(),))
        self._thread.start()

    async def _all(self) -> None:
        tasks = [asyncio.create_task(self._follow(*numbered)) for numbered in enumerate(self.lines)]
        await self._stop.wait()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*tasks)

    async def _follow(self, number: int, kuuid: int) -> None:
        address = f"127.0.0.{2 + number // FROM_ONE_ADDRESS}"
        while not self._stop.is_set():
            with contextlib.suppress(OSError, EOFError, TimeoutError):
                await self._once(kuuid, address)
            self.served.discard(kuuid)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), RETRY_SECONDS)

    async def _once(self, kuuid: int, address: str) -> None:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self._fleet.port, ssl=self._context, local_addr=(address, 0)
        )
        self._writers.add(writer)
        try:
            if self._stop.is_set():
                return
            target = f"/v1/keeps/{kuuid}/logs?follow=true&lines=1"
            writer.write(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            if not (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200"):
                return
            self.served.add(kuuid)
            while data := await asyncio.wait_for(reader.read(65536), 3 * ALIVE_SECONDS):
                self.lines[kuuid] += data.count(b"tick")
        finally:
            self._writers.discard(writer)
            writer.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="module")
def fleet(installed_fleet: Fleet) -> Iterator[Fleet]:
    """A manager that lets one caller have so many keeps and streams."""
    quotas = f"{{keeps: {MOST}, followers: {MOST}, starts_per_minute: 100000, memory_bytes: {1 << 50}}}"
    with installed_fleet.configured(callers=f'{{"*": {{quotas: {quotas}}}}}'):
        yield from module_s_fleet(installed_fleet)


def made(fleet: Fleet, number: int) -> Life:
    """A keep that waits for its workload, or has one that writes a line a second."""
    life = Life.awaiting(fleet, memory_bytes=16 * MIB)
    if number < TICKING:
        assert life.upload(modules.says(*[b"tick\n"] * 36000, pause_ms=1000)).status == 200
    return life


@pytest.mark.heavy
def test_a_manager_that_is_killed_follows_each_keep_again_and_is_far_from_its_limits(fleet: Fleet) -> None:
    count = fitting()
    assert count > TICKING, "this host has no memory for the test"
    with ThreadPoolExecutor(4) as pool:
        lives = list(pool.map(lambda number: made(fleet, number), range(count)))
    kuuids = [life.kuuid for life in lives]
    before = usage_of(fleet.host, fleet.manager_pid)
    followers = Followers(fleet, kuuids)
    try:
        for _ in range(2):
            until(lambda: len(followers.served) == count, lambda: "not all are served", LATE)
            until(lambda: len(fleet.readers()) == count, lambda: "not all rings are read", LATE)
            seen = dict(followers.lines)
            until(
                lambda seen=seen: sum(followers.lines[one] > seen[one] + OLD for one in kuuids) == TICKING,  # type: ignore[misc]
                lambda: "not all lines come",
                LATE,
            )
            now = usage_of(fleet.host, fleet.manager_pid)
            print(f"{count} followed keeps: {now.descriptors} descriptors, {now.memory >> 20} MiB")
            assert now.descriptors - before.descriptors <= OF_ONE * count
            assert now.memory - before.memory <= MEMORY_OF_ONE * count
            limit = int(fleet.host.show(MANAGER, "LimitNOFILE")["LimitNOFILE"])
            assert now.descriptors + OF_ONE * (MOST - count) < limit / 2
            fleet.kill()
        until(lambda: len(followers.served) == count, lambda: "not all are served after the last kill", LATE)
        keeps = fleet.client().keeps()
        assert {keep.kuuid for keep in keeps if keep.state is State.STARTED} == set(kuuids)
    finally:
        followers.close()
        fleet.clear()
    assert fleet.left_over() == []
