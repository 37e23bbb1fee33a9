"""Waits for a phase, and the lines that the journal dropped: asked about, counted by others, kept with the outcome."""

from __future__ import annotations

import json
import signal

import pytest

from keep_loader.outcome import OWN_LINES, all_lines_taken
from keep_protocol.control import CommandType
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepReport, Outcome, OutcomeKind
from keep_protocol.limits import Limits
from keep_protocol.states import State
from tests.fakes.loader_process import Endpoint, LoaderProcess, Peer, opened


def ended(loader: LoaderProcess, passed: Endpoint, output_bytes: int | None) -> tuple[Peer, KeepReport]:
    """A keep whose workload has exited with 0 and says that it wrote so much."""
    peer, stub = opened(loader, passed)
    stub.accept()
    loader.systemd.wait_for("STATUS", "started: running")
    reported = {"kind": "exited", "text": "exited 0", "exit_code": 0, "output_bytes": output_bytes}
    stub.report("ended", outcome=reported)
    stub.order("exit", code=0)
    return peer, peer.ask(CommandType.WAIT, str(int(State.STARTED)))


def dropped(info: KeepReport) -> int | None:
    assert info.outcome is not None
    return info.outcome.dropped_lines


def test_a_wait_for_another_phase_is_answered_where_the_state_stays(loader: LoaderProcess, passed: Endpoint) -> None:
    _, stub = opened(loader, passed)
    waiter = loader.peer()
    waiter.send(CommandType.WAIT, "awaiting-workload")
    stub.accept()
    info = waiter.answer()
    assert (info.state, info.phase) == (State.STARTED, "running")
    assert waiter.ask(CommandType.WAIT, "idle").phase == "running"


def test_a_wait_for_another_detail_is_answered_where_the_phase_stays(loader: LoaderProcess, passed: Endpoint) -> None:
    _, stub = opened(loader, passed)
    waiter = loader.peer()
    waiter.send(CommandType.WAIT, "awaiting-workload awaiting workload")
    stub.report("receiving", text="receiving 3 MB")
    assert waiter.answer().detail == "receiving 3 MB"
    assert waiter.ask(CommandType.WAIT, "awaiting-workload other").detail == "receiving 3 MB"
    assert waiter.ask(CommandType.WAIT, "idle receiving 3 MB").phase == "awaiting-workload"
    waiter.send(CommandType.WAIT, "2 receiving 3 MB")
    stub.accept()
    stub.report("ended", outcome={"kind": "exited", "text": "exited 0", "exit_code": 0})
    stub.order("exit", code=0)
    assert waiter.answer().phase in ("running", "ended")


def test_a_detail_that_changes_without_end_wakes_no_peer_without_end(loader: LoaderProcess, passed: Endpoint) -> None:
    _, stub = opened(loader, passed)
    waiter, answers = loader.peer(), 0
    detail = "awaiting workload"
    for number in range(500):
        stub.report("receiving", text=f"receiving {number}")
    while detail != "receiving 499":
        detail = waiter.ask(CommandType.WAIT, f"awaiting-workload {detail}").detail
        answers += 1
    assert answers < 100
    stub.order("flood", text=json.dumps({"report": "receiving", "text": "x"}), count=100)
    assert waiter.ask(CommandType.WAIT, f"awaiting-workload {detail}").detail == "x"


@pytest.mark.parametrize("contents", ["x", "-1", "1.5", "9" * 19, "\u0661"])
def test_what_is_no_count_of_lines_is_refused(loader: LoaderProcess, contents: str) -> None:
    with pytest.raises(KeepfleetError, match="it is no whole number") as refused:
        loader.peer().ask(CommandType.DROPPED, contents)
    assert refused.value.kind is ErrorKind.BAD_REQUEST


def test_the_lines_of_a_keep_that_has_not_ended_are_not_counted(loader: LoaderProcess, passed: Endpoint) -> None:
    peer, _ = opened(loader, passed)
    with pytest.raises(KeepfleetError, match="it has not ended") as refused:
        peer.ask(CommandType.DROPPED, "5")
    assert refused.value.kind is ErrorKind.CONFLICT
    assert peer.ask(CommandType.INFO).outcome is None


def test_a_loader_that_is_asked_says_one_more_line(loader: LoaderProcess, passed: Endpoint) -> None:
    peer, _ = ended(loader, passed, 10**6)
    before = loader.log_text()
    assert dropped(peer.ask(CommandType.DROPPED)) is None
    (line,) = loader.log_text().removeprefix(before).splitlines()
    assert line.startswith("complete: exited 0")


def test_the_count_is_shown_and_outlives_the_loader(loader: LoaderProcess, passed: Endpoint) -> None:
    peer, info = ended(loader, passed, 10**6)
    assert dropped(info) is None, "a million bytes may have been more lines than the journal takes"
    assert dropped(peer.ask(CommandType.DROPPED, "4321")) == 4321
    assert "4321 lines dropped by the journal" in loader.systemd.wait_for("STATUS", "complete: exited 0 (")
    loader.end(signal.SIGKILL)
    loader.systemd.drain()
    loader.start()
    again = loader.peer().ask(CommandType.INFO)
    assert (again.phase, dropped(again)) == ("ended", 4321)


def test_a_workload_that_wrote_little_has_lost_nothing(loader: LoaderProcess, passed: Endpoint) -> None:
    assert dropped(ended(loader, passed, 500)[1]) == 0


@pytest.mark.parametrize(
    ("written", "limit", "taken"),
    [(0, OWN_LINES, True), (0, OWN_LINES - 1, False), (936, 1000, True), (937, 1000, False), (None, 1000000, False)],
)
def test_as_many_lines_as_bytes_may_have_been_written(written: int | None, limit: int, taken: bool) -> None:
    outcome = Outcome(OutcomeKind.EXITED, "exited 0", exit_code=0, output_bytes=written)
    assert all_lines_taken(outcome, Limits(log_lines_per_second=limit)) is taken
