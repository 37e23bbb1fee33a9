"""The units of a sandbox: a target of its own and the stock units it needs; the machine's services stay out."""

from __future__ import annotations

import os
import shutil

_STOCK = "/lib/systemd/system"
_NAMES = (
    *("dbus.service", "dbus.socket"),
    *("systemd-journald.service", "systemd-journald.socket", "systemd-journald-dev-log.socket"),
    *("basic.target", "sysinit.target", "sockets.target", "slices.target", "paths.target", "timers.target"),
    *("local-fs.target", "local-fs-pre.target", "swap.target", "multi-user.target", "user.slice"),
    *("shutdown.target", "umount.target", "final.target", "poweroff.target", "exit.target"),
    *("systemd-poweroff.service", "systemd-exit.service"),
)
_TARGET = """[Unit]
Description=Everything the sandbox needs
Requires=dbus.socket systemd-journald.service
Wants=dbus.service
After=dbus.socket dbus.service systemd-journald.service
AllowIsolate=yes
"""


def write_units(directory: str, root: str = "") -> None:
    """Fills `directory`, which becomes /lib/systemd/system in the sandbox, with those of the system at `root`."""
    os.makedirs(directory)
    for name in _NAMES:
        if os.path.exists(f"{root}{_STOCK}/{name}"):
            shutil.copy(f"{root}{_STOCK}/{name}", f"{directory}/{name}")
    with open(f"{directory}/sandbox.target", "w", encoding="utf-8") as file:
        file.write(_TARGET)
