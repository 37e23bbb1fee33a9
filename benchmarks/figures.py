"""Samples, what is said of them, and whether a goal is reached. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum


class NoSamples(ValueError):
    """Nothing was measured, so nothing can be said."""


def median(samples: Sequence[float]) -> float:
    """The middle sample, or the mean of the two in the middle. Raises NoSamples."""
    if not samples:
        raise NoSamples("a median of nothing")
    ordered = sorted(samples)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that at least `percent` of all do not exceed (nearest rank): always one that was measured.

    Raises NoSamples, and ValueError outside 0 < percent <= 100.
    """
    if not 0 < percent <= 100:
        raise ValueError(f"no percentile {percent}")
    if not samples:
        raise NoSamples("a percentile of nothing")
    ordered = sorted(samples)
    return ordered[math.ceil(len(ordered) * percent / 100) - 1]


class Measure(Enum):
    """What of a figure a goal is about: its median, its median's ratio to the floor's, or its worst sample."""

    MEDIAN = "median"
    RATIO = "ratio"
    WORST = "worst"


@dataclass(frozen=True)
class Goal:
    """`measure` at most `limit`, or at least where `at_least`."""

    limit: float
    measure: Measure = Measure.MEDIAN
    at_least: bool = False

    def reached(self, value: float) -> bool:
        """Whether `value` reaches it."""
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass(frozen=True)
class Figure:
    """One thing that was measured: samples in `unit`, perhaps a floor to compare with, perhaps a goal.

    rates: more is better, so the tail worth showing is the slow one, the first percentile.
    """

    name: str
    unit: str
    samples: tuple[float, ...]
    goal: Goal | None = None
    floor: Figure | None = field(default=None, repr=False)
    rates: bool = False

    def __post_init__(self) -> None:
        if not self.samples:
            raise NoSamples(f"{self.name} has no samples")
        if self.goal is not None and self.goal.measure is Measure.RATIO and self.floor is None:
            raise ValueError(f"{self.name} has a goal for a ratio and no floor")

    @property
    def median(self) -> float:
        """The median of the samples."""
        return median(self.samples)

    @property
    def tail(self) -> float:
        """The 99th percentile, on the bad side."""
        return percentile(self.samples, 1 if self.rates else 99)

    @property
    def worst(self) -> float:
        """The worst sample."""
        return min(self.samples) if self.rates else max(self.samples)

    @property
    def ratio(self) -> float | None:
        """Median over the floor's median; None without a floor, or where that is nothing."""
        return self.median / self.floor.median if self.floor and self.floor.median else None

    @property
    def tail_ratio(self) -> float | None:
        """Tail over the floor's tail, as `ratio`."""
        return self.tail / self.floor.tail if self.floor and self.floor.tail else None

    @property
    def passed(self) -> bool | None:
        """Whether the goal is reached; None without one."""
        if self.goal is None:
            return None
        values = {Measure.MEDIAN: self.median, Measure.RATIO: self.ratio, Measure.WORST: self.worst}
        value = values[self.goal.measure]
        return value is not None and self.goal.reached(value)

    def to_json(self) -> dict[str, object]:
        """The figure with every sample."""
        goal = self.goal and {
            "of": self.goal.measure.value,
            "limit": self.goal.limit,
            "at_least": self.goal.at_least,
            "passed": self.passed,
        }
        return {
            "name": self.name,
            "unit": self.unit,
            "count": len(self.samples),
            "median": self.median,
            "tail": self.tail,
            "tail_percent": 1 if self.rates else 99,
            "worst": self.worst,
            "floor": self.floor and self.floor.name,
            "ratio": self.ratio,
            "tail_ratio": self.tail_ratio,
            "goal": goal,
            "samples": list(self.samples),
        }


@dataclass(frozen=True)
class Section:
    """What one benchmark measured, or why it could not."""

    name: str
    title: str
    figures: tuple[Figure, ...] = ()
    failure: str = ""
    seconds: float = 0.0

    def to_json(self) -> dict[str, object]:
        """The section with all its figures."""
        return {
            "name": self.name,
            "title": self.title,
            "seconds": self.seconds,
            "failure": self.failure or None,
            "figures": [figure.to_json() for figure in self.figures],
        }
