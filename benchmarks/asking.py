"""Servers of scripts, asked by lines over pipes: one script, an order with twelve items, a fresh world each call; and
what a round of calls took. What asks costs each of them the same.
"""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count

from benchmarks.figures import percentile
from benchmarks.measuring import MS, MeasurementFailed
from keep_client.scripts import Stream

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
HERE = os.path.dirname(os.path.abspath(__file__))
CHILD = "script-child"


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

    def asked(self) -> int:
        """The number of the next call of a host function, 0 where the run has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if b'"hostCall"' in line:
            return int(json.loads(line)["hostCall"]["call"])
        if b'"ok":true' not in line:
            raise MeasurementFailed(f"{self.process.args!r} answered {line!r}")
        return 0

    def cpu(self) -> float:
        """Seconds of processor time of the process and all that it has started."""
        return sum(_used(pid) for pid in _tree(self.process.pid))

    def children(self) -> list[int]:
        """A pool's processes that run scripts."""
        return [pid for pid in _tree(self.process.pid) if text_of(f"/proc/{pid}/comm").strip() == CHILD]


def _tree(pid: int) -> list[int]:
    return [
        pid,
        *(below for child in text_of(f"/proc/{pid}/task/{pid}/children").split() for below in _tree(int(child))),
    ]


def text_of(path: str) -> str:
    """A file of a process, "" of one that has ended."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _used(pid: int) -> float:
    total = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/schedstat", encoding="ascii") as file:
            total += int(file.read().split()[0])
    return total / 1e9


@contextmanager
def engines() -> Iterator[str]:
    """A directory with the pools' compiled engines: the installation's, or, where it has none, one for the block."""
    installed = os.path.join(sysconfig.get_path("purelib"), "script_pool", "engine", "installed")
    if os.path.isdir(installed) and os.listdir(installed):
        yield installed
        return
    with tempfile.TemporaryDirectory() as made:
        yield made


@contextmanager
def served(command: Sequence[str]) -> Iterator[Server]:
    """One that has the script in JavaScript, to the end of the block."""
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


def round_of(server: Server, calls: int, in_flight: int, warm: int = 50) -> Calls:
    """So many calls, so many of them at a time, behind `warm` of them."""
    request = b'"cmd":"ExecCode","name":"order","inputSandbox":%b}' % ORDER
    for _ in range(warm):
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
