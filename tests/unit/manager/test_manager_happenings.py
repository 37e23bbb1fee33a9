"""What is told of a keep, by what was told before and where it stands."""

from __future__ import annotations

import pytest

from keep_manager.keeps.happenings import happenings, sentence
from keep_manager.model import Told
from keep_protocol.keep import KeepInfo, Outcome, OutcomeKind
from keep_protocol.sse import EventType, KeepEvent
from keep_protocol.states import STATE_OF, Phase, State

CREATED, STARTED, RUNNING = EventType.CREATED, EventType.STARTED, EventType.RUNNING
RESTARTING, ENDED, FAILED = EventType.RESTARTING, EventType.ENDED, EventType.FAILED
RAN = Outcome(OutcomeKind.EXITED, "exited 3", exit_code=3, started_at=5.0, ended_at=6.0)
NEVER_RAN = Outcome(OutcomeKind.STOPPED, "stopped by alice", ended_at=4.0, by="alice")


def keep(phase: Phase, outcome: Outcome | None = None, restarts: int = 0) -> KeepInfo:
    detail = "" if outcome is None else outcome.text
    return KeepInfo(
        7,
        STATE_OF[phase],
        detail,
        "127.0.0.1",
        3031,
        outcome=outcome,
        owner="bob",
        restarts=restarts,
        phase=phase.value,
    )


@pytest.mark.parametrize(
    ("told", "now", "expected"),
    [
        (None, keep(Phase.IDLE), [CREATED]),
        (Told(CREATED), keep(Phase.IDLE), []),
        (Told(CREATED), keep(Phase.OPENING), []),
        (Told(CREATED), keep(Phase.AWAITING), [STARTED]),
        (Told(STARTED), keep(Phase.REOPENING), []),
        (Told(STARTED), keep(Phase.AWAITING), []),
        (Told(STARTED), keep(Phase.RUNNING), [RUNNING]),
        (Told(CREATED), keep(Phase.RUNNING), [STARTED, RUNNING]),
        (None, keep(Phase.RUNNING), [CREATED, STARTED, RUNNING]),
        (Told(RUNNING), keep(Phase.RESTARTING, RAN), [RESTARTING]),
        (Told(RESTARTING), keep(Phase.RUNNING, restarts=1), [RUNNING]),
        (Told(RUNNING, 1), keep(Phase.RUNNING, restarts=3), [RUNNING]),
        (Told(RUNNING), keep(Phase.ENDED, RAN), [ENDED]),
        (Told(STARTED), keep(Phase.ENDED, RAN), [RUNNING, ENDED]),
        (Told(RESTARTING), keep(Phase.FAILED, RAN, 1), [RUNNING, FAILED]),
        (Told(STARTED), keep(Phase.ENDED, NEVER_RAN), [ENDED]),
        (None, keep(Phase.ENDED, NEVER_RAN), [CREATED, ENDED]),
        (Told(ENDED), keep(Phase.ENDED, RAN), []),
        (Told(FAILED), keep(Phase.IDLE), []),
        (Told(RUNNING), KeepInfo(7, State.ERROR, "the unit is failed"), [FAILED]),
        (Told(RUNNING), KeepInfo(7, State.UNDEFINED, "restarting"), []),
    ],
)
def test_what_has_happened_since_is_told_in_order(told: Told | None, now: KeepInfo, expected: list[EventType]) -> None:
    assert [event.type for event in happenings(told, now, 9.0)] == expected


def test_an_end_is_told_with_its_own_times_and_with_who_asked_for_it() -> None:
    running, ended = happenings(Told(STARTED), keep(Phase.ENDED, RAN), 9.0)
    assert (running.at, ended.at, ended.by) == (5.0, 6.0, "")
    (stopped,) = happenings(Told(STARTED), keep(Phase.ENDED, NEVER_RAN), 9.0)
    assert (stopped.at, stopped.by) == (4.0, "alice")
    (created,) = happenings(None, keep(Phase.IDLE), 9.0)
    assert (created.at, created.by) == (9.0, "bob")


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (KeepEvent(1.0, CREATED, keep(Phase.IDLE), "bob"), "keep@7.service: created by bob"),
        (KeepEvent(1.0, CREATED, keep(Phase.IDLE)), "keep@7.service: created"),
        (KeepEvent(1.0, STARTED, keep(Phase.AWAITING)), "keep@7.service: started on 127.0.0.1 port 3031"),
        (KeepEvent(1.0, RUNNING, keep(Phase.RUNNING)), "keep@7.service: running"),
        (KeepEvent(1.0, ENDED, keep(Phase.ENDED, RAN)), "keep@7.service: ended: exited 3"),
        (KeepEvent(1.0, EventType.REMOVED, keep(Phase.ENDED, RAN), "bob"), "keep@7.service: removed by bob"),
        (KeepEvent(1.0, FAILED, KeepInfo(7, State.ERROR, "a\x1b[2J\nb")), "keep@7.service: failed: a [2J b"),
    ],
)
def test_an_event_is_one_line_of_a_log(event: KeepEvent, line: str) -> None:
    assert sentence(event) == line
