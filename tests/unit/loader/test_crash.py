"""A loader or app-loader that is killed: what comes back, and what is said of what does not."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from keep_loader.forks import MAX_RESPAWNS
from keep_protocol.control import CommandType
from keep_protocol.errors import KeepfleetError
from keep_protocol.keep import KeepReport, OutcomeKind
from keep_protocol.states import State
from tests.fakes.loader_process import FINGERPRINT, Endpoint, LoaderProcess, Stub, opened


def killed(loader: LoaderProcess, stub: Stub | None = None) -> None:
    """SIGKILL of the loader; then systemd ends the rest of the unit and takes note of what was said."""
    loader.end(signal.SIGKILL)
    if stub is not None:
        os.kill(stub.pid, signal.SIGKILL)
    loader.systemd.drain()


def info_of(loader: LoaderProcess) -> KeepReport:
    return loader.peer().ask(CommandType.INFO)


def test_a_loader_killed_when_idle_is_idle_again(loader: LoaderProcess) -> None:
    killed(loader)
    loader.start()
    assert info_of(loader).state is State.LISTENING


def test_a_loader_killed_during_a_start_is_idle_and_frees_the_port(loader: LoaderProcess, passed: Endpoint) -> None:
    loader.peer().send(CommandType.START, "", passed.descriptors)
    stub = loader.stub()
    killed(loader, stub)
    assert loader.systemd.parked == {"listener", "client-ca", "revoked"}
    loader.start()
    loader.systemd.drain()
    assert loader.systemd.stored == {}
    info = info_of(loader)
    assert (info.state, info.port) == (State.LISTENING, 0)


def test_a_loader_killed_while_awaiting_opens_the_same_endpoint_again(loader: LoaderProcess, passed: Endpoint) -> None:
    _, stub = opened(loader, passed)
    killed(loader, stub)
    waiting = socket.create_connection(("127.0.0.1", passed.port))
    loader.start()
    again = loader.stub()
    assert info_of(loader).detail == "opening the upload endpoint again after a crash of the loader"
    assert again.names == ["listener", "client-ca", "revoked", "identity", "checks"]
    assert again.do("identity") == "the key"
    assert again.descriptors[4] == os.readlink(f"/proc/self/fd/{passed.listener.fileno()}")
    again.report("listening", fingerprint=FINGERPRINT, certificate="PEM")
    loader.systemd.wait_for("STATUS", "started: awaiting workload")
    info = info_of(loader)
    assert (info.state, info.port, info.fingerprint) == (State.STARTED, passed.port, FINGERPRINT)
    waiting.close()


def test_an_endpoint_that_would_show_another_certificate_is_not_opened_again(
    loader: LoaderProcess, passed: Endpoint
) -> None:
    _, stub = opened(loader, passed)
    killed(loader, stub)
    loader.start()
    other = {"report": "listening", "fingerprint": "sha256:" + "cd" * 32, "certificate": "PEM"}
    loader.stub().order("report", report=other)
    assert "another certificate" in loader.ended(passed).detail
    loader.systemd.drain()
    assert loader.systemd.parked == set()


def test_an_endpoint_is_not_opened_again_where_the_isolation_check_fails_now(
    loader: LoaderProcess, passed: Endpoint
) -> None:
    _, stub = opened(loader, passed)
    killed(loader, stub)
    loader.start(environment={"FAKE_ISOLATION_FAILURES": "new privileges can be gained"})
    info = loader.ended(passed)
    loader.systemd.drain()
    assert info.detail.endswith("the isolation check failed: new privileges can be gained")
    assert info.isolation_failures == ("new privileges can be gained",)
    assert loader.systemd.parked == set()


def test_a_loader_killed_while_the_workload_ran_has_lost_it(loader: LoaderProcess, passed: Endpoint) -> None:
    _, stub = opened(loader, passed)
    stub.accept()
    loader.systemd.wait_for("STATUS", "started: running")
    killed(loader, stub)
    loader.start()
    info = loader.ended(passed)
    assert (info.state, info.detail) == (State.ERROR, "the loader was killed while the workload ran")
    assert info.outcome is not None and info.outcome.kind is OutcomeKind.LOST


def end_again(loader: LoaderProcess, passed: Endpoint) -> KeepReport:
    """What is written down of a keep that has ended, and twice again of loaders that find it so, as they would where
    the one before them was killed in that moment."""
    before = loader.ended(passed)
    for _ in range(2):
        loader.systemd.drain()
        assert loader.systemd.stored == {}
        loader.systemd.stored["record"] = os.dup(passed.record)
        loader.start()
        assert loader.ended(passed) == before
    return before


def test_an_outcome_survives_the_loader(loader: LoaderProcess, passed: Endpoint) -> None:
    _, stub = opened(loader, passed)
    stub.accept()
    stub.report("ended", outcome={"kind": "exited", "text": "exited 3", "exit_code": 3})
    stub.order("exit", code=3)
    before = end_again(loader, passed)
    assert before.outcome is not None and before.outcome.exit_code == 3
    assert loader.end() == 3


def test_an_error_survives_the_loader(loader: LoaderProcess, passed: Endpoint) -> None:
    _, stub = opened(loader, passed)
    stub.accept()
    os.kill(stub.pid, signal.SIGILL)
    before = end_again(loader, passed)
    assert before.detail == "killed by SIGILL"
    assert loader.end() == 128 + signal.SIGILL


def test_an_endpoint_whose_descriptors_were_not_kept_fails_with_the_reason(
    loader: LoaderProcess, passed: Endpoint
) -> None:
    _, stub = opened(loader, passed)
    killed(loader, stub)
    os.close(loader.systemd.stored.pop("listener"))
    loader.start()
    info = loader.ended(passed)
    assert (info.state, "did not keep its listener" in info.detail) == (State.ERROR, True)


def record_of(place: Path, data: bytes) -> int:
    """A descriptor as systemd would have kept it."""
    (place / "record").write_bytes(data)
    return os.open(place / "record", os.O_RDWR)


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"{",
        b"1\n{\n1\n",
        b"1\n\xff\xfe\n1\n",
        b"1\n[]\n1\n",
        b"1\n{}\n1\n",
        b'1\n{"schema":2,"phase":"idle"}\n1\n',
        b'1\n{"schema":3}\n1\n',
        b'1\n{"schema":3,"report":{"state":1,"kuuid":7}}\n1\n',
        b'1\n{"schema":3,"report":{"state":1,"kuuid":7,"phase":"gone"}}\n1\n',
        b'1\n{"schema":3,"report":{"state":3,"kuuid":7,"phase":"ended","app_loader_bind_port":"x"}}\n1\n',
        b'1\n{"schema":3,"report":{"state":3,"kuuid":7,"phase":"ended","outcome":{"kind":"odd"}}}\n1\n',
        b"1\n" + b"[" * 100_000 + b"\n1\n",
        b"x" * 1_000_000,
    ],
)
def test_a_bad_record_never_stops_the_start(unstarted: LoaderProcess, place: Path, record: bytes) -> None:
    unstarted.systemd.stored["record"] = record_of(place, record)
    unstarted.start()
    info = info_of(unstarted)
    assert (info.state, "cannot read the keep's record" in info.detail) == (State.ERROR, True)


def test_a_record_that_is_a_pipe_never_stops_the_start(unstarted: LoaderProcess) -> None:
    unstarted.systemd.stored["record"], writer = os.pipe()
    unstarted.start()
    assert info_of(unstarted).state is State.ERROR
    os.close(writer)


def test_a_dead_endpoint_is_opened_again_with_its_identity(loader: LoaderProcess, passed: Endpoint) -> None:
    peer, stub = opened(loader, passed)
    os.kill(stub.pid, signal.SIGKILL)
    again = loader.stub()
    assert again.do("identity") == "the key"
    assert (
        peer.ask(CommandType.INFO).detail == "opening the upload endpoint again: the app-loader was killed by SIGKILL"
    )
    again.report("listening", fingerprint=FINGERPRINT, certificate="PEM")
    loader.systemd.wait_for("STATUS", "started: awaiting")
    assert peer.ask(CommandType.INFO).state is State.STARTED


def test_an_endpoint_that_keeps_dying_is_given_up(loader: LoaderProcess, passed: Endpoint) -> None:
    _, stub = opened(loader, passed)
    for _ in range(MAX_RESPAWNS):
        stub.order("exit", code=1)
        stub = loader.stub()
    stub.order("exit", code=1)
    info = loader.ended(passed)
    assert info.state is State.ERROR
    assert info.detail == "gave the upload endpoint up after opening it again 5 times: the app-loader exited 1"
    loader.systemd.drain()
    assert loader.systemd.parked == set()


def test_a_failed_keep_cannot_be_started(loader: LoaderProcess, passed: Endpoint, place: Path) -> None:
    loader.systemd.stored["record"] = record_of(place, b"{")
    killed(loader)
    loader.start()
    with pytest.raises(KeepfleetError, match="failed"):
        loader.peer().ask(CommandType.START, "", passed.descriptors)


def test_the_watchdog_is_fed_from_the_loop(unstarted: LoaderProcess) -> None:
    unstarted.start(environment={"WATCHDOG_USEC": "100000"})
    for _ in range(3):
        unstarted.systemd.wait_for("WATCHDOG")


def test_each_move_is_logged_once(loader: LoaderProcess, passed: Endpoint) -> None:
    peer, _ = opened(loader, passed)
    peer.ask(CommandType.STOP, "alice")
    assert loader.log_text().splitlines() == [
        "booting -> idle (ready)",
        "idle -> opening (start)",
        "opening -> awaiting-workload (endpoint-ready)",
        "awaiting-workload -> ended (stop): stopped by alice",
    ]
