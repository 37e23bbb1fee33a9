"""What `--costs` adds up: processes that live, and those that have ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.costs import dearest, of_processes
from tests.lanes import LONGEST_FIRST, RARE

BURNS = "import time\nwhile time.process_time() < 0.2: pass"


ROOT = Path(__file__).resolve().parents[3]


def test_every_file_that_the_lanes_name_is_there() -> None:
    assert [name for name in sorted({*LONGEST_FIRST, *RARE}) if not (ROOT / name).is_file()] == []


def test_a_process_counts_with_those_it_started_and_waited_for() -> None:
    before = of_processes(os.getpid())
    subprocess.run([sys.executable, "-c", BURNS], check=True)
    assert of_processes(os.getpid()) - before >= 0.19


def test_a_child_that_lives_counts_once() -> None:
    with subprocess.Popen([sys.executable, "-c", f"{BURNS}\nprint()\ninput()"], stdin=-1, stdout=-1) as child:
        assert child.stdout is not None
        child.stdout.read(1)
        alone = of_processes(child.pid)
        assert alone >= 0.19
        assert of_processes(child.pid, child.pid, None) < alone + 0.1
        child.communicate(b"\n")


def test_a_process_that_is_not_there_costs_nothing() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert of_processes(child.pid) == 0


def test_what_costs_most_comes_first() -> None:
    assert dearest({"a": 1.0, "b": 2.0}) == [("b", 2.0), ("a", 1.0)]
