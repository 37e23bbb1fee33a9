"""Start, upload and stop: two concurrently, with something in the way, and where they make no sense."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator

import pytest

from keep_client import keep as endpoint
from keep_client.http import Body, Reply, json_body
from keep_client.peer import ConnectionFailed
from keep_protocol.constants import V1_KEEPS_PATH
from keep_protocol.errors import ErrorKind
from keep_protocol.keep import OutcomeKind, keep_from_wire
from keep_protocol.states import State
from tests.system import modules
from tests.system.calls import both, half_an_upload, refused, split
from tests.system.fixtures import module_s_fleet
from tests.system.fleet import Fleet, free_port
from tests.system.host import Host, message_of, until
from tests.system.life import Life

OTHER_LOOPBACK = "127.0.0.2"
NOT_OURS = "192.0.2.77"
"""An address for documentation (RFC 5737), which no host has."""

pytestmark = pytest.mark.usefixtures("undisturbed")
fleet = pytest.fixture(scope="module")(module_s_fleet)


def test_one_request_makes_and_starts_a_keep_whose_endpoint_is_the_one_that_the_answer_names(fleet: Fleet) -> None:
    reply = fleet.client().request("POST", V1_KEEPS_PATH, json_body({"name": "one", "start": {"names": ["a.example"]}}))
    info = keep_from_wire(reply.object())
    assert (reply.status, info.state, info.name) == (201, State.STARTED, "one")
    life = Life(fleet, info.kuuid)
    assert life.info == info
    assert life.upload(modules.says(b"one request\n")).status == 200
    life.line("one request")
    life.remove()


def test_a_client_that_goes_while_the_runner_gets_ready_costs_the_next_one_nothing(fleet: Fleet) -> None:
    life = Life.awaiting(fleet)
    life.connect().close()  # the first client brings the runner, which makes the engine ready
    assert life.upload(modules.says(b"the next client\n")).status == 200
    life.line("the next client")
    lines = [message_of(entry) for entry in life.entries()]
    assert not [line for line in lines if "again" in line], "neither the endpoint nor the runner was made again"
    life.until(State.STARTED, State.COMPLETE)
    life.remove()


def test_a_creation_whose_start_fails_leaves_no_unit(fleet: Fleet) -> None:
    before = sorted(fleet.keep_units())
    asked = json_body({"start": {"address": NOT_OURS}})
    reply = fleet.client().request("POST", V1_KEEPS_PATH, asked)
    assert (reply.status, reply.error().kind) == (503, ErrorKind.PORT_UNAVAILABLE)
    assert sorted(fleet.keep_units()) == before


def test_a_second_start_is_refused_and_changes_nothing(life: Life) -> None:
    started = life.start()
    assert "it is started" in refused(life.start, ErrorKind.CONFLICT)
    assert life.look() == started


def test_of_two_concurrent_starts_one_wins_and_the_other_hears_409(life: Life) -> None:
    ports = free_port(), free_port()
    won, lost = split(both(*[lambda port=port: life.start("127.0.0.1", port) for port in ports]))
    assert lost == [ErrorKind.CONFLICT]
    assert won == [life.look()]
    free = next(port for port in ports if port != life.info.port)
    socket.create_server(("127.0.0.1", free)).close()


def test_a_taken_port_of_127_0_0_1_moves_to_the_next_free_one(life: Life) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert port < life.start("127.0.0.1", port).port
    assert life.upload(modules.says(b"moved\n")).status == 200
    life.line("moved")


def test_two_keeps_asked_for_one_port_get_one_each(fleet: Fleet) -> None:
    port = free_port()
    lives = [Life.create(fleet) for _ in range(2)]
    both(*[lambda life=life: life.start("127.0.0.1", port) for life in lives])
    assert port in {life.info.port for life in lives}
    assert len({life.info.port for life in lives}) == 2
    for life in lives:
        life.remove()


def test_a_taken_port_of_another_address_is_an_error_and_the_keep_stays_idle(life: Life) -> None:
    with socket.create_server((OTHER_LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        message = refused(lambda: life.start(OTHER_LOOPBACK, port), ErrorKind.PORT_UNAVAILABLE)
    assert message == f"cannot listen on {OTHER_LOOPBACK}: port {port}: Address already in use"
    assert life.look().state is State.LISTENING
    assert life.start(OTHER_LOOPBACK, port).port == port
    assert life.upload(modules.says(b"elsewhere\n")).status == 200
    life.line("elsewhere")


def test_an_address_that_is_not_ours_is_an_error_and_the_keep_stays_idle(life: Life) -> None:
    message = refused(lambda: life.start(NOT_OURS, free_port()), ErrorKind.PORT_UNAVAILABLE)
    assert NOT_OURS in message
    assert "Cannot assign requested address" in message
    assert life.look().state is State.LISTENING
    life.start()


def test_no_port_free_in_the_manager_s_range_is_an_error_and_the_keep_stays_idle(fleet: Fleet, life: Life) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with fleet.configured(keep_ports=f"{{first: {port}, last: {port}}}"):
            message = refused(lambda: life.start("127.0.0.1", port), ErrorKind.PORT_UNAVAILABLE)
    assert "Address already in use" in message
    assert life.look().state is State.LISTENING


def test_of_two_concurrent_uploads_one_is_taken_and_the_other_hears_409(life: Life) -> None:
    life.start()
    module = modules.says(b"first\n")
    with half_an_upload(life, module) as first:
        reply = life.upload(modules.says(b"second\n"))
        assert (reply.status, reply.error().kind) == (409, ErrorKind.CONFLICT)
        assert "is receiving another one" in reply.error().message
    assert first.result().status == 200
    life.until(State.STARTED, State.COMPLETE)
    assert "first" in life.output()
    assert "second" not in life.output()


def test_of_many_uploads_at_the_same_moment_exactly_one_is_taken(life: Life) -> None:
    life.start()
    target, context, module = life.endpoint, life.context, modules.says(b"once\n")

    def upload() -> Reply:
        body = Body("application/wasm", len(module), (module,))
        return endpoint.upload(target, context, "PUT", endpoint.WORKLOAD_PATH, body)

    results = both(*[upload] * 6)
    statuses = [result.status for result in results if isinstance(result, Reply)]
    turned_away = [result for result in results if not isinstance(result, Reply)]
    assert statuses.count(200) == 1
    assert set(statuses) <= {200, 409}
    assert all(isinstance(error, ConnectionFailed) for error in turned_away), turned_away
    life.until(State.STARTED, State.COMPLETE)
    assert life.output().count("once") == 1


def test_an_upload_after_another_was_accepted_is_refused_at_the_endpoint(fleet: Fleet) -> None:
    life = Life.running(fleet)
    with pytest.raises(ConnectionFailed, match="nothing listens there; a keep closes its upload endpoint"):
        life.upload(modules.says(b"late\n"))
    life.remove()


def test_an_idle_keep_cannot_be_stopped(fleet: Fleet, life: Life) -> None:
    assert f"cannot stop keep {life.kuuid}: nothing runs in it" in refused(
        lambda: fleet.client().stop(life.kuuid), ErrorKind.CONFLICT
    )
    assert life.look().state is State.LISTENING


@pytest.mark.parametrize("make", [Life.awaiting, Life.running])
def test_a_stopped_keep_is_complete_says_who_stopped_it_and_frees_its_port(
    fleet: Fleet, make: Callable[[Fleet], Life]
) -> None:
    life = make(fleet)
    stopped = fleet.client().stop(life.kuuid)
    assert stopped.state is State.COMPLETE
    assert stopped.outcome is not None
    assert stopped.outcome.kind is OutcomeKind.STOPPED
    assert stopped.outcome.text == "stopped by admin"
    assert life.look() == stopped
    socket.create_server(("127.0.0.1", stopped.port)).close()
    life.without_process()
    again = fleet.client().stop(life.kuuid)
    assert (again.state, again.detail) == (State.COMPLETE, "stopped by admin"), "it is what was asked for"
    refused(life.start, ErrorKind.CONFLICT)
    life.remove()


@contextlib.contextmanager
def systemd_is_busy(host: Host) -> Iterator[None]:
    """PID 1 gets no processor: what it was sent waits."""
    pid = host.sandbox.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_port_is_free_when_its_keep_has_ended_also_where_systemd_is_busy(fleet: Fleet) -> None:
    stopped, runs = Life.awaiting(fleet), Life.awaiting(fleet)
    with systemd_is_busy(fleet.host):
        port = fleet.client().stop(stopped.kuuid).port
        socket.create_server(("127.0.0.1", port)).close()
    loader = runs.loader_pid
    with systemd_is_busy(fleet.host):
        assert runs.upload(modules.sleeps()).status == 200
        until(lambda: not fleet.host.assistant.children(loader, "keep-endpoint"), lambda: "the endpoint stays")
        socket.create_server(("127.0.0.1", runs.info.port)).close()
    for life in (stopped, runs):
        life.remove()


def test_stopping_a_keep_that_has_ended_changes_nothing(fleet: Fleet) -> None:
    life = Life.ended(fleet)
    before = life.look()
    assert fleet.client().stop(life.kuuid).detail == before.detail
    assert life.look() == before
    life.remove()


def test_a_keep_that_is_stopped_during_an_upload_drops_it(life: Life, fleet: Fleet) -> None:
    life.start()
    with half_an_upload(life, modules.says(b"never\n")) as upload:
        assert fleet.client().stop(life.kuuid).state is State.COMPLETE
    assert isinstance(upload.exception(), ConnectionFailed)
    assert "never" not in life.output()
