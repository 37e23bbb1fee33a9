"""`keepctl top`: what keeps use, as this host's systemd counts it, or else their processes, and what they may use."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from _collections_abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from keep_client.manager import ManagerClient
from keep_protocol.keep import KeepInfo
from keep_protocol.states import State
from keepctl.access import CONNECTION, OUTPUT, Access, connected
from keepctl.arguments import Command, Fraction, Option
from keepctl.describe import seconds_text, size_text, state_text
from keepctl.display import echo, json_line, json_text, show_table

_HEADER = ("ID", "NAME", "STATE", "CPU", "CPU TIME", "CPU LIMIT", "MEMORY", "GUEST MAY", "TASKS", "RESTARTS")
_CLEAR = "\x1b[H\x1b[2J"
SHOW_SECONDS = 10.0
"""systemctl answers for a thousand units in a second; this covers a host ten times busier."""
_PROPERTIES = "Id,LoadState,MemoryCurrent,CPUUsageNSec,TasksCurrent,ControlGroup"
_HIERARCHIES = ("", "/systemd", "/unified")
"""Below CGROUPS: where systemd keeps its tree of units, with control groups v2 and with v1."""
CGROUPS, PROC = "/sys/fs/cgroup", "/proc"
_UTIME, _CSTIME = 11, 15
"""Where the processor time of a process and its waited-for children is in /proc/PID/stat, counted after the name:
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


def _usage(keep: KeepInfo, measured: Mapping[str, Usage]) -> Usage:
    """What systemd counts now; of an ended workload, what its outcome says it usage."""
    if keep.outcome is not None:
        return Usage(keep.outcome.peak_bytes, keep.outcome.cpu_seconds, None)
    return measured.get(keep.unit, NOTHING)


def row(keep: KeepInfo, usage: Usage, before: Usage = NOTHING, seconds: float = 0.0) -> tuple[str, ...]:
    """A keep's line; `before` is what it had used `seconds` ago. Pure."""
    percent = ""
    if seconds > 0 and usage.cpu_seconds is not None and before.cpu_seconds is not None:
        percent = f"{max(0.0, usage.cpu_seconds - before.cpu_seconds) / seconds * 100:.0f} %"
    return (
        str(keep.kuuid),
        keep.name,
        state_text(keep),
        percent,
        seconds_text(usage.cpu_seconds),
        f"{keep.limits.cpu_percent} %",
        size_text(usage.memory_bytes),
        size_text(keep.limits.memory_bytes),
        str(usage.tasks) if usage.tasks is not None else "",
        str(keep.restarts),
    )


def _shown(client: ManagerClient, everything: bool) -> list[KeepInfo]:
    return [keep for keep in client.keeps() if everything or keep.state in (State.LISTENING, State.STARTED)]


def _wire(keeps: Sequence[KeepInfo], measured: Mapping[str, Usage]) -> list[dict[str, object]]:
    return [
        {"kuuid": keep.kuuid, "name": keep.name, "state": int(keep.state), "restarts": keep.restarts}
        | vars(_usage(keep, measured))
        | {"limits": keep.limits.to_wire()}
        for keep in keeps
    ]


def _watch(client: ManagerClient, everything: bool, seconds: float, pause: Callable[[float], None], json: bool) -> None:
    before: Mapping[str, Usage] = {}
    then = 0.0
    while True:
        keeps = _shown(client, everything)
        measured, now = measure(keep.unit for keep in keeps), time.monotonic()
        if json:
            echo(json_line(_wire(keeps, measured)))
        else:
            sys.stdout.write(_CLEAR if sys.stdout.isatty() else "")
            elapsed = now - then if then else 0.0
            rows = [row(keep, _usage(keep, measured), before.get(keep.unit, NOTHING), elapsed) for keep in keeps]
            show_table(_HEADER, rows)
        before, then = measured, now
        pause(seconds)


@connected
def _top(output: str, everything: bool, watch: bool, interval: float, access: Access) -> int:
    with access.client() as client:
        if watch:
            _watch(client, everything, interval, time.sleep, output == "json")
        keeps = _shown(client, everything)
    measured = measure(keep.unit for keep in keeps)
    if output == "json":
        echo(json_text(_wire(keeps, measured)))
    else:
        show_table(_HEADER, [row(keep, _usage(keep, measured)) for keep in keeps])
    return 0


TOP = Command(
    "top",
    _top,
    "Shows what keeps use.",
    """Shows what running keeps use: processor time, memory and tasks of their units, as this host's systemd counts
    them. Of keeps on another host only the limits are known here.

    \b
    keepctl top --watch
    """,
    (
        *CONNECTION,
        OUTPUT,
        Option(("-a", "--all"), "everything", "Also keeps that have ended, with what they used."),
        Option(("-w", "--watch"), "watch", "Again and again, with the processors used meanwhile, until Ctrl-C."),
        Option(("--interval",), "interval", "Seconds between, with -w.", Fraction(0.1, 3600), default=2.0, shown=True),
    ),
)
