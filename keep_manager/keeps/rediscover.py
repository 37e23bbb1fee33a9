"""What a manager finds when it starts, in numbers and words. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from keep_protocol.keep import KeepInfo
from keep_protocol.states import State


@dataclass(frozen=True)
class Census:
    """How many keeps there are, how many of them are started, and which are in state 15 and why."""

    keeps: int
    started: int
    troubled: tuple[str, ...]

    def __str__(self) -> str:
        trouble = f", {len(self.troubled)} in error" if self.troubled else ""
        return f"{self.keeps} keep{'' if self.keeps == 1 else 's'}, {self.started} started{trouble}"


def census(keeps: Sequence[KeepInfo]) -> Census:
    """Counts `keeps`."""
    return Census(
        keeps=len(keeps),
        started=sum(keep.state is State.STARTED for keep in keeps),
        troubled=tuple(f"{keep.unit}: {keep.detail}" for keep in keeps if keep.state is State.ERROR),
    )
