"""What keeps use right now, as this host's systemd counts it. Pure but for `measure`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

SHOW_SECONDS = 10.0
"""systemctl answers for a thousand units in a second; this covers a host ten times busier."""
_PROPERTIES = "Id,LoadState,MemoryCurrent,CPUUsageNSec,TasksCurrent"
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


def measure(units: Iterable[str]) -> dict[str, Usage]:
    """What each of `units` uses; those that are not this host's, or not of a systemd we may ask, are left out."""
    names = sorted(unit for unit in units if unit)
    found: dict[str, Usage] = {}
    for instance in ("--system",) if os.geteuid() == 0 else ("--system", "--user"):
        found.update(parse(_show(instance, names)) if names else {})
    return found


def _show(instance: str, names: list[str]) -> str:
    command = ["systemctl", instance, "show", f"--property={_PROPERTIES}", "--", *names]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SHOW_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
