"""What a run uses, and what it may use: the runner's own figures, and the limits that the kernel keeps for it."""

from __future__ import annotations

import math
import os
import resource
import time
from _thread import start_new_thread

from app_loader.limits import OS_STACK_SPARE_BYTES
from app_loader.run.outcome import Usage
from keep_protocol.limits import Limits

_TIMER_ABSTIME, _SIGXCPU = 1, 24
"""As Linux has them on every architecture of `lock`."""


def bound(limits: Limits) -> None:
    """The limits the kernel keeps: processor time in whole seconds, see `end_after`, and room for the guest's stack."""
    cpu = math.ceil(time.process_time()) + limits.cpu_seconds
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(
        resource.RLIMIT_CPU, (cpu, cpu + 1) if hard == resource.RLIM_INFINITY else (min(cpu, hard), hard)
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    wanted = limits.stack_bytes + OS_STACK_SPARE_BYTES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_STACK, (wanted, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Meter:
    """Measures the run; peak memory is read from a file that is open before the lock.

    The peak is the kernel's VmHWM of the process; what the runner had before the run, and what it inherited at its
    fork, is in it. status: /proc/self/status, for the loader, which cannot open it.
    """

    def __init__(self) -> None:
        self.status = -1
        self.begin()

    def __repr__(self) -> str:
        return f"Meter({self.usage()!r})"

    def open(self) -> None:
        """Opens the file; not before the passed descriptors are claimed, which closes all others."""
        self.status = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)

    def begin(self) -> None:
        """The run begins now."""
        self._wall, self._cpu, self._started = time.monotonic(), time.process_time(), time.time()

    def usage(self) -> Usage:
        """The resource usage so far."""
        kib = self._number(self.status, b"VmHWM:")
        wall = time.monotonic() - self._wall
        return Usage(
            wall=wall,
            cpu=time.process_time() - self._cpu,
            peak=None if kib is None else kib * 1024,
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
    from _ctypes import byref  # the engine has brought these: no file can be opened behind the lock

    from app_loader.engine.binding import Int64, bind, open_program

    deadline = time.clock_gettime_ns(time.CLOCK_PROCESS_CPUTIME_ID) + seconds * 1_000_000_000
    wanted = (Int64 * 2)(*divmod(deadline, 1_000_000_000))  # struct timespec
    program = open_program()
    sleep = bind(program, "clock_nanosleep", "int int int void* void*")
    end = bind(program, "raise", "int int")

    def wait() -> None:
        if sleep(time.CLOCK_PROCESS_CPUTIME_ID, _TIMER_ABSTIME, byref(wanted), None) == 0:
            end(_SIGXCPU)

    start_new_thread(wait, ())
