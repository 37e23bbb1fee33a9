"""The resource usage of one run, measured by its own process, and the end of one that is over its processor time.

Import rule: no engine.
"""

from __future__ import annotations

import ctypes
import os
import time
from _thread import start_new_thread

from app_loader.run.outcome import Usage

_TIMER_ABSTIME, _SIGXCPU = 1, 24
"""As Linux has them on every architecture of `lock`."""


class Meter:
    """Measures the run; peak memory and output are read from files that `open` has to open before the lock."""

    def __init__(self) -> None:
        self._status = self._io = -1
        self.begin()

    def __repr__(self) -> str:
        return f"Meter({self.usage()!r})"

    def open(self) -> None:
        """Opens the files; not before the passed descriptors are claimed, which closes all others."""
        self._status = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
        self._io = os.open("/proc/self/io", os.O_RDONLY | os.O_CLOEXEC)

    def begin(self, *, output: bool = False) -> None:
        """The run begins now. `output`: whether what the process writes from here on is its output alone."""
        self._wall, self._cpu, self._started = time.monotonic(), time.process_time(), time.time()
        self._written = self._number(self._io, b"wchar:") if output else None

    def usage(self) -> Usage:
        """The resource usage so far."""
        written = None if self._written is None else self._number(self._io, b"wchar:")
        kib = self._number(self._status, b"VmHWM:")
        wall = time.monotonic() - self._wall
        return Usage(
            wall=wall,
            cpu=time.process_time() - self._cpu,
            peak=None if kib is None else kib * 1024,
            output=None if written is None or self._written is None else written - self._written,
            started=self._started,
            ended=self._started + wall,
        )

    @staticmethod
    def _number(file: int, name: bytes) -> int | None:
        """A kernel's figure; None where it does not keep it."""
        try:
            lines = os.pread(file, 8192, 0).splitlines()
        except OSError:
            return None
        return next((int(line.split()[1]) for line in lines if line.startswith(name)), None)


def end_after(seconds: int) -> None:
    """Ends this process by SIGXCPU, to the millisecond, once it has used `seconds` more of processor time.

    RLIMIT_CPU counts whole seconds from the process's start, so it comes up to a second late; it still holds for a
    guest that has broken out of its engine. A timer would be exact, too, but the unit's system call filter has none.
    """
    deadline = time.clock_gettime_ns(time.CLOCK_PROCESS_CPUTIME_ID) + seconds * 1_000_000_000
    wanted = (ctypes.c_long * 2)(*divmod(deadline, 1_000_000_000))  # struct timespec
    library = ctypes.CDLL(None)  # `signal` would be 40 KB, and cannot be read from its file behind the lock

    def wait() -> None:
        if library.clock_nanosleep(time.CLOCK_PROCESS_CPUTIME_ID, _TIMER_ABSTIME, ctypes.byref(wanted), None) == 0:
            library["raise"](_SIGXCPU)

    start_new_thread(wait, ())
