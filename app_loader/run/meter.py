"""The resource usage of one run, measured by its own process.

Import rule: no engine.
"""

from __future__ import annotations

import os
import time

from app_loader.run.outcome import Usage


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
