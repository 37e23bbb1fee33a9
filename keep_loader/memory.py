"""Whether the kernel has ended a process of the keep for memory: the counter of the keep's own control group.

Import rule: nothing. systemd mounts the control groups read-only into a keep, and reading is enough.
"""

from __future__ import annotations

_PLACES = (
    ("", "/sys/fs/cgroup{group}/memory.events"),
    ("memory", "/sys/fs/cgroup/memory{group}/memory.oom_control"),
)
"""Version 2 has one hierarchy, without a controller's name; version 1 has one for memory (man 7 cgroups)."""


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(64 * 1024)
    except OSError:
        return ""


def memory_kills() -> int:
    """How many processes of the keep were ended for memory so far; 0 where nothing can be read."""
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        for name, place in _PLACES:
            if name == controllers:
                for entry in _read(place.format(group=group.rstrip("/"))).splitlines():
                    word, _, count = entry.partition(" ")
                    if word == "oom_kill" and count.isdecimal():
                        return int(count)
    return 0
