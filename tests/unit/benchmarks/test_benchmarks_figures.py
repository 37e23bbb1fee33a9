"""What is said of samples: medians, tails, ratios, goals."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.figures import Figure, Goal, Measure, NoSamples, Section, median, percentile

SAMPLES = st.lists(st.floats(0, 1e9), min_size=1, max_size=200)


def test_the_median_is_the_middle_sample() -> None:
    assert median([3, 1, 2]) == 2


def test_the_median_of_an_even_count_lies_between_the_two_in_the_middle() -> None:
    assert median([4, 1, 2, 3]) == 2.5


@pytest.mark.parametrize("ask", [median, lambda samples: percentile(samples, 99)])
def test_nothing_is_said_of_no_samples(ask: object) -> None:
    with pytest.raises(NoSamples):
        ask([])  # type: ignore[operator] # a parameter of either kind


@pytest.mark.parametrize(("percent", "value"), [(1, 1), (50, 50), (99, 99), (99.5, 100), (100, 100)])
def test_a_percentile_is_the_nearest_sample_by_rank(percent: float, value: float) -> None:
    assert percentile(list(range(100, 0, -1)), percent) == value


@pytest.mark.parametrize("percent", [0, -1, 100.1])
def test_a_percentile_outside_the_samples_is_refused(percent: float) -> None:
    with pytest.raises(ValueError, match="no percentile"):
        percentile([1.0], percent)


@given(SAMPLES)
def test_the_tail_is_a_sample_and_no_less_than_the_median(samples: list[float]) -> None:
    figure = Figure("x", "ms", tuple(samples))
    assert figure.tail in samples
    assert min(samples) <= figure.median <= figure.tail <= figure.worst


@given(SAMPLES)
def test_of_a_rate_the_tail_is_the_slow_one(samples: list[float]) -> None:
    figure = Figure("x", "/s", tuple(samples), rates=True)
    assert figure.worst <= figure.tail <= figure.median


def test_a_ratio_compares_with_the_floor_of_the_same_run() -> None:
    floor = Figure("floor", "ms", (1.0, 2.0, 3.0))
    figure = Figure("x", "ms", (2.0, 3.0, 9.0), floor=floor)
    assert (figure.ratio, figure.tail_ratio) == (1.5, 3.0)


def test_without_a_floor_there_is_no_ratio() -> None:
    assert Figure("x", "ms", (1.0,)).ratio is None


def test_a_floor_of_nothing_gives_no_ratio() -> None:
    assert Figure("x", "ms", (1.0,), floor=Figure("floor", "ms", (0.0,))).ratio is None


@pytest.mark.parametrize(
    ("goal", "passed"),
    [
        (Goal(2.0), True),
        (Goal(1.9), False),
        (Goal(2.0, at_least=True), True),
        (Goal(2.1, at_least=True), False),
        (Goal(2.0, Measure.RATIO), True),
        (Goal(1.9, Measure.RATIO), False),
        (Goal(5.0, Measure.WORST), True),
        (Goal(4.9, Measure.WORST), False),
    ],
)
def test_a_goal_is_about_the_median_the_ratio_or_the_worst(goal: Goal, passed: bool) -> None:
    assert Figure("x", "ms", (1.0, 2.0, 5.0), goal, Figure("floor", "ms", (1.0,))).passed is passed


def test_a_figure_without_a_goal_is_not_judged() -> None:
    assert Figure("x", "ms", (1.0,)).passed is None


def test_a_figure_needs_samples() -> None:
    with pytest.raises(NoSamples):
        Figure("x", "ms", ())


def test_a_goal_for_a_ratio_needs_a_floor() -> None:
    with pytest.raises(ValueError, match="no floor"):
        Figure("x", "ms", (1.0,), Goal(1.0, Measure.RATIO))


def test_json_has_every_sample_and_the_result() -> None:
    figure = Figure("x", "ms", (1.0, 3.0), Goal(2.0), Figure("floor", "ms", (1.0,)))
    value = json.loads(json.dumps(Section("name", "title", (figure,), seconds=1.5).to_json()))
    (shown,) = value["figures"]
    assert shown["samples"] == [1.0, 3.0]
    assert (shown["median"], shown["floor"], shown["ratio"]) == (2.0, "floor", 2.0)
    assert shown["goal"] == {"of": "median", "limit": 2.0, "at_least": False, "passed": True}
    assert value["failure"] is None
