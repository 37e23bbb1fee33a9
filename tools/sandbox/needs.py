"""What a sandbox cannot do without: rights and programs, checked before anything is touched."""

from __future__ import annotations

import os

from tools.sandbox.errors import SandboxError

_CAP_SYS_ADMIN = 21
_PROGRAMS = {"systemd": "/lib/systemd/systemd", "dbus": "/usr/bin/dbus-daemon"}
"""Debian package → the program of it that is needed."""
_IP = "/bin/ip"
"""Run before the root changes."""


def check(root: str | None = None) -> None:
    """Raises SandboxError with one sentence that says what is missing, on the machine or in `root`, and what to do."""
    if not os.access(_IP, os.X_OK):
        raise SandboxError("cannot boot a sandbox: it needs iproute2; run: apt-get install iproute2")
    missing = [package for package, program in _PROGRAMS.items() if not os.access(f"{root or ''}{program}", os.X_OK)]
    if missing:
        command = f"chroot {root} apt-get install" if root else "apt-get install"
        where = f" in {root}" if root else ""
        raise SandboxError(
            f"cannot boot a sandbox: it needs {', '.join(missing)}{where}; run: {command} {' '.join(missing)}"
        )
    if os.geteuid() != 0:
        raise SandboxError("cannot boot a sandbox: it needs root; run the same command as root, for example with sudo")
    with open("/proc/self/status", encoding="utf-8") as file:
        effective = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    if not effective >> _CAP_SYS_ADMIN & 1:
        raise SandboxError("cannot boot a sandbox: root lacks CAP_SYS_ADMIN here; a container must be a privileged one")
