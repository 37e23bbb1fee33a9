"""Spares on a real systemd: without an owner until they are assigned, and from that moment on what their unit says."""

from __future__ import annotations

import contextlib
import signal
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
from tests.system import modules
from tests.system.asked import Unanswered
from tests.system.fixtures import module_s_fleet
from tests.system.fleet import Fleet
from tests.system.host import until
from tests.system.life import SOON, Bystanders, Life, drop_in, spare_units
from tests.system.wire import ask, request

SPARES = 2
"""They are made one after the other, and assigned so: when there are two, the manager has the first."""
PKI = "/etc/keepfleet/pki"
fleet = pytest.fixture(scope="module")(module_s_fleet)


def spares(fleet: Fleet) -> set[int]:
    return {kuuid for unit in spare_units(fleet.host) if (kuuid := kuuid_of_unit(unit)) is not None}


def until_there_are(fleet: Fleet, number: int, *, but: frozenset[int] = frozenset()) -> set[int]:
    """The spares, once there are so many, and none of `but`."""

    def there() -> bool:
        found = spares(fleet)
        return len(found) == number and not found & but

    until(there, lambda: spares(fleet))
    return spares(fleet)


@pytest.fixture(scope="module")
def spared(fleet: Fleet, bystanders: Bystanders) -> Iterator[None]:
    """A manager that keeps SPARES; when it is to keep none, none is left."""
    with fleet.configured(spare_keeps=SPARES):
        yield
    until(lambda: all(map(bystanders.owns, fleet.left_over())), fleet.left_over)


@pytest.fixture(autouse=True)
def with_spares(fleet: Fleet, bystanders: Bystanders, spared: None) -> Iterator[None]:
    """The spares are there before the test and after it, and nothing of another keep is."""
    until_there_are(fleet, SPARES)
    yield
    until_there_are(fleet, SPARES)

    def others() -> list[str]:
        known = [str(kuuid) for kuuid in spares(fleet)]
        return [
            trace
            for trace in fleet.left_over()
            if not bystanders.owns(trace) and not any(kuuid in trace for kuuid in known)
        ]

    try:
        until(lambda: not others(), others)
        bystanders.check()
    finally:
        fleet.remove_all(bystanders.owns)


def renew(fleet: Fleet) -> None:
    """Has the manager give up its spares, and make others."""
    for number in (0, SPARES):
        fleet.configure(spare_keeps=number)
        fleet.reload()
        until_there_are(fleet, number)


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
    fleet.host.daemon_reload()
    left = spares(fleet)
    fleet.kill()
    found = fleet.client().keep(info.kuuid)
    assert (found.name, found.owner, found.created_at) == (info.name, info.owner, info.created_at)
    fleet.client().remove(info.kuuid)
    until_there_are(fleet, SPARES, but=frozenset(left))  # which the next manager ends, and makes its own, both later


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
    until_there_are(fleet, SPARES, but=frozenset(left))


def test_a_spare_of_before_a_change_of_the_keeps_settings_is_not_assigned(fleet: Fleet) -> None:
    before = until_there_are(fleet, SPARES)
    with drop_in(fleet.host, "keep@.service", "[Service]\nNice=7\n"):
        info = made(create(fleet))
        assert info.kuuid not in before
        assert fleet.host.show(f"keep@{info.kuuid}.service", "Nice")["Nice"] == "7"
        fleet.client().remove(info.kuuid)
    renew(fleet)


def loader_of(fleet: Fleet, kuuid: int) -> int:
    return int(fleet.host.show(unit_name(kuuid), "MainPID")["MainPID"])


def forks_of(fleet: Fleet, kuuid: int) -> list[int]:
    return fleet.host.assistant.children(loader_of(fleet, kuuid), "keep-prepared")


def until_it_has_forks(fleet: Fleet, kuuid: int, number: int) -> list[int]:
    until(lambda: len(forks_of(fleet, kuuid)) == number, lambda: forks_of(fleet, kuuid))
    return forks_of(fleet, kuuid)


def send(fleet: Fleet, pid: int, number: signal.Signals) -> None:
    fleet.host.assistant.kill(number, pid)


def test_a_spare_that_dies_while_it_is_assigned_is_replaced_by_a_new_unit(fleet: Fleet) -> None:
    loaders = {kuuid: loader_of(fleet, kuuid) for kuuid in until_there_are(fleet, SPARES)}
    for loader in loaders.values():
        send(fleet, loader, signal.SIGSTOP)  # it becomes a keep by its unit, and does not answer
    with ThreadPoolExecutor(1) as pool:
        creating = pool.submit(create, fleet, name="from-the-dead", start={})
        until(lambda: len(spares(fleet)) != SPARES, lambda: "no spare is assigned")
        left = spares(fleet)
        (claimed,) = set(loaders) - left
        with contextlib.suppress(Unanswered):  # the manager has waited for it long enough, and ended it
            send(fleet, loaders[claimed], signal.SIGKILL)
        info = made(creating.result(SOON))
    assert info.kuuid not in loaders
    assert (info.state, fleet.client().keep(info.kuuid).name) == (State.STARTED, "from-the-dead")
    assert unit_name(claimed) not in fleet.keep_units()
    for kuuid in left:
        send(fleet, loaders[kuuid], signal.SIGCONT)
    fleet.client().remove(info.kuuid)


def test_a_spare_has_its_forks_ready_and_a_start_does_without_one_that_has_died(fleet: Fleet) -> None:
    for kuuid in until_there_are(fleet, SPARES):
        killed, _ = until_it_has_forks(fleet, kuuid, 2)
        send(fleet, killed, signal.SIGKILL)
        assert killed not in until_it_has_forks(fleet, kuuid, 1)
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
        fleet.keepctl("pki", "rotate")
        fleet.issue("of-the-new-ca")
        fleet.keepctl("pki", "revoke", "revoked-meanwhile")
        fleet.reload()
        names = ["name:of-the-new-ca", "name:revoked-meanwhile"]
        info = made(create(fleet, start={"uploaders": names}))
        assert info.kuuid in waiting
        life = Life(fleet, info.kuuid)
        body = request("PUT", "/workload", modules.says(b"hello\n"), "Content-Type: application/wasm")
        answers = []
        for name in ("revoked-meanwhile", "of-the-new-ca"):
            answers.append(ask(info.port, fleet.pinned(name), body).status)
        assert answers == [403, 200]
        life.until(State.STARTED, State.COMPLETE)
        life.remove()
