"""The script pool next to node:vm, which is no boundary: the same script, a fresh world each call, two processes each,
in turns. Both are asked over pipes by the few lines here, which cost both the same.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count

from benchmarks.figures import Figure, Goal, Measure, percentile
from benchmarks.host import Host
from benchmarks.measuring import MS, Effort, MeasurementFailed, report
from keep_client.credentials import Credentials
from keep_client.keep import endpoint_of
from keep_client.scripts import KeepStream, SocketStream, Stream

HERE = os.path.dirname(os.path.abspath(__file__))
SCRIPT = """
total = 0
for (const item of items) total += item.price * item.count * (customer.loyal ? 0.9 : 1)
free = total > 100
"""
"""An order with twelve items, as an application's rule has it."""
ORDER = json.dumps(
    {
        "customer": {"name": "A. Customer", "loyal": True},
        "items": [{"name": f"item {n}", "price": n + 0.5, "count": n % 3} for n in range(12)],
    }
).encode()
IN_FLIGHT = (1, 2, 8)
ROUNDS = 3
CPU, HALF, TWICE = Goal(0.45), Goal(0.5, Measure.RATIO), Goal(2.0, Measure.RATIO, at_least=True)
SOCKETS_HALF = Goal(0.5, Measure.RATIO, at_least=True)
LOOP_SECONDS, LATE = 0.1, Goal(130.0, Measure.WORST)
"""A loop is answered within 30 ms of its limit."""


@dataclass
class Server:
    """A process that speaks the protocol, with its children."""

    process: subprocess.Popen[bytes]
    ids: Iterator[int] = field(default_factory=lambda: count(1))

    def ask(self, request: bytes) -> bytes:
        """Sends one request with an id, and awaits its answer."""
        self.send(next(self.ids), request)
        return self.answer()

    def send(self, number: int, request: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b'{"id":%d,%b\r\n' % (number, request))
        self.process.stdin.flush()

    def answer(self) -> bytes:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if b'"ok":true' not in line and b'"reason":"time limit' not in line:
            raise MeasurementFailed(f"{self.process.args!r} answered {line!r}")
        return line

    def cpu(self) -> float:
        """Seconds of processor time of the process and all that it has started."""
        return sum(_used(pid) for pid in _tree(self.process.pid))


