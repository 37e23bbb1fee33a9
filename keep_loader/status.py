"""What a keep says of itself: a sentence for `detail`, and one line for `systemctl status`.

Pure. Import rule: that of keep_loader.
"""

from __future__ import annotations

from keep_protocol.keep import KeepInfo, Outcome
from keep_protocol.states import Phase, State

_WORDS: dict[Phase, str] = {
    Phase.BOOTING: "starting",
    Phase.IDLE: "ready for a start",
    Phase.OPENING: "opening the door",
    Phase.AWAITING: "awaiting workload",
    Phase.REOPENING: "opening the door again",
    Phase.RUNNING: "running a workload",
    Phase.RESTARTING: "starting the workload again",
    Phase.ENDED: "ended",
    Phase.FAILED: "failed",
}
_DOOR = (Phase.OPENING, Phase.AWAITING, Phase.REOPENING)
_SHOWN_DIGITS = 12
"""Of the fingerprint in one line; the whole of it is in keep-info."""


def detail_of(phase: Phase, why: str, outcome: Outcome | None) -> str:
    """The sentence beside the state's number: why, or how it ended, or what the keep is doing."""
    return why or (outcome.text if outcome is not None else "") or _WORDS[phase]


def place_of(address: str, port: int) -> str:
    """`127.0.0.1:3031`, or `[::1]:3031`."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _cost(outcome: Outcome) -> str:
    parts: list[str] = []
    if outcome.wall_seconds is not None:
        parts.append(f"{outcome.wall_seconds:.3g} s")
    if outcome.peak_bytes is not None:
        parts.append(f"{outcome.peak_bytes / 1e6:.0f} MB")
    if outcome.dropped_lines:
        parts.append(f"{outcome.dropped_lines} lines dropped by the journal")
    return f" ({', '.join(parts)})" if parts else ""


def status_text(phase: Phase, info: KeepInfo) -> str:
    """One line, as in `started: awaiting workload on 127.0.0.1:3031, sha256:ab12…`."""
    text = f"{info.state.name.lower()}: {info.detail}"
    if phase in _DOOR:
        text += f" on {place_of(info.address, info.port)}"
        if info.fingerprint:
            text += f", {info.fingerprint[: len('sha256:') + _SHOWN_DIGITS]}…"
    elif phase is Phase.RUNNING and info.restarts:
        text += f" (started again {'once' if info.restarts == 1 else f'{info.restarts} times'})"
    elif info.outcome is not None and info.state in (State.COMPLETE, State.ERROR):
        text += _cost(info.outcome)
    if info.isolation_failures:
        count = len(info.isolation_failures)
        text += f"; refuses workloads, {count} isolation failure{'' if count == 1 else 's'}: "
        text += "; ".join(info.isolation_failures)
    return text
