"""Failpoints: inert unless named, deadly where named."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from keep_manager import failpoints
from keep_manager.failpoints import Failpoint

SCRIPT = "from keep_manager.failpoints import Failpoint, reach; [reach(p) or print(p.value) for p in Failpoint]"


@pytest.mark.parametrize("point", Failpoint)
def test_a_named_failpoint_kills_exactly_there(point: Failpoint) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env={failpoints.VARIABLE: point.value}
    )
    assert done.returncode == -signal.SIGKILL


def test_a_file_that_names_one_kills_there_once(tmp_path: Path) -> None:
    file = tmp_path / "failpoint"
    file.write_text(Failpoint.STOP_AFTER_COMMAND.value)
    environment = {failpoints.VARIABLE: str(file)}
    killed, passed = (
        subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment)
        for _ in range(2)
    )
    assert (killed.returncode, file.exists()) == (-signal.SIGKILL, False)
    assert (passed.returncode, len(passed.stdout.splitlines())) == (0, len(Failpoint))


@pytest.mark.parametrize("value", ["", "nonsense"])
def test_without_a_name_of_theirs_they_do_nothing(value: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env={failpoints.VARIABLE: value}
    )
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == len(Failpoint)
