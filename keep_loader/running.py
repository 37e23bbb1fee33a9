"""A workload that runs: its reports, which are a stranger's words, what it uses, and the limits that the loader keeps.

Its process has been the runner that waited, made the engine ready and forked the checker. So what it used before, and
what the checker used, is left out: its own clock is read when the run begins, and when it ends.
Imported with the first start. Import rule: that of keep_loader.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # as in keep_protocol.forking
import os
import time

from keep_loader.loop import Loop
from keep_loader.outcome import Death, Usage, believe, outcome_of
from keep_loader.process import Exit, Process, own_processor_seconds
from keep_loader.state import Keep
from keep_protocol.constants import STATUS
from keep_protocol.outcome import Outcome, OutcomeKind
from keep_protocol.reports import COMPILED_AGAIN, Report, ReportType

_WALL, _PROCESSOR = "workload's time", "workload's processor time"
_SLACK = 0.05
LINGER_SECONDS = 5.0
"""A workload that has reported its end has nothing left to do but exit."""
PREPARATION_SECONDS = 200.0
"""What a runner may take, above the workload's time, until it says RUNNING: where its compiled module does not fit any
more it has it compiled again, for 180 s at most."""
_SHORTEST_LOOK, _LONGEST_LOOK = 0.05, 1.0
"""Bounds of the seconds between two looks at the processor time of a workload that is near its limit."""
_MEMORY_EVENTS = ("/keepfleet/cgroup/memory.events", "/keepfleet/cgroup/memory.oom_control")
_MEMORY_LIMITS = ("/keepfleet/cgroup/memory.max", "/keepfleet/cgroup/memory.limit_in_bytes")
"""Of control groups in version 2, and in 1 (man 7 cgroups). The manager has systemd mount the unit's own there."""


class Running:
    """Owns the accepted workload of `process`, the runner, until `ended`; `fresh` says that it has forked no checker.

    reported: the outcome that it reported; limited: the limit it was ended for.
    """

    def __init__(self, keep: Keep, loop: Loop, process: Process, *, fresh: bool) -> None:
        self._keep, self._loop, self._process, self._limits = keep, loop, process, keep.spec.limits
        self._meter, self._preparing = Meter(process.pid, fresh=fresh), True
        self._reported: Outcome | None = None
        self._limited: str | None = None
        self._lost: str | None = None
        keep.change_private(started_at=round(self._meter.started_at, 3))
        keep.change(begun=False)
        process.in_time()
        process.is_workload(self._meter.look)
        loop.after(_WALL, self._limits.wall_seconds + PREPARATION_SECONDS, self._out_of_time)
        self._look_at_processor_time()

    def __repr__(self) -> str:
        return f"Running({self._process})"

    @property
    def preparing(self) -> bool:
        """Whether no instruction of the guest's has run yet: what the process says is the runner's own word."""
        return self._preparing

    def take(self, report: Report, descriptors: list[int]) -> None:
        """Obeys one report; what a workload has no say in is ignored."""
        if self._process.ending or self._limited is not None or self._lost is not None:
            return
        reported: Outcome | None = None
        if report.type is ReportType.RUNNING:
            if self._preparing and COMPILED_AGAIN in report.text:
                self._keep.change(unfit=True)
            self._begin(descriptors.pop() if report.descriptors == (STATUS,) and len(descriptors) == 1 else None)
            self._keep.set_detail(report.text)
        elif report.type is ReportType.ENDED:
            reported = believe(report.outcome)
        elif report.type is ReportType.FAILED:  # it has not come as far as the workload
            reported = believe(Outcome(OutcomeKind.LOST, f"lost: {report.text}"))
        if reported is not None:
            self._reported = reported
            self._process.dismiss(LINGER_SECONDS, hang_up=True)

    def _begin(self, status: int | None) -> None:
        """The workload's own time begins: once, and before its first instruction."""
        if not self._preparing:
            if status is not None:
                os.close(status)
            return
        self._preparing = False
        self._meter.begin(status)
        self._keep.change_private(started_at=round(self._meter.started_at, 3))
        self._keep.change(begun=True)
        self._loop.after(_WALL, self._limits.wall_seconds, self._out_of_time)

    def ended(self, end: Exit, stopped_by: str | None) -> Outcome:
        """The outcome, once the process has ended as `end`."""
        self._loop.cancel(_WALL)
        self._loop.cancel(_PROCESSOR)
        death = Death(end, self._reported, stopped_by, self._limited, self._lost)
        return outcome_of(death, self._meter.usage(end), self._limits)

    def lose(self, why: str) -> None:
        """Kills a workload that cannot go on; `why` says it. One that is ending anyway is let end."""
        if not self._process.ending and self._limited is None and self._reported is None:
            self._lost = self._lost or why
            self._process.kill()

    def _limit(self, why: str) -> None:
        """Kills a workload that is over a limit; `why` says which. One that is ending anyway is let end."""
        if not self._process.ending and self._limited is None and self._reported is None:
            self._limited = why
            self._process.kill()

    def _out_of_time(self) -> None:
        """A kill, and not the engine's epochs: those double a tight loop's time, and bind no host call."""
        self._limit(f"over its time limit of {self._limits.wall_seconds} s")

    def _look_at_processor_time(self) -> None:
        """Ends a workload that is over its limit and has not ended itself, as an honest runner does exactly there."""
        limit, used = self._limits.cpu_seconds, self._meter.processor_seconds()
        if used is None:
            return  # it has ended
        seconds = next_look(limit, used, self._limits.cpu_percent)
        if seconds is None:
            self._limit(f"over its processor time limit of {limit} s")
        else:
            self._loop.after(_PROCESSOR, seconds, self._look_at_processor_time)


