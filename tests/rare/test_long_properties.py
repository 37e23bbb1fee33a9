"""Every property that Hypothesis checks, with eight times the examples of an ordinary run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROPERTIES = ["-m", "hypothesis", "--hypothesis-profile=long", "tests/unit"]


def test_every_property_holds_for_many_examples() -> None:
    command = [sys.executable, "-m", "pytest", "--quiet", "--tb=short", "-p", "no:cacheprovider", *PROPERTIES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
