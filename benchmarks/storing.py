"""The module store: how fast a large module is added, against a copy that is flushed, in how much memory; a verified
read; and a store with many objects."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.figures import Figure, Goal, Measure
from benchmarks.host import Host, example
from benchmarks.measuring import MB, MIB, MS, Effort, MeasurementFailed
from benchmarks.modules import leb128, padded
from module_store.store import Store
from module_store.verify.component import COMPONENT_PREAMBLE
from module_store.verify.policy import Policy
from module_store.verify.verification import verify

LARGE, SMALL, READ = 200_000_000, 1_000_000, 20_000_000
QUICK_DIVISOR = 20
"""Of what is large, in a quick run."""
OBJECTS, FEW_OBJECTS = 1000, 50
FLAT = Goal(1.0, Measure.WORST)
"""MiB that may come and go with the allocator's mood, between a module of 1 MB and one of 200."""
CORE_MODULE = 1
"""The id of a section of a component that is a core module."""
VERIFIED = Policy(name="benchmark", valid=False, memory_initial=None)
FAST = Goal(50.0, at_least=True)
"""MB a second: what is verified before each load must not be what the load waits for."""
FILLER = os.urandom(64 * 1024)


def measure(host: Host, effort: Effort) -> list[Figure]:
    """The figures of `keepctl store add`, and of reading."""
    del host
    quick = effort.quick
    divisor = QUICK_DIVISOR if quick else 1
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        large = _file(directory, "large", LARGE // divisor)
        small = _file(directory, "small", SMALL)
        figures = _adding(directory, large, small, effort.uploads)
        many = _many(directory, FEW_OBJECTS if quick else OBJECTS, effort.uploads)
        reading = _reading(directory, READ // divisor, effort.uploads)
        return [*figures, reading, *many, *_verifying(directory, READ // divisor, effort.uploads)]


def _file(directory: str, name: str, size: int) -> str:
    """A module of that length."""
    with open(example("hello-wat"), "rb") as file:
        module = file.read()
    path = os.path.join(directory, name)
    with open(path, "wb") as file:
        file.writelines(padded(module, size, FILLER))
    return path


class Ran(NamedTuple):
    """What a command took: seconds, milliseconds of processor time, and the most memory that it had, in MiB."""

    seconds: float
    processor: float
    peak: float


_STARTER = """
import json, os, resource, subprocess, sys, time
began = time.perf_counter()
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([code, time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss]))
"""
"""Starts a command from a small process: the kernel counts what its parent has at that moment as its peak, too."""


def _timed(argv: Sequence[str]) -> Ran:
    command = [sys.executable, "-I", "-S", "-c", _STARTER, *argv]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    code, seconds, processor, peak = json.loads(done.stdout)
    if code:
        raise MeasurementFailed(f"{' '.join(argv)} exited {code}")
    return Ran(seconds, MS * processor, peak * 1024 / MIB)


def _adding(directory: str, large: str, small: str, count: int) -> list[Figure]:
    size = os.path.getsize(large)
    copies, additions, smalls = [], [], []
    for number in range(count):
        copied = os.path.join(directory, "copy")
        copies.append(_timed(["dd", f"if={large}", f"of={copied}", "bs=1M", "conv=fsync", "status=none"]))
        os.unlink(copied)
        store = ["--store", os.path.join(directory, f"store-{number}")]
        smalls.append(_timed(["keepctl", "store", "add", small, *store]))
        additions.append(_timed(["keepctl", "store", "add", large, *store]))
        subprocess.run(["rm", "-r", store[1]], check=True)
    text = f"{size // 1_000_000} MB"
    floor = Figure(f"a copy of {text}, flushed (dd)", "MB/s", _rates(size, copies), rates=True)
    growth = tuple(after.peak - before.peak for after, before in zip(additions, smalls, strict=True))
    return [
        floor,
        Figure(f"keepctl store add, {text}, typed → on disk", "MB/s", _rates(size, additions), floor=floor, rates=True),
        Figure("its processor time", "ms", tuple(ran.processor for ran in additions)),
        Figure("its peak memory, the whole process", "MiB", tuple(ran.peak for ran in additions)),
        Figure(f"its growth from a module of {SMALL // 1_000_000} MB", "MiB", growth, FLAT),
    ]


def _rates(size: int, runs: Sequence[Ran]) -> tuple[float, ...]:
    return tuple(size / MB / ran.seconds for ran in runs)


def _reading(directory: str, size: int, count: int) -> Figure:
    """A verified open, as a start from the store has it."""
    samples = []
    with Store.create(os.path.join(directory, "reading")) as store, open(_file(directory, "read", size), "rb") as file:
        digest = store.add(file).digest
        for _ in range(count):
            began = time.process_time()
            os.close(store.open_object(digest))
            samples.append(MS * (time.process_time() - began))
    return Figure(f"a verified open of {size // 1_000_000} MB, processor time", "ms", tuple(samples))


def _verifying(directory: str, length: int, count: int) -> list[Figure]:
    """Verification of a component of many real modules, by processor time: parser and rules, and the whole command."""
    with open(example("words-rust"), "rb") as file:
        module = file.read()
    nested = bytes([CORE_MODULE]) + leb128(len(module)) + module
    component = COMPONENT_PREAMBLE + nested * (length // len(nested))
    path = os.path.join(directory, "verified.wasm")
    with open(path, "wb") as written:
        written.write(component)
    rules, commands = [], []
    for _ in range(count):
        began = time.process_time()
        if not verify(component, VERIFIED).passed:
            raise MeasurementFailed("the component does not pass")
        rules.append(len(component) / MB / (time.process_time() - began))
        commands.append(len(component) / MB / (_timed(["keepctl", "verify", path]).processor / MS))
    size = f"{length // 1_000_000} MB, processor time"
    return [
        Figure(f"verification without the engine's opinion, {size}", "MB/s", tuple(rules), FAST, rates=True),
        Figure(f"keepctl verify, {size}", "MB/s", tuple(commands), rates=True),
    ]


def _many(directory: str, objects: int, count: int) -> list[Figure]:
    place = os.path.join(directory, "many")
    with Store.create(place) as store:
        for number in range(objects):
            store.add(io.BytesIO(b"%d" % number), reference=f"module:{number}")
    opened, listed = [], []
    for _ in range(count):
        began = time.process_time()
        with Store.open(place) as store:
            store.objects()
            store.references()
        opened.append(MS * (time.process_time() - began))
        listed.append(_timed(["keepctl", "store", "ls", "--store", place]).processor)
    return [
        Figure(f"{objects} objects: open, every object and reference, processor time", "ms", tuple(opened)),
        Figure(f"{objects} objects: keepctl store ls, processor time", "ms", tuple(listed)),
    ]
