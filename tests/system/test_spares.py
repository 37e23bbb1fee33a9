"""Spares on a real systemd: nobody's until they are handed out, and from that moment on what their unit says."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from keep_client.http import Reply, json_body
from keep_client.manager import IDEMPOTENCY_HEADER
from keep_client.peer import ConnectionFailed
from keep_manager.failpoints import Failpoint
from keep_protocol.constants import V1_KEEPS_PATH, kuuid_of_unit, unit_name
from keep_protocol.keep import KeepInfo, keep_from_wire
from keep_protocol.states import State
from keep_protocol.tls import pinned_client_context
from tests.system import modules
from tests.system.fixtures import module_s_fleet
from tests.system.fleet import Fleet
from tests.system.life import SOON, Bystanders, Life, drop_in, spare_units
from tests.system.wire import ask, request

SPARES = 2
PKI = "/etc/keepfleet/pki"
fleet = pytest.fixture(scope="module")(module_s_fleet)


def spares(fleet: Fleet) -> set[int]:
    return {kuuid for unit in spare_units(fleet.host) if (kuuid := kuuid_of_unit(unit)) is not None}


def until_there_are(fleet: Fleet, number: int, *, but: frozenset[int] = frozenset()) -> set[int]:
    """The spares, once there are so many, and none of `but`."""
    deadline = time.monotonic() + SOON
    while len(found := spares(fleet)) != number or found & but:
        assert time.monotonic() < deadline, found
    return found


@pytest.fixture(autouse=True)
def with_spares(fleet: Fleet, bystanders: Bystanders, undisturbed: None) -> Iterator[None]:
    """A manager that keeps SPARES; at the end of the test none is left."""
    with fleet.configured(spare_keeps=SPARES):
        until_there_are(fleet, SPARES)
        yield
    deadline = time.monotonic() + SOON
    while [trace for trace in fleet.left_over() if not bystanders.owns(trace)]:
        if time.monotonic() > deadline:
            return  # which `undisturbed` says


def create(fleet: Fleet, key: str = "", **members: object) -> Reply:
    headers = {IDEMPOTENCY_HEADER: key} if key else {}
    return fleet.client().request("POST", V1_KEEPS_PATH, json_body(dict(members)), headers=headers)


def made(reply: Reply) -> KeepInfo:
    assert reply.status == 201, reply.text
    return keep_from_wire(reply.object())


def test_a_spare_becomes_a_keep_with_its_limits_its_name_in_the_journal_and_its_workload(fleet: Fleet) -> None:
    before = spares(fleet)
    assert not before & {info.kuuid for info in fleet.client().keeps()}
    info = made(create(fleet, name="once-spare", limits={"tasks": 25, "memory_bytes": 128 << 20}, start={}))
    assert info.kuuid in before
    assert (info.name, info.state) == ("once-spare", State.STARTED)
    life = Life(fleet, info.kuuid)
    shown = fleet.host.show(life.unit, "Description", "TasksMax")
    assert shown["Description"].startswith("Keep once-spare of ")
    assert shown["TasksMax"] == "25"
    assert life.upload(modules.says(b"from a spare\n")).status == 200
    life.line("from a spare")
    life.until(State.STARTED, State.COMPLETE)
    lines = fleet.host.journal(KEEP_NAME="once-spare")
    assert "from a spare" in [line["MESSAGE"] for line in lines]
    assert until_there_are(fleet, SPARES) != before
    life.remove()


def test_a_keep_that_was_a_spare_is_found_again_by_the_next_manager_and_over_a_daemon_reload(fleet: Fleet) -> None:
    info = made(create(fleet, name="found-again"))
    fleet.host.systemctl("daemon-reload")
    fleet.kill()
    found = fleet.client().keep(info.kuuid)
    assert (found.name, found.owner, found.created_at) == (info.name, info.owner, info.created_at)
    fleet.client().remove(info.kuuid)


@pytest.mark.parametrize("point", [Failpoint.CLAIM_BEFORE_CALL, Failpoint.CLAIM_AFTER_CALL])
def test_a_manager_killed_while_it_hands_out_a_spare_leaves_a_spare_or_the_keep(fleet: Fleet, point: Failpoint) -> None:
    left = spares(fleet)
    with fleet.killed_at(point), pytest.raises(ConnectionFailed):
        create(fleet, f"key-{point.value}", name="key", start={})
    after_call = point is Failpoint.CLAIM_AFTER_CALL
    owned = {info.kuuid for info in fleet.client().keeps() if info.name == "key"}
    assert len(owned) == (1 if after_call else 0)
    info = made(create(fleet, f"key-{point.value}", name="key", start={}))
    assert (info.state, info.fingerprint[:7]) == (State.STARTED, "sha256:")
    assert (info.kuuid in left) == after_call
    fleet.client().remove(info.kuuid)


def test_a_spare_of_before_a_change_of_the_keeps_settings_is_not_handed_out(fleet: Fleet) -> None:
    before = until_there_are(fleet, SPARES)
    with drop_in(fleet.host, "keep@.service", "[Service]\nNice=7\n"):
        info = made(create(fleet))
        assert info.kuuid not in before
        assert fleet.host.show(f"keep@{info.kuuid}.service", "Nice")["Nice"] == "7"
        fleet.client().remove(info.kuuid)


def loader_of(fleet: Fleet, kuuid: int) -> int:
    return int(fleet.host.show(unit_name(kuuid), "MainPID")["MainPID"])


def forks_of(fleet: Fleet, kuuid: int) -> list[int]:
    command = ["pgrep", "--parent", str(loader_of(fleet, kuuid)), "--exact", "keep-prepared"]
    return [int(pid) for pid in fleet.host.run(command, check=False).stdout.split()]


def send(fleet: Fleet, pid: int, number: signal.Signals) -> None:
    fleet.host.run(["kill", f"-{int(number)}", str(pid)])


def test_a_spare_that_dies_while_it_is_handed_out_is_replaced_by_a_new_unit(fleet: Fleet) -> None:
    loaders = {kuuid: loader_of(fleet, kuuid) for kuuid in until_there_are(fleet, SPARES)}
    for loader in loaders.values():
        send(fleet, loader, signal.SIGSTOP)  # it becomes a keep by its unit, and does not answer
    with ThreadPoolExecutor(1) as pool:
        creating = pool.submit(create, fleet, name="from-the-dead", start={})
        deadline = time.monotonic() + SOON
        while len(left := spares(fleet)) == SPARES:
            assert time.monotonic() < deadline
        (claimed,) = set(loaders) - left
        send(fleet, loaders[claimed], signal.SIGKILL)
        info = made(creating.result(SOON))
    assert info.kuuid not in loaders
    assert (info.state, fleet.client().keep(info.kuuid).name) == (State.STARTED, "from-the-dead")
    assert unit_name(claimed) not in fleet.keep_units()
    for kuuid in left:
        send(fleet, loaders[kuuid], signal.SIGCONT)
    fleet.client().remove(info.kuuid)


def test_a_spare_has_its_forks_ready_and_a_start_does_without_one_that_has_died(fleet: Fleet) -> None:
    deadline = time.monotonic() + SOON
    for kuuid in until_there_are(fleet, SPARES):
        while len(forks := forks_of(fleet, kuuid)) != 2:
            assert time.monotonic() < deadline, forks
        send(fleet, forks[0], signal.SIGKILL)
        while forks_of(fleet, kuuid) != forks[1:]:
            assert time.monotonic() < deadline, forks
    info = made(create(fleet, start={}))
    life = Life(fleet, info.kuuid)
    assert life.upload(modules.says(b"all the same\n")).status == 200
    life.line("all the same")
    life.until(State.STARTED, State.COMPLETE)
    life.remove()


@contextmanager
def pki_of_before(fleet: Fleet) -> Iterator[None]:
    """The CA may change in the block, and is as before behind it; who was revoked stays so."""
    fleet.host.run(["cp", "-a", PKI, f"{PKI}.before"])
    try:
        yield
    finally:
        fleet.host.run(["rm", f"{PKI}.before/revoked"])  # keeps that run read the one that is there
        fleet.host.run(["cp", "-a", f"{PKI}.before/.", PKI])
        fleet.host.run(["rm", "-r", f"{PKI}.before"])
        fleet.reload()


def test_the_ca_and_the_revocation_list_of_a_spare_are_those_of_its_start(fleet: Fleet) -> None:
    waiting = until_there_are(fleet, SPARES)
    with pki_of_before(fleet):
        fleet.issue("revoked-meanwhile")
        fleet.host.run(["keepctl", "pki", "rotate"])
        fleet.issue("of-the-new-ca")
        fleet.host.run(["keepctl", "pki", "revoke", "revoked-meanwhile"])
        fleet.reload()
        names = ["name:of-the-new-ca", "name:revoked-meanwhile"]
        info = made(create(fleet, start={"uploaders": names}))
        assert info.kuuid in waiting
        life = Life(fleet, info.kuuid)
        body = request("PUT", "/workload", modules.says(b"hello\n"), "Content-Type: application/wasm")
        answers = []
        for name in ("revoked-meanwhile", "of-the-new-ca"):
            shown = fleet.credentials(name)
            answers.append(ask(info.port, pinned_client_context(shown.certificate, shown.key), body).status)
        assert answers == [403, 200]
        life.until(State.STARTED, State.COMPLETE)
        life.remove()
