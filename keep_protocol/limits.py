"""The limits of one keep: what it gets unless more or less is asked for, and their text for the loader's environment.

Import rule: `re`, `errors` and `record` alone (the light part of keep_protocol).
"""

from __future__ import annotations

import re

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.record import Record

MIB = 1 << 20
DEFAULTS: dict[str, int] = {
    "memory_bytes": 256 * MIB,
    "table_elements": 1_000_000,
    "stack_bytes": 1 * MIB,
    "wall_seconds": 3600,
    "cpu_seconds": 3600,
    "tasks": 32,
    "cpu_percent": 100,
    "io_weight": 100,
    "log_lines_per_second": 1000,
}
"""Each limit's name and what a keep has by default. A keep that should run longer than an hour says so."""
BOUNDS: dict[str, tuple[int, int]] = {
    "memory_bytes": (64 * 1024, 4096 * MIB),
    "table_elements": (0, 10_000_000),
    "stack_bytes": (64 * 1024, 8 * MIB),
    "wall_seconds": (1, 10 * 365 * 86400),
    "cpu_seconds": (1, 10 * 365 * 86400),
    "tasks": (16, 512),
    "cpu_percent": (1, 100 * 1024),
    "io_weight": (1, 10_000),
    "log_lines_per_second": (1, 1_000_000),
}
"""The smallest and largest value that means something: one WebAssembly page and its largest 32-bit memory; the stack
wasmtime can give; the tasks the loader, the checker and wasmtime themselves need."""
OVERHEAD_BYTES = 256 * MIB
"""What the unit gets above the guest's memory: the interpreter, the engine, the compiled module, the loader. A little
wider on purpose, so that the inner limit speaks first, with a reason, and the outer one always holds."""
_PAIR = re.compile(r"([a-z_]{1,32})=([0-9]{1,12})", re.ASCII)


class Limits(Record):
    """One keep's limits, each a whole number.

    memory_bytes: all linear memories together; table_elements; stack_bytes: of WebAssembly calls; wall_seconds and
    cpu_seconds: of the workload; tasks, cpu_percent (100 is one processor), io_weight and log_lines_per_second: of the
    unit.
    """

    __slots__ = tuple(DEFAULTS)
    memory_bytes: int
    table_elements: int
    stack_bytes: int
    wall_seconds: int
    cpu_seconds: int
    tasks: int
    cpu_percent: int
    io_weight: int
    log_lines_per_second: int

    def __init__(self, **values: int) -> None:
        """The defaults, and `values` in place of some. Raises KeepfleetError(BAD_REQUEST) naming what is wrong."""
        for name, value in values.items():
            check_limit(name, value)
        self._freeze(**{**DEFAULTS, **values})

    @property
    def unit_memory_bytes(self) -> int:
        """MemoryMax= of the unit."""
        return self.memory_bytes + OVERHEAD_BYTES

    def to_wire(self) -> dict[str, object]:
        """The limits as JSON members."""
        return self.fields()

    def to_text(self) -> str:
        """The limits in letters, digits, `=`, `_` and commas alone: fit for a unit's Environment=."""
        return ",".join(f"{name}={value}" for name, value in self.fields().items())


DEFAULT_LIMITS: Limits


def check_limit(name: str, value: object) -> int:
    """`value` when it is a whole number that `name` may have. Raises KeepfleetError(BAD_REQUEST)."""
    if name not in BOUNDS:
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot limit {name[:40]!r}: the limits are {', '.join(BOUNDS)}")
    low, high = BOUNDS[name]
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise KeepfleetError(
            ErrorKind.BAD_REQUEST,
            f"cannot limit {name} to {str(value)[:40]}: it must be a whole number in {low} … {high}",
        )
    return value


def limits_from_wire(value: dict[str, object]) -> Limits:
    """The limits in a JSON object; what is not named has its default. Raises KeepfleetError(BAD_REQUEST)."""
    return Limits(**{name: check_limit(name, number) for name, number in value.items()})


def limits_from_text(text: str) -> Limits:
    """The limits `to_text` wrote; empty text is the defaults. Raises KeepfleetError(BAD_REQUEST)."""
    values: dict[str, int] = {}
    for part in text.split(",") if text else ():
        match = _PAIR.fullmatch(part)
        if match is None or match[1] in values:
            raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read {part[:60]!r} as a limit")
        values[match[1]] = int(match[2])
    return Limits(**values)


DEFAULT_LIMITS = Limits()
