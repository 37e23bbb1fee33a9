"""What is open in a loader without its knowledge, and a systemd that cannot take its messages."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from keep_loader.loop import READABLE, Loop, Systemd
from keep_protocol.sdnotify import Notifier
from keep_protocol.states import State
from tests.fakes.loader_process import DEADLINE, FINGERPRINT, Endpoint, LoaderProcess, opened
from tests.fakes.notify_socket import listening


@pytest.fixture
def stray(place: Path) -> int:
    """The number of a descriptor that is left open, as a library leaves one: a file that anybody could take for one of
    ours."""
    (place.parent / "stray").write_bytes(b"of a library")
    return os.open(place.parent / "stray", os.O_RDONLY)


def opened_by(pid: int) -> set[str]:
    """What a process has open; of what it closes meanwhile nothing."""
    found: set[str] = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(str(entry.readlink()))
    return found


def test_a_stray_descriptor_is_not_passed_on(unstarted: LoaderProcess, passed: Endpoint, stray: int) -> None:
    high = os.dup2(stray, 60)
    unstarted.start(strays=(stray, high))
    assert unstarted.process is not None
    assert os.readlink(f"/proc/self/fd/{stray}") in opened_by(unstarted.process.pid)
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
    report = unstarted.ended(passed)
    assert (report.state, "did not keep its identity" in report.detail) == (State.ERROR, True)
    os.close(stray)


def test_systemds_fdstore_variable_is_passed_over(unstarted: LoaderProcess, passed: Endpoint) -> None:
    unstarted.start(environment={"FDSTORE": "64"})
    _, stub = opened(unstarted, passed)
    assert "FDSTORE" not in stub.environment


def test_a_message_that_systemd_cannot_take_is_tried_again_and_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("keep_loader.loop.RETRY_SECONDS", 0.0)
    path = tmp_path / "notify"
    loop, heard = Loop(), list[str]()
    with listening(str(path), DEADLINE) as systemd:
        away = path.rename(tmp_path / "away")
        said = Systemd(loop, Notifier({"NOTIFY_SOCKET": str(path)}))
        said.notify(STATUS="listening")
        said.feed_watchdog(0.0)

        def hear(_events: int) -> None:
            heard.append(" ".join(systemd.receive()))
            if len(heard) == 3:
                loop.stop()

        loop.watch(systemd.sock.fileno(), READABLE, hear)
        loop.after("back", 0.0, lambda: os.rename(away, path))
        loop.run()
    assert heard == ["STATUS WATCHDOG", "WATCHDOG", "WATCHDOG"]
    assert capsys.readouterr().err.count("cannot notify systemd of STATUS") == 1


def test_a_loader_that_gave_sockets_up_goes_on_notifying_by_the_one_it_has(
    unstarted: LoaderProcess, passed: Endpoint
) -> None:
    unstarted.start(environment={"WATCHDOG_USEC": "40000"})
    path = Path(unstarted.systemd.path)
    away = path.rename(path.with_suffix(".away"))
    opened(unstarted, passed)
    away.rename(path)
    unstarted.systemd.wait_for("STATUS", f"started: awaiting workload on 127.0.0.1:{passed.port}, {FINGERPRINT[:19]}")
    assert "cannot notify" not in unstarted.log_text()


def test_a_loop_knows_which_deadlines_are_set() -> None:
    loop = Loop()
    loop.after("one", 5, loop.stop)
    assert (loop.is_set("one"), loop.is_set("two")) == (True, False)
