"""The life of a keep: its phases, the state number each shows on the wire, and every allowed move.

One table, read by the loader; the diagram in docs/architecture.md is generated from it.
Import rule: `enum` and `errors` alone (the light part of keep_protocol).
"""

from __future__ import annotations

from enum import Enum, IntEnum

from keep_protocol.errors import ErrorKind, KeepfleetError


class State(IntEnum):
    """The original protocol's numbers."""

    UNDEFINED = 0
    LISTENING = 1
    STARTED = 2
    COMPLETE = 3
    ERROR = 15


class Phase(Enum):
    """Where exactly a keep is; several phases share a state number."""

    BOOTING = "booting"
    IDLE = "idle"
    OPENING = "opening"
    AWAITING = "awaiting-workload"
    REOPENING = "reopening"
    RUNNING = "running"
    RESTARTING = "restarting"
    ENDED = "ended"
    FAILED = "failed"


class Event(Enum):
    """What moves a keep from phase to phase."""

    READY = "ready"
    START = "start"
    RUN = "run"
    START_FAILED = "start-failed"
    ENDPOINT_READY = "endpoint-ready"
    ENDPOINT_LOST = "endpoint-lost"
    RESUME = "resume"
    RESTORE = "restore"
    RERUN = "rerun"
    ACCEPT = "accept"
    FINISH = "finish"
    RESTART = "restart"
    STOP = "stop"
    FAIL = "fail"


STATE_OF: dict[Phase, State] = {
    Phase.BOOTING: State.UNDEFINED,
    Phase.IDLE: State.LISTENING,
    Phase.OPENING: State.LISTENING,
    Phase.AWAITING: State.STARTED,
    Phase.REOPENING: State.STARTED,
    Phase.RUNNING: State.STARTED,
    Phase.RESTARTING: State.STARTED,
    Phase.ENDED: State.COMPLETE,
    Phase.FAILED: State.ERROR,
}

TRANSITIONS: dict[tuple[Phase, Event], Phase] = {
    (Phase.BOOTING, Event.READY): Phase.IDLE,
    (Phase.BOOTING, Event.RESUME): Phase.REOPENING,
    (Phase.BOOTING, Event.RESTORE): Phase.ENDED,
    (Phase.BOOTING, Event.RERUN): Phase.RUNNING,
    (Phase.IDLE, Event.START): Phase.OPENING,
    (Phase.IDLE, Event.RUN): Phase.RUNNING,
    (Phase.OPENING, Event.ENDPOINT_READY): Phase.AWAITING,
    (Phase.OPENING, Event.START_FAILED): Phase.IDLE,
    (Phase.AWAITING, Event.ENDPOINT_LOST): Phase.REOPENING,
    (Phase.REOPENING, Event.ENDPOINT_READY): Phase.AWAITING,
    (Phase.REOPENING, Event.ENDPOINT_LOST): Phase.REOPENING,
    (Phase.AWAITING, Event.ACCEPT): Phase.RUNNING,
    (Phase.RUNNING, Event.FINISH): Phase.ENDED,
    (Phase.RUNNING, Event.RESTART): Phase.RESTARTING,
    (Phase.AWAITING, Event.STOP): Phase.ENDED,
    (Phase.REOPENING, Event.STOP): Phase.ENDED,
    (Phase.RUNNING, Event.STOP): Phase.ENDED,
    (Phase.RESTARTING, Event.STOP): Phase.ENDED,
    **{(phase, Event.FAIL): Phase.FAILED for phase in Phase if phase is not Phase.ENDED},
}


def advance(phase: Phase, event: Event) -> Phase:
    """The phase after `event`. Raises KeepfleetError(CONFLICT), changing nothing, for an unlisted move."""
    try:
        return TRANSITIONS[phase, event]
    except KeyError:
        raise KeepfleetError(ErrorKind.CONFLICT, f"cannot {event.value} a keep that is {phase.value}") from None
