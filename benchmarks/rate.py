"""How many keeps a second, with one, four and eight clients concurrently, against as many units of the floor."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from benchmarks.bus import slice_of
from benchmarks.figures import Figure
from benchmarks.host import SLEEPING, Host, KeptConnection
from benchmarks.measuring import Effort
from keep_protocol.constants import KUUID_BITS, slice_name
from keep_protocol.keep import KeepInfo

AT_ONCE = (1, 4, 8)


def create(host: Host, count: int, at_once: int) -> tuple[list[KeepInfo], float]:
    """`count` keeps made by `at_once` clients, each on a connection of its own; the keeps, and the seconds it took."""
    left = iter(range(count))
    lock = threading.Lock()

    def client(connection: KeptConnection) -> list[KeepInfo]:
        made: list[KeepInfo] = []
        while True:
            with lock:
                if next(left, None) is None:
                    return made
            made.append(connection.new_keep())

    with ExitStack() as open_connections, ThreadPoolExecutor(at_once) as pool:
        connections = [open_connections.enter_context(host.connection()) for _ in range(at_once)]
        for connection in connections:
            connection.command(command="list-keeps")
        began = time.perf_counter()
        futures = [pool.submit(client, connection) for connection in connections]
        keeps = [keep for future in futures for keep in future.result()]
        return keeps, time.perf_counter() - began


def _floor(host: Host, draw: random.Random, count: int, at_once: int) -> float:
    numbers = [draw.getrandbits(KUUID_BITS - 1) + 1 for _ in range(count)]
    units = [(f"{SLEEPING}@{number}.service", [slice_of(slice_name(number))]) for number in numbers]
    return host.systemd.start_all(units, at_once)


def measure(host: Host, effort: Effort) -> list[Figure]:
    """The rates."""
    draw = random.Random(0)  # noqa: S311 - only the slices depend on it
    floors: dict[int, list[float]] = defaultdict(list)
    rates: dict[int, list[float]] = defaultdict(list)
    count = effort.batch_keeps
    for _ in range(effort.batches):
        for at_once in AT_ONCE:
            floors[at_once].append(count / _floor(host, draw, count, at_once))
            host.clear()
            _, seconds = create(host, count, at_once)
            rates[at_once].append(count / seconds)
            host.clear()
    figures = []
    for at_once in AT_ONCE:
        floor = Figure(f"floor: hardened sleeps, {at_once} concurrently", "/s", tuple(floors[at_once]), rates=True)
        keeps = Figure(f"new keeps, {at_once} concurrently", "/s", tuple(rates[at_once]), floor=floor, rates=True)
        figures += [floor, keeps]
    return figures
