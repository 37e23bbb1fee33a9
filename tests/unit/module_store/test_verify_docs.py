"""The page on verification is typed here: it needs no manager."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def typed(page: str, folder: Path) -> str:
    """What the page's commands print, typed one after another in `folder`, from which the examples are seen."""
    (folder / "examples").symlink_to(ROOT / "examples")
    programs = folder / "programs"
    programs.mkdir()
    (programs / "keepctl").write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m keepctl "$@"\n')
    (programs / "keepctl").chmod(0o755)
    text = (ROOT / page).read_text(encoding="utf-8")
    script = "".join(re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HOME": str(folder),
        "KEEPFLEET_STORE": f"{folder}/store",
    }
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", script], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_on_verification_does_what_it_says(tmp_path: Path) -> None:
    output = typed("docs/how-to/verify.md", tmp_path)
    assert output.count("refused: 1\n") == 3
    for promised in ("env open_the_door", "policy edge-jobs", "True sha256:", "gcd: there is a loop on its way"):
        assert promised in output, f"verify.md promises {promised!r}; it printed:\n{output}"
    assert output.count("\npassed\n") == 3
