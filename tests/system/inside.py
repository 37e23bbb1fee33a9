"""Drop-ins that change every keep for a while, and the probe (`probe.py`) run inside one."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.system.host import Host, message_of

PROBE, SEEN = "/etc/keep-probe.py", "/run/keep-probe.py"
"""In the sandbox's own /etc, and where a keep sees it."""
PYTHON = "/keepfleet/python -I -S"
_SOURCE = Path(__file__).with_name("probe.py")
_SYSTEMD = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")


def _directory(host: Host, user: str | None) -> str:
    if user is None:
        return "/run/systemd/system/keep@.service.d"
    home = host.run(["sh", "-c", "echo ~"], user=user).stdout.strip()
    return f"{home}/.config/systemd/user/keep@.service.d"


@contextlib.contextmanager
def drop_in(host: Host, text: str, user: str | None = None) -> Iterator[None]:
    """Every keep made meanwhile has these lines too, after those of the installed unit."""
    directory = _directory(host, user)
    file = f"{directory}/90-test.conf"
    host.run(["mkdir", "--parents", directory], user=user)
    host.run(["tee", file], user=user, input=text)
    host.systemctl("daemon-reload", user=user)
    try:
        yield
    finally:
        host.run(["rm", file])
        host.systemctl("daemon-reload", user=user)


def install_probe(host: Host) -> None:
    """Puts the probe where a keep's unit can show it."""
    host.run(["tee", PROBE], input=_SOURCE.read_text())


def root_of(host: Host, user: str | None = None) -> str:
    """The root that new keeps get; a user's may be the system's."""
    own = host.run(["sh", "-c", "echo ~"], user=user).stdout.strip() + "/.local/share/keepfleet"
    found = host.run(["sh", "-c", f"ls -td {own}/root-*/tree /var/lib/keepfleet/root-*/tree"], check=False).stdout
    return found.split()[0]


def start_unit(host: Host, kuuid: int, user: str | None = None) -> None:
    """Starts a keep's unit exactly as the manager does, without the manager."""
    unit, scope = f"keep@{kuuid}.service", "--user" if user else "--system"
    properties = ["2", "Slice", "s", f"keep-g{kuuid % 32:02d}.slice", "RootDirectory", "s", root_of(host, user)]
    arguments = [unit, "fail", *properties, "0"]
    host.run(["busctl", scope, "call", *_SYSTEMD, "StartTransientUnit", "ssa(sv)a(sa(sv))", *arguments], user=user)


def probe(host: Host, kuuid: int, port: int, manager: int, user: str | None = None) -> dict[str, Any]:
    """What the probe found as the main process of the keep `kuuid`; the manager listens on `port`, as `manager`."""
    install_probe(host)
    cursor = host.cursor()
    command = f"{PYTHON} {SEEN} {port} {manager}"
    shown = f"BindReadOnlyPaths={PROBE}:{SEEN}"
    with drop_in(host, f"[Service]\nType=exec\nRestart=no\n{shown}\nExecStart=\nExecStart={command}\n", user):
        start_unit(host, kuuid, user)
        entry = host.wait_journal("probe {", since_cursor=cursor)
    found: dict[str, Any] = json.loads(message_of(entry).removeprefix("probe "))
    return found
