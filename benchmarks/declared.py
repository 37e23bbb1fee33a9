"""Many declared keeps: after a boot of the host, and a manager that starts among them.

A boot is what the manager sees of one: none of the units is there any more, the records of the keeps are of an earlier
boot, and all else is as it was. That all come back after a real one is a test's (tests/rare/test_many_declared.py).
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.figures import Figure
from benchmarks.host import MANAGER_UNIT, Host, example, run
from benchmarks.measuring import FULL, MS, Effort, MeasurementFailed
from keep_client.declared import DeclaredClient
from keep_protocol.constants import UNIT_PATTERN
from keep_protocol.declared import DeclaredState
from module_store.store import Store

KEEPS, FEW_KEEPS = 500, 2
OBJECTS, FEW_OBJECTS = 1000, 20
RESTARTS = 3
STORE = "/var/lib/keepfleet/store"
BOOT_ID = "/proc/sys/kernel/random/boot_id"
MANIFEST = "module: many:1\nrestart: always\nready_seconds: 0\nlimits: {memory: 16M}\n"
LOOK_SECONDS = 1.0
"""Between two looks at all of them, which cost the manager processor time themselves."""
BACK_SECONDS = 900.0
_TICK = os.sysconf("SC_CLK_TCK")


def measure(host: Host, effort: Effort) -> list[Figure]:
    """The figures."""
    whole = effort.fleet_keeps >= FULL.fleet_keeps
    count, objects = (KEEPS, OBJECTS) if whole else (FEW_KEEPS, FEW_OBJECTS)
    _fill_store(objects)
    names = [f"many-{number}" for number in range(count)]
    with _client(host) as client:
        try:
            for name in names:
                client.apply(name, MANIFEST)
            _all_running(client, set(names))
            adopted = _restarted(host, min(effort.rounds, RESTARTS))
            before = {each.name: each.kuuid for each in client.declared()}
            _all_running(client, set(names))
            if {each.name: each.kuuid for each in client.declared()} != before:
                raise MeasurementFailed("a manager that started made keeps again that were running")
            back = _rebooted(host, client, set(names))
        finally:
            for each in client.declared():
                client.undeclare(each.name)
    seconds, first, manager = back
    what = f"{count} declared keeps after a boot"
    return [
        Figure(
            f"the manager's start → READY, with {count} declared keeps that run, and {objects} objects", "ms", adopted
        ),
        Figure(f"{what}: the manager's start → all of them run", "s", (seconds,)),
        Figure(f"{what}: keeps a second", "/s", (count / seconds,)),
        Figure(f"{what}: processor time of PID 1, a keep", "ms", (MS * first / count,)),
        Figure(f"{what}: processor time of the manager, a keep", "ms", (MS * manager / count,)),
    ]


def _client(host: Host) -> DeclaredClient:
    return DeclaredClient(host.endpoint, host.manager_context)


def _fill_store(objects: int) -> None:
    """The module that runs, and others of its size."""
    with open(example("sleep-wat"), "rb") as file:
        module = file.read()
    with tempfile.NamedTemporaryFile(suffix=".wasm") as source:
        source.write(module)
        source.flush()
        keepctl = os.path.join(os.path.dirname(sys.executable), "keepctl")
        subprocess.run([keepctl, "store", "add", "--in-place", source.name, "many:1"], check=True, capture_output=True)
    with Store.open(STORE) as store:
        for number in range(objects - 1):
            section = b"\0\x05\x04" + number.to_bytes(4, "big")  # a custom section whose name is four bytes long
            store.add(io.BytesIO(module + section), reference=f"other-{number}:1")


def _all_running(client: DeclaredClient, names: set[str]) -> None:
    deadline = time.monotonic() + BACK_SECONDS
    while {each.name for each in client.declared() if each.state is DeclaredState.RUNNING} < names:
        if time.monotonic() > deadline:
            raise MeasurementFailed(f"not all of {len(names)} declared keeps ran within {BACK_SECONDS:g} s")
        time.sleep(LOOK_SECONDS)


def _restarted(host: Host, times: int) -> tuple[float, ...]:
    """Milliseconds from the manager's start to READY, of so many starts."""
    found = []
    for _ in range(times):
        run("systemctl", "restart", MANAGER_UNIT)
        began, ready = (
            int(host.show(MANAGER_UNIT, f"{name}TimestampMonotonic")) / 1000
            for name in ("ExecMainStart", "ActiveEnter")
        )
        found.append(ready - began)
    return tuple(found)


def _processor(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


@contextmanager
def _another_boot() -> Iterator[None]:
    """The host has another boot ID while the block runs."""
    with tempfile.NamedTemporaryFile("w", prefix="boot_id") as file:
        file.write(f"{uuid.uuid4()}\n")
        file.flush()
        os.chmod(file.name, 0o444)
        run("mount", "--bind", file.name, BOOT_ID)
        try:
            yield
        finally:
            run("umount", BOOT_ID)


def _rebooted(host: Host, client: DeclaredClient, names: set[str]) -> tuple[float, float, float]:
    """Seconds until all run again, and seconds of processor time of PID 1 and of the manager meanwhile."""
    run("systemctl", "stop", MANAGER_UNIT)
    units = host.systemd.units(UNIT_PATTERN)
    host.systemd.stop(*units)
    with _another_boot():
        before, began = _processor(1), time.monotonic()
        run("systemctl", "start", MANAGER_UNIT)
        _all_running(client, names)
        seconds = time.monotonic() - began
        manager = _processor(int(host.show(MANAGER_UNIT, "MainPID")))
        found = seconds, _processor(1) - before, manager
        for each in client.declared():
            client.undeclare(each.name)
        host.clear()
    run("systemctl", "restart", MANAGER_UNIT)
    return found
