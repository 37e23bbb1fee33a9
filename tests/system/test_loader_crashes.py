"""SIGKILL and SIGSTOP of a keep's processes in each state: what docs/architecture.md says of what survives what."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from keep_protocol.errors import KeepfleetError
from keep_protocol.keep import KeepInfo, OutcomeKind
from keep_protocol.outcome import NOT_RUN
from keep_protocol.states import State
from tests.system import modules
from tests.system.calls import half_an_upload
from tests.system.fleet import Fleet, free_port
from tests.system.life import Bystanders, Life

MODULE = modules.says(b"done\n")

pytestmark = pytest.mark.usefixtures("undisturbed")


@pytest.fixture(scope="module")
def fleet(installed_fleet: Fleet) -> Iterator[Fleet]:
    """The manager; a test's own keep is removed by the test."""
    yield installed_fleet
    installed_fleet.clear()


def usable(life: Life) -> None:
    """The keep, awaiting its workload, takes one and runs it; then it goes without a trace."""
    assert life.upload(MODULE).status == 200
    life.line("done")
    life.until(State.STARTED, State.COMPLETE)
    life.remove()


def kill_loader_of_an_endpoint(life: Life) -> None:
    """SIGKILL to the loader; returns when another has opened the endpoint again, which the manager may hear later."""
    cursor = life.host.cursor()
    life.kill_loader()
    life.line("reopening -> awaiting-workload", cursor)


def same_endpoint(life: Life, before: KeepInfo) -> None:
    """It awaits its workload again where it did, with the certificate its clients know."""
    assert life.shown("awaiting workload") == before


def test_an_idle_keep_whose_loader_is_killed_is_idle_again_and_can_be_started(fleet: Fleet) -> None:
    life = Life.create(fleet)
    pid = life.loader_pid
    life.kill_loader()
    life.becomes(State.LISTENING)
    assert life.loader_pid not in (0, pid)
    life.start()
    usable(life)


def test_an_awaiting_keep_whose_loader_is_killed_awaits_again_at_the_same_endpoint(fleet: Fleet) -> None:
    life = Life.awaiting(fleet)
    before, old = life.info, life.endpoint_pid
    kill_loader_of_an_endpoint(life)
    same_endpoint(life, before)
    assert life.endpoint_pid != old
    usable(life)


def test_a_connection_that_queued_while_the_loader_was_killed_is_served(fleet: Fleet) -> None:
    life = Life.awaiting(fleet)
    life.signal(life.endpoint_pid, signal.SIGSTOP)
    with life.connect() as queued:
        life.kill_loader()
        assert "awaiting a workload" in life.banner(queued)
    usable(life)


def test_an_upload_that_is_cut_off_by_the_loader_s_death_can_be_sent_again(fleet: Fleet) -> None:
    life = Life.awaiting(fleet)
    before = life.info
    with half_an_upload(life, MODULE) as upload:
        life.kill_loader()
    with pytest.raises(KeepfleetError, match=f"cannot use keep {life.kuuid}"):
        upload.result()
    same_endpoint(life, before)
    usable(life)


def test_a_keep_whose_loader_is_killed_while_its_workload_runs_is_in_state_15_and_says_so(fleet: Fleet) -> None:
    life = Life.running(fleet)
    runner, port = life.runner_pid, life.info.port
    life.kill_loader()
    life.until(State.STARTED, State.ERROR)
    assert life.info.outcome is not None
    assert life.info.outcome.kind is OutcomeKind.LOST
    assert life.info.detail == "the loader was killed while the workload ran"
    assert fleet.host.run(["kill", "-0", str(runner)], check=False).returncode != 0, "the workload outlived its loader"
    socket.create_server(("127.0.0.1", port)).close()
    life.without_process()
    shown = fleet.host.show(life.unit, "ActiveState", "ExecMainStatus")
    assert shown == {"ActiveState": "failed", "ExecMainStatus": str(NOT_RUN)}
    life.remove()


def test_a_keep_that_has_ended_has_no_process_and_is_what_its_unit_says(fleet: Fleet) -> None:
    life = Life.ended(fleet, code=7)
    assert life.info.outcome is not None
    assert life.info.outcome.exit_code == 7
    shown = fleet.host.show(life.unit, "ActiveState", "SubState", "Result", "ExecMainStatus", "MainPID", "StatusText")
    assert shown["StatusText"].startswith("complete: exited 7 (")
    assert {**shown, "StatusText": ""} == {
        "ActiveState": "failed",
        "SubState": "failed",
        "Result": "exit-code",
        "ExecMainStatus": "7",
        "MainPID": "0",
        "StatusText": "",
    }
    life.remove()


def test_a_start_that_is_cut_off_by_the_loader_s_death_is_refused_and_may_be_tried_again(fleet: Fleet) -> None:
    life = Life.create(fleet)
    port = free_port()
    with ThreadPoolExecutor(1) as pool:
        with slowed(fleet, life):
            start = pool.submit(life.start, "127.0.0.1", port)
            life.line("idle -> opening")
            cursor = fleet.host.cursor()
            life.signal(life.loader_pid, signal.SIGKILL)
        life.line("booting -> ", cursor)  # no longer slowed: to boot would take most of what systemd gives it
        with pytest.raises(KeepfleetError, match=f"cannot reach the loader of keep {life.kuuid}"):
            start.result()
    life.becomes(State.LISTENING)
    socket.create_server(("127.0.0.1", port)).close()
    life.remove()


