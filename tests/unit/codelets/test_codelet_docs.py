"""The how-to's programs and commands print what it says, and its table names what is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import codelets
from codelets.descriptor import Channel, CodeletDescriptor, CodeletSet, LinkedMap
from codelets.faults import Failure
from codelets.lcm_cli import main as lcm_cli
from codelets.storage import Kind
from keep_protocol.fields import table_of

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs/how-to/codelets.md").read_text(encoding="utf-8")
COMMANDS = {
    "python3": "",
    "keepctl": "-m keepctl",
    "codelets": "-m codelets",
    "lcm-cli": "-m codelets.lcm_cli",
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Where the commands are those of this checkout."""
    for name, arguments in COMMANDS.items():
        command = tmp_path / name
        command.write_text(f'#!/bin/sh\nexec {sys.executable} {arguments} "$@"\n')
        command.chmod(0o755)
    return {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}


PROGRAMS = re.findall(r"^```python\n(.*?)^```$\n+^```\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("program", "printed"), PROGRAMS, ids=("hook", "collector"))
def test_the_python_programs_print_what_the_page_says(environment: dict[str, str], program: str, printed: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert (done.stdout, done.returncode) == (printed, 0), done.stderr


def test_the_tutorials_commands_print_what_the_page_says(environment: dict[str, str], tmp_path: Path) -> None:
    script, expected = "set -e\n", []
    for block, printed in re.findall(r"^```sh\n(.*?)^```$(?:\n+^```\n(.*?)^```$)?", PAGE, re.MULTILINE | re.DOTALL):
        script += f"{block}echo ---\n"
        expected.append(printed)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=100
    )
    found = done.stdout.split("---\n")
    assert done.returncode == 0, done.stdout + done.stderr
    assert found[1:-1] == expected[1:], done.stderr  # what adding to the store prints is its own page's


def test_the_table_of_jbpfs_features_names_what_is_there() -> None:
    table = PAGE[PAGE.index("<!-- jbpf -->") :]
    for name in re.findall(r"`Runtime\.([a-z_]+)", table):
        assert hasattr(codelets.Runtime, name), name
    for kind in re.findall(r"`map:([a-z-]+)`", table):
        Kind(kind)
    for name in ("pack", "unpack", "JsonOf", "Collector", "HookStatistics"):
        assert f"`{name}`" in table
        assert name in codelets.__all__
    members = {name for record in (CodeletSet, CodeletDescriptor, Channel, LinkedMap) for name in table_of(record)}
    for name in (
        "codeletset_id",
        "codelet_descriptor",
        "priority",
        "runtime_threshold",
        "linked_maps",
        "serde",
        "stream_id",
    ):
        assert f"`{name}`" in table
        assert name in members
    options = {option for parameter in lcm_cli.params for option in parameter.opts}
    assert {"--load", "--unload"} <= options
    assert "stats" in lcm_cli.commands


def test_the_table_of_errors_has_every_failure_with_its_number() -> None:
    rows = re.findall(r"^\| −([0-9]) \| `([a-z-]+)` \|", PAGE, re.MULTILINE)
    assert {(Failure(word), -int(number)) for number, word in rows} == {(each, each.number) for each in Failure}
