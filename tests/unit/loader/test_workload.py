"""A workload's life: accepted, ended in every way, stopped, and malicious."""

from __future__ import annotations

import json
import os
import select
import signal
import socket

import pytest

from keep_loader.process import MAX_RUNNING_REPORTS
from keep_protocol.constants import MAX_CONTROL_FRAME
from keep_protocol.control import CommandType
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import OutcomeKind
from keep_protocol.states import State
from tests.fakes.loader_process import ARTIFACTS, DEADLINE, MODULE, UPLOAD, Endpoint, LoaderProcess, Peer, Stub, opened
from tests.unit.loader.test_strays import opened_by


def running(loader: LoaderProcess, passed: Endpoint) -> tuple[Peer, Stub]:
    """A keep whose workload has been accepted, as its loader sees it."""
    peer, stub = opened(loader, passed)
    stub.accept()
    loader.systemd.wait_for("STATUS", "started: running")
    peer.hears_that_it_runs()
    return peer, stub


def exited(code: object) -> dict[str, object]:
    return {"kind": "exited", "text": f"exited {code}", "exit_code": code}


def test_an_upload_is_shown_and_its_loss_too(loader: LoaderProcess, passed: Endpoint) -> None:
    peer, stub = opened(loader, passed)
    stub.report("receiving", text="receiving 3 MB")
    loader.systemd.wait_for("STATUS", "started: receiving 3 MB on 127.0.0.1:")
    assert peer.ask(CommandType.INFO).detail == "receiving 3 MB"
    stub.report("awaiting")
    loader.systemd.wait_for("STATUS", "started: awaiting workload on")


def test_an_accepted_workload_closes_the_endpoint_permanently(loader: LoaderProcess, passed: Endpoint) -> None:
    peer, stub = opened(loader, passed)
    stub.accept()
    loader.systemd.wait_for("STATUS", "started: running a workload")
    assert loader.systemd.parked == set()
    assert sorted(loader.systemd.unstored) == ["client-ca", "identity", "listener", "revoked"]
    assert loader.process is not None
    assert os.readlink(f"/proc/self/fd/{passed.listener.fileno()}") not in opened_by(loader.process.pid)
    assert peer.ask(CommandType.INFO).port == passed.port


def test_a_guest_has_begun_once_its_runner_says_so(loader: LoaderProcess, passed: Endpoint) -> None:
    peer, stub = opened(loader, passed)
    assert not peer.ask(CommandType.INFO).begun
    stub.accept()
    while not (report := peer.ask(CommandType.INFO)).begun:  # running before, when its module may be compiled again
        assert report.phase in ("awaiting", "running")
    assert report.phase == "running"


def test_who_waits_hears_that_a_guest_has_begun_in_words_that_are_the_same(
    loader: LoaderProcess, passed: Endpoint
) -> None:
    peer, stub = opened(loader, passed)
    runner = stub.connect()
    runner.report("checked", ARTIFACTS)
    stub.do("report", report={"report": "accepted", "upload": UPLOAD, "module": MODULE})
    while (report := peer.ask(CommandType.INFO)).phase != "running":
        pass
    assert not report.begun
    late = loader.peer()
    assert not late.ask(CommandType.INFO).begun
    peer.send(CommandType.WAIT, f"running {report.detail}")
    runner.do("run")
    assert peer.answer().begun
    assert late.ask(CommandType.WAIT, f"running {report.detail}").begun, "what has happened since its last answer"
    late.send(CommandType.WAIT, f"running {report.detail}")
    runner.report("running", text="something else")
    assert late.answer().detail == "something else"


