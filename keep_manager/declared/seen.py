"""Keeps of the view as the decision sees them. Pure."""

from __future__ import annotations

from keep_manager.declared.decision import Life, Seen
from keep_manager.keeps.view import Entry
from keep_protocol.outcome import OutcomeKind
from keep_protocol.states import Phase, State


def seen_of(entry: Entry, now: float) -> Seen | None:
    """One keep of the view, if it is a declared one's and is not being removed. Pure."""
    spec, info = entry.spec, entry.info
    if spec is None or spec.declared is None or entry.removing:
        return None
    declared, life, outcome = spec.declared, _life(entry), info.outcome
    ran = 0.0 if outcome is None else outcome.wall_seconds or 0.0
    ended = None if outcome is None or not entry.has_unit else outcome.ended_monotonic
    if ended is None:
        ended = entry.since if entry.unit_ended is None else entry.unit_ended
    if life is Life.RUNNING:
        ran = now - entry.since
    text = outcome.text if outcome is not None else info.detail
    return Seen(
        info.kuuid, spec.name, spec.owner, declared.digest, declared.attempt, life, entry.since, ran, ended, text
    )


def _life(entry: Entry) -> Life:
    info, outcome = entry.info, entry.info.outcome
    if info.state in (State.COMPLETE, State.ERROR):
        if not info.phase and not entry.resting:
            return Life.UNKNOWN
        if outcome is None:
            return Life.FAILED
        if outcome.kind is OutcomeKind.LOST and not entry.has_unit:
            return Life.LOST
        if outcome.kind is OutcomeKind.EXITED:
            return Life.DONE if not outcome.exit_code else Life.FAILED
        return Life.STOPPED if outcome.kind is OutcomeKind.STOPPED else Life.FAILED
    if info.phase in (Phase.BOOTING.value, Phase.IDLE.value, Phase.OPENING.value):
        return Life.UNFINISHED
    return Life.RUNNING if info.state is State.STARTED and info.phase else Life.UNKNOWN
