"""What a sandbox cannot do without: rights and programs, checked before anything is touched."""

from __future__ import annotations

import os
import shutil

from tools.sandbox.errors import SandboxError

_CAP_SYS_ADMIN = 21
_PROGRAMS = {"systemd": "/lib/systemd/systemd", "dbus": "dbus-daemon"}
"""Debian package → the program of it that is needed."""


def check() -> None:
    """Raises SandboxError with one sentence that says what is missing and what to do."""
    missing = [package for package, program in _PROGRAMS.items() if shutil.which(program) is None]
    if missing:
        raise SandboxError(
            f"cannot boot a sandbox: it needs {', '.join(missing)}; run: apt-get install {' '.join(missing)}"
        )
    if os.geteuid() != 0:
        raise SandboxError("cannot boot a sandbox: it needs root; run the same command as root, for example with sudo")
    with open("/proc/self/status", encoding="utf-8") as file:
        effective = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    if not effective >> _CAP_SYS_ADMIN & 1:
        raise SandboxError("cannot boot a sandbox: root lacks CAP_SYS_ADMIN here; a container must be a privileged one")