@contextmanager
def slowed(fleet: Fleet, life: Life) -> Iterator[None]:
    """The keep has a hundredth of a processor: to open its endpoint takes seconds."""
    quota = ["systemctl", "set-property", "--runtime", life.unit]
    fleet.host.run([*quota, "CPUQuota=1%"])
    yield
    fleet.host.run([*quota, "CPUQuota="])


def test_the_loader_may_die_again_and_again_within_its_limit(fleet: Fleet) -> None:
    life = Life.awaiting(fleet)
    before = life.info
    for _ in range(3):
        kill_loader_of_an_endpoint(life)
        same_endpoint(life, before)
    usable(life)


def test_a_loader_that_dies_too_often_ends_in_a_failed_unit_in_state_15_that_can_be_removed(fleet: Fleet) -> None:
    life = Life.awaiting(fleet)
    port = life.info.port
    for _ in range(4):
        life.kill_loader()
    cursor = fleet.host.cursor()
    life.signal(life.loader_pid, signal.SIGKILL)
    fleet.host.wait_journal("Start request repeated too quickly", unit=life.unit, since_cursor=cursor)
    life.until(State.STARTED, State.ERROR)
    assert "was not started again" in life.info.detail
    assert life.info in fleet.client().keeps()
    socket.create_server(("127.0.0.1", port)).close()
    life.remove()


def test_a_stopped_loader_does_not_answer_while_all_are_listed_as_they_are(
    fleet: Fleet, bystanders: Bystanders
) -> None:
    life = Life.awaiting(fleet)
    before, pid = life.info, life.loader_pid
    life.signal(pid, signal.SIGSTOP)
    shown = {info.unit: info for info in fleet.client().keeps()}
    assert [shown[unit].state for unit in bystanders.units] == [State.STARTED, State.STARTED]
    with pytest.raises(KeepfleetError, match="no answer"):
        life.start()
    life.signal(pid, signal.SIGCONT)
    assert life.look() == before
    usable(life)


def test_a_stopped_loader_can_be_removed(fleet: Fleet) -> None:
    life = Life.awaiting(fleet)
    life.signal(life.loader_pid, signal.SIGSTOP)
    life.remove()


def test_an_app_loader_that_dies_before_an_upload_is_replaced_behind_the_same_endpoint(fleet: Fleet) -> None:
    life = Life.awaiting(fleet)
    before, cursor = life.info, fleet.host.cursor()
    life.signal(life.endpoint_pid, signal.SIGKILL)
    life.line("reopening -> awaiting-workload", cursor)
    same_endpoint(life, before)
    usable(life)


def test_a_connection_that_queued_while_the_app_loader_died_is_served(fleet: Fleet) -> None:
    life = Life.awaiting(fleet)
    pid = life.endpoint_pid
    life.signal(pid, signal.SIGSTOP)
    with life.connect() as queued:
        life.signal(pid, signal.SIGKILL)
        assert "awaiting a workload" in life.banner(queued)
    usable(life)


def test_an_upload_that_is_cut_off_by_the_app_loader_s_death_can_be_sent_again(fleet: Fleet) -> None:
    life = Life.awaiting(fleet)
    before, cursor = life.info, fleet.host.cursor()
    with half_an_upload(life, MODULE) as upload:
        life.signal(life.endpoint_pid, signal.SIGKILL)
        life.line("reopening -> awaiting-workload", cursor)
    with pytest.raises(KeepfleetError, match=f"cannot use keep {life.kuuid}"):
        upload.result()
    same_endpoint(life, before)
    usable(life)


def test_a_workload_that_is_killed_is_in_state_15_with_the_signal(fleet: Fleet) -> None:
    life = Life.running(fleet)
    life.signal(life.runner_pid, signal.SIGKILL)
    life.until(State.STARTED, State.ERROR)
    outcome = life.info.outcome
    assert outcome is not None
    assert (outcome.kind, outcome.signal, outcome.text) == (OutcomeKind.KILLED, 9, "killed by SIGKILL")
    life.remove()


def test_an_endpoint_that_dies_too_often_is_given_up_with_the_reason_and_its_port_is_free(fleet: Fleet) -> None:
    life = Life.awaiting(fleet)
    port = life.info.port
    for _ in range(5):
        cursor = fleet.host.cursor()
        life.signal(life.endpoint_pid, signal.SIGKILL)
        life.line("reopening -> awaiting-workload", cursor)
    life.signal(life.endpoint_pid, signal.SIGKILL)
    life.until(State.STARTED, State.ERROR)
    assert "gave the upload endpoint up after opening it again 5 times" in life.info.detail
    socket.create_server(("127.0.0.1", port)).close()
    life.remove()
