"""How a workload ended.

Import rule: the light part of keep_protocol.
"""

from __future__ import annotations

from keep_protocol.enumeration import Enum
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
    lost_bytes: int | None = field(
        Maybe(_COUNT),
        default=None,
        about="what it wrote and is not kept any more, and no reader had before; null where it is not known",
    )
    journal_skipped_bytes: int | None = field(
        Maybe(_COUNT),
        default=None,
        about="what it wrote and the journal was not given; null where it is not known",
    )
    ended_monotonic: float | None = field(
        Maybe(Seconds()), default=None, about="the same in seconds since the host's boot, which no clock changes"
    )


LIMIT = 124
"""As timeout(1) says it."""
NOT_RUN = 125
"""keepctl, the manager or the keep failed, and not the guest: as podman run says it."""
REFUSED = 126
"""The module cannot be run."""
TRAP = 134
"""128 + SIGABRT: as wasmtime run says it."""
STOPPED = 143
"""128 + SIGTERM."""
RUN_AGAIN, LOADER_FAILED = 75, 76
"""What a loader exits with so that systemd starts it, and it the workload, again (EX_TEMPFAIL of sysexits.h), and after
a fault of its own (EX_PROTOCOL). Neither says how a workload ended."""
_SIGNALLED = 128
_DEFAULT_SIGNAL = 9


def exit_code_of(outcome: Outcome | None) -> int:
    """The exit code that says how a workload ended; NOT_RUN where that is not known."""
    if outcome is None:
        return NOT_RUN
    if outcome.kind is OutcomeKind.EXITED:
        return (outcome.exit_code or 0) & 0xFF or int(bool(outcome.exit_code))
    if outcome.kind is OutcomeKind.KILLED:
        return _SIGNALLED + (outcome.signal or _DEFAULT_SIGNAL)
    return {
        OutcomeKind.TRAPPED: TRAP,
        OutcomeKind.LIMITED: LIMIT,
        OutcomeKind.STOPPED: STOPPED,
        OutcomeKind.REFUSED: REFUSED,
    }.get(outcome.kind, NOT_RUN)


def unit_status_of(outcome: Outcome | None) -> int:
    """What the loader exits with, so that its unit ends as the workload did: 0 where that was asked for, too."""
    if outcome is not None and outcome.kind is OutcomeKind.STOPPED:
        return 0
    code = exit_code_of(outcome)
    return 1 if code in (RUN_AGAIN, LOADER_FAILED) else code
