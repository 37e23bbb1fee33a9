"""What is recorded of a keep, by its latest event and the phase it is in."""

from __future__ import annotations

import pytest

from keep_manager.keeps.decide import audit, events_of, is_upload, sentence
from keep_manager.model import LastEvent
from keep_protocol.keep import KeepInfo, Module, Outcome, OutcomeKind, Uploader
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
    ("latest", "now", "expected"),
    [
        (None, keep(Phase.IDLE), [CREATED]),
        (LastEvent(CREATED), keep(Phase.IDLE), []),
        (LastEvent(CREATED), keep(Phase.OPENING), []),
        (LastEvent(CREATED), keep(Phase.AWAITING), [STARTED]),
        (LastEvent(STARTED), keep(Phase.REOPENING), []),
        (LastEvent(STARTED), keep(Phase.AWAITING), []),
        (LastEvent(STARTED), keep(Phase.RUNNING), [RUNNING]),
        (LastEvent(CREATED), keep(Phase.RUNNING), [STARTED, RUNNING]),
        (None, keep(Phase.RUNNING), [CREATED, STARTED, RUNNING]),
        (LastEvent(RUNNING), keep(Phase.RESTARTING, RAN), [RESTARTING]),
        (LastEvent(RESTARTING), keep(Phase.RUNNING, restarts=1), [RUNNING]),
        (LastEvent(RUNNING, 1), keep(Phase.RUNNING, restarts=3), [RUNNING]),
        (LastEvent(RUNNING), keep(Phase.ENDED, RAN), [ENDED]),
        (LastEvent(STARTED), keep(Phase.ENDED, RAN), [RUNNING, ENDED]),
        (LastEvent(RESTARTING), keep(Phase.FAILED, RAN, 1), [RUNNING, FAILED]),
        (LastEvent(STARTED), keep(Phase.ENDED, NEVER_RAN), [ENDED]),
        (None, keep(Phase.ENDED, NEVER_RAN), [CREATED, ENDED]),
        (LastEvent(ENDED), keep(Phase.ENDED, RAN), []),
        (LastEvent(FAILED), keep(Phase.IDLE), []),
        (LastEvent(RUNNING), KeepInfo(7, State.ERROR, "the unit is failed"), [FAILED]),
        (LastEvent(RUNNING), KeepInfo(7, State.UNDEFINED, "restarting"), []),
    ],
)
def test_what_has_happened_since_is_recorded_in_order(
    latest: LastEvent | None, now: KeepInfo, expected: list[EventType]
) -> None:
    assert [event.type for event in events_of(latest, now, 9.0)] == expected


def test_an_end_is_recorded_with_its_own_times_and_with_who_asked_for_it() -> None:
    running, ended = events_of(LastEvent(STARTED), keep(Phase.ENDED, RAN), 9.0)
    assert (running.at, ended.at, ended.by) == (5.0, 6.0, "")
    (stopped,) = events_of(LastEvent(STARTED), keep(Phase.ENDED, NEVER_RAN), 9.0)
    assert (stopped.at, stopped.by) == (4.0, "alice")
    (created,) = events_of(None, keep(Phase.IDLE), 9.0)
    assert (created.at, created.by) == (9.0, "bob")


@pytest.mark.parametrize(
    ("latest", "times"),
    [
        (None, [5.0, 5.0, 5.0, 6.0]),
        (LastEvent(CREATED, at=4.0), [5.0, 5.0, 6.0]),
        (LastEvent(STARTED, at=5.5), [5.5, 6.0]),
        (LastEvent(RUNNING, at=8.0), [8.0]),
        (LastEvent(RUNNING, at=99.0), [6.0]),
    ],
    ids=["none was noticed", "noticed", "noticed late", "noticed after the end", "before the clock was set back"],
)
def test_no_event_has_a_later_time_than_what_comes_after_it(latest: LastEvent | None, times: list[float]) -> None:
    assert [event.at for event in events_of(latest, keep(Phase.ENDED, RAN), 9.0)] == times


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


BY = Uploader("sha256:" + "a" * 64, "ci\n", "1f")
MODULE = Module("sha256:" + "b" * 64, "hello", 77)


def test_an_upload_is_one_line_with_the_keep_the_certificate_and_the_module() -> None:
    line = audit(keep(Phase.RUNNING).replace(uploaded_by=BY, module=MODULE))
    assert line == (
        f"keep@7.service of bob: module {MODULE.digest} of 77 bytes was uploaded by ci  (serial 1f, {BY.fingerprint})"
    )


def test_an_upload_is_recorded_once_and_not_with_each_run() -> None:
    (running,) = events_of(LastEvent(STARTED), keep(Phase.RUNNING), 9.0)
    assert is_upload(LastEvent(STARTED), running)
    assert not is_upload(LastEvent(RESTARTING), running)
    assert not is_upload(LastEvent(STARTED), KeepEvent(1.0, ENDED, keep(Phase.ENDED, RAN)))
