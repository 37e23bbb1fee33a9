"""What a script pool in a keep is made with: the members of `POST /v1/pools`, checked field by field. Pure.

Import rule: the light part of keep_protocol.
"""

from __future__ import annotations

from enum import Enum

from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record, Whole, Word, field, parse

MAX_OPTIONS_JSON = 4096
MIB = 1024 * 1024


class Console(Enum):
    """Where what scripts print goes: into the answer of their run, or the pool's journal."""

    RETURN = "return"
    JOURNAL = "journal"


class PoolOptions(Record):
    """How large a pool is and what a run in it may use. Times in milliseconds."""

    min: int = field(Whole(0, 16), default=1, about="processes that are always there")
    max: int = field(Whole(1, 16), default=2, about="processes at most; each is a task or two of the keep's limit")
    recycle_after: int = field(Whole(1, 1_000_000), default=1000, about="runs after which a process gives way")
    queue: int = field(Whole(0, 10_000), default=256, about="requests that wait at most")
    deadline_ms: int = field(
        Whole(10, 3_600_000), default=10_000, about="from a request to its answer, waiting included"
    )
    time_ms: int = field(Whole(10, 60_000), default=1000, about="what a run may take")
    memory_bytes: int = field(Whole(8 * MIB, 256 * MIB), default=64 * MIB, about="what a script may have")
    input_bytes: int = field(Whole(1024, 64 * MIB), default=5 * MIB, about="of an input sandbox or of code")
    output_bytes: int = field(Whole(1024, 64 * MIB), default=5 * MIB, about="of an output sandbox")
    console: Console = field(
        Word(Console), default=Console.RETURN, about="where what scripts print goes: the answer, or the keep's journal"
    )

    def _check(self) -> None:
        if self.min > self.max:
            raise KeepfleetError(
                ErrorKind.BAD_REQUEST, f"cannot make a pool: its min, {self.min}, is above its max, {self.max}"
            )

    def to_text(self) -> str:
        """As the keep's workload has it, its first argument."""
        return strict_json.dumps(self.to_wire()).decode("ascii")


def options_from_text(text: str) -> PoolOptions:
    """What `to_text` wrote. Raises KeepfleetError(BAD_REQUEST)."""
    value = strict_json.loads_object(text.encode(), MAX_OPTIONS_JSON, "the pool's options")
    return parse(PoolOptions, value, "pool", strict=True)