@pytest.mark.parametrize("code", [0, 3, 125])
def test_a_workload_that_exits_completes_the_keep_with_any_code(
    loader: LoaderProcess, passed: Endpoint, code: int
) -> None:
    _, stub = running(loader, passed)
    stub.report("running")
    own = {
        "wall_seconds": 99,
        "cpu_seconds": 0.0001,
        "peak_bytes": 2_000_000,
        "output_bytes": 12,
    }  # the last is not its to say
    stub.report("ended", outcome={**exited(code), **own})
    stub.order("exit", code=code)
    info = loader.ended(passed)
    assert (info.state, info.detail) == (State.COMPLETE, f"exited {code}")
    assert info.outcome is not None
    assert (info.outcome.kind, info.outcome.exit_code) == (OutcomeKind.EXITED, code)
    assert info.outcome.wall_seconds is not None and 0 < info.outcome.wall_seconds < 15
    assert (info.outcome.cpu_seconds, info.outcome.peak_bytes, info.outcome.output_bytes) == (0.0001, 2_000_000, 0)
    assert loader.systemd.wait_for("STATUS", "complete").startswith(f"complete: exited {code} (")


def test_a_trap_is_an_error_with_its_backtrace(loader: LoaderProcess, passed: Endpoint) -> None:
    _, stub = running(loader, passed)
    outcome = {"kind": "trapped", "text": "trapped: unreachable", "backtrace": ["0: f\x1b[31m", "1: _start"]}
    stub.report("ended", outcome=outcome)
    stub.order("exit", code=1)
    info = loader.ended(passed)
    assert (info.state, info.detail) == (State.ERROR, "trapped: unreachable")
    assert info.outcome is not None
    assert (info.outcome.kind, info.outcome.backtrace) == (OutcomeKind.TRAPPED, ("0: f [31m", "1: _start"))


def test_a_runner_that_fails_is_lost_for_the_reason_that_it_gives(loader: LoaderProcess, passed: Endpoint) -> None:
    _, stub = running(loader, passed)
    stub.report("ended", outcome={"kind": "lost", "text": "lost: cannot load the compiled module: another version"})
    stub.order("exit", code=1)
    info = loader.ended(passed)
    assert (info.state, info.detail) == (State.ERROR, "lost: cannot load the compiled module: another version")
    assert info.outcome is not None and info.outcome.kind is OutcomeKind.LOST


def test_a_kill_is_read_from_the_wait_status(loader: LoaderProcess, passed: Endpoint) -> None:
    _, stub = running(loader, passed)
    os.kill(stub.pid, signal.SIGSEGV)
    info = loader.ended(passed)
    assert info.state is State.ERROR
    assert info.outcome is not None
    assert (info.outcome.kind, info.outcome.signal) == (OutcomeKind.KILLED, signal.SIGSEGV)
    assert info.detail == "killed by SIGSEGV"


def test_a_workload_that_goes_without_a_word_is_lost(loader: LoaderProcess, passed: Endpoint) -> None:
    _, stub = running(loader, passed)
    stub.order("exit", code=0)
    info = loader.ended(passed)
    assert (info.state, info.detail) == (State.ERROR, "the process exited 0 without a report")
    assert info.outcome is not None and info.outcome.kind is OutcomeKind.LOST


def test_a_stop_ends_the_endpoint_and_names_who_asked(loader: LoaderProcess, passed: Endpoint) -> None:
    peer, stub = opened(loader, passed)
    info = peer.ask(CommandType.STOP, "alice\n\x1b[2J")
    assert (info.state, info.detail) == (State.COMPLETE, "stopped by alice  [2J")
    assert info.outcome is not None and info.outcome.kind is OutcomeKind.STOPPED
    assert stub.is_gone()
    loader.systemd.wait_for("STATUS", "complete")
    assert loader.systemd.parked == set()


def test_a_stop_of_a_workload_that_ignores_it_is_a_kill_after_two_seconds(
    loader: LoaderProcess, passed: Endpoint
) -> None:
    """The loader finds both stops and the question in one turn of its loop, in this order."""
    _, stub = running(loader, passed)
    stub.do("ignore-term")
    orphan = int(stub.do("orphan"))
    watch = os.pidfd_open(orphan)
    first, second, third = peers = [loader.peer() for _ in range(3)]
    for peer in peers:
        peer.ask(CommandType.INFO)
    assert loader.process is not None
    loader.process.send_signal(signal.SIGSTOP)
    first.send(CommandType.STOP, "alice")
    second.send(CommandType.STOP, "bob")
    third.send(CommandType.INFO)
    loader.process.send_signal(signal.SIGCONT)
    assert third.answer().state is State.STARTED
    assert first.answer().detail == second.answer().detail == "stopped by alice"
    assert select.select([watch], [], [], DEADLINE)[0] == [watch]
    os.close(watch)


