"""Hosts of another Debian: a root directory, made once a month, and keepfleet installed for its interpreter."""

from __future__ import annotations

import os
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
_MACHINE = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
"""The machine's network, opened before a test's host brings its own: what is downloaded comes from there."""
_INSTALL = f"""
python3 -m venv {INSTALLED}
{INSTALLED}/bin/pip install --quiet --no-index --no-deps {WHEELS}/*.whl
"""


def in_machines_network(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`./run` in the machine's network."""
    command = ["nsenter", f"--net=/proc/self/fd/{_MACHINE}", str(ROOT / "run"), *arguments]
    return subprocess.run(command, pass_fds=(_MACHINE,), capture_output=True, text=True)


@dataclass(frozen=True)
class Release:
    """One Debian: its suite, and the version of its Python."""

    suite: str
    python: str

    def root(self) -> str:
        """Its root directory. Skips the test where debootstrap cannot make one, as without a mirror that has it."""
        made = in_machines_network("debian-root", self.suite)
        if made.returncode == os.EX_UNAVAILABLE:
            pytest.skip(made.stderr.splitlines()[-1])
        assert made.returncode == 0, made.stderr
        return made.stdout.strip()

    def install(self, root: str, prefix: Path, wheels: Path) -> None:
        """keepfleet in the empty directory `prefix`, to be shown at /opt/keepfleet in that root."""
        made = in_machines_network("wheels", self.python, str(wheels))
        assert made.returncode == 0, made.stderr
        binds = ((str(prefix), INSTALLED, False), (str(wheels), WHEELS, True))
        with Sandbox(f"install-{os.getpid()}", Layout(binds, root=root)) as sandbox:
            done = sandbox.exec(["sh", "-ec", _INSTALL], timeout=SECONDS)
            assert done.returncode == 0, done.stderr
