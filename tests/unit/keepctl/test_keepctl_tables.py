"""Commands that are tables: our reader and click read a line alike, or ours leaves it to click."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from typing import Any

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keepctl.arguments import Choice, Command, Number, Option, Parsed
from keepctl.commands import COMMANDS
from keepctl.commands.access import made_of
from tests.unit.keepctl.conftest import Run

TABLES: dict[str, Command] = {
    name: getattr(importlib.import_module(where.partition(":")[0]), where.partition(":")[2])
    for name, where in COMMANDS.items()
    if where.partition(":")[2].isupper()
}
WORDS = ["a", "b.wasm", "web", "7", "-", "--", "", "-x", "--frob", "-fn", "--rm=1", "--help", "-o", "é", "k=v"]


def by_click(command: Command, words: list[str]) -> dict[str, Any] | None:
    """The values click finds in a line; None where it refuses it, or answers it itself."""
    found: list[dict[str, Any]] = []

    def work(**values: Any) -> int:
        found.append(values)
        return 0

    made = made_of(command.replace(work=work))
    try:
        made.main(list(words), prog_name="keepctl", standalone_mode=False)
    except click.ClickException:
        return None
    return found[0] if found else None


def read_alike(command: Command, words: list[str]) -> bool:
    """Whether our reader took the line, which then must say what click says."""
    ours = command.read(words)
    if ours is None:
        return False
    assert by_click(command, words) == ours, words
    return True


def words_for(option: Option) -> st.SearchStrategy[list[str]]:
    """An option as it may be written, with a value that it takes, or not."""
    flag = st.sampled_from(option.flags)
    if option.value is None:
        return flag.map(lambda written: [written])
    good = st.sampled_from(["64M", "10s", "0.5", "tasks=20", "k=v", "/a:/b:rw", "1"])
    if isinstance(option.value, Choice):
        good = st.sampled_from(option.value.words)
    elif isinstance(option.value, Number):
        good = st.integers(option.value.low - 1, option.value.high + 1).map(str)
    elif not isinstance(option.value, Parsed):
        good = st.sampled_from(["x", "--rm", "-", "a b"])
    return st.tuples(flag, good, st.booleans()).map(
        lambda drawn: [f"{drawn[0]}={drawn[1]}"] if drawn[2] else [drawn[0], drawn[1]]
    )


def lines(command: Command) -> st.SearchStrategy[list[str]]:
    part = st.one_of(*map(words_for, command.options), st.sampled_from(WORDS).map(lambda word: [word]))
    return st.lists(part, max_size=6).map(lambda parts: [word for found in parts for word in found])


@pytest.mark.parametrize("name", TABLES)
@settings(max_examples=12)  # for each command
@given(st.data())
def test_a_line_that_our_reader_takes_says_to_click_the_same(name: str, data: st.DataObject) -> None:
    read_alike(TABLES[name], data.draw(lines(TABLES[name])))


TYPICAL = [
    ["run", "hello.wasm"],
    ["run", "--rm", "--memory", "64M", "--time=10s", "filter.wasm", "--", "--verbose", "--", "-x"],
    ["run", "-d", "--name", "web", "--dir", "/srv/site:/site", "-e", "A=", "--restart", "on-failure", "server.wasm"],
    ["run", "-f", "workload.yaml", "-o", "json", "--port", "4000"],
    ["ps"],
    ["ps", "-q", "--label", "a=b", "--label", "c=d", "--manager", "edge.example:3030"],
    ["logs", "-f", "-n", "20", "web"],
    ["logs", "web", "--all", "--raw"],
    ["stop", "web", "7"],
    ["inspect", "--output", "text", "web"],
    ["rm", "--context", "edge", "web"],
    ["create", "--replace", "--idle", "1h"],
    ["start", "web", "--name", "a.example", "--", "-v"],
    ["events", "--no-follow"],
]


@pytest.mark.parametrize("words", TYPICAL, ids=" ".join)
def test_what_people_type_is_read_without_click(words: list[str]) -> None:
    assert read_alike(TABLES[words[0]], words[1:])


@pytest.mark.parametrize(
    "words",
    [
        ["ps", "--help"],
        ["ps", "-h"],
        ["ps", "web"],
        ["ps", "--quiet=yes"],
        ["logs"],
        ["logs", "a", "b"],
        ["logs", "-n", "0", "a"],
        ["logs", "-n20", "a"],
        ["logs", "-ft", "a"],
        ["logs", "a", "-n"],
        ["stop", ""],
        ["stop", "A!"],
        ["run", "--mem", "1", "m"],
        ["run", "--restart", "sometimes", "m"],
        ["run", "--port", "٣", "m"],
        ["top", "--interval", "1"],
    ],
    ids=" ".join,
)
def test_every_other_line_is_left_to_click(words: list[str]) -> None:
    assert TABLES[words[0]].read(words[1:]) is None


def test_each_name_of_a_value_stands_once_in_a_table() -> None:
    for name, command in TABLES.items():
        names = [option.name for option in command.options] + [argument.name for argument in command.arguments]
        flags = [flag for option in command.options for flag in option.flags]
        assert len(set(names)) == len(names) and len(set(flags)) == len(flags), name


def test_a_shell_that_completes_asks_click(run: Run) -> None:
    del run
    environment = {
        **os.environ,
        "_KEEPCTL_COMPLETE": "bash_complete",
        "COMP_WORDS": "keepctl ps --la",
        "COMP_CWORD": "2",
    }
    done = subprocess.run(
        [sys.executable, "-m", "keepctl", "ps"], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout == "plain,--label\n"
