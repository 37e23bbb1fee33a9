"""The figures as plain aligned text. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.figures import Figure, Goal, Measure, Section

HEADINGS = ("", "n", "median", "p99", "unit", "× floor", "p99 × floor", "goal", "")
_PASS, _MISS = "pass", "MISS"


def number(value: float) -> str:
    """Three significant digits, and never an exponent."""
    size = abs(value)
    return f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def _goal(goal: Goal | None) -> str:
    if goal is None:
        return ""
    sign = "≥" if goal.at_least else "≤"
    what = {Measure.MEDIAN: "", Measure.RATIO: " × floor", Measure.WORST: " always"}[goal.measure]
    return f"{sign} {goal.limit:g}{what}"


def row(figure: Figure) -> tuple[str, ...]:
    """The cells of one figure, in the order of HEADINGS."""
    passed = figure.passed
    return (
        figure.name,
        str(len(figure.samples)),
        number(figure.median),
        number(figure.tail),
        figure.unit,
        "" if figure.ratio is None else f"{figure.ratio:.2f}",
        "" if figure.tail_ratio is None else f"{figure.tail_ratio:.2f}",
        _goal(figure.goal),
        "" if passed is None else _PASS if passed else _MISS,
    )


_LEFT = {0, 4, 7, 8}
"""Columns of words; the others are numbers and stand to the right."""


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.ljust(width) if index in _LEFT else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()


def summary(sections: Sequence[Section]) -> str:
    """How many goals there are, how many were reached, and what could not be measured."""
    judged = [figure for section in sections for figure in section.figures if figure.passed is not None]
    missed = [figure.name for figure in judged if not figure.passed]
    lines = [f"{len(judged) - len(missed)} of {len(judged)} goals reached"]
    lines += [f"missed: {name}" for name in missed]
    lines += [f"FAILED: {section.name}: {section.failure}" for section in sections if section.failure]
    return "\n".join(lines)


def render(sections: Sequence[Section]) -> str:
    """All sections as one table with one set of columns, then the summary."""
    rows = [row(figure) for section in sections for figure in section.figures]
    widths = [max(len(cells[index]) for cells in [HEADINGS, *rows]) for index in range(len(HEADINGS))]
    lines = [_line(HEADINGS, widths)]
    for section in sections:
        lines += ["", section.title]
        lines += [_line(row(figure), widths) for figure in section.figures]
        if section.failure:
            lines.append(f"FAILED: {section.failure}")
    return "\n".join([*lines, "", summary(sections)])
