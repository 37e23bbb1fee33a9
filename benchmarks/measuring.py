"""What every benchmark shares: how it fails, how much it measures, how it takes the time."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

MS = 1000.0
MB = 1_000_000.0
"""For what is sent."""
MIB = 1024.0 * 1024
"""For memory, as the kernel and systemd count it."""


class MeasurementFailed(Exception):
    """Something could not be measured; the text says what was seen instead."""


@dataclass(frozen=True)
class Effort:
    """How often things are measured."""

    rounds: int
    """One has five starts of units and one life of a keep; a 99th percentile wants a hundred samples."""
    warm_up: int
    """Rounds before these that are not counted: the first finds everything cold."""
    batches: int
    batch_keeps: int
    memory_keeps: int
    fleet_keeps: int
    fleet_kills: int
    lists: int
    uploads: int
    upload_bytes: int

    @property
    def quick(self) -> bool:
        """Whether it is to be shown that everything can be measured, and what the figures are is nothing to anyone."""
        return not self.warm_up

    def rounds_of(self, share: int) -> int:
        """Rounds of what is measured less often, once in `share` rounds; two at least, in a run that is not quick."""
        return min(self.rounds, max(self.rounds // share, 2))


FULL = Effort(100, 1, 5, 24, 8, 1000, 5, 30, 5, 100_000_000)
"""A thousand keeps take three minutes to make."""
QUICK = Effort(1, 0, 1, 1, 1, 2, 1, 1, 1, 1_000_000)
"""Each of them once, and of fleets the smallest that is one."""


class Stopwatch:
    """The milliseconds of a block, once it has ended."""

    milliseconds = 0.0


@contextmanager
def timed() -> Iterator[Stopwatch]:
    """Takes the time of a block."""
    watch = Stopwatch()
    began = time.perf_counter()
    yield watch
    watch.milliseconds = MS * (time.perf_counter() - began)


def report(text: str) -> None:
    """One line of progress, on standard error."""
    print(f"bench: {text}", file=sys.stderr, flush=True)
