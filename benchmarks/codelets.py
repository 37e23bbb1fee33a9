"""Codelets at a hook, in turns with a plain Python callback; loading and unloading, and what callers see of that."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from benchmarks.figures import Figure, Goal, percentile
from benchmarks.host import Host
from benchmarks.measuring import Effort, report
from codelets import Runtime, fast
from keep_protocol.errors import KeepfleetError
from module_store.store import Store

PACKET = struct.Struct("<IIII")
MAX_ROUNDS = 10
"""Each has 20,000 calls of each hook."""
CALLS, BATCH = 20_000, 100
NS = 1e9
IN_C = {"none": Goal(60.0), "one": Goal(250.0), "eight": None}
BY_CTYPES = {"none": None, "one": Goal(1000.0), "eight": None}
LOAD, UNLOAD, PAUSE = Goal(5.0), Goal(1.0), Goal(1.0)
MESSAGES = Goal(200_000.0, at_least=True)
STREAM = "00112233445566778899aabbccddeeff"
_EXAMPLES = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "examples")
_WORK = """(module (import "env" "memory" (memory 1))
  (func (export "codelet_main") (param $at i32) (result i64)
    (i32.store offset=8 (local.get $at) (i32.add (i32.load (local.get $at)) (i32.load offset=4 (local.get $at))))
    (i32.store (i32.const 0) (i32.add (i32.const 1) (i32.load (i32.const 0))))
    (i64.const 0)))"""
_SEND = """(module (import "env" "memory" (memory 1))
  (import "output:64:1024" "samples.send" (func $send (param i32 i32) (result i32)))
  (func (export "codelet_main") (param i32) (result i64)
    (i64.extend_i32_s (call $send (i32.const 0) (i32.const 64)))))"""


_FIRST = """
import sys, time
from codelets import Runtime
with Runtime(sys.argv[1], in_c=False, cache=sys.argv[2]) as runtime:
    runtime.hook("busy", 16)
    began, processor = time.perf_counter(), time.process_time()
    runtime.load(sys.argv[3])
    print(time.perf_counter() - began, time.process_time() - processor)
"""
"""The first load of a process, of what an earlier one has compiled."""
MORE = f', out_io_channel: [{{name: samples, stream_id: "{STREAM}"}}]'
"""Of the descriptor of queue.wasm."""


class Plain:
    """The same work as a codelet's in Python: two fields are read, calls counted, one field written."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, context: bytearray) -> None:
        first, second, _, _ = PACKET.unpack_from(context)
        self.calls += 1
        struct.pack_into("<I", context, 8, first + second)


