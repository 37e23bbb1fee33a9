"""The programs of the how-to for language models, each with its framework installed beside what the tests have."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.versions import pip_of

ROOT = Path(__file__).resolve().parents[2]
INSTALL_SECONDS = 300
PROGRAMS = re.findall(
    r"^```python (\S+==\S+)\n(.*?)^```$\n+^```\n(.*?)^```$",
    (ROOT / "docs/how-to/agents.md").read_text(encoding="utf-8"),
    re.MULTILINE | re.DOTALL,
)


@pytest.mark.parametrize(("package", "program", "printed"), PROGRAMS, ids=[package for package, _, _ in PROGRAMS])
def test_the_program_prints_what_the_page_says(
    package: str, program: str, printed: str, prefix: Path, scripts_cache: str, tmp_path: Path
) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    python = str(tmp_path / "env" / "bin" / "python")
    pip = [*pip_of(prefix), "--python", python, "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    got = subprocess.run([*pip, package], capture_output=True, text=True, timeout=INSTALL_SECONDS)
    if "(from versions: none)" in got.stderr:
        pytest.skip(f"cannot install {package}: no package index is within reach: {got.stderr.strip()[-200:]}")
    assert got.returncode == 0, got.stderr
    # Behind what the framework brings: keepfleet, and what it needs.
    paths = [str(ROOT), *(entry for entry in sys.path if entry.endswith("site-packages"))]
    (directory,) = (tmp_path / "env" / "lib").glob("python3*/site-packages")
    (directory / "keepfleet.pth").write_text("\n".join(paths) + "\n")
    environment = {**os.environ, "CACHE_DIRECTORY": scripts_cache}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, cwd="/", env=environment)
    assert (done.stdout, done.returncode) == (printed, 0), done.stderr
