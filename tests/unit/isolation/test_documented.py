"""The table of attacks in the docs has a row for each that is tried, and names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

from tests.system.attack import ATTACKS

ROOT = Path(__file__).resolve().parents[3]


def rows() -> list[list[str]]:
    text = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    table = text.partition("| what it tries |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_each_attack_has_its_row_in_the_docs() -> None:
    assert [row[0] for row in rows()] == list(ATTACKS)


def test_each_row_says_what_stops_it_and_names_tests_that_are_there() -> None:
    for _, stops, tests in rows():
        assert stops
        named = re.findall(r"`(tests/[^`]+)`", tests)
        assert named and all((ROOT / name).is_file() for name in named), tests
