"""What must be as before after an attack: the manager's process, its descriptors and memory, its log, its keeps."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from tests.system.fleet import MANAGER, Fleet
from tests.system.host import Host, message_of, until

SETTLE_SECONDS = 60.0
"""A server drops a lingering or silent connection after its own deadlines, the longest of which is 15 s."""
MAX_GROWTH = 50 << 20
"""What the manager may keep after an attack: asyncio holds 256 KiB for each of the 128 connections one address may
have, and the C library's allocator does not give every page back."""
DEFECTS = ("Traceback", "defect ", "Task exception", "was never retrieved", "never awaited")


@dataclass(frozen=True)
class Usage:
    """What a process holds."""

    memory: int
    descriptors: int


def usage_of(host: Host, pid: int) -> Usage:
    """The resident memory and the open descriptors of a process inside; no command runs for it."""
    process = f"{host.root}/proc/{pid}"
    with open(f"{process}/status", encoding="utf-8") as file:
        (memory,) = [line.split()[1] for line in file if line.startswith("VmRSS:")]
    return Usage(int(memory) * 1024, len(os.listdir(f"{process}/fd")))


def settled(host: Host, pid: int, before: Usage) -> Usage:
    """The process's usage once it has closed what it opened since `before`."""

    def now() -> int:
        return usage_of(host, pid).descriptors

    until(lambda: now() <= before.descriptors, lambda: f"{now()} descriptors, and {before.descriptors} before")
    return usage_of(host, pid)


def no_readers_left(fleet: Fleet, seconds: float = SETTLE_SECONDS) -> None:
    """Waits until the manager has no descriptor of a keep's output."""
    until(lambda: not fleet.readers(), lambda: f"it still has {fleet.readers()}", seconds)


@contextlib.contextmanager
def undisturbed(fleet: Fleet) -> Iterator[None]:
    """What happens meanwhile must leave the manager and its keeps as they are; asserted at the end."""
    host, pid, units, cursor = fleet.host, fleet.manager_pid, fleet.keep_units(), fleet.host.cursor()
    fleet.client().banner()
    before = usage_of(host, pid)
    yield
    assert fleet.manager_pid == pid
    assert "Enarx-Keep-Manager" in fleet.client().banner()
    assert fleet.keep_units() == units
    after = settled(host, pid, before)
    assert after.descriptors <= before.descriptors
    assert after.memory < before.memory + MAX_GROWTH
    lines = [message_of(entry) for entry in host.journal(unit=MANAGER, since_cursor=cursor)]
    assert [line for line in lines if any(word in line for word in DEFECTS)] == []
