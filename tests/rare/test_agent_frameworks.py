"""The programs of the how-to for language models, each with its framework installed for it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INSTALL_SECONDS = 300
PROGRAMS = re.findall(
    r"^```python (\S+==\S+)\n(.*?)^```$\n+^```\n(.*?)^```$",
    (ROOT / "docs/how-to/agents.md").read_text(encoding="utf-8"),
    re.MULTILINE | re.DOTALL,
)


@pytest.mark.parametrize(("package", "program", "printed"), PROGRAMS, ids=[package for package, _, _ in PROGRAMS])
def test_the_program_prints_what_the_page_says(
    package: str, program: str, printed: str, scripts_cache: str, tmp_path: Path
) -> None:
    made = subprocess.run([ROOT / "run", "framework", package], capture_output=True, text=True, timeout=INSTALL_SECONDS)
    if made.returncode == os.EX_UNAVAILABLE:
        pytest.skip(made.stderr.splitlines()[-1])
    assert made.returncode == 0, made.stderr
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    (directory,) = (tmp_path / "env" / "lib").glob("python3*/site-packages")
    # Behind what the framework brings: keepfleet, and what it needs.
    framework = Path(made.stdout.strip(), directory.relative_to(tmp_path / "env"))
    paths = [str(framework), str(ROOT), *(entry for entry in sys.path if entry.endswith("site-packages"))]
    (directory / "keepfleet.pth").write_text("\n".join(paths) + "\n")
    environment = {**os.environ, "CACHE_DIRECTORY": scripts_cache}
    environment.pop("PYTHONPATH", None)
    command = [str(tmp_path / "env/bin/python"), "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment)
    assert (done.stdout, done.returncode) == (printed, 0), done.stderr