def test_only_a_started_keep_can_be_stopped(loader: LoaderProcess, passed: Endpoint) -> None:
    peer = loader.peer()
    with pytest.raises(KeepfleetError, match="idle") as refused:
        peer.ask(CommandType.STOP)
    assert refused.value.kind is ErrorKind.CONFLICT


def test_a_stop_that_comes_after_the_end_of_the_workload_is_answered_with_that(
    loader: LoaderProcess, passed: Endpoint
) -> None:
    """The loader finds both in one turn of its loop, in this order."""
    _, stub = running(loader, passed)
    peer = loader.peer()
    peer.ask(CommandType.INFO)
    assert loader.process is not None
    loader.process.send_signal(signal.SIGSTOP)
    died = os.pidfd_open(stub.pid)
    os.kill(stub.pid, signal.SIGSEGV)
    assert select.select([died], [], [], DEADLINE)[0]
    os.close(died)
    peer.send(CommandType.STOP, "alice")
    loader.process.send_signal(signal.SIGCONT)
    report = peer.answer()
    assert (report.state, report.detail) == (State.ERROR, "killed by SIGSEGV")
    assert loader.ended(passed) == report


def test_a_wait_is_answered_at_the_change_and_others_are_served_meanwhile(
    loader: LoaderProcess, passed: Endpoint
) -> None:
    waiter = loader.peer()
    waiter.send(CommandType.WAIT, "1")
    peer, _ = opened(loader, passed)
    assert waiter.answer().state is State.STARTED
    waiter.send(CommandType.WAIT, "2")
    peer.ask(CommandType.STOP)
    assert waiter.answer().state is State.COMPLETE
    assert loader.ended(passed).state is State.COMPLETE


def test_waiting_peers_leave_room_for_commands_and_are_dropped_when_they_hang_up(loader: LoaderProcess) -> None:
    waiters = [loader.peer() for _ in range(7)]
    for waiter in waiters[:6]:
        waiter.send(CommandType.WAIT, "1")
    with pytest.raises(KeepfleetError) as refused:
        waiters[6].ask(CommandType.WAIT, "1")
    assert refused.value.kind is ErrorKind.TOO_MANY
    for waiter in waiters[:6]:
        waiter.close()
    assert waiters[6].ask(CommandType.INFO).state is State.LISTENING
    waiters[6].send(CommandType.WAIT, "1")
    assert loader.peer().ask(CommandType.INFO).state is State.LISTENING


def test_sigterm_ends_the_workload_and_the_loader(loader: LoaderProcess, passed: Endpoint) -> None:
    _, stub = running(loader, passed)
    assert loader.end(signal.SIGTERM) == 0
    assert stub.is_gone()
    assert "stopped by the end of its unit" in loader.log_text()


def test_sigterm_of_an_idle_loader_is_prompt_and_clean(loader: LoaderProcess) -> None:
    assert loader.end(signal.SIGTERM) == 0
    loader.systemd.wait_for("STOPPING")


def test_sigterm_during_a_start_ends_the_app_loader(loader: LoaderProcess, passed: Endpoint) -> None:
    peer = loader.peer()
    peer.send(CommandType.START, "", passed.descriptors)
    stub = loader.stub()
    assert loader.end(signal.SIGTERM) == 0
    assert stub.is_gone()


def test_forged_reports_after_the_end_change_nothing(loader: LoaderProcess, passed: Endpoint) -> None:
    _, stub = running(loader, passed)
    stub.report("ended", outcome=exited(1))
    assert int(stub.do("flood", text=json.dumps({"report": "ended", "outcome": exited(0)}), count=100_000)) < 1000
    stub.order("exit", code=1)
    assert loader.ended(passed).detail == "exited 1"


