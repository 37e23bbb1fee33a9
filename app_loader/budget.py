"""What checking and compiling one upload may cost, by its size: the same numbers for the checker, which limits itself,
and for the door, which waits and explains. Pure."""

from __future__ import annotations

from app_loader.limits import (
    CHECKER_BESIDE_BYTES,
    CHECKER_CPU_SECONDS,
    CHECKER_CPU_SECONDS_PER_MIB,
    CHECKER_DATA_BYTES,
    CHECKER_DATA_FACTOR,
    CHECKER_WALL_FACTOR,
    MAX_CHECKER_CPU_SECONDS,
    MAX_CHECKER_DATA_BYTES,
)
from keep_protocol.fields import Record


class Budget(Record):
    """cpu_seconds: processor time; data_bytes: private memory; seconds: from the whole body to the verdict."""

    cpu_seconds: int
    data_bytes: int
    seconds: float

    def over_cpu(self) -> str:
        """How compiling went over, in words that follow "compiling it"."""
        return f"takes over {self.cpu_seconds} s of processor time"

    def over_data(self) -> str:
        """See `over_cpu`."""
        return f"takes over {self.data_bytes >> 20} MiB of memory"


def budget(size: int, unit_memory_bytes: int) -> Budget:
    """The budget of a module of `size` bytes in a unit with this MemoryMax=.

    It grows with the module up to a ceiling, and stays within what the unit has: a keep with a higher memory limit
    can take a larger module.
    """
    cpu = min(max(CHECKER_CPU_SECONDS, CHECKER_CPU_SECONDS_PER_MIB * (size >> 20)), MAX_CHECKER_CPU_SECONDS)
    wanted = min(max(CHECKER_DATA_BYTES, CHECKER_DATA_FACTOR * size), MAX_CHECKER_DATA_BYTES)
    return Budget(cpu, min(wanted, unit_memory_bytes - CHECKER_BESIDE_BYTES), cpu * CHECKER_WALL_FACTOR)
