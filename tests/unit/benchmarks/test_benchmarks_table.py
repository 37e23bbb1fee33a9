"""The figures as a table."""

from __future__ import annotations

import pytest

from benchmarks.figures import Figure, Goal, Measure, Section
from benchmarks.table import HEADINGS, number, render, row

FLOOR = Figure("floor: sleep", "ms", (50.0,))


@pytest.mark.parametrize(("value", "text"), [(1234.5, "1234"), (99.94, "99.9"), (9.994, "9.99"), (0.5, "0.50")])
def test_numbers_have_about_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_a_row_has_a_cell_for_each_heading() -> None:
    cells = row(Figure("new-keep", "ms", (60.0, 90.0), Goal(1.5, Measure.RATIO), FLOOR))
    assert cells == ("new-keep", "2", "75.0", "90.0", "ms", "1.50", "1.80", "≤ 1.5 × floor", "pass")
    assert len(cells) == len(HEADINGS)


def test_a_missed_goal_is_marked() -> None:
    assert row(Figure("rate", "MB/s", (100.0,), Goal(200.0, at_least=True), rates=True))[-2:] == ("≥ 200", "MISS")


def test_all_lines_of_figures_are_aligned() -> None:
    sections = [
        Section("a", "First", (FLOOR, Figure("x", "ms", (1.0,)))),
        Section("b", "Second", (Figure("y", "ms", (2.0,)),)),
    ]
    lines = [line for line in render(sections).splitlines() if "ms" in line]
    assert len({line.index("ms") for line in lines}) == 1


def test_the_summary_counts_goals_and_names_what_was_missed() -> None:
    figures = (Figure("good", "ms", (1.0,), Goal(2.0)), Figure("bad", "ms", (3.0,), Goal(2.0)), FLOOR)
    assert render([Section("a", "First", figures)]).endswith("1 of 2 goals reached\nmissed: bad")


def test_what_failed_is_shown_in_its_place_and_in_the_summary() -> None:
    shown = render([Section("fleet", "Many", failure="no keep came"), Section("a", "First", (FLOOR,))])
    assert "Many\nFAILED: no keep came" in shown
    assert shown.endswith("FAILED: fleet: no keep came")
