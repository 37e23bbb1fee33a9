"""A workload that runs: its reports, which are a stranger's words, what it uses, and the limits that the loader keeps.

A process that was an upload endpoint becomes its workload, and the kernel adds up: wait4 also counts the endpoint,
openssl and the checker, whose compiling costs more than most workloads. So what was used before is left out, by the
process's own clock; /proc shows nothing of it, as no process of a keep may look into another.
Import rule: that of keep_loader.
"""

from __future__ import annotations

import os
import signal
import time

from keep_loader.loop import Loop
from keep_loader.outcome import Death, Usage, all_lines_taken, believe, outcome_of
from keep_loader.process import Exit, Run, own_processor_seconds
from keep_loader.state import Keep
from keep_protocol.outcome import Outcome
from keep_protocol.reports import Report, ReportType

_WALL, _PROCESSOR = "workload's time", "workload's processor time"
_SLACK = 0.05
PREPARATION_SECONDS = 200.0
"""What a runner may take, above the workload's time, until it says RUNNING: where its compiled module does not fit any
more it has it compiled again, for 180 s at most."""
_SHORTEST_LOOK, _LONGEST_LOOK = 0.05, 1.0
"""Bounds of the seconds between two looks at the processor time of a workload that is near its limit."""
_MEMORY_EVENTS = ("/keepfleet/cgroup/memory.events", "/keepfleet/cgroup/memory.oom_control")
"""Of control groups in version 2, and in 1 (man 7 cgroups). The manager has systemd mount the unit's own there."""


class Running:
    """Owns the accepted workload of `run` until `ended`; `fresh` says that its process was never an upload endpoint."""

    def __init__(self, keep: Keep, loop: Loop, run: Run, *, fresh: bool) -> None:
        self._keep, self._loop, self._run, self._limits = keep, loop, run, keep.spec.limits
        self._meter, self._preparing = Meter(run.pid, fresh=fresh), fresh
        keep.change_private(started_at=round(self._meter.started_at, 3))
        run.accepted(self._meter.look)
        # A process that was an endpoint may be a stranger's already: it has no time beyond the workload's.
        loop.after(_WALL, self._limits.wall_seconds + PREPARATION_SECONDS * fresh, self._out_of_time)
        self._look_at_processor_time()

    def __repr__(self) -> str:
        return f"Running({self._run})"

    def take(self, report: Report) -> None:
        """Obeys one report; what a workload has no say in is ignored."""
        reported: Outcome | None = None
        if report.type is ReportType.RUNNING:
            self._begin()
            self._keep.set_detail(report.text)
        elif report.type is ReportType.ENDED:
            reported = believe(report.outcome)
        if reported is not None:
            self._run.has_reported(reported)

    def _begin(self) -> None:
        """The workload's own time begins: once, and before its first instruction."""
        if self._preparing:
            self._preparing = False
            self._meter.begin()
            self._keep.change_private(started_at=round(self._meter.started_at, 3))
            self._loop.after(_WALL, self._limits.wall_seconds, self._out_of_time)

    def ended(self, end: Exit, stopped_by: str | None) -> Outcome:
        """The outcome, once the process has ended as `end`."""
        self._loop.cancel(_WALL)
        self._loop.cancel(_PROCESSOR)
        death = Death(end, self._run.reported, stopped_by, self._run.limited)
        outcome = outcome_of(death, self._meter.usage(end), self._limits)
        whole = not self._keep.report.restarts and all_lines_taken(outcome, self._limits)
        return outcome.with_dropped(0) if whole else outcome

    def _out_of_time(self) -> None:
        """A kill, and not the engine's epochs: those double a tight loop's time, and bind no host call."""
        self._run.limit(f"over its time limit of {self._limits.wall_seconds} s")

    def _look_at_processor_time(self) -> None:
        """Ends a workload that is over its limit and has not ended itself, as an honest runner does exactly there."""
        limit, used = self._limits.cpu_seconds, self._meter.processor_seconds()
        if used is None:
            return  # it has ended
        seconds = next_look(limit, used, self._limits.cpu_percent)
        if seconds is None:
            self._run.limit(f"over its processor time limit of {limit} s")
        else:
            self._loop.after(_PROCESSOR, seconds, self._look_at_processor_time)


def next_look(limit: float, used: float, cpu_percent: int) -> float | None:
    """Seconds until the processor time is to be looked at again, None where the limit is passed. Pure.

    The limit is passed with a twentieth and _SLACK more: loading the module counts here, which the runner leaves out.
    It cannot be passed sooner than with every processor that the unit may have; near it a look comes after a twentieth
    of it, so that a guest, which is one thread, goes no further beyond than a tenth and a tenth of a second.
    """
    room = limit * 1.05 + _SLACK - used
    if room <= 0:
        return None
    return max(room * 100 / max(cpu_percent, 100), min(max(limit / 20, _SHORTEST_LOOK), _LONGEST_LOOK))


class Meter:
    """Measures one run from its construction on; `fresh` says that its process has never been anything else."""

    def __init__(self, pid: int, *, fresh: bool) -> None:
        self._fresh = fresh
        self.begin()
        self._memory_kills = memory_kills()
        self._pid, self._own_before = pid, own_processor_seconds(pid) or 0.0
        self._peak: int | None = None
        self._status: int | None = None
        try:
            # Hidden from us in a keep of its own root; elsewhere it stays readable when the process locks itself.
            self._status = os.open(f"/proc/{pid}/status", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return

    def __repr__(self) -> str:
        return f"Meter(since {self.started_at:.0f})"

    def begin(self) -> None:
        """The run's time is counted from now on."""
        self.started_at, self._began = time.time(), time.monotonic()

    def look(self) -> None:
        """Notes the largest memory so far: to be called before the process is killed, which leaves nothing to see."""
        if self._status is None:
            return
        try:
            status = os.pread(self._status, 8192, 0)
        except OSError:
            return  # it has ended
        for line in status.splitlines():
            if line.startswith(b"VmHWM:"):
                self._peak = int(line.split()[1]) * 1024

    def processor_seconds(self) -> float | None:
        """What the process itself has used so far; None once it has ended and was collected."""
        now = own_processor_seconds(self._pid)
        return None if now is None else now - self._own_before

    def usage(self, end: Exit) -> Usage:
        """What it used, once its process has ended as `end`. Closes the meter."""
        if self._status is not None:
            os.close(self._status)
            self._status = None
        wall = time.monotonic() - self._began
        return Usage(
            wall_seconds=wall,
            cpu_seconds=None if end.own_seconds is None else max(0.0, end.own_seconds - self._own_before),
            peak_bytes=end.peak_bytes if self._fresh else self._peak,
            started_at=self.started_at,
            ended_at=self.started_at + wall,  # and not what a clock says that may have been set meanwhile
            for_memory=end.signal == signal.SIGKILL and memory_kills() > self._memory_kills,
        )


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(64 * 1024)
    except OSError:
        return ""


def memory_kills() -> int:
    """How many processes of the keep were ended for memory so far; 0 where nothing can be read."""
    for file in _MEMORY_EVENTS:
        for entry in _read(file).splitlines():
            word, _, count = entry.partition(" ")
            if word == "oom_kill" and count.isdecimal():
                return int(count)
    return 0
