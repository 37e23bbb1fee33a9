"""What a person waits for: `keepctl run --rm FILE.wasm`, from its start as a program to its first line and its end."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict

from benchmarks.bus import slice_of
from benchmarks.figures import Figure, Goal
from benchmarks.host import COMMAND_SECONDS, SLEEPING, Host, example
from benchmarks.measuring import MS, Effort, MeasurementFailed
from keep_protocol.constants import KUUID_BITS, slice_name

SMALL, REAL = "hello-wat", "hello-c"
"""A module of 276 bytes, and one of 40 KB with a C library in it, which takes 40 ms to compile."""
SCRIPT, SCRIPT_SOURCE = "hello.js", 'print("Hello from JavaScript, inside a keep!")\n'
LATER = Goal(10.0)
"""Milliseconds that a script may be slower than a small module, in one round."""
FLOOR, LINE, END = "floor", "line", "end"


class Typing:
    """Rounds of whole runs and of the floor; `samples` holds milliseconds by what was done."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._draw = random.Random(0)  # noqa: S311 - the same order in each run
        self._keepctl = os.path.join(os.path.dirname(sys.executable), "keepctl")
        self._place = tempfile.TemporaryDirectory()
        self._script = os.path.join(self._place.name, SCRIPT)
        with open(self._script, "w", encoding="utf-8") as file:
            file.write(SCRIPT_SOURCE)
        self.samples: dict[str, list[float]] = defaultdict(list)

    def round(self) -> None:
        """Everything once, in an order drawn each time."""
        steps = [FLOOR, SMALL, REAL, SCRIPT]
        self._draw.shuffle(steps)
        for step in steps:
            if step == FLOOR:
                number = self._draw.getrandbits(KUUID_BITS - 1) + 1
                unit, place = f"{SLEEPING}@{number}.service", slice_of(slice_name(number))
                self.samples[FLOOR].append(self._host.systemd.start(unit, [place]))
            else:
                self._run(step)
        self._host.clear()

    def _run(self, name: str) -> None:
        """Raises MeasurementFailed where the run does not print and end well."""
        argv = [self._keepctl, "run", "--rm", "--manager", self._host.endpoint.authority]
        argv.append(self._script if name == SCRIPT else example(name))
        began = time.perf_counter()
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
            alarm = threading.Timer(COMMAND_SECONDS, run.kill)
            alarm.start()
            try:
                assert run.stdout is not None
                line = run.stdout.readline()
                printed = time.perf_counter()
                _, errors = run.communicate()
            finally:
                alarm.cancel()
        ended = time.perf_counter()
        if run.returncode or not line:
            raise MeasurementFailed(f"{' '.join(argv)} exited {run.returncode}, printed {line!r}: {errors.strip()}")
        self.samples[name + LINE].append(MS * (printed - began))
        self.samples[name + END].append(MS * (ended - began))


def measure(host: Host, effort: Effort) -> list[Figure]:
    """The figures of whole runs."""
    typing = Typing(host)
    for _ in range(effort.warm_up):
        typing.round()
    typing.samples.clear()
    for _ in range(effort.rounds):
        typing.round()

    def figure(key: str, name: str, floor: Figure | None) -> Figure:
        return Figure(name, "ms", tuple(typing.samples[key]), None, floor)

    lines = typing.samples[SCRIPT + LINE], typing.samples[SMALL + LINE]
    later = tuple(script - module for script, module in zip(*lines, strict=True))
    floor = figure(FLOOR, "floor, again: sleep with the keep's hardening", None)
    return [
        floor,
        figure(SMALL + LINE, "keepctl run, 276 bytes: typed → its first line", floor),
        figure(REAL + LINE, "keepctl run, 40 KB from C: typed → its first line", floor),
        figure(SCRIPT + LINE, "keepctl run hello.js: typed → its first line", floor),
        Figure("the same, later than the 276 bytes in its round", "ms", later, LATER),
        figure(REAL + END, "the same: typed → keep removed, prompt back", floor),
    ]