def measure(host: Host, effort: Effort) -> list[Figure]:
    """The figures of codelets."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as directory:
        store = Store.create(os.path.join(directory, "store"))
        for name, module in (("work", _wasm(_WORK)), ("send", _wasm(_SEND))):
            store.add(io.BytesIO(module), reference=f"{name}:1")
        with open(os.path.join(_EXAMPLES, "codelet-queue-c/queue.wasm"), "rb") as file:
            store.add(file, reference="queue:1")
        for in_c in _ways(directory):
            with Runtime(os.path.join(directory, "store"), in_c=in_c) as runtime:
                figures += _calls(runtime, effort, in_c)
                figures += _loading(runtime, effort, in_c)
                figures += _messages(runtime, effort, in_c)
        store.close()
        figures += _first(directory, effort)
    return figures


def _first(directory: str, effort: Effort) -> list[Figure]:
    """What a process takes for its first load, once an earlier one has compiled the module."""
    taken, used = list[float](), list[float]()
    where = os.path.join(directory, "store"), os.path.join(directory, "cache")
    for number in range(1 + effort.rounds):
        command = [sys.executable, "-c", _FIRST, *where, _set("queue", "busy", "queue", MORE)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        if number:
            for found, text in zip((taken, used), done.stdout.split(), strict=True):
                found.append(1000 * float(text))
    return [
        Figure("the first load of a process, of a module that an earlier one compiled", "ms", tuple(taken), LOAD),
        Figure("its processor time", "ms", tuple(used)),
    ]


def _wasm(text: str) -> bytes:
    import wasmtime  # what compiles text is the engine's package, which only this needs here

    return bytes(wasmtime.wat2wasm(text))


def _ways(directory: str) -> tuple[bool, ...]:
    """Through ctypes, and in C where there is a compiler."""
    try:
        fast.DIRECTORY = directory
        fast.build()
    except KeepfleetError as error:
        report(f"codelets are not called in C: {error.message}")
        return (False,)
    return (False, True)


def _set(name: str, hook: str, module: str, more: str = "") -> str:
    return (
        f'{{codeletset_id: {name}, codelet_descriptor: [{{codelet_name: {name}, codelet_path: "{module}:1", '
        f"hook_name: {hook}{more}}}]}}"
    )


def _each(call: Callable[[bytearray], Any], calls: int) -> list[float]:
    """Nanoseconds of one call, each of a hundred together; the thread's processor time."""
    context, found = bytearray(PACKET.size), []
    for _ in range(calls // BATCH):
        began = time.thread_time_ns()
        for _ in range(BATCH):
            call(context)
        found.append((time.thread_time_ns() - began) / BATCH)
    return found


def _calls(runtime: Runtime, effort: Effort, in_c: bool) -> list[Figure]:
    way, goals = ("in C", IN_C) if in_c else ("through ctypes", BY_CTYPES)
    hooks = {name: runtime.hook(name, PACKET.size, writable=True) for name in goals}
    runtime.load(_set("one", "one", "work"))
    for number in range(8):
        runtime.load(_set(f"eight{number}", "eight", "work"))
    plain, plain_samples = Plain(), list[float]()
    samples: dict[str, list[float]] = {name: [] for name in goals}
    for _ in range(min(effort.rounds, MAX_ROUNDS)):
        plain_samples += _each(plain, CALLS)
        for name, hook in hooks.items():
            samples[name] += _each(hook, CALLS)
    floor = Figure(f"a plain Python callback, next to calls {way}", "ns", tuple(plain_samples))
    figures = [floor]
    for name, goal in goals.items():
        title = f"a hook with {name} codelets, {way}" if name != "one" else f"a hook with one codelet, {way}"
        figures.append(Figure(title, "ns", tuple(samples[name]), goal, floor))
    for number in range(8):
        runtime.unload(f"eight{number}")
    runtime.unload("one")
    return figures


def _loading(runtime: Runtime, effort: Effort, in_c: bool) -> list[Figure]:
    """A set with a map and a channel comes and goes, then again while another thread does nothing but call its hook."""
    hook = runtime.hook("busy", PACKET.size)
    end, pauses = threading.Event(), list[float]()

    def call() -> None:
        context, longest = bytearray(PACKET.size), 0.0
        before = time.perf_counter()
        while not end.is_set():
            hook(context)
            now = time.perf_counter()
            longest, before = max(longest, now - before), now
            if len(pauses) < 1_000_000:
                pauses.append(1000 * longest)
                longest = 0.0

    runtime.load(_set("queue", "busy", "queue", MORE))  # compiled once, as after this
    runtime.unload("queue")
    loads, unloads = list[float](), list[float]()
    for _ in range(20 * min(effort.rounds, MAX_ROUNDS)):
        began = time.perf_counter()
        runtime.load(_set("queue", "busy", "queue", MORE))
        loads.append(1000 * (time.perf_counter() - began))
        began = time.perf_counter()
        runtime.unload("queue")
        unloads.append(1000 * (time.perf_counter() - began))
    caller = threading.Thread(target=call)
    caller.start()
    for _ in range(10 * min(effort.rounds, MAX_ROUNDS)):
        runtime.load(_set("queue", "busy", "queue", MORE))
        runtime.unload("queue")
    end.set()
    caller.join()
    way = "in C" if in_c else "through ctypes"
    return [
        Figure(f"loading a stored set, calls {way}", "ms", tuple(loads), LOAD),
        Figure(f"unloading it, calls {way}", "ms", tuple(unloads), UNLOAD),
        Figure(f"99 of 100 calls {way} during loads take less", "ms", (percentile(pauses, 99),), PAUSE),
    ]


def _messages(runtime: Runtime, effort: Effort, in_c: bool) -> list[Figure]:
    hook, got = runtime.hook("sends", PACKET.size), [0]

    def receive(stream: bytes, message: bytes) -> None:
        got[0] += 1

    runtime.on_output(STREAM, receive)
    runtime.load(_set("send", "sends", "send", f', out_io_channel: [{{name: samples, stream_id: "{STREAM}"}}]'))
    context, rates = bytearray(PACKET.size), list[float]()
    for _ in range(min(effort.rounds, MAX_ROUNDS)):
        began, got[0] = time.thread_time_ns(), 0
        for _ in range(20):
            for _ in range(1000):
                hook(context)
            runtime.deliver()
        rates.append(got[0] / ((time.thread_time_ns() - began) / NS))
    runtime.unload("send")
    way = "in C" if in_c else "through ctypes"
    return [Figure(f"messages of 64 bytes to a callback, sent {way}", "/s", tuple(rates), MESSAGES, rates=True)]
