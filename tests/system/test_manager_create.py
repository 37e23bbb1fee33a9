"""Creation is whole or nothing on a real systemd, whatever goes wrong, and says what it was."""

from __future__ import annotations

import contextlib
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.states import State
from tests.system.fleet import MANAGER, Fleet, free_port
from tests.system.life import drop_in

AT_ONCE = 24
"""Three times as many as the manager makes concurrently; the others wait for their turn."""
PYTHON = "/keepfleet/python -I -S -c"


def loader(fleet: Fleet, directives: str) -> contextlib.AbstractContextManager[None]:
    """Keeps whose unit has these further directives."""
    return drop_in(fleet.host, "keep@.service", f"[Service]\n{directives}\n")


def refused(fleet: Fleet) -> KeepfleetError:
    with pytest.raises(KeepfleetError) as caught:
        fleet.client().create()
    assert fleet.left_over() == []
    assert fleet.client().keeps() == ()
    return caught.value


def test_a_loader_that_ends_immediately_leaves_nothing_and_shows_its_last_words(fleet: Fleet) -> None:
    script = "import sys; print('no such luck', flush=True); sys.exit(7)"
    with loader(fleet, f'ExecStart=\nExecStart={PYTHON} "{script}"'):
        error = refused(fleet)
    assert error.kind is ErrorKind.KEEP_FAILED
    assert "no such luck" in error.evidence


def test_a_loader_that_never_becomes_ready_leaves_nothing(fleet: Fleet) -> None:
    with (
        fleet.configured(start_timeout_seconds=1),
        loader(fleet, f'ExecStart=\nExecStart={PYTHON} "import time; time.sleep(60)"'),
    ):
        error = refused(fleet)
    assert "not ready in time" in error.message


def test_a_loader_that_cannot_be_executed_leaves_nothing(fleet: Fleet) -> None:
    with loader(fleet, "ExecStart=\nExecStart=/keepfleet/none"):
        assert refused(fleet).kind is ErrorKind.KEEP_FAILED


def test_units_that_are_not_installed_are_named(fleet: Fleet) -> None:
    fleet.host.run(["mv", "/etc/systemd/system/keep@.service.d", "/run/aside"])
    fleet.host.daemon_reload()
    try:
        error = refused(fleet)
    finally:
        fleet.host.run(["mv", "/run/aside", "/etc/systemd/system/keep@.service.d"])
        fleet.host.daemon_reload()
    assert error.kind is ErrorKind.CONFIGURATION
    assert "run keepctl install" in error.message


def test_a_client_that_goes_away_leaves_nothing(fleet: Fleet) -> None:
    cursor = fleet.host.cursor()
    with loader(fleet, f'ExecStart=\nExecStart={PYTHON} "import time; time.sleep(60)"'):
        raw = socket.create_connection(("127.0.0.1", fleet.port))
        with fleet.tls().wrap_socket(raw, server_hostname="127.0.0.1") as client:
            client.sendall(b"POST /v1/keeps HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            fleet.host.wait_journal("Starting keep@", since_cursor=cursor)
        fleet.host.wait_journal("the client went away", since_cursor=cursor)
    assert fleet.left_over() == []


def test_many_concurrent_ones_are_as_many_whole_keeps(fleet: Fleet) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        made = [future.result() for future in [pool.submit(fleet.client().create) for _ in range(AT_ONCE)]]
    assert len({keep.kuuid for keep in made}) == AT_ONCE
    assert {keep.state for keep in fleet.client().keeps()} == {State.LISTENING}
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda keep: fleet.client().remove(keep.kuuid), made))
    assert fleet.left_over() == []


def test_a_second_manager_fails_with_the_reason_and_disturbs_nothing(fleet: Fleet) -> None:
    keep = fleet.client().create()
    pid = fleet.manager_pid
    done = fleet.host.run(["keep-manager", "--config", "/etc/keepfleet/manager.yaml"], check=False)
    assert done.returncode == 1
    assert "is another keep-manager running" in done.stderr
    assert "Traceback" not in done.stderr
    assert fleet.manager_pid == pid
    assert fleet.client().keeps() == (keep,)


def test_a_wrong_configuration_is_not_restarted_for_ever(fleet: Fleet) -> None:
    try:
        fleet.configure(prot=1)
        fleet.host.systemctl("restart", MANAGER, check=False)
        shown = fleet.host.show(MANAGER, "ActiveState", "ExecMainStatus", "NRestarts")
        assert shown == {"ActiveState": "failed", "ExecMainStatus": "2", "NRestarts": "0"}
        entry = fleet.host.wait_journal("unknown key 'prot'", unit=MANAGER)
        assert "/etc/keepfleet/manager.yaml:3:1" in str(entry["MESSAGE"])
    finally:
        fleet.configure()
        fleet.restart()


def test_a_manager_that_is_stopped_leaves_its_keeps_and_finds_them_again(fleet: Fleet) -> None:
    made = sorted(fleet.client().create().kuuid for _ in range(5))
    fleet.host.systemctl("stop", MANAGER)
    assert len(fleet.keep_units()) == 5
    cursor = fleet.host.cursor()
    fleet.host.systemctl("start", MANAGER)
    fleet.host.wait_journal("rediscovered 5 keeps, 0 started", since_cursor=cursor)
    assert [keep.kuuid for keep in fleet.client().keeps()] == made


def test_a_loader_that_hangs_is_reported_when_it_is_needed_and_does_not_hold_up_the_others(fleet: Fleet) -> None:
    one, two = fleet.client().create(), fleet.client().create()
    fleet.host.systemctl("kill", "--signal=STOP", one.unit)
    try:
        assert {keep.kuuid for keep in fleet.client().keeps()} == {one.kuuid, two.kuuid}
        with pytest.raises(KeepfleetError, match="no answer to keep-hello in 2 s"):
            fleet.client().start(one.kuuid, "127.0.0.1", free_port())
        assert fleet.client().start(two.kuuid, "127.0.0.1", free_port()).state is State.STARTED
    finally:
        fleet.host.systemctl("kill", "--signal=CONT", one.unit)


def test_a_certificate_that_is_revoked_is_refused_and_its_open_connection_closed(fleet: Fleet) -> None:
    fleet.issue("mallory")
    raw = socket.create_connection(("127.0.0.1", fleet.port))
    with fleet.tls("mallory").wrap_socket(raw, server_hostname="127.0.0.1") as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in client.recv(65536)
        cursor = fleet.host.cursor()
        fleet.keepctl("pki", "revoke", "mallory")
        while client.recv(65536):
            pass
    assert "mallory" in str(fleet.host.wait_journal("cut off 1 connections", since_cursor=cursor)["MESSAGE"])


def test_the_bus_may_be_restarted_under_the_manager(fleet: Fleet) -> None:
    keep = fleet.client().create()
    pid = fleet.manager_pid
    fleet.host.systemctl("kill", "--signal=KILL", "dbus.service")
    other = fleet.client().create()
    assert {found.kuuid for found in fleet.client().keeps()} == {keep.kuuid, other.kuuid}
    assert fleet.manager_pid == pid
