"""Starts from the module store against uploads of the same modules, and the memory of many keeps of one module.

Both ways are `keepctl run --rm` as a program of its own, in turns; what the host uses meanwhile is read from the
service manager, which collects what has ended, and the services that work for a run. The modules of the store were
compiled before: that is what the store is for. What the first start pays stands next to it.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable

from benchmarks import podman, waiting
from benchmarks.figures import Figure, Goal, Measure
from benchmarks.host import Host, example
from benchmarks.measuring import MIB, MS, Effort, MeasurementFailed, report
from keep_protocol.keep import KeepInfo

SMALL, REAL, LARGE = "hello-wat", "hello-c", "json-python"
"""276 bytes; 40 KB with a C library in it; 18 MB, CPython as a component, which is there where it was built."""
TEXT = '{"b": [1, 2], "a": null}'
"""What the large one is given, and prints tidily."""
TEN_TIMES = Goal(0.1, Measure.RATIO)
WITHOUT_SPARE, WITH_SPARE = Goal(1.2, Measure.RATIO), Goal(0.75, Measure.RATIO)
LARGE_BYTES, QUICK_LARGE_BYTES, FEW_ROUNDS = 20_000_000, 100_000, 2
"""Of what stands in for the component, which takes 20 s to compile at each upload."""
KEEPS, FEW_KEEPS = 50, 2
OWN = Goal(8.0)
"""MiB that a keep has besides its guest's own data."""
_BYTES_OF_FUNCTION = 60 * 15
_SHARED_ONCE = re.compile(r"^Pss: +([0-9]+) kB$", re.MULTILINE)
STORED, UPLOADED, PODMAN = "stored", "uploaded", "podman"


def measure(host: Host, effort: Effort) -> list[Figure]:
    """The figures."""
    quick = effort.quick
    figures = _small(host, effort)
    try:
        large = example(LARGE)
    except MeasurementFailed:
        report(f"no large component: examples/build {LARGE} makes it; a core module of that length in its place")
        with tempfile.NamedTemporaryFile(suffix=".wasm") as made:
            made.write(large_module(QUICK_LARGE_BYTES if quick else LARGE_BYTES))
            made.flush()
            figures += _large(host, made.name, "large:1", (), effort, min(effort.rounds, FEW_ROUNDS))
    else:
        figures += _large(host, large, f"{LARGE}:1", ("--", TEXT), effort, effort.rounds_of(20))
    return figures + _memory(host, FEW_KEEPS if quick else KEEPS)


def _keepctl() -> str:
    return os.path.join(os.path.dirname(sys.executable), "keepctl")


def _add(path: str, reference: str) -> None:
    subprocess.run([_keepctl(), "store", "add", path, reference], check=True, capture_output=True)


class Turns:
    """Samples of typed commands, taken in turns, in an order drawn each time: milliseconds to the first line, and of
    processor time, by the command's name."""

    def __init__(self, host: Host, ready: Callable[[], None] = lambda: None) -> None:
        """ready: returns when the next command may be typed."""
        self._host, self._ready = host, ready
        self._draw = random.Random(0)  # noqa: S311 - the same order in each run
        self.ways: dict[str, tuple[list[str], dict[str, str] | None]] = {}
        self.lines: dict[str, list[float]] = defaultdict(list)
        self.processor: dict[str, list[float]] = defaultdict(list)

    def keepctl(self, name: str, *words: str) -> None:
        """A way of running: `keepctl run --rm` with these words."""
        self.ways[name] = ([_keepctl(), "run", "--rm", "--manager", self._host.endpoint.authority, *words], None)

    def take(self, rounds: int, warm_up: int) -> None:
        """So many rounds, after those of each that find everything cold."""
        self._ready()  # the manager may have been started a moment ago
        clock = podman.ProcessorTime(self._host)
        for number in range(warm_up + rounds):
            for name in self._draw.sample(list(self.ways), len(self.ways)):
                self._ready()
                before = clock.now()
                line, _ = podman.typed(*self.ways[name])
                if number >= warm_up:
                    self.lines[name].append(line)
                    self.processor[name].append(clock.now() - before)
        self._host.clear()

    def figures(self, what: str, floor: str, goals: dict[str, Goal]) -> list[Figure]:
        """Typed → first line of each, and its processor time, against the way `floor`."""
        found: list[Figure] = []
        for title, samples in ((f"{what}: typed → its first line", self.lines), (f"{what}: processor", self.processor)):
            base = Figure(f"{title}, {floor}", "ms", tuple(samples[floor]))
            found.append(base)
            others = (name for name in self.ways if name != floor)
            found += [
                Figure(
                    f"{title}, {name}",
                    "ms",
                    tuple(samples[name]),
                    goals.get(name) if samples is self.lines else None,
                    base,
                )
                for name in others
            ]
        return found


