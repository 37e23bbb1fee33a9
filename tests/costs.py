"""What each test costs in processor time, with all that it starts: `./run test --costs`.

Seconds by the clock say how busy the machine was; these say what a test makes it do, and are the same on a busy one.
"""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Generator
from dataclasses import dataclass

import pytest

from tools.sandbox import cgroups, linux, state

SHOWN_TESTS = 60
LOOK_SECONDS = 0.2
"""A sandbox that a test boots and ends is seen some times: what it used after that, of half a second, is missing."""


def of_children() -> float:
    """Processor seconds of this process and of those it started that have ended; others are in a sandbox, or waited
    for before their test ends."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def of_sandbox(name: str) -> float:
    """Processor seconds of all that ever ran in a sandbox, as its cgroup counts them; 0 where that is gone."""
    for hierarchy in cgroups.hierarchies():
        try:
            if hierarchy.options is None:
                with open(f"{hierarchy.of(name)}/cpu.stat", encoding="ascii") as file:
                    return int(file.read().split()[1]) / 1e6
            if "cpuacct" in hierarchy.options:
                with open(f"{hierarchy.of(name)}/cpuacct.usage", encoding="ascii") as file:
                    return int(file.read()) / 1e9
        except FileNotFoundError:
            continue
    return 0


def descends(process: int | None, ancestor: int) -> bool:
    """Whether a process was started by that one, or by one that it started, or is it."""
    while process and process != ancestor:
        process = cgroups.parent(process)
    return process == ancestor


def of_sandboxes(maker: int) -> dict[str, float]:
    """Name → processor seconds, of the sandboxes that a process made, or one that it started: a sandbox has the number
    of its maker at the end of its name."""
    numbers = {name: name.rpartition("-")[2] for name in state.names()}
    return {name: of_sandbox(name) for name, text in numbers.items() if text.isdecimal() and descends(int(text), maker)}


def dearest(seconds: dict[str, float]) -> list[tuple[str, float]]:
    """What costs most comes first."""
    return sorted(seconds.items(), key=lambda pair: -pair[1])


@dataclass
class Usage:
    """Processor seconds and seconds by the clock."""

    processor: float
    clock: float


class Costs:
    """In a worker, it measures between one phase of a test and the next; where the reports arrive, it adds up."""

    def __init__(self) -> None:
        self._process = 0
        self._collection = 0.0
        self._before = Usage(0, time.monotonic())
        self._sandboxes: dict[str, float] = {}
        self._phases: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._files: defaultdict[str, float] = defaultdict(float)
        self._waited: defaultdict[str, float] = defaultdict(float)
        self._tests: defaultdict[str, float] = defaultdict(float)
        self._looks = threading.Lock()
        self._apart, self._never = threading.Event(), threading.Event()

    def _watch(self) -> None:
        linux.unshare(linux.CLONE_FILES)  # what it opens is not among the descriptors that tests count
        self._apart.set()
        while True:
            self._never.wait(LOOK_SECONDS)  # `time.sleep` may be another one while a test runs
            self._look()

    def _look(self) -> None:
        with self._looks:
            for name, seconds in of_sandboxes(os.getpid()).items():  # what has gone keeps what it had at the last look
                self._sandboxes[name] = max(seconds, self._sandboxes.get(name, 0))

    def _since(self) -> Usage:
        self._look()
        with self._looks:
            now = Usage(of_children() + sum(self._sandboxes.values()), time.monotonic())
        before, self._before = self._before, now
        return Usage(now.processor - before.processor, now.clock - before.clock)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """The report carries its costs to the process where reports arrive."""
        report = yield
        usage = self._since()
        vars(report)["costs"] = [usage.processor, usage.clock]
        return report

    def pytest_collection_finish(self) -> None:
        """What came before the first test."""
        self._collection = of_children()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        """Before the first test of a process: what came before is not its cost."""
        if self._process != os.getpid():
            self._process = os.getpid()
            threading.Thread(target=self._watch, daemon=True).start()
            self._apart.wait()  # its copy of a descriptor that a test had opened would stay: a lock, for instance
            self._since()
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A report that a worker made."""
        processor, clock = getattr(report, "costs", (0.0, 0.0))
        file = report.location[0]
        self._phases[file, report.when or ""] += processor
        self._files[file] += processor
        self._waited[file] += clock
        self._tests[report.nodeid] += processor

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Two tables, dearest first: files, and tests."""
        write = terminalreporter.write_line
        write(f"processor seconds: {sum(self._files.values()):.1f}; collection {self._collection:.1f}")
        write("  total  set-up    call   after   clock  file")
        for file, total in dearest(self._files):
            phases = " ".join(f"{self._phases[file, when]:7.2f}" for when in ("setup", "call", "teardown"))
            write(f"{total:7.2f} {phases} {self._waited[file]:7.2f}  {file}")
        for test, total in dearest(self._tests)[:SHOWN_TESTS]:
            write(f"{total:7.2f}  {test}")
