"""The script pool next to node:vm, which is no boundary: the same script, a fresh world each call, two processes each,
in turns. `compared` has the other sandboxes next to it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.asking import ORDER, Calls, Reached, Server, engines, round_of, served, text_of
from benchmarks.figures import Figure, Goal, Measure, percentile
from benchmarks.host import Host, example
from benchmarks.measuring import MS, Effort, MeasurementFailed, report
from keep_client.credentials import Credentials
from keep_client.keep import endpoint_of
from keep_client.scripts import KeepStream, SocketStream, Stream

HERE = os.path.dirname(os.path.abspath(__file__))
IN_FLIGHT = (1, 2, 8)
ROUNDS, QUICK_CALLS = 3, 20
CPU, HALF, TWICE = Goal(0.45), Goal(0.5, Measure.RATIO), Goal(2.0, Measure.RATIO, at_least=True)
SOCKETS_HALF = Goal(0.5, Measure.RATIO, at_least=True)
LOOP_SECONDS, LATE = 0.1, Goal(30.0)
"""A loop is answered within this of its limit, in 99 of 100 cases."""
REPLACED, HOST_CALL, PROGRAM_MORE = Goal(20.0), Goal(0.05), Goal(10.0)
HOST_CALLS = 200
"""In one run."""


def _loops(server: Server, loops: int) -> tuple[float, ...]:
    """Milliseconds from a script's deadline to its answer, for one that never ends."""
    server.ask(b'"cmd":"AddCode","name":"loop","code":"for (;;);"}')
    taken = []
    for _ in range(loops):
        began = time.perf_counter()
        if b"time limit" not in server.ask(b'"cmd":"ExecCode","name":"loop","inputSandbox":{}}'):
            raise MeasurementFailed("a loop ended otherwise than by its limit")
        taken.append(MS * (time.perf_counter() - began - LOOP_SECONDS))
    return tuple(taken)


def _replaced(server: Server, kills: int) -> tuple[float, ...]:
    """Milliseconds from the death of a pool's only child to the answer of another one that is asked for then."""
    taken = []
    for _ in range(kills):
        (child,) = server.children()
        began = time.perf_counter()
        os.kill(child, signal.SIGKILL)
        while server.children() in ([], [child]):
            pass
        server.ask(b'"cmd":"ExecCode","name":"order","inputSandbox":%b}' % ORDER)
        taken.append(MS * (time.perf_counter() - began))
    return tuple(taken)


def _host_calls(server: Server, runs: int) -> tuple[float, ...]:
    """Milliseconds of all processes' time for a call of a function of the client's."""
    code = json.dumps(f"for (let i = 0; i < {HOST_CALLS}; i++) await f(i)").encode()
    server.ask(b'"cmd":"AddCode","name":"asks","hostFunctions":{"f":{"calls":%d}},"code":%b}' % (HOST_CALLS, code))
    taken = []
    for _ in range(runs):
        number, used = next(server.ids), server.cpu()
        server.send(number, b'"cmd":"ExecCode","name":"asks","inputSandbox":{}}')
        while call := server.asked():
            server.send(number, b'"cmd":"HostResult","call":%d,"value":1}' % call)
        taken.append(MS * (server.cpu() - used) / HOST_CALLS)
    return tuple(taken)


def _private(server: Server) -> tuple[float, ...]:
    """MiB of memory that each child has for itself."""
    return tuple(
        sum(int(line.split()[1]) for line in text_of(f"/proc/{child}/smaps_rollup").splitlines() if "Private_" in line)
        / 1024
        for child in server.children()
    )


def measure(host: Host, effort: Effort) -> list[Figure]:
    """The figures of scripts. Without node there is nothing to compare with."""
    rounds, figures = min(effort.rounds, ROUNDS), list[Figure]()
    calls = QUICK_CALLS if effort.quick else 50 * effort.rounds
    with engines() as cache:
        pool = [sys.executable, "-m", "script_pool", "--stdio", "--min=2", "--max=2", f"--cache={cache}"]
        figures += compared_with_node(pool, rounds, calls)
        with served([*pool, f"--time={LOOP_SECONDS}"]) as server:
            late = _loops(server, effort.rounds)
            figures.append(Figure("a loop: its deadline → its answer", "ms", late))
            figures.append(Figure("the same, 99th percentile", "ms", (percentile(late, 99),), LATE))
            figures.append(Figure("a child's own memory", "MiB", _private(server)))
        with served([*pool, "--max=1", "--min=1"]) as server:
            taken = _replaced(server, effort.rounds)
            figures.append(Figure("a killed child → the answer of the next one", "ms", taken, REPLACED))
            taken = _host_calls(server, effort.rounds)
            figures.append(Figure("a host call: processor time of all processes", "ms", taken, HOST_CALL))
        figures.append(_over_tls(host, pool, rounds, calls))
    figures.append(_programs(effort))
    return figures


def _programs(effort: Effort) -> Figure:
    """Milliseconds that a script takes more than a module, from `keepctl run` to its end, in turns."""
    keepctl, more = os.path.join(os.path.dirname(sys.executable), "keepctl"), list[float]()
    with tempfile.TemporaryDirectory() as place:
        script = os.path.join(place, "hello.js")
        with open(script, "w", encoding="ascii") as file:
            file.write("print('hello')\n")
        for number in range(effort.warm_up + effort.rounds):
            taken = []
            for path in (script, example("hello-wat")):
                began = time.perf_counter()
                subprocess.run([keepctl, "run", "--rm", path], check=True, stdout=subprocess.DEVNULL)
                taken.append(MS * (time.perf_counter() - began))
            if number >= effort.warm_up:
                more.append(taken[0] - taken[1])
    return Figure("keepctl run hello.js, minus keepctl run hello.wasm", "ms", tuple(more), PROGRAM_MORE)


def _over_tls(host: Host, pool: Sequence[str], rounds: int, calls: int) -> Figure:
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
                for _ in range(rounds):
                    over_socket.append(round_of(servers["socket"], calls, IN_FLIGHT[-1]).rate)
                    over_tls.append(round_of(servers["tls"], calls, IN_FLIGHT[-1]).rate)
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


def compared_with_node(pool: Sequence[str], rounds: int, calls: int) -> list[Figure]:
    """The pool's figures next to those of node:vm, in turns; the pool's alone where node is not installed."""
    node, figures = shutil.which("node"), list[Figure]()
    if node is None:
        report("scripts: node is not installed, so that node:vm is not measured")
    for in_flight in IN_FLIGHT:
        ours, theirs = list[Calls](), list[Calls]()
        for _ in range(rounds):
            with served(pool) as server:
                ours.append(round_of(server, calls, in_flight))
            if node is not None:
                with served([node, os.path.join(HERE, "node_vm.js")]) as server:
                    theirs.append(round_of(server, calls, in_flight))
        figures += figures_of(in_flight, ours, theirs)
    return figures


def figures_of(in_flight: int, ours: Sequence[Calls], theirs: Sequence[Calls]) -> list[Figure]:
    """The pool's with node:vm's."""
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
