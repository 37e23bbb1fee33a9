"""What people type, as numbers and pairs: sizes, durations, processors, NAME=VALUE, HOST:GUEST. Pure."""

from __future__ import annotations

import os
import re

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.limits import BOUNDS, check_limit

SIZE = re.compile(r"([0-9]{1,12})(?:([KMG])(?:i?B)?|B)?", re.ASCII | re.IGNORECASE)
DURATION = re.compile(r"(?=[0-9])(?:([0-9]{1,6})d)?(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,9})s?)?", re.ASCII)
CPUS = re.compile(r"([0-9]{1,4})(?:\.([0-9]{1,2}))?", re.ASCII)
_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SECONDS = (86400, 3600, 60, 1)
FRIENDLY = {"memory": "memory_bytes", "time": "wall_seconds", "cpu_time": "cpu_seconds", "cpus": "cpu_percent"}
"""What people call a limit, and its name everywhere else."""


def _bad(message: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.BAD_REQUEST, message)


def parse_size(text: str) -> int:
    """Bytes in `64M`, `1GiB`, `65536`; K, M and G count in 1024. Raises KeepfleetError(BAD_REQUEST)."""
    match = SIZE.fullmatch(text)
    if match is None:
        raise _bad(f"cannot read {text[:40]!r} as a size: write bytes, or 64K, 64M, 1G")
    return int(match[1]) * _SIZES[(match[2] or "").upper()]


def parse_duration(text: str) -> int:
    """Whole seconds in `10`, `10s`, `5m`, `1h30m`, `2d`. Raises KeepfleetError(BAD_REQUEST)."""
    match = DURATION.fullmatch(text)
    if match is None:
        raise _bad(f"cannot read {text[:40]!r} as a time: write whole seconds, or 10s, 5m, 1h30m, 2d")
    return sum(int(number or 0) * seconds for number, seconds in zip(match.groups(), _SECONDS, strict=True))


def parse_cpus(text: str) -> int:
    """Percent of one processor in `0.5`, `2`. Raises KeepfleetError(BAD_REQUEST)."""
    match = CPUS.fullmatch(text)
    if match is None:
        raise _bad(f"cannot read {text[:40]!r} as processors: write 0.5, 1, 2")
    return int(match[1]) * 100 + int((match[2] or "").ljust(2, "0"))


def parse_limit(name: str, text: str) -> tuple[str, int]:
    """The limit's own name and its number, from either name and any way of writing. Raises KeepfleetError."""
    limit = FRIENDLY.get(name, name)
    if limit not in BOUNDS:
        raise _bad(f"cannot limit {name[:40]!r}: the limits are {', '.join((*FRIENDLY, *BOUNDS))}")
    if name == "cpus":
        number = parse_cpus(text)
    elif limit.endswith("_bytes"):
        number = parse_size(text)
    elif limit.endswith("_seconds"):
        number = parse_duration(text)
    elif re.fullmatch(r"[0-9]{1,12}", text, re.ASCII):
        number = int(text)
    else:
        raise _bad(f"cannot limit {name} to {text[:40]!r}: it must be a whole number")
    return limit, check_limit(limit, number)


def parse_pair(text: str) -> tuple[str, str]:
    """`NAME=VALUE`, the value perhaps empty. Raises KeepfleetError(BAD_REQUEST)."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise _bad(f"cannot read {text[:40]!r}: it must be NAME=VALUE")
    return name, value


def parse_directory(text: str) -> tuple[str, str, bool]:
    """Host path, guest path and whether it is writable, of `HOST:GUEST`, `HOST:GUEST:rw`. Raises KeepfleetError."""
    parts = text.split(":")
    if not 2 <= len(parts) <= 3 or not all(parts) or parts[2:] not in ([], ["ro"], ["rw"]):
        raise _bad(f"cannot read {text[:80]!r} as a directory: it must be HOST:GUEST, or HOST:GUEST:rw to write there")
    return os.path.abspath(parts[0]), parts[1], parts[2:] == ["rw"]


def size_text(number: int | None) -> str:
    """Bytes for people: `64 MiB`, `1.5 GiB`; "" for None."""
    if number is None:
        return ""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if number >= size:
            return f"{number / size:.1f}".removesuffix(".0") + f" {unit}"
    return f"{number} B"


def seconds_text(seconds: float | None) -> str:
    """A time for people: `0.25 s`, `90 s`, `1 h`, `2 h 5 min`; "" for None."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{seconds:.2f} s".replace(".00 s", " s")
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    larger, smaller = ((60, "min"), (1, "s")) if whole < 3600 else ((3600, "h"), (60, "min"))
    if whole >= 172_800:
        larger, smaller = (86400, "d"), (3600, "h")
    rest = whole % larger[0] // smaller[0]
    return f"{whole // larger[0]} {larger[1]}" + (f" {rest} {smaller[1]}" if rest else "")
