"""The limits of one keep: what it gets unless more or less is asked for, and their text for the app-loader.

Import rule: `errors` and `fields` alone (the light part of keep_protocol).
"""

from __future__ import annotations

from keep_protocol.fields import Record, Whole, check, field, invalid, refuse_unknown, table_of
from keep_protocol.patterns import matches

MIB = 1 << 20
TEN_YEARS = 10 * 365 * 86400
OVERHEAD_BYTES = 256 * MIB
"""What the unit gets above the guest's memory: the interpreter, the engine, the compiled module, the loader. A little
wider on purpose, so that the inner limit speaks first, with a reason, and the outer one always holds."""
_LIMIT, _NUMBER = "[a-z_]{1,32}", "[0-9]{1,12}"


class Limits(Record):
    """One keep's limits, each a whole number. A keep that should run longer than an hour says so.

    The smallest and largest values are those that mean something: one WebAssembly page and its largest 32-bit memory,
    the stack wasmtime can give, the tasks the loader, the checker and wasmtime themselves need, the memory in which the
    compiler takes any module at all. The defaults of compiling are 2.7 times the processor time and 1.3
    times the memory that the largest of the programs needs that docs/benchmarks.md lists; a module with less code has a
    part of them (app_loader/limits.py).
    """

    memory_bytes: int = field(
        Whole(64 * 1024, 4096 * MIB), default=256 * MIB, about="all linear memories of the guest together, in bytes"
    )
    table_elements: int = field(Whole(0, 10_000_000), default=1_000_000, about="elements of all its tables together")
    stack_bytes: int = field(Whole(64 * 1024, 8 * MIB), default=1 * MIB, about="the stack of its calls, in bytes")
    wall_seconds: int = field(Whole(1, TEN_YEARS), default=3600, about="how long the workload may run")
    cpu_seconds: int = field(Whole(1, TEN_YEARS), default=3600, about="how much processor time it may use")
    tasks: int = field(Whole(16, 512), default=32, about="processes and threads of the unit")
    cpu_percent: int = field(Whole(1, 100 * 1024), default=100, about="the unit's share of processors; 100 is one")
    io_weight: int = field(Whole(1, 10_000), default=100, about="the unit's weight where disks are contended")
    compile_seconds: int = field(
        Whole(1, 3600), default=240, about="how much processor time checking and compiling a module may use"
    )
    compile_memory_bytes: int = field(
        Whole(256 * MIB, 16 * 1024 * MIB), default=1536 * MIB, about="how much memory that may use, in bytes"
    )
    log_lines_per_second: int = field(Whole(1, 1_000_000), default=1000, about="lines the journal takes from the unit")
    output_buffer_bytes: int = field(
        Whole(1 * MIB, 1024 * MIB), default=16 * MIB, about="how much of its output is kept for those who read it later"
    )

    def _check(self) -> None:
        for name, row in table_of(Limits).items():
            check(row, getattr(self, name), "limits")

    @property
    def unit_memory_bytes(self) -> int:
        """MemoryMax= of the unit until its guest runs: the compiler has run before, and never does at the same time."""
        return max(self.memory_bytes, self.compile_memory_bytes) + OVERHEAD_BYTES

    @property
    def running_memory_bytes(self) -> int:
        """MemoryMax= of the unit from then on: no more than its guest may have, and what surrounds it."""
        return self.memory_bytes + OVERHEAD_BYTES

    def to_text(self) -> str:
        """The limits in letters, digits, `=`, `_` and commas alone."""
        return ",".join(f"{name}={value}" for name, value in self.fields().items())


DEFAULT_LIMITS = Limits()
DEFAULTS: dict[str, int] = DEFAULT_LIMITS.fields()
"""Each limit's name and what a keep has by default."""
BOUNDS: dict[str, tuple[int, int]] = {name: (row.type.low, row.type.high) for name, row in table_of(Limits).items()}  # type: ignore[attr-defined] # every row is a Whole
"""Each limit's smallest and largest value."""


def check_limit(name: str, value: object) -> int:
    """`value` when it is a whole number that `name` may have. Raises KeepfleetError(BAD_REQUEST)."""
    refuse_unknown({name: value}, list(BOUNDS), "limits")
    return int(check(table_of(Limits)[name], value, "limits"))


def limits_from_text(text: str) -> Limits:
    """The limits `to_text` wrote; empty text is the defaults. Raises KeepfleetError(BAD_REQUEST)."""
    values: dict[str, int] = {}
    for part in text.split(",") if text else ():
        name, _, number = part.partition("=")
        if not matches(_LIMIT, name) or not matches(_NUMBER, number) or name in values:
            raise invalid("limits", f"{part[:60]!r} is no limit, or is given twice")
        values[name] = check_limit(name, int(number))
    return Limits(**values)