def _tree(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [pid, *(below for child in file.read().split() for below in _tree(int(child)))]


def _used(pid: int) -> float:
    total = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/schedstat", encoding="ascii") as file:
            total += int(file.read().split()[0])
    return total / 1e9


@contextmanager
def _served(command: Sequence[str]) -> Iterator[Server]:
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        server = Server(process)
        server.ask(b'"cmd":"AddCode","name":"order","code":%b}' % json.dumps(SCRIPT).encode())
        yield server
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait()


class Reached(Server):
    """A pool that is there, over a connection of its clients'; what its processes use is not counted."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.ids = count(1)
        self.ask(b'"cmd":"AddCode","name":"order","code":%b}' % json.dumps(SCRIPT).encode())

    def send(self, number: int, request: bytes) -> None:
        self._stream.send(b'{"id":%d,%b\r\n' % (number, request))

    def answer(self) -> bytes:
        return self._stream.receive()

    def cpu(self) -> float:
        return 0.0


@dataclass(frozen=True)
class Calls:
    """One round: calls a second, the median and the 99th percentile in ms, and the processor time of a call in ms."""

    rate: float
    middle: float
    tail: float
    cpu: float


def _round(server: Server, calls: int, in_flight: int) -> Calls:
    request = b'"cmd":"ExecCode","name":"order","inputSandbox":%b}' % ORDER
    for _ in range(50):
        server.ask(request)
    sent: dict[int, float] = {}
    taken: list[float] = []
    used, began = server.cpu(), time.perf_counter()
    for _ in range(calls + in_flight):
        if len(sent) == in_flight or len(sent) + len(taken) == calls:
            if not sent:
                break
            answer = server.answer()
            taken.append(MS * (time.perf_counter() - sent.pop(int(answer[6 : answer.index(b",")]))))
        if len(sent) + len(taken) < calls:
            number = next(server.ids)
            sent[number] = time.perf_counter()
            server.send(number, request)
    while sent:
        answer = server.answer()
        taken.append(MS * (time.perf_counter() - sent.pop(int(answer[6 : answer.index(b",")]))))
    seconds = time.perf_counter() - began
    return Calls(calls / seconds, percentile(taken, 50), percentile(taken, 99), MS * (server.cpu() - used) / calls)


def _loops(server: Server, loops: int) -> tuple[float, ...]:
    """Milliseconds from a request to its answer, for a script that never ends."""
    server.ask(b'"cmd":"AddCode","name":"loop","code":"for (;;);"}')
    taken = []
    for _ in range(loops):
        began = time.perf_counter()
        if b"time limit" not in server.ask(b'"cmd":"ExecCode","name":"loop","inputSandbox":{}}'):
            raise MeasurementFailed("a loop ended otherwise than by its limit")
        taken.append(MS * (time.perf_counter() - began))
    return tuple(taken)


def measure(host: Host, effort: Effort) -> list[Figure]:
    """The figures of scripts. Without node there is nothing to compare with."""
    calls, figures = 100 * max(1, effort.rounds // 2), list[Figure]()
    with tempfile.TemporaryDirectory() as cache:
        pool = [sys.executable, "-m", "script_pool", "--stdio", "--min=2", "--max=2", f"--cache={cache}"]
        node = shutil.which("node")
        if node is None:
            report("scripts: node is not installed, so that node:vm is not measured")
        for in_flight in IN_FLIGHT:
            ours, theirs = list[Calls](), list[Calls]()
            for _ in range(ROUNDS):
                with _served(pool) as server:
                    ours.append(_round(server, calls, in_flight))
                if node is not None:
                    with _served([node, os.path.join(HERE, "node_vm.js")]) as server:
                        theirs.append(_round(server, calls, in_flight))
            figures += _figures(in_flight, ours, theirs)
        with _served([*pool, f"--time={LOOP_SECONDS}"]) as server:
            figures.append(
                Figure("a loop with 0.1 s: its request → its answer", "ms", _loops(server, effort.rounds), LATE)
            )
        figures.append(_over_tls(host, pool, calls))
    return figures


def _over_tls(host: Host, pool: Sequence[str], calls: int) -> Figure:
    """Calls a second of a pool in a keep over mutual TLS, and of one on a Unix socket, in turns on this machine."""
    over_tls, over_socket = list[float](), list[float]()
    info = host.client.create_pool({"options": {"min": 2, "max": 2}})
    try:
        with tempfile.TemporaryDirectory() as place:
            path = os.path.join(place, "pool.sock")
            with _listening([*pool[:3], "--socket", path, *pool[4:]], path):
                streams: dict[str, Stream] = {
                    "tls": KeepStream(endpoint_of(info, host.endpoint.host), Credentials.find()),
                    "socket": SocketStream(path),
                }
                servers = {name: Reached(stream) for name, stream in streams.items()}
                for _ in range(ROUNDS):
                    over_socket.append(_round(servers["socket"], calls, IN_FLIGHT[-1]).rate)
                    over_tls.append(_round(servers["tls"], calls, IN_FLIGHT[-1]).rate)
                for stream in streams.values():
                    stream.close()
    finally:
        host.client.remove(info.kuuid)
    floor = Figure("the Unix socket", "/s", tuple(over_socket), rates=True)
    what = f"a pool in a keep over TLS, {IN_FLIGHT[-1]} in flight: calls a second"
    return Figure(what, "/s", tuple(over_tls), SOCKETS_HALF, floor, rates=True)


@contextmanager
def _listening(command: Sequence[str], path: str) -> Iterator[None]:
    """A pool that serves a Unix socket."""
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        while b"listening on" not in (line := process.stderr.readline()):
            if not line:
                raise MeasurementFailed(f"{command!r} does not listen on {path}")
        try:
            yield
        finally:
            process.terminate()


def _figures(in_flight: int, ours: Sequence[Calls], theirs: Sequence[Calls]) -> list[Figure]:
    what = f"a script's call, {in_flight} in flight"
    found = [Figure(f"{what}: processor time of all processes", "ms", tuple(one.cpu for one in ours), CPU)]
    if not theirs:
        return [*found, Figure(what, "ms", tuple(one.middle for one in ours))]
    middle = Figure("node:vm", "ms", tuple(one.middle for one in theirs))
    rate = Figure("node:vm", "/s", tuple(one.rate for one in theirs), rates=True)
    cpu = Figure("node:vm", "ms", tuple(one.cpu for one in theirs))
    goal = HALF if in_flight == 1 else None
    return [
        Figure(found[0].name, "ms", found[0].samples, CPU, cpu),
        Figure(f"{what}: median", "ms", tuple(one.middle for one in ours), goal, middle),
        Figure(f"{what}: 99th percentile", "ms", tuple(one.tail for one in ours)),
        Figure(f"{what}: calls a second", "/s", tuple(one.rate for one in ours), TWICE, rate, rates=True),
    ]
