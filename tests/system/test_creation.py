"""Creation and removal: many concurrently, too many, given up half-way, twice, and of keeps that do not exist."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.states import State
from tests.system.calls import both, refused, split
from tests.system.fixtures import module_s_fleet
from tests.system.fleet import Fleet, free_port
from tests.system.life import Bystanders, Life, drop_in

NEVER_READY = "ExecStart=\nExecStart=/keepfleet/python -I -S -c 'import time; time.sleep(600)'"
NO_KEEP = 4503599627370497

pytestmark = pytest.mark.usefixtures("undisturbed")
fleet = pytest.fixture(scope="module")(module_s_fleet)


def test_keeps_created_concurrently_have_ids_users_and_control_groups_of_their_own(fleet: Fleet) -> None:
    made = [info for info in both(*[fleet.client().create] * 20) if isinstance(info, KeepInfo)]
    assert len({info.kuuid for info in made}) == 20
    lines = fleet.host.systemctl("show", "--property=UID,ControlGroup", *[info.unit for info in made]).splitlines()
    assert len({line for line in lines if line.startswith("UID=")}) == 20
    assert len({line for line in lines if line.startswith("ControlGroup=")}) == 20
    assert "UID=0" not in lines
    both(*[lambda kuuid=info.kuuid: fleet.client().remove(kuuid) for info in made])


def test_at_max_keeps_another_is_refused_with_429_until_one_goes(fleet: Fleet, bystanders: Bystanders) -> None:
    with fleet.configured(max_keeps=len(bystanders.units) + 1):
        one = fleet.client().create()
        reply = fleet.client().request("POST", "/v1/keeps")
        assert (reply.status, reply.error().kind) == (429, ErrorKind.TOO_MANY)
        assert "max_keeps is 3" in reply.error().message
        fleet.client().remove(one.kuuid)
        fleet.client().remove(fleet.client().create().kuuid)


def test_keeps_created_concurrently_do_not_pass_max_keeps(fleet: Fleet, bystanders: Bystanders) -> None:
    with fleet.configured(max_keeps=len(bystanders.units) + 3):
        made, errors = split(both(*[fleet.client().create] * 8))
        assert (len(made), errors) == (3, [ErrorKind.TOO_MANY] * 5)
        for info in fleet.client().keeps():
            if info.unit not in bystanders.units:
                fleet.client().remove(info.kuuid)


@pytest.fixture
def never_ready(fleet: Fleet) -> Iterator[None]:
    """Keeps whose loader never says READY."""
    with drop_in(fleet.host, "keep@.service", f"[Service]\n{NEVER_READY}\n"):
        yield


def starting(fleet: Fleet, bystanders: Bystanders, cursor: str) -> KeepInfo:
    """The keep whose creation is under way."""
    fleet.host.wait_journal("Starting keep@", since_cursor=cursor)
    (info,) = [info for info in fleet.client().keeps() if info.unit not in bystanders.units]
    return info


@pytest.mark.usefixtures("never_ready")
def test_a_keep_that_is_being_created_is_shown_as_starting_and_can_be_removed(
    fleet: Fleet, bystanders: Bystanders
) -> None:
    cursor = fleet.host.cursor()
    with ThreadPoolExecutor(1) as pool:
        creation = pool.submit(fleet.client().create)
        info = starting(fleet, bystanders, cursor)
        assert (info.state, info.detail[:9]) == (State.UNDEFINED, "starting:")
        fleet.client().remove(info.kuuid)
        with pytest.raises(KeepfleetError, match="it was removed meanwhile"):
            creation.result()


@pytest.mark.usefixtures("never_ready")
def test_a_keep_that_is_being_created_cannot_be_started_yet(fleet: Fleet, bystanders: Bystanders) -> None:
    cursor = fleet.host.cursor()
    with ThreadPoolExecutor(1) as pool:
        creation = pool.submit(fleet.client().create)
        info = starting(fleet, bystanders, cursor)
        refused(lambda: fleet.client().start(info.kuuid, "127.0.0.1", free_port()), ErrorKind.UNAVAILABLE)
        fleet.client().remove(info.kuuid)
        assert isinstance(creation.exception(), KeepfleetError)


@pytest.mark.usefixtures("never_ready")
def test_many_clients_that_go_away_during_creation_leave_nothing(fleet: Fleet) -> None:
    cursor = fleet.host.cursor()
    connections = []
    for _ in range(4):
        connection = http.client.HTTPSConnection("127.0.0.1", fleet.port, context=fleet.tls())
        connection.request("POST", "/v1/keeps", body=b"{}")
        connections.append(connection)
    fleet.host.wait_journal("Starting keep@", since_cursor=cursor)
    for connection in connections:
        connection.close()
    for kuuid in {info.kuuid for info in fleet.client().keeps() if info.state is State.UNDEFINED}:
        fleet.host.wait_journal(f"keep@{kuuid}.service: not created: the client went away", since_cursor=cursor)


def test_a_second_removal_is_404(life: Life, fleet: Fleet) -> None:
    life.remove()
    assert f"there is no unit {life.unit}" in refused(lambda: fleet.client().remove(life.kuuid), ErrorKind.NOT_FOUND)


def test_of_two_concurrent_removals_none_leaves_anything_and_one_may_hear_404(life: Life, fleet: Fleet) -> None:
    done, errors = split(both(*[lambda: fleet.client().remove(life.kuuid)] * 2))
    assert done
    assert set(errors) <= {ErrorKind.NOT_FOUND}


def test_a_keep_that_does_not_exist_is_404_to_every_call(fleet: Fleet) -> None:
    client = fleet.client()
    for call in (
        lambda: client.keep(NO_KEEP),
        lambda: client.changed(NO_KEEP, State.LISTENING, 1),
        lambda: client.start(NO_KEEP, "127.0.0.1", free_port()),
        lambda: client.stop(NO_KEEP),
        lambda: client.remove(NO_KEEP),
    ):
        assert f"cannot find keep {NO_KEEP}" in refused(call, ErrorKind.NOT_FOUND)
    reply = client.legacy(
        {"command": "start-keep", "kuuid": str(NO_KEEP), "keep-addr": "127.0.0.1", "keep-port": "3031"}
    )
    assert reply.status == 404
