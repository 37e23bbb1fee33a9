"""Hosts of another Debian: a root directory, made once a month, and keepfleet installed for its interpreter."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tools.sandbox.layout import Layout
from tools.sandbox.sandbox import Sandbox

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = "/opt/keepfleet"
WHEELS = "/opt/wheels"
SECONDS = 300.0
"""For what takes some seconds on a quiet machine."""
_INSTALL = f"""
python3 -m venv {INSTALLED}
{INSTALLED}/bin/pip install --quiet --no-index --no-deps {WHEELS}/*.whl
"""


@dataclass(frozen=True)
class Release:
    """One Debian: its suite, and the version of its Python."""

    suite: str
    python: str

    def root(self) -> str:
        """Its root directory. Skips the test where debootstrap cannot make one, as without a mirror that has it."""
        made = subprocess.run([str(ROOT / "run"), "debian-root", self.suite], capture_output=True, text=True)
        if made.returncode != 0:
            pytest.skip(made.stderr.splitlines()[-1])
        return made.stdout.strip()

    def install(self, root: str, prefix: Path, wheels: Path) -> None:
        """keepfleet in the empty directory `prefix`, to be shown at /opt/keepfleet in that root."""
        subprocess.run([str(ROOT / "run"), "wheels", self.python, str(wheels)], check=True)
        binds = ((str(prefix), INSTALLED, False), (str(wheels), WHEELS, True))
        with Sandbox(f"install-{self.suite}", Layout(binds, root=root)) as sandbox:
            done = sandbox.exec(["sh", "-ec", _INSTALL], timeout=SECONDS)
            assert done.returncode == 0, done.stderr
