"""How a workload's end becomes an exit code, with the habits of a shell, timeout(1) and podman. Pure."""

from __future__ import annotations

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo, Outcome, OutcomeKind

LIMIT = 124
"""As timeout(1) tells it."""
NOT_RUN = 125
"""keepctl, the manager or the keep failed, and not the guest: as podman run tells it."""
REFUSED = 126
"""The module cannot be run."""
INTERRUPTED = 130
"""128 + SIGINT."""
TRAP = 134
"""128 + SIGABRT: as wasmtime run tells it."""
UNREAD = 141
"""128 + SIGPIPE: who read the output has gone."""
STOPPED = 143
"""128 + SIGTERM."""
_SIGNALLED = 128
_DEFAULT_SIGNAL = 9
_REFUSALS = frozenset({ErrorKind.INVALID_MODULE, ErrorKind.TOO_COMPLEX})

EXIT_CODES = f"""\b
Exit codes: the guest's own, 0 to 255, when it exited; otherwise
{LIMIT}  it went over one of its limits
{NOT_RUN}  it could not be run: keepctl, the manager or the keep failed
{REFUSED}  the module was refused
{INTERRUPTED}  Ctrl-C
{TRAP}  it trapped
{UNREAD}  nobody reads its output any more
{STOPPED}  somebody stopped it
128+N  it was killed by signal N (137: SIGKILL)
2    wrong usage"""


def exit_code_of(outcome: Outcome | None) -> int:
    """The exit code that tells how a workload ended; NOT_RUN where nobody knows."""
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


def exit_code_of_error(error: KeepfleetError) -> int:
    """The exit code for a workload that did not get to run."""
    return REFUSED if error.kind in _REFUSALS else NOT_RUN


def succeeded(keep: KeepInfo) -> bool:
    """Whether the workload exited with 0."""
    return keep.outcome is not None and keep.outcome.kind is OutcomeKind.EXITED and keep.outcome.exit_code == 0


def ending(keep: KeepInfo) -> str:
    """Why the workload ended, or where the keep stands."""
    return keep.outcome.text if keep.outcome is not None else keep.detail


def told(keep: KeepInfo, several: bool) -> str:
    """`ending`, and before it which keep's, where several are told of."""
    return f"{keep.kuuid}{f' {keep.name}' if keep.name else ''}: {ending(keep)}" if several else ending(keep)