def _small(host: Host, effort: Effort) -> list[Figure]:
    turns, rounds = Turns(host), effort.rounds_of(5)
    for name in (SMALL, REAL):
        _add(example(name), f"{name}:1")
    turns.keepctl(STORED, f"{SMALL}:1")
    turns.keepctl(UPLOADED, example(SMALL))
    try:
        container = podman.installed()
    except MeasurementFailed as error:
        report(str(error))
    else:
        turns.ways[PODMAN] = (container.argv, container.environment)
    turns.take(rounds, effort.warm_up)
    figures = turns.figures("276 bytes", UPLOADED, {})
    if PODMAN in turns.ways:
        base = Figure("podman run, in the same turns", "ms", tuple(turns.lines[PODMAN]))
        figures += [
            base,
            Figure("276 bytes, stored, against it", "ms", tuple(turns.lines[STORED]), WITHOUT_SPARE, base),
            *_with_spares(host, turns, rounds, effort.warm_up),
        ]
    real = Turns(host)
    real.keepctl(STORED, f"{REAL}:1")
    real.keepctl(UPLOADED, example(REAL))
    real.take(rounds, effort.warm_up)
    return figures + real.figures("40 KB from C", UPLOADED, {})


def _with_spares(host: Host, before: Turns, rounds: int, warm_up: int) -> list[Figure]:
    """The same small module with a manager that keeps spares, which is given time to make them, and podman, again."""
    turns = Turns(host, lambda: podman.until_spares_are_there(host))
    turns.ways = {name: before.ways[name] for name in (STORED, PODMAN)}
    with podman.spares(host):
        turns.take(rounds, warm_up)
    base = Figure("podman run, again", "ms", tuple(turns.lines[PODMAN]))
    return [base, Figure("276 bytes, stored, with spares", "ms", tuple(turns.lines[STORED]), WITH_SPARE, base)]


def _large(host: Host, path: str, reference: str, words: tuple[str, ...], effort: Effort, rounds: int) -> list[Figure]:
    """The first start compiles; the others are taken in turns with uploads."""
    _add(path, reference)
    turns = Turns(host)
    turns.keepctl(STORED, reference, *words)
    began = time.perf_counter()
    podman.typed(*turns.ways[STORED])
    size = f"{os.path.getsize(path) / 1e6:.0f} MB"
    first = Figure(f"{size}: the store's first start, which compiles", "ms",
                   (MS * (time.perf_counter() - began),))  # fmt: skip
    turns.keepctl(UPLOADED, path, *words)
    turns.take(rounds, effort.warm_up)
    return [first, *turns.figures(size, UPLOADED, {STORED: TEN_TIMES})]


def _memory(host: Host, count: int) -> list[Figure]:
    """Of `count` keeps of one module that run and wait: what all their processes have, shared pages counted once."""
    with tempfile.NamedTemporaryFile(suffix=".wasm") as workload:
        workload.write(waiting.module())
        workload.flush()
        _add(workload.name, "waiting:1")
    client = host.client
    keeps = [client.create(module="waiting:1", start={"workload": None}) for _ in range(count)]
    for keep in keeps:
        host.first_line(keep.unit, waiting.ITS_LINE)
    own = tuple(_own(host, keep) / MIB for keep in keeps)
    host.clear()
    return [Figure(f"{count} keeps of one module: memory of each, shared pages counted once", "MiB", own, OWN)]


def large_module(size: int) -> bytes:
    """A core module of about that length, all of it code that is compiled, which prints a line."""
    lines = [
        '(module (import "wasi_snapshot_preview1" "fd_write" (func $w (param i32 i32 i32 i32) (result i32)))',
        '(memory (export "memory") 1) (data (i32.const 0) "\\08\\00\\00\\00\\06\\00\\00\\00large\\n")',
        '(func (export "_start") (drop (call $w (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16))))',
    ]
    step = "local.get 0 i32.const {} i32.mul i32.const 7 i32.rotl i32.const 3 i32.add local.set 0 "
    body = "".join(step.format(70_000 + number) for number in range(60))
    lines += [f"(func (param i32) (result i32) {body} local.get 0)"] * (size // _BYTES_OF_FUNCTION)
    return waiting.binary("\n".join([*lines, ")"]))


def _own(host: Host, keep: KeepInfo) -> int:
    """The proportional set size of a keep's processes: what several map is divided among them (man proc_pid_smaps)."""
    total = 0
    for pid in host.systemd.processes(keep.unit):
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            found = _SHARED_ONCE.findall(file.read())
        if len(found) != 1:
            raise MeasurementFailed("the kernel shows no Pss in smaps_rollup")
        total += 1024 * int(found[0])
    return total
