"""What keeps use right now, as this host's systemd counts it, or else their processes. Pure but for `measure`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, replace

SHOW_SECONDS = 10.0
"""systemctl answers for a thousand units in a second; this covers a host ten times busier."""
_PROPERTIES = "Id,LoadState,MemoryCurrent,CPUUsageNSec,TasksCurrent,ControlGroup"
_HIERARCHIES = ("", "/systemd", "/unified")
"""Below CGROUPS: where systemd keeps its tree of units, with control groups v2 and with v1."""
CGROUPS, PROC = "/sys/fs/cgroup", "/proc"
_UTIME, _CSTIME = 11, 15
"""Where the processor time of a process and its waited-for children stands in /proc/PID/stat, counted after the name:
user, system, children's user, children's system. proc(5)"""
_UNSET = (1 << 64) - 1


@dataclass(frozen=True)
class Usage:
    """Memory in bytes, processor time in seconds, processes and threads; None where systemd does not count it."""

    memory_bytes: int | None = None
    cpu_seconds: float | None = None
    tasks: int | None = None


NOTHING = Usage()


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and int(text) < _UNSET else None


def parse(text: str) -> dict[str, Usage]:
    """Each loaded unit's usage, in what `systemctl show` prints: blocks of NAME=VALUE, an empty line between."""
    found: dict[str, Usage] = {}
    for block in text.split("\n\n"):
        fields = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if fields.get("LoadState") != "loaded":
            continue
        nanoseconds = _number(fields.get("CPUUsageNSec", ""))
        found[fields.get("Id", "")] = Usage(
            _number(fields.get("MemoryCurrent", "")),
            None if nanoseconds is None else nanoseconds / 1e9,
            _number(fields.get("TasksCurrent", "")),
        )
    return found


def control_groups(text: str) -> dict[str, str]:
    """The control group of each unit whose processor time systemd does not count, in what `systemctl show` prints."""
    found: dict[str, str] = {}
    for block in text.split("\n\n"):
        fields = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if fields.get("ControlGroup") and _number(fields.get("CPUUsageNSec", "")) is None:
            found[fields.get("Id", "")] = fields["ControlGroup"]
    return found


def cpu_of_processes(group: str) -> float | None:
    """The processor time of the processes there are in a control group, in seconds; None where they cannot be seen.

    With control groups v1 systemd counts it only where it finds the controllers cpu and cpuacct as one.
    """
    for hierarchy in _HIERARCHIES:
        try:
            with open(f"{CGROUPS}{hierarchy}{group}/cgroup.procs", encoding="ascii") as file:
                processes = file.read().split()
        except OSError:
            continue
        return sum(map(_ticks, processes)) / os.sysconf("SC_CLK_TCK")
    return None


def _ticks(process: str) -> int:
    try:
        with open(f"{PROC}/{process}/stat", encoding="ascii", errors="replace") as file:
            return sum(map(int, file.read().rpartition(")")[2].split()[_UTIME:_CSTIME]))
    except OSError:  # it has just ended
        return 0


def measure(units: Iterable[str]) -> dict[str, Usage]:
    """What each of `units` uses; those that are not this host's, or not of a systemd we may ask, are left out."""
    names = sorted(unit for unit in units if unit)
    found: dict[str, Usage] = {}
    for instance in ("--system",) if os.geteuid() == 0 else ("--system", "--user"):
        text = _show(instance, names) if names else ""
        found.update(parse(text))
        for unit, group in control_groups(text).items():
            if unit in found:
                found[unit] = replace(found[unit], cpu_seconds=cpu_of_processes(group))
    return found


def _show(instance: str, names: list[str]) -> str:
    command = ["systemctl", instance, "show", f"--property={_PROPERTIES}", "--", *names]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SHOW_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
