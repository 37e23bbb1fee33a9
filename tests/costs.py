"""What each test costs in processor time, with all that it starts: `./run test --costs`.

Seconds by the clock say how busy the machine was; these say what a test makes it do, and are the same on a busy one.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Generator
from dataclasses import dataclass

import pytest

from tools.sandbox import state
from tools.sandbox.command import agent_pid
from tools.sandbox.sandbox import Sandbox

TICKS = os.sysconf("SC_CLK_TCK")
SHOWN_TESTS = 60
TIMES = slice(11, 15)
"""utime, stime, cutime and cstime in /proc/PID/stat, counted from behind the name: see proc_pid_stat(5)."""


def of_processes(*pids: int | None) -> float:
    """Processor seconds of processes and their descendants, those that ended included; 0 for one that is not there.

    Who ended is in the children's time of who waited for it, so that the living hold everything.
    """
    ticks, left, seen = 0, {str(pid) for pid in pids if pid}, set[str]()
    while left:
        seen.add(process := left.pop())
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as stat:
                ticks += sum(map(int, stat.read().rpartition(")")[2].split()[TIMES]))
            for thread in os.listdir(f"/proc/{process}/task"):
                with open(f"/proc/{process}/task/{thread}/children", encoding="utf-8") as children:
                    left |= set(children.read().split()) - seen
    return ticks / TICKS


def of_sandboxes(maker: int) -> dict[str, float]:
    """Name → processor seconds, of the running sandboxes that a process made: it puts its number into their names."""
    made = [name for name in state.names() if name.endswith(str(maker))]
    return {name: of_processes(Sandbox(name).pid, agent_pid(name)) for name in made}


def dearest(seconds: dict[str, float]) -> list[tuple[str, float]]:
    """What costs most comes first."""
    return sorted(seconds.items(), key=lambda pair: -pair[1])


@dataclass
class Spent:
    """Processor seconds and seconds by the clock."""

    processor: float
    clock: float


class Costs:
    """In a worker, it measures between one phase of a test and the next; where the reports arrive, it adds up."""

    def __init__(self) -> None:
        self._before = Spent(0, time.monotonic())
        self._sandboxes: dict[str, float] = {}
        self._phases: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._files: defaultdict[str, float] = defaultdict(float)
        self._waited: defaultdict[str, float] = defaultdict(float)
        self._tests: defaultdict[str, float] = defaultdict(float)

    def _since(self) -> Spent:
        self._sandboxes |= of_sandboxes(os.getpid())  # what is gone keeps what it had when it was seen last
        now = Spent(of_processes(os.getpid()) + sum(self._sandboxes.values()), time.monotonic())
        before, self._before = self._before, now
        return Spent(now.processor - before.processor, now.clock - before.clock)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """The report carries its costs, through xdist, too."""
        report = yield
        spent = self._since()
        vars(report)["costs"] = [spent.processor, spent.clock]
        return report

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """In a worker: what came before the first test."""
        spent = self._since()
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output["collection"] = spent.processor

    def pytest_testnodedown(self, node: object) -> None:
        """A worker of xdist's has ended."""
        self._phases["", "collection"] += getattr(node, "workeroutput", {}).get("collection", 0)

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
        write(f"processor seconds: {sum(self._files.values()):.1f}; collection {self._phases['', 'collection']:.1f}")
        write("  total  set-up    call   after   clock  file")
        for file, total in dearest(self._files):
            phases = " ".join(f"{self._phases[file, when]:7.2f}" for when in ("setup", "call", "teardown"))
            write(f"{total:7.2f} {phases} {self._waited[file]:7.2f}  {file}")
        for test, total in dearest(self._tests)[:SHOWN_TESTS]:
            write(f"{total:7.2f}  {test}")
