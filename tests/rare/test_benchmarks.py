"""`./run bench --quick` measures everything there is to measure; what the figures are is not its business."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks.suite import BENCHMARKS

ROOT = Path(__file__).resolve().parents[2]
MINUTES = 10
"""It takes one; this covers a host ten times busier."""


@pytest.mark.usefixtures("prefix")
def test_a_quick_run_measures_everything_and_writes_it_down(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    done = subprocess.run(
        [ROOT / "run", "bench", "--quick", "--out", out.name],
        capture_output=True,
        text=True,
        timeout=60 * MINUTES,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    value = json.loads(out.read_text(encoding="utf-8"))
    assert [section["name"] for section in value["sections"]] == list(BENCHMARKS)
    assert all(section["figures"] and section["failure"] is None for section in value["sections"])
    names = {figure["name"] for section in value["sections"] for figure in section["figures"]}
    assert all(name in done.stdout for name in names)
    assert "FAILED" not in done.stdout
