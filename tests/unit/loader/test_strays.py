"""What is open in a loader without its knowledge, and a systemd that cannot take its messages."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from keep_loader.loop import Loop
from keep_protocol.control import CommandType
from keep_protocol.states import State
from tests.fakes.loader_process import FINGERPRINT, Endpoint, LoaderProcess, opened


@pytest.fixture
def stray(place: Path) -> int:
    """The number of a descriptor that is left open, as a library leaves one: a file that anybody could take for one of
    ours."""
    (place.parent / "stray").write_bytes(b"of a library")
    return os.open(place.parent / "stray", os.O_RDONLY)


def test_a_stray_descriptor_is_not_passed_on(unstarted: LoaderProcess, passed: Endpoint, stray: int) -> None:
    high = os.dup2(stray, 60)
    unstarted.start(strays=(stray, high))
    assert unstarted.process is not None
    open_there = {os.readlink(entry) for entry in Path(f"/proc/{unstarted.process.pid}/fd").iterdir()}
    assert os.readlink(f"/proc/self/fd/{stray}") in open_there
    _, stub = opened(unstarted, passed)
    assert set(stub.descriptors) == set(range(8))
    assert os.readlink(f"/proc/self/fd/{stray}") not in stub.descriptors.values()
    runner = stub.connect()
    assert set(runner.descriptors) == set(range(5))
    os.kill(stub.pid, signal.SIGKILL)
    again = unstarted.stub()
    assert set(again.descriptors) == set(range(9))
    assert os.readlink(f"/proc/self/fd/{stray}") not in again.descriptors.values()
    for descriptor in (stray, high):
        os.close(descriptor)


def test_a_stray_descriptor_is_taken_for_nothing_that_systemd_kept(
    unstarted: LoaderProcess, passed: Endpoint, stray: int
) -> None:
    unstarted.start(strays=(stray,))
    _, stub = opened(unstarted, passed)
    unstarted.end(signal.SIGKILL)
    os.kill(stub.pid, signal.SIGKILL)
    unstarted.systemd.drain()
    os.close(unstarted.systemd.stored.pop("identity"))
    unstarted.start(strays=(stray,))
    report = unstarted.peer().ask(CommandType.INFO)
    assert (report.state, "did not keep its identity" in report.detail) == (State.ERROR, True)
    os.close(stray)


def test_systemds_fdstore_variable_is_passed_over(unstarted: LoaderProcess, passed: Endpoint) -> None:
    unstarted.start(environment={"FDSTORE": "64"})
    _, stub = opened(unstarted, passed)
    assert "FDSTORE" not in stub.environment


def test_a_message_that_systemd_cannot_take_is_tried_again_and_logged_once(
    unstarted: LoaderProcess, passed: Endpoint
) -> None:
    unstarted.start(environment={"WATCHDOG_USEC": "40000", "FAKE_CONSTANTS": "keep_loader.log:RETRY_SECONDS=0.02"})
    unstarted.systemd.wait_for("WATCHDOG")
    path = Path(unstarted.systemd.path)
    away = path.rename(path.with_suffix(".away"))
    peer = unstarted.peer()
    while "cannot notify systemd of WATCHDOG" not in unstarted.log_text():
        peer.ask(CommandType.INFO)
    peer.ask(CommandType.INFO)
    away.rename(path)
    unstarted.systemd.drain()
    for _ in range(3):
        unstarted.systemd.wait_for("WATCHDOG")
    assert unstarted.log_text().count("cannot notify systemd") == 1
    opened(unstarted, passed)
    unstarted.systemd.wait_for("STATUS", f"started: awaiting workload on 127.0.0.1:{passed.port}, {FINGERPRINT[:19]}")


def test_a_loop_knows_which_deadlines_are_set() -> None:
    loop = Loop()
    loop.after("one", 5, loop.stop)
    assert (loop.is_set("one"), loop.is_set("two")) == (True, False)