def test_a_workload_can_say_little(loader: LoaderProcess, passed: Endpoint) -> None:
    peer, stub = running(loader, passed)
    sent = int(stub.do("flood", text=json.dumps({"report": "running", "text": "x" * 50_000}), count=100_000))
    assert MAX_RUNNING_REPORTS - 1 <= sent < 1000  # one it has made already
    assert len(peer.ask(CommandType.INFO).detail) <= 200
    os.kill(stub.pid, signal.SIGKILL)
    assert loader.ended(passed).detail == "killed by SIGKILL"


HOSTILE = [
    "not JSON",
    "[" * 60_000,
    "{}",
    json.dumps({"report": "no such"}),
    json.dumps({"report": "listening", "fingerprint": "sha256:" + "00" * 32, "certificate": "X"}),
    json.dumps({"report": "accepted"}),
    json.dumps({"report": "ended", "outcome": {"kind": "stopped", "text": "by root"}}),
    json.dumps({"report": "ended", "outcome": exited(-1)}),
    json.dumps({"report": "ended", "outcome": exited(None)}),
    json.dumps({"report": "ended", "outcome": {"kind": "exited", "exit_code": 0, "wall_seconds": 10**400}}),
    '{"report": "ended", "outcome": {"kind": "exited", "exit_code": 0, "cpu_seconds": 1e999}}',
    '{"report": "running", "text": "\\ud800\\u202e\\n[Service]"}',
    json.dumps({"report": "running", "text": "x" * MAX_CONTROL_FRAME}),
]


@pytest.mark.parametrize("packet", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_reports_of_a_workload_change_no_state(loader: LoaderProcess, passed: Endpoint, packet: str) -> None:
    peer, stub = running(loader, passed)
    before = loader.open_descriptors()
    stub.do("raw", text=packet, files=["a", "b"])
    assert loader.comes_back_to(before, peer)
    stub.report("ended", outcome=exited(4))
    stub.order("exit", code=4)
    info = loader.ended(passed)
    assert (info.state, info.detail) == (State.COMPLETE, "exited 4")
    loader.systemd.drain()
    assert all(line.isprintable() for line in loader.systemd.statuses)
    assert "Traceback" not in loader.log_text()


def test_a_workload_that_reports_its_end_and_stays_is_killed(unstarted: LoaderProcess, passed: Endpoint) -> None:
    unstarted.start(environment={"FAKE_CONSTANTS": "keep_loader.running:LINGER_SECONDS=0.05"})
    _, stub = running(unstarted, passed)
    stub.order("report", report={"report": "ended", "outcome": exited(0)})
    assert unstarted.ended(passed).detail == "exited 0"
    assert stub.is_gone()


def test_a_workload_floods_no_log(loader: LoaderProcess, passed: Endpoint) -> None:
    _, stub = running(loader, passed)
    stub.do("flood", text="not JSON", count=1000)
    os.kill(stub.pid, signal.SIGKILL)
    loader.ended(passed)
    assert loader.log_text().count("ignored a report") == 1


def test_descriptors_sent_with_a_report_are_closed(loader: LoaderProcess, passed: Endpoint) -> None:
    peer, stub = opened(loader, passed)
    before = loader.open_descriptors()
    for _ in range(20):
        stub.report("receiving", {"a": "a", "b": "b", "c": "c"}, text="receiving")
    loader.systemd.wait_for("STATUS", "started: receiving")
    assert loader.comes_back_to(before, peer)


def test_a_busy_endpoint_does_not_keep_systemd_busy(loader: LoaderProcess, passed: Endpoint) -> None:
    peer, stub = opened(loader, passed)
    loader.systemd.wait_for("STATUS", "started")
    before = loader.systemd.messages
    for number in range(500):
        stub.report("receiving", text=f"receiving {number}")
    loader.systemd.wait_for("STATUS", "started: receiving 499")
    assert loader.systemd.messages - before < 100
    assert peer.ask(CommandType.INFO).detail == "receiving 499"


def test_the_notify_socket_is_not_passed_on(loader: LoaderProcess, passed: Endpoint) -> None:
    _, stub = opened(loader, passed)
    assert "NOTIFY_SOCKET" not in stub.environment
    sockets = [name for name, path in stub.passed.items() if path.startswith("socket:")]
    assert sockets == ["listener", "checks"]
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(loader.directory / "control.sock"))
