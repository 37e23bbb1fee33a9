"""How a workload ended.

Import rule: the light part of keep_protocol.
"""

from __future__ import annotations

from enum import Enum

from keep_protocol.fields import Items, Maybe, Record, Seconds, Text, Whole, Word, field

_COUNT = Whole(0, 1 << 63)
"""What the kernel's own counters hold."""
_SECONDS = "seconds, or null where it was not measured"
_EPOCH = "seconds of the epoch, or null"


class OutcomeKind(Enum):
    """Which way a workload ended."""

    EXITED = "exited"
    TRAPPED = "trapped"
    LIMITED = "limited"
    KILLED = "killed"
    STOPPED = "stopped"
    LOST = "lost"
    REFUSED = "refused"


class Outcome(Record):
    """How a workload ended, in words and with evidence; None where it was not measured, or not yet.

    text has no full stop ("exited 3", "trapped: out of bounds memory access"). ended_at is started_at and wall_seconds,
    so that a clock that was set meanwhile contradicts neither.
    """

    kind: OutcomeKind = field(Word(OutcomeKind), about="which way it ended")
    text: str = field(Text(), about="how it ended, in one sentence")
    exit_code: int | None = field(Maybe(Whole(0, (1 << 32) - 1)), default=None, about="of a guest that exited")
    signal: int | None = field(Maybe(Whole(0, 127)), default=None, about="the number, of one that was killed")
    backtrace: tuple[str, ...] = field(Items(Text(), 10_000), default=(), about="of a trap, the innermost frame first")
    wall_seconds: float | None = field(Maybe(Seconds()), default=None, about=_SECONDS)
    cpu_seconds: float | None = field(Maybe(Seconds()), default=None, about=_SECONDS)
    peak_bytes: int | None = field(Maybe(_COUNT), default=None, about="the most memory it had")
    output_bytes: int | None = field(Maybe(_COUNT), default=None, about="what it wrote to standard output and error")
    started_at: float | None = field(Maybe(Seconds()), default=None, about=_EPOCH)
    ended_at: float | None = field(Maybe(Seconds()), default=None, about=_EPOCH)
    by: str = field(Text(), default="", about="who stopped it; empty where no one did")
    dropped_lines: int | None = field(
        Maybe(_COUNT),
        default=None,
        about="how many of the keep's lines the journal's limit kept out of it; null where they are not counted",
    )
    ended_monotonic: float | None = field(
        Maybe(Seconds()), default=None, about="the same in seconds since the host's boot, which no clock changes"
    )

    def with_dropped(self, lines: int) -> Outcome:
        """The same outcome, now that it is known how many lines were dropped."""
        return self.replace(dropped_lines=lines)
