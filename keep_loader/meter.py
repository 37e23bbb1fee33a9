"""What a workload has used, without what its process had used as a door.

A door that becomes its workload keeps its process, and the kernel adds up: wait4 also counts the door, openssl and the
checker, whose compiling costs more than most workloads. Import rule: that of keep_loader.
"""

from __future__ import annotations

import os
import signal
import time

from keep_loader.child import Exit
from keep_loader.memory import memory_kills
from keep_protocol.fields import Record

_FIRST_OF_PROCESSOR_TIME = 11
"""utime, stime, cutime and cstime, counted from the field after the name in parentheses (man 5 proc)."""


class Used(Record):
    """What one run used: seconds and bytes, None where nothing could be measured; when, in seconds of the epoch; and
    whether the kernel ended it for memory."""

    wall_seconds: float
    cpu_seconds: float | None
    peak_bytes: int | None
    started_at: float = 0.0
    ended_at: float = 0.0
    for_memory: bool = False


def processor_seconds(pid: int) -> float | None:
    """What the process and the children it has collected have used so far, in steps of a clock tick; None where it
    cannot be read."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            fields = (file.read(4096) or b"").rpartition(b")")[2].split()
        ticks = [int(field) for field in fields[_FIRST_OF_PROCESSOR_TIME:][:4]]
    except (OSError, ValueError):
        return None
    return sum(ticks) / os.sysconf("SC_CLK_TCK") if len(ticks) == 4 else None


class Meter:
    """Measures one run from its construction on; `fresh` says that its process has never been anything else."""

    def __init__(self, pid: int, *, fresh: bool) -> None:
        self._fresh = fresh
        self.started_at, self._began = time.time(), time.monotonic()
        self._memory_kills = memory_kills()
        self._before = 0.0 if fresh else processor_seconds(pid)
        self._peak: int | None = None
        self._status: int | None = None
        try:
            # Opened now: once the process has locked itself, /proc hides it from us. It stays readable through exec.
            self._status = os.open(f"/proc/{pid}/status", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return

    def __repr__(self) -> str:
        return f"Meter(since {self.started_at:.0f})"

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

    def used(self, end: Exit) -> Used:
        """What it used, once its process has ended as `end`. Closes the meter."""
        if self._status is not None:
            os.close(self._status)
            self._status = None
        wall = time.monotonic() - self._began
        return Used(
            wall_seconds=wall,
            cpu_seconds=None if self._before is None else max(0.0, end.cpu_seconds - self._before),
            peak_bytes=end.peak_bytes if self._fresh else self._peak,
            started_at=self.started_at,
            ended_at=self.started_at + wall,  # and not what a clock says that may have been set meanwhile
            for_memory=end.signal == signal.SIGKILL and memory_kills() > self._memory_kills,
        )