def next_look(limit: float, used: float, cpu_percent: int) -> float | None:
    """Seconds until the processor time is to be looked at again, None where the limit is passed. Pure.

    The limit is passed with a twentieth and _SLACK more: an honest runner ends itself exactly there. It cannot be
    passed sooner than with every processor that the unit may have; near it a look comes after a twentieth of it, so
    that a guest, which is one thread, goes no further beyond than a tenth and a tenth of a second.
    """
    room = limit * 1.05 + _SLACK - used
    if room <= 0:
        return None
    return max(room * 100 / max(cpu_percent, 100), min(max(limit / 20, _SHORTEST_LOOK), _LONGEST_LOOK))


class Meter:
    """Measures one run of the process `pid`, the runner, from its construction on; `fresh` says that it has had no
    children, whose memory the kernel counts in at its end.

    The peak is the kernel's VmHWM of the process: what the runner had before the run, and what it inherited at its
    fork, is in it, and no workload has less.
    """

    def __init__(self, pid: int, *, fresh: bool) -> None:
        self._pid, self._fresh = pid, fresh
        self._status: int | None = None
        self._peak: int | None = None
        self._memory_kills = memory_kills()
        self.begin(None)

    def __repr__(self) -> str:
        return f"Meter(since {self.started_at:.0f})"

    def begin(self, status: int | None) -> None:
        """The run is counted from now on. `status` is the process's own /proc/self/status, now the meter's: it stays
        readable when the process has locked itself, and we could not open it."""
        self._status = status
        self.started_at, self._began = time.time(), time.monotonic()
        self._before = own_processor_seconds(self._pid)

    def look(self) -> None:
        """Notes the largest memory so far: to be called before the process is killed, which leaves nothing to see."""
        if self._status is None:
            return
        try:
            status = os.pread(self._status, 8192, 0)
        except OSError:
            return  # it has ended, or this was never such a file
        for line in status.splitlines():
            words = line.split()
            if line.startswith(b"VmHWM:") and len(words) == 3 and words[1].isdigit() and len(words[1]) <= 12:
                self._peak = int(words[1]) * 1024

    def processor_seconds(self) -> float | None:
        """What the process itself has used so far; None once it has ended and was collected."""
        now = own_processor_seconds(self._pid)
        return None if now is None else now - (self._before or 0.0)

    def usage(self, end: Exit) -> Usage:
        """What it used, once its process has ended as `end`. Closes the meter."""
        if self._status is not None:
            os.close(self._status)
            self._status = None
        wall = time.monotonic() - self._began
        return Usage(
            wall_seconds=wall,
            cpu_seconds=None if self._before is None else max(0.0, end.cpu_seconds - self._before),
            peak_bytes=end.peak_bytes if self._fresh else self._peak,
            started_at=self.started_at,
            ended_at=self.started_at + wall,  # and not what a clock says that may have been set meanwhile
            for_memory=end.signal == _signal.SIGKILL and memory_kills() > self._memory_kills,
            memory_limit=memory_limit(),
        )


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(64 * 1024)
    except OSError:
        return ""


def memory_limit() -> int:
    """What the kernel holds the keep to, in bytes: the manager lowers it once the guest runs; 0 where none is set, or
    nothing can be read."""
    limit = next(filter(None, map(_read, _MEMORY_LIMITS)), "").strip()
    return int(limit) if limit.isdecimal() else 0


def memory_kills() -> int:
    """How many processes of the keep were ended for memory so far; 0 where nothing can be read."""
    for file in _MEMORY_EVENTS:
        for entry in _read(file).splitlines():
            word, _, count = entry.partition(" ")
            if word == "oom_kill" and count.isdecimal():
                return int(count)
    return 0
