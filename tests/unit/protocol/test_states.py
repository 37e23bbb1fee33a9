"""The table of states: every pair of phase and event, the allowed moves and the refused ones."""

from __future__ import annotations

import pytest

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.states import STATE_OF, TRANSITIONS, Event, Phase, State, advance

# Written out a second time, as a reviewer would draw it: phase -> event -> phase.
DRAWN: dict[str, dict[str, str]] = {
    "booting": {"ready": "idle", "resume": "reopening", "restore": "ended", "rerun": "running", "fail": "failed"},
    "idle": {"start": "opening", "run": "running", "fail": "failed"},
    "opening": {"endpoint-ready": "awaiting-workload", "start-failed": "idle", "fail": "failed"},
    "awaiting-workload": {"endpoint-lost": "reopening", "accept": "running", "stop": "ended", "fail": "failed"},
    "reopening": {
        "endpoint-ready": "awaiting-workload",
        "endpoint-lost": "reopening",
        "stop": "ended",
        "fail": "failed",
    },
    "running": {"finish": "ended", "stop": "ended", "restart": "restarting", "fail": "failed"},
    "restarting": {"stop": "ended", "fail": "failed"},  # its loader exits, and the next one boots
    "ended": {},
    "failed": {"fail": "failed"},
}


@pytest.mark.parametrize("event", list(Event), ids=lambda event: event.value)
@pytest.mark.parametrize("phase", list(Phase), ids=lambda phase: phase.value)
def test_every_pair_of_phase_and_event_is_a_drawn_move_or_a_conflict(phase: Phase, event: Event) -> None:
    after = DRAWN[phase.value].get(event.value)
    if after is not None:
        assert advance(phase, event) is Phase(after)
        return
    with pytest.raises(KeepfleetError, match=f"cannot {event.value} a keep that is {phase.value}") as refused:
        advance(phase, event)
    assert refused.value.kind is ErrorKind.CONFLICT


def test_every_phase_has_a_state_number() -> None:
    assert set(STATE_OF) == set(Phase)
    assert {int(state) for state in STATE_OF.values()} == {0, 1, 2, 3, 15}


def test_state_numbers_move_only_as_the_original_did() -> None:
    moves = {(STATE_OF[before], STATE_OF[after]) for (before, _), after in TRANSITIONS.items()}
    changes = {(before, after) for before, after in moves if before is not after and after is not State.ERROR}
    assert changes == {
        (State.UNDEFINED, State.LISTENING),
        (State.UNDEFINED, State.STARTED),  # a loader that comes back after a crash
        (State.UNDEFINED, State.COMPLETE),
        (State.LISTENING, State.STARTED),
        (State.STARTED, State.COMPLETE),
    }


def test_every_phase_can_be_reached() -> None:
    assert set(TRANSITIONS.values()) == set(Phase) - {Phase.BOOTING}
