"""Hosts of another Debian: a root directory, made once a month, and keepfleet installed for its interpreter."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_MACHINE = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
"""The machine's network, opened before a test's host brings its own: what is downloaded comes from there."""


def in_machines_network(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`./run` in the machine's network."""
    return run_in_machines_network(str(ROOT / "run"), *arguments)


def run_in_machines_network(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A command in the machine's network."""
    entering = ["nsenter", f"--net=/proc/self/fd/{_MACHINE}", *command]
    return subprocess.run(entering, pass_fds=(_MACHINE,), capture_output=True, text=True, cwd=cwd)


@dataclass(frozen=True)
class Release:
    """One Debian, by the name of its suite."""

    suite: str

    def root(self) -> str:
        """Its root directory. Skips the test where debootstrap cannot make one, as without a mirror that has it."""
        return self._made("debian-root")

    def prefix(self) -> Path:
        """keepfleet for its interpreter, to be shown at /opt/keepfleet in that root. Skips the test likewise."""
        return Path(self._made("host-prefix"))

    def _made(self, verb: str) -> str:
        """What `./run` prints, called in the machine's network."""
        made = in_machines_network(verb, self.suite)
        if made.returncode == os.EX_UNAVAILABLE:
            pytest.skip(made.stderr.splitlines()[-1])
        assert made.returncode == 0, made.stderr
        return made.stdout.strip()
