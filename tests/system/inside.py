"""Drop-ins that change every keep for a while, and the probe (`probe.py`) run inside one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from keep_manager.tasks import Group
from tests.system import life
from tests.system.host import Host, message_of

PROBE, SEEN = "/etc/keep-probe.py", "/run/keep-probe.py"
"""In the sandbox's own /etc, and where a keep sees it."""
PYTHON = "/keepfleet/python -I -S"
JSON_BYTES = 1 << 20
Files = tuple[int, int, int]
_SOURCE = Path(__file__).with_name("probe.py")
_SYSTEMD = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")


def _directory(host: Host, user: str) -> str:
    home = host.run(["sh", "-c", "echo ~"], user=user).stdout.strip()
    return f"{home}/.config/systemd/user/keep@.service.d"


@contextlib.contextmanager
def drop_in(host: Host, text: str, user: str | None = None) -> Iterator[None]:
    """Every keep made meanwhile has these lines too, after those of the installed unit."""
    if user is None:
        with life.drop_in(host, "keep@.service", text):
            yield
        return
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


def probe_in_a_oneshot(
    host: Host, unit: str, port: int, manager: int, run: Callable[[Group, str, str, Files], Awaitable[object]]
) -> dict[str, Any]:
    """What the probe found in the place of the program of `unit`, a template whose standard streams are three files.

    `run` runs one: in that group, by the bus at that address, in that root, with these files; None says that it ended
    well.
    """
    install_probe(host)
    command = f"{PYTHON} {SEEN} {port} {manager}"
    shown = f"BindReadOnlyPaths={PROBE}:{SEEN}\nEnvironment=RUNTIME_DIRECTORY=/run/own"

    async def probed() -> bytes:
        with tempfile.TemporaryFile() as input, tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            async with Group() as tasks:
                bus = f"unix:path=/proc/{host.sandbox.pid}/root/run/dbus/system_bus_socket"
                files = (input.fileno(), output.fileno(), errors.fileno())
                ended = await run(tasks, bus, root_of(host), files)
            assert ended is None, (ended, os.pread(files[2], JSON_BYTES, 0))
            return os.pread(files[1], JSON_BYTES, 0)

    with life.drop_in(host, unit, f"[Service]\n{shown}\nTasksMax=32\nExecStart=\nExecStart={command}\n"):
        said = asyncio.run(probed())
    found: dict[str, Any] = json.loads(said.decode().removeprefix("probe "))
    return found


def detached(host: Host, pid: int) -> list[str]:
    """The paths below /proc of a process's descriptors of directories that are mounts which no path leads to."""
    script = f"""cd /proc/{pid}/fd
for f in *; do
  [ -d "$f" ] && [ "$(readlink "$f")" = / ] || continue
  mount=$(sed -n "s/^mnt_id:[[:space:]]*//p" ../fdinfo/"$f")
  grep -q "^$mount " ../mountinfo || echo "/proc/{pid}/fd/$f"
done"""
    return host.run(["sh", "-c", script]).stdout.split()
