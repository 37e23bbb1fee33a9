"""Many keeps: how soon a killed manager knows them again, and what a list of them costs."""

from __future__ import annotations

import os
import select
import signal
import time
from dataclasses import dataclass

from benchmarks.figures import Figure, Goal
from benchmarks.host import MANAGER_UNIT, Host
from benchmarks.measuring import FULL, MS, Effort, MeasurementFailed, timed
from benchmarks.rate import create
from keep_client.peer import ConnectionFailed
from keep_protocol.constants import UNIT_PATTERN
from keep_protocol.keep import KeepInfo
from keep_protocol.states import State

REDISCOVERY, FIRST_LIST = Goal(1000.0), Goal(1500.0)
AT_ONCE = 8
BACK_SECONDS = 30.0
_RETRY_SECONDS = 0.002
"""How exactly the moment is known at which the manager listens again; nothing notifies a client."""


@dataclass(frozen=True)
class Return:
    """The manager's return after a SIGKILL, in milliseconds: from the kill to its new process, from there to READY and
    to the first whole list at a client that waited for it, and from the kill to READY and to that list."""

    restart: float
    ready: float
    listed: float
    away: float
    outage: float


def _list_as_soon_as_possible(host: Host) -> tuple[KeepInfo, ...]:
    """The first list a client can get: it connects again until it is accepted, and then waits for the answer."""
    deadline = time.monotonic() + BACK_SECONDS
    while True:
        try:
            return host.client.keeps()
        except ConnectionFailed:
            if time.monotonic() > deadline:
                raise
            select.select((), (), (), _RETRY_SECONDS)


def _monotonic_ms(host: Host, name: str) -> float:
    """A timestamp of the manager's unit; systemd counts microseconds of the clock time.monotonic() reads."""
    return int(host.show(MANAGER_UNIT, name)) / 1000


def _kill(pid: int) -> float:
    """Kills a process and waits until it has gone, its sockets with it; when it was killed, in milliseconds."""
    waiter = os.pidfd_open(pid)
    try:
        killed = MS * time.monotonic()
        signal.pidfd_send_signal(waiter, signal.SIGKILL)
        if not select.select([waiter], [], [], BACK_SECONDS)[0]:
            raise MeasurementFailed(f"the manager outlived its SIGKILL by {BACK_SECONDS:g} s")
    finally:
        os.close(waiter)
    return killed


def kill_and_return(host: Host, expected: set[int]) -> Return:
    """Kills the manager and lists as soon as it listens again. Raises MeasurementFailed when a keep is missing."""
    before = host.show(MANAGER_UNIT, "MainPID")
    killed = _kill(int(before))
    listed = {keep.kuuid for keep in _list_as_soon_as_possible(host) if keep.state is not State.ERROR}
    listed_at = MS * time.monotonic()
    if listed != expected:
        raise MeasurementFailed(f"the manager found {len(listed & expected)} of {len(expected)} keeps again")
    if host.show(MANAGER_UNIT, "MainPID") == before:
        raise MeasurementFailed("the manager was not killed")
    started = _monotonic_ms(host, "ExecMainStartTimestampMonotonic")
    ready = _monotonic_ms(host, "ActiveEnterTimestampMonotonic")
    return Return(started - killed, ready - started, listed_at - started, ready - killed, listed_at - killed)


def measure(host: Host, effort: Effort) -> list[Figure]:
    """Rediscovery and lists of `effort.fleet_keeps` keeps."""
    count = effort.fleet_keeps
    keeps, _ = create(host, count, AT_ONCE)
    expected = {keep.kuuid for keep in keeps}
    units, lists = [], []
    for _ in range(effort.lists):
        with timed() as watch:
            host.systemd.units(UNIT_PATTERN)
        units.append(watch.milliseconds)
        with timed() as watch:
            listed = host.client.keeps()
        lists.append(watch.milliseconds)
        if len(listed) != count:
            raise MeasurementFailed(f"{len(listed)} of {count} keeps were listed")
    returns = [kill_and_return(host, expected) for _ in range(effort.fleet_kills)]
    host.clear()
    whole = count >= FULL.fleet_keeps
    floor = Figure(f"floor: systemd's own list of {count} units", "ms", tuple(units))

    def figure(name: str, attribute: str, goal: Goal | None = None) -> Figure:
        return Figure(name, "ms", tuple(getattr(back, attribute) for back in returns), goal)

    return [
        floor,
        Figure(f"list of {count} keeps", "ms", tuple(lists), floor=floor),
        figure(f"rediscovery of {count} keeps: SIGKILL → READY", "away", REDISCOVERY if whole else None),
        figure("SIGKILL → first whole list at a client", "outage", FIRST_LIST if whole else None),
        figure("SIGKILL → the manager's start (RestartSec=100ms)", "restart"),
        figure("the manager's start → READY", "ready"),
        figure("the manager's start → first whole list at a client", "listed"),
    ]
