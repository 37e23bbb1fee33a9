"""What happens around keeps and manager: bus, systemd and journald restart or die, an installation is incomplete."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from keep_protocol.keep import KeepInfo
from keep_protocol.states import State
from tests.system import modules
from tests.system.fixtures import module_s_fleet
from tests.system.fleet import MANAGER, Fleet
from tests.system.life import Life, drop_in

AT_ONCE = 8
LINES = 200
PAUSE_SECONDS = 0.2
"""Between two deaths of the bus: systemd gives dbus.socket up after 20 activations in 2 s (systemd.socket(5))."""
HANGS = "[Service]\nWatchdogSec=4\nTimeoutAbortSec=1\n"
"""One second would also end what is not stopped, on a busy machine."""
DROP_IN = "/etc/systemd/system/keep@.service.d/10-keepfleet.conf"

pytestmark = pytest.mark.usefixtures("undisturbed")
fleet = pytest.fixture(scope="module")(module_s_fleet)


def made_during(fleet: Fleet, trouble: Callable[[], object]) -> list[KeepInfo]:
    """What AT_ONCE creations answer while `trouble` goes on, again and again until the last of them is answered."""
    cursor = fleet.host.cursor()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        creations: list[Future[KeepInfo]] = [pool.submit(fleet.client().create) for _ in range(AT_ONCE)]
        fleet.host.wait_journal("Starting keep@", since_cursor=cursor)
        while not all(creation.done() for creation in creations):
            trouble()
        return [creation.result() for creation in creations]


def all_there(fleet: Fleet, made: list[KeepInfo]) -> None:
    """Each of `made` is listed, idle; one does the main job; then all go."""
    listed = {info.kuuid: info for info in fleet.client().keeps()}
    assert len({info.kuuid for info in made}) == len(made)
    assert all(listed[info.kuuid] == info and info.state is State.LISTENING for info in made)
    life = Life(fleet, made[0].kuuid)
    life.start()
    assert life.upload(modules.says(b"done\n")).status == 200
    life.until(State.STARTED, State.COMPLETE)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda info: fleet.client().remove(info.kuuid), made))


@pytest.mark.parametrize("verb", ["daemon-reload", "daemon-reexec"])
def test_keeps_are_created_while_systemd_reloads_itself_again_and_again(fleet: Fleet, verb: str) -> None:
    pid = fleet.manager_pid
    all_there(fleet, made_during(fleet, lambda: fleet.host.systemctl(verb)))
    assert fleet.manager_pid == pid


@pytest.mark.parametrize("command", [["restart"], ["kill", "--signal=KILL"]])
def test_keeps_are_created_while_the_bus_goes_away_again_and_again(fleet: Fleet, command: list[str]) -> None:
    pid = fleet.manager_pid

    def trouble() -> None:
        fleet.host.systemctl("reset-failed", "dbus.service", "dbus.socket")  # its start limit is another matter
        fleet.host.systemctl(*command, "dbus.service")
        time.sleep(PAUSE_SECONDS)

    all_there(fleet, made_during(fleet, trouble))
    assert fleet.manager_pid == pid


def test_a_keep_goes_on_through_a_reexecution_of_systemd_and_a_crash_after_it(fleet: Fleet) -> None:
    life = Life.awaiting(fleet)
    before = life.info
    fleet.host.systemctl("daemon-reexec")
    assert life.look() == before
    life.kill_loader()
    life.becomes(State.STARTED)
    life.status("awaiting workload")
    assert life.look() == before
    life.remove()


@pytest.mark.parametrize("command", [["restart"], ["kill", "--signal=KILL"]])
def test_journald_loses_no_line_of_a_workload_when_it_is_restarted(fleet: Fleet, command: list[str]) -> None:
    life = Life.awaiting(fleet)
    lines = [f"line {number}\n".encode() for number in range(LINES)]
    assert life.upload(modules.says(*lines, pause_ms=10)).status == 200
    life.line("line 10")
    fleet.host.systemctl(*command, "systemd-journald.service")
    life.until(State.STARTED, State.COMPLETE)
    printed = [line for line in life.output() if line.startswith("line ")]
    missing = {line.decode().rstrip() for line in lines} - set(printed)
    assert len(printed) == len(set(printed)), "a line stands twice"
    assert len(missing) <= (1 if "kill" in command else 0), missing
    life.remove()


def test_a_manager_that_hangs_is_started_again_and_its_keeps_go_on(fleet: Fleet) -> None:
    with drop_in(fleet.host, MANAGER, HANGS):
        fleet.restart()
        pid, cursor = fleet.manager_pid, fleet.host.cursor()
        fleet.host.run(["kill", f"-{int(signal.SIGSTOP)}", str(pid)])
        fleet.host.wait_journal("Watchdog timeout", unit=MANAGER, since_cursor=cursor)
        fleet.host.wait_journal("rediscovered 2 keeps, 2 started", unit=MANAGER, since_cursor=cursor)
    fleet.restart()
    assert fleet.manager_pid != pid


def test_a_loader_that_hangs_is_started_again_behind_the_same_endpoint(fleet: Fleet) -> None:
    with drop_in(fleet.host, "keep@.service", HANGS):
        life = Life.awaiting(fleet)
        before, cursor = life.info, fleet.host.cursor()
        life.signal(life.loader_pid, signal.SIGSTOP)
        life.line("Watchdog timeout", cursor)
        life.line("reopening -> awaiting-workload", cursor)
    assert life.look() == before
    life.remove()


def test_the_manager_is_not_started_by_a_host_without_its_port(fleet: Fleet) -> None:
    fleet.host.systemctl("stop", MANAGER)
    try:
        with socket.create_server(("127.0.0.1", fleet.port)):
            cursor = fleet.host.cursor()
            fleet.host.systemctl("start", MANAGER, check=False)
            entry = fleet.host.wait_journal("is another keep-manager running?", unit=MANAGER, since_cursor=cursor)
            assert f"port {fleet.port}" in str(entry["MESSAGE"])
    finally:
        fleet.host.systemctl("start", MANAGER)
