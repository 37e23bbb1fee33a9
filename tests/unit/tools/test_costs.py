"""What `--costs` adds up: processes that have ended, and whose a sandbox is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.costs import dearest, descends, of_children, of_sandbox
from tests.lanes import LONGEST_FIRST, RARE

ROOT = Path(__file__).resolve().parents[3]

SPENDS = "import time\nwhile time.process_time() < 0.2: pass"


def test_every_file_that_the_lanes_name_is_there() -> None:
    assert [name for name in sorted({*LONGEST_FIRST, *RARE}) if not (ROOT / name).is_file()] == []


def test_a_process_that_was_waited_for_costs_what_it_used_with_all_that_it_waited_for() -> None:
    before = of_children()
    spender = [sys.executable, "-I", "-c", SPENDS]
    subprocess.run([sys.executable, "-I", "-c", f"import subprocess; subprocess.run({spender!r})"], check=True)
    assert of_children() - before > 0.15


def test_a_process_descends_from_itself_and_from_who_started_it() -> None:
    command = "import os; print(os.getpid(), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-I", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        pid = int(child.stdout.readline())
        assert descends(pid, pid)
        assert descends(pid, os.getpid())
        assert not descends(os.getpid(), pid)
        child.communicate("\n")
    assert not descends(pid, os.getpid())


def test_a_sandbox_that_is_not_there_costs_nothing() -> None:
    assert of_sandbox("not-there-1") == 0


def test_what_costs_most_comes_first() -> None:
    assert dearest({"a": 1.0, "b": 2.0}) == [("b", 2.0), ("a", 1.0)]
