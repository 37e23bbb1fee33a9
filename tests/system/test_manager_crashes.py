"""SIGKILL of the manager between every two steps, and in the midst of many: no keep is stopped, lost or doubled."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from keep_client.http import Reply, json_body
from keep_client.manager import IDEMPOTENCY_HEADER
from keep_client.peer import ConnectionFailed
from keep_manager.failpoints import Failpoint
from keep_protocol.constants import V1_KEEPS_PATH
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo, keep_from_wire
from keep_protocol.sse import EventType
from keep_protocol.states import State
from tests.system import modules
from tests.system.fleet import MANAGER, Fleet, free_port
from tests.system.host import until
from tests.system.life import SOON, Bystanders, Life

AT_ONCE = 16
"""Twice what the manager has under way concurrently: when the first is to be answered, others are in every step."""

REPEATED = (Failpoint.START_AFTER_FILES, Failpoint.START_BEFORE_BIND, Failpoint.START_AFTER_ADDRESS)
"""Where a start that is asked for alone is cut off, too; a creation with its start is cut off there by --heavy."""

pytestmark = pytest.mark.usefixtures("undisturbed")


@pytest.fixture(scope="module")
def fleet(installed_fleet: Fleet) -> Iterator[Fleet]:
    """The manager; a test removes its own keeps."""
    yield installed_fleet
    installed_fleet.clear()


def others(fleet: Fleet, bystanders: Bystanders) -> dict[int, KeepInfo]:
    """The keeps that are no bystanders, as the manager lists them; systemd has exactly these."""
    listed = fleet.client().keeps()
    assert sorted(info.unit for info in listed) == sorted(fleet.keep_units())
    return {info.kuuid: info for info in listed if info.unit not in bystanders.units}


def settled(fleet: Fleet, kuuid: int) -> Life:
    """The keep once its unit has started."""
    fleet.client().changed(kuuid, State.UNDEFINED, SOON)
    return Life(fleet, kuuid)


def does_its_job(life: Life) -> None:
    """The keep, idle or awaiting, runs a workload, and goes without a trace."""
    if life.info.state is State.LISTENING:
        life.start()
    assert life.upload(modules.says(b"done\n")).status == 200
    life.until(State.STARTED, State.COMPLETE)
    life.remove()


@pytest.mark.parametrize("point", [point for point in Failpoint if point.name.startswith("CREATE")])
def test_a_creation_during_which_the_manager_dies_has_made_a_usable_keep_or_nothing(
    fleet: Fleet, bystanders: Bystanders, point: Failpoint
) -> None:
    with fleet.killed_at(point), pytest.raises(ConnectionFailed):
        fleet.client().create()
    found = others(fleet, bystanders)
    assert len(found) == (0 if point is Failpoint.CREATE_BEFORE_UNIT else 1)
    for kuuid in found:
        does_its_job(settled(fleet, kuuid))


@pytest.mark.parametrize("point", [point for point in Failpoint if point.name.startswith("START")])
def test_a_start_during_which_the_manager_dies_has_opened_the_endpoint_or_can_be_repeated(
    fleet: Fleet, bystanders: Bystanders, point: Failpoint
) -> None:
    life, port = Life.create(fleet), free_port()
    with fleet.killed_at(point), pytest.raises(ConnectionFailed):
        life.start("127.0.0.1", port)
    assert list(others(fleet, bystanders)) == [life.kuuid]
    was_sent = point in (Failpoint.START_AFTER_COMMAND, Failpoint.START_BEFORE_REPLY)
    if was_sent:
        info = life.shown("awaiting workload")  # its endpoint may be opening still
        assert (info.state, info.port) == (State.STARTED, port)
    else:
        assert life.look().state is State.LISTENING
        assert life.start("127.0.0.1", port).port == port
    does_its_job(life)


ASKED_AGAIN = [
    pytest.param(point, marks=[pytest.mark.heavy][: point in REPEATED])
    for point in Failpoint
    if point.name.startswith(("CREATE", "START"))
]


@pytest.mark.parametrize("point", ASKED_AGAIN)
def test_a_creation_with_its_start_that_is_asked_for_again_gets_one_keep_that_is_started(
    fleet: Fleet, bystanders: Bystanders, point: Failpoint
) -> None:
    def ask() -> Reply:
        headers = {IDEMPOTENCY_HEADER: f"one-{point.value}"}
        return fleet.client().request("POST", V1_KEEPS_PATH, json_body({"start": {}}), headers=headers)

    with fleet.killed_at(point), pytest.raises(ConnectionFailed):
        ask()
    reply = ask()
    assert reply.status == 201, reply.text
    info = keep_from_wire(reply.object())
    assert (info.state, info.fingerprint[:7]) == (State.STARTED, "sha256:")
    assert list(others(fleet, bystanders)) == [info.kuuid]
    does_its_job(Life(fleet, info.kuuid))


def test_a_stop_during_which_the_manager_dies_has_stopped_the_keep(fleet: Fleet) -> None:
    life = Life.running(fleet)
    with fleet.killed_at(Failpoint.STOP_AFTER_COMMAND), pytest.raises(ConnectionFailed):
        fleet.client().stop(life.kuuid)
    life.until(State.STARTED, State.COMPLETE)
    life.remove()


@pytest.mark.parametrize("point", [point for point in Failpoint if point.name.startswith("REMOVE")])
def test_a_removal_during_which_the_manager_dies_has_removed_all_or_nothing(
    fleet: Fleet, bystanders: Bystanders, point: Failpoint
) -> None:
    life = Life.awaiting(fleet)
    with fleet.killed_at(point), pytest.raises(ConnectionFailed):
        fleet.client().remove(life.kuuid)
    if point is Failpoint.REMOVE_BEFORE_CALL:
        assert life.look().state is State.STARTED
        life.remove()
        return
    with contextlib.suppress(KeepfleetError):  # it may be gone already
        fleet.client().remove(life.kuuid)
    assert others(fleet, bystanders) == {}
    assert fleet.left_of(life.kuuid) == []


def test_many_creations_during_which_the_manager_dies_leave_each_keep_usable_and_none_twice(
    fleet: Fleet, bystanders: Bystanders
) -> None:
    answered = {fleet.client().create().kuuid}
    with fleet.killed_at(Failpoint.CREATE_BEFORE_REPLY), ThreadPoolExecutor(AT_ONCE) as pool:
        made = [pool.submit(fleet.client().create) for _ in range(AT_ONCE)]
    answered.update(future.result().kuuid for future in made if future.exception() is None)  # by the next manager
    errors = [future.exception() for future in made if future.exception() is not None]
    assert errors and all(isinstance(error, ConnectionFailed) for error in errors), errors
    found = others(fleet, bystanders)
    assert answered < set(found)
    for kuuid in found:
        assert settled(fleet, kuuid).info.state is State.LISTENING
    one, *rest = found
    does_its_job(Life(fleet, one))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(fleet.client().remove, rest))
    assert others(fleet, bystanders) == {}


def test_an_upload_and_its_workload_go_on_while_the_manager_is_dead(fleet: Fleet) -> None:
    life = Life.awaiting(fleet)
    fleet.host.systemctl("stop", MANAGER)
    assert life.upload(modules.says(b"no one watches\n", code=5)).status == 200
    life.line("running -> ended")
    assert life.output()[-2:] == ["no one watches", "running -> ended (finish): exited 5"]
    fleet.host.systemctl("start", MANAGER)
    assert life.look().outcome is not None
    assert life.info.detail == "exited 5"
    life.remove()


def test_a_client_that_waits_while_the_manager_dies_learns_it_immediately_and_can_ask_the_next(fleet: Fleet) -> None:
    life = Life.awaiting(fleet)
    connected = ["ss", "-Hnt", "state", "established", f"( sport = :{fleet.port} )"]
    before = len(fleet.host.run(connected).stdout.splitlines())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: fleet.client().changed(life.kuuid, State.STARTED, SOON))  # on its own connection
        until(lambda: len(fleet.host.run(connected).stdout.splitlines()) > before, lambda: "it does not connect")
        assert not waiting.done()
        fleet.kill()
        with pytest.raises(ConnectionFailed):
            waiting.result()
    life.look()
    does_its_job(life)


def test_the_manager_may_be_killed_again_and_again(fleet: Fleet, bystanders: Bystanders) -> None:
    life = Life.awaiting(fleet)
    for _ in range(2):
        fleet.kill()
        assert others(fleet, bystanders) == {life.kuuid: life.info}
    does_its_job(life)


def test_a_keep_in_state_15_and_its_reason_are_reported_by_the_next_manager(
    fleet: Fleet, bystanders: Bystanders
) -> None:
    life = Life.running(fleet)
    life.kill_loader()
    life.becomes(State.ERROR)
    life.told(EventType.FAILED)
    life.look()
    cursor = fleet.host.cursor()
    fleet.kill()
    line = fleet.host.wait_journal("rediscovered in error: ", unit=MANAGER, since_cursor=cursor)["MESSAGE"]
    assert line == f"rediscovered in error: {life.unit}: the loader was killed while the workload ran"
    assert others(fleet, bystanders) == {life.kuuid: life.info}
    with pytest.raises(KeepfleetError) as refusal:
        life.start()
    assert refusal.value.kind is ErrorKind.CONFLICT
    life.remove()
