"""Pulls on a real systemd: a unit of its own, which has the network and nothing else; a registry on loopback, as honest
as a test wants it to be."""

from __future__ import annotations

import asyncio
import io
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from keep_client.peer import ConnectionFailed
from keep_manager.failpoints import Failpoint
from keep_manager.systemd.oneshots import Oneshots
from keep_manager.systemd.pull_units import PATTERN, PullUnits
from keep_manager.tasks import Group
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.pulling import Pulling, PullState
from tests.fakes.fake_registry import Answer, FakeRegistry
from tests.system import inside
from tests.system.fixtures import module_s_fleet
from tests.system.fleet import Fleet
from tests.system.host import message_of, until
from tests.system.life import Bystanders, Life, drop_in, example
from tests.system.probe import SECRETS

STORE = "/var/lib/keepfleet/store"
PULL = "keep-pull@.service"
SCORE = 1.0
"""`systemd-analyze security`, 0 to 10: a keep's has 0.2, and no network."""
MODULE = example("hello-wat/hello")
DIGEST = f"sha256:{sha256(MODULE).hexdigest()}"
BLOB = f"/v2/team/web/blobs/{DIGEST}"
JSON_BYTES = 1 << 20


fleet = pytest.fixture(scope="module")(module_s_fleet)


@pytest.fixture(scope="module")
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as found:
        found.put_module("1.2", MODULE)
        yield found


@pytest.fixture
def remote(registry: FakeRegistry) -> FakeRegistry:
    """The registry, honest again."""
    registry.answers.clear()
    return registry


@pytest.fixture(scope="module")
def pulling_fleet(fleet: Fleet, registry: FakeRegistry) -> Iterator[Fleet]:
    """The manager may pull from that registry."""
    with fleet.configured(registries=f'{{"127.0.0.1:{registry.port}": {{plain_http: true}}}}'):
        yield fleet


@pytest.fixture
def configured(pulling_fleet: Fleet) -> Iterator[Fleet]:
    """That manager, without a store."""
    fleet = pulling_fleet
    fleet.host.run(["rm", "-rf", STORE])
    yield fleet
    fleet.host.run(["rm", "-rf", STORE])
    assert fleet.host.units(PATTERN) == [], "no unit of a pull is left, in whatever state"


def address(remote: FakeRegistry, what: str = "team/web:1.2") -> str:
    return f"oci://127.0.0.1:{remote.port}/{what}"


def objects(fleet: Fleet) -> list[str]:
    return fleet.host.run(["sh", "-c", f"find {STORE}/objects {STORE}/new -type f 2>/dev/null || true"]).stdout.split()


def test_a_module_is_pulled_by_a_unit_and_runs_and_the_journal_says_who_asked(
    configured: Fleet, remote: FakeRegistry
) -> None:
    host, cursor = configured.host, configured.host.cursor()
    context = ["--manager", f"127.0.0.1:{configured.port}"]
    done = host.run(["keepctl", "store", "pull", address(remote), *context])
    assert done.stdout.startswith(f"web:1.2  {DIGEST}  "), done.stderr
    assert f"from {address(remote)}@sha256:" in done.stdout
    info = configured.client().create(module="web:1.2", start={"workload": None})
    Life(configured, info.kuuid).remove()
    lines = [message_of(each) for each in host.journal("keep-manager.service", cursor)]
    assert any(f"pulling {address(remote)} as 'web:1.2' into the module store by admin" in line for line in lines)
    assert any(f"pulled {DIGEST}, {len(MODULE)} bytes, from {address(remote)}@sha256:" in line for line in lines)
    started = [message_of(each) for each in host.journal(since_cursor=cursor, _PID="1")]
    assert len([line for line in started if line.startswith("Starting keep-pull@")]) == 1


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (Answer(body=bytes(len(MODULE))), "which its manifest names; nothing was kept"),
        (Answer(307, {"Location": "file:///etc/shadow"}), "without TLS"),
        (Answer(307, {"Location": "https://127.0.0.1:3030/"}), "cannot pull from 127.0.0.1:3030"),
        (Answer(body=MODULE + b"!"), "it sent more than that"),
    ],
    ids=["lies", "a file", "this host", "too much"],
)
def test_a_hostile_registry_is_refused_and_nothing_is_kept(
    configured: Fleet, remote: FakeRegistry, answer: Answer, why: str
) -> None:
    remote.answers[BLOB] = answer
    with pytest.raises(KeepfleetError) as caught:
        configured.store().pull(Pulling(address(remote)))
    assert why in caught.value.message
    assert objects(configured) == []


@contextmanager
def pulling(fleet: Fleet, remote: FakeRegistry) -> Iterator[tuple[str, list[KeepfleetError]]]:
    """A pull that waits for the rest of its module; its unit, and what it fails with."""
    remote.answers[BLOB] = Answer(body=MODULE[:4], headers={"Content-Length": str(len(MODULE))}, stall=True)
    failures: list[KeepfleetError] = []
    client = fleet.store()

    def pull() -> None:
        try:
            client.another().pull(Pulling(address(remote)))
        except KeepfleetError as error:
            failures.append(error)

    thread = threading.Thread(target=pull)
    thread.start()
    until(
        lambda: any(each.received == 4 and each.error is None for each in client.pulls()), lambda: "no pull has begun"
    )
    (unit,) = fleet.host.units(PATTERN)
    yield unit, failures
    thread.join()


def test_a_unit_that_is_killed_says_so_and_a_cancelled_pull_leaves_none(
    configured: Fleet, remote: FakeRegistry
) -> None:
    with pulling(configured, remote) as (unit, failures):
        configured.host.systemctl("kill", "--signal=KILL", unit)
    assert "its unit has ended: it was killed by signal 9" in failures[0].message
    client = configured.store()
    with pulling(configured, remote) as (_, failures):
        (pull,) = [each for each in client.pulls() if each.state is PullState.PULLING]
        client.cancel_pull(pull.id)
    assert "it was cancelled" in failures[0].message


def test_a_manager_that_is_killed_in_the_middle_leaves_nothing_and_the_next_ends_the_unit(
    configured: Fleet, remote: FakeRegistry
) -> None:
    kept = configured.store().add(io.BytesIO(example("hello-c/hello")), "kept:1")
    with pulling(configured, remote) as (_, failures):
        configured.kill()
    assert isinstance(failures[0], KeepfleetError)
    client = configured.store()
    until(lambda: configured.host.units(PATTERN) == [], lambda: "the unit has not been ended")
    assert [each.digest for each in client.listing().objects] == [kept.digest]
    assert client.verify().findings == ()
    remote.answers.clear()
    assert client.pull(Pulling(address(remote))).state is PullState.DONE


@pytest.mark.parametrize("point", [point for point in Failpoint if point.name.startswith("PULL")])
def test_a_manager_killed_at_any_step_keeps_a_whole_module_or_none_and_the_next_pulls_it(
    configured: Fleet, remote: FakeRegistry, point: Failpoint
) -> None:
    with configured.killed_at(point):
        with pytest.raises(KeepfleetError) as caught:
            configured.store().pull(Pulling(address(remote)))
        assert isinstance(caught.value, ConnectionFailed) or caught.value.kind is ErrorKind.NOT_FOUND
    client = configured.store()
    there = [each.digest for each in client.listing().objects] if _exists(configured) else []
    assert there == ([DIGEST] if point is Failpoint.PULL_AFTER_ADD else [])
    assert client.pull(Pulling(address(remote))).state is PullState.DONE
    assert client.verify().findings == ()


def _exists(fleet: Fleet) -> bool:
    return fleet.host.run(["test", "-d", f"{STORE}/objects"], check=False).returncode == 0


def test_a_unit_that_takes_too_much_memory_ends_alone(
    configured: Fleet, remote: FakeRegistry, bystanders: Bystanders
) -> None:
    greedy = "import sys; x = bytearray(b'x') * (400 << 20)"
    program = f'[Service]\nExecStart=\nExecStart={inside.PYTHON} -c "{greedy}"\n'
    with drop_in(configured.host, PULL, program), pytest.raises(KeepfleetError) as caught:
        configured.store().pull(Pulling(address(remote)))
    assert "its unit has ended: " in caught.value.message
    bystanders.check()


# --- what it may -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(fleet: Fleet) -> dict[str, Any]:
    """The report of the probe in the program's place."""

    async def run(tasks: Group, bus: str, root: str, files: inside.Files) -> object:
        oneshots = Oneshots(tasks, bus)
        await oneshots.open()
        try:
            return await PullUnits(oneshots).run("0" * 16, root, files, lambda: None)
        finally:
            await oneshots.close()

    return inside.probe_in_a_oneshot(fleet.host, PULL, fleet.port, fleet.manager_pid, run)


def test_it_reaches_no_local_socket_and_nothing_below_ip(found: dict[str, Any]) -> None:
    attempts: dict[str, str] = found["attempts"]
    reached = {name: how for name, how in attempts.items() if name.startswith("connect /")}
    assert set(reached.values()) == {"EAFNOSUPPORT"}
    assert attempts["connect to the manager"] == "done", "over TCP, where it has no certificate"
    raw = {name: how for name, how in attempts.items() if name.startswith("socket ")}
    assert set(raw.values()) <= {"EAFNOSUPPORT", "EPROTONOSUPPORT", "EPERM"}, raw


def test_it_writes_nowhere_executes_nothing_and_sees_no_file_of_the_host_s(found: dict[str, Any]) -> None:
    attempts: dict[str, str] = found["attempts"]
    done = {name for name, how in attempts.items() if how == "done"}
    tried = [name for name in attempts if name.startswith(("write in ", "execute", "map code", "call ", "make a "))]
    assert len(tried) > 40
    assert done.intersection(tried) == set()
    assert {place for place, flag in found["mounts"].items() if "w" in flag} == set()
    seen = {name: how for name, how in attempts.items() if name.startswith("read /")}
    assert len(seen) == len(SECRETS)
    assert {name: how for name, how in seen.items() if how not in ("ENOENT", "EACCES", "empty")} == {}
    assert len(found["descriptors"]) == 4, "its three files, and that which lists them"
    assert found["status"]["CapBnd"].strip("0") == ""


def test_no_one_can_connect_to_it(fleet: Fleet, tmp_path: Path) -> None:
    listening = "import socket; s = socket.socket(); s.bind((str(), 0)); s.listen()"
    host = fleet.host

    async def run() -> object:
        async with Group() as tasks:
            oneshots = Oneshots(tasks, f"unix:path=/proc/{host.sandbox.pid}/root/run/dbus/system_bus_socket")
            await oneshots.open()
            files = [os.open(tmp_path, os.O_TMPFILE | os.O_RDWR) for _ in range(3)]
            how = await PullUnits(oneshots).run(
                "1" * 16, inside.root_of(host), (files[0], files[1], files[2]), lambda: None
            )
            for file in files:
                os.close(file)
            await oneshots.close()
            return how

    with drop_in(host, PULL, f'[Service]\nExecStart=\nExecStart={inside.PYTHON} -c "{listening}"\n'):
        how = asyncio.run(run())
    assert str(how) == "(<End.KILLED: 'killed'>, 31)", "SIGSYS"


def test_its_unit_is_a_user_s_of_its_own_limited_and_little_exposed(configured: Fleet, remote: FakeRegistry) -> None:
    with pulling(configured, remote) as (unit, _):
        host = configured.host
        shown = host.show(unit, "MemoryMax", "TasksMax", "Slice", "MainPID", "UID", "Environment", "ExecStart")
        assert (shown["MemoryMax"], shown["TasksMax"], shown["Slice"]) == (str(192 << 20), "4", "keep-pull.slice")
        assert int(shown["UID"]) >= 61184, "a dynamic user's (man systemd.exec)"
        assert str(remote.port) not in shown["Environment"] + shown["ExecStart"]
        said = host.run(["systemd-analyze", "security", "--no-pager", unit]).stdout
        exposure = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
        assert exposure is not None
        assert float(exposure[1]) <= SCORE, said
        host.systemctl("kill", "--signal=KILL", unit)


def test_the_manager_itself_opens_no_connection(configured: Fleet, remote: FakeRegistry) -> None:
    """Its sockets over IP are its listener, the clients' connections to it, and none to a registry."""
    with pulling(configured, remote) as (unit, _):
        said = configured.host.run(["cat", f"/proc/{configured.manager_pid}/net/tcp"]).stdout
        mine = _sockets(configured, configured.manager_pid)
        to_the_registry = [line for line in said.splitlines() if line.split()[2].endswith(f":{remote.port:04X}")]
        assert to_the_registry, said
        assert not [line for line in to_the_registry if line.split()[9] in mine]
        configured.host.systemctl("kill", "--signal=KILL", unit)


def _sockets(fleet: Fleet, pid: int) -> set[str]:
    listed = fleet.host.run(["sh", "-c", f"ls -l /proc/{pid}/fd"]).stdout
    return set(re.findall(r"socket:\[([0-9]+)\]", listed))


# --- a user's own manager, and many objects --------------------------------------------------------------------------

USERS = """
import asyncio, sys
from keep_manager.places import bus_address, trees
from keep_manager.pulls import Pulls
from keep_manager.registries import RegistryEntry
from keep_manager.systemd.oneshots import Oneshots
from keep_manager.systemd.pull_units import PullUnits
from keep_manager.systemd.roots import Roots
from keep_manager.tasks import Group
from keep_protocol.pulling import Pulling, PullState
from module_store.operations import Operations

async def main():
    async with Group() as tasks:
        units = Oneshots(tasks, bus_address("user"))
        await units.open()
        entry = RegistryEntry(plain_http=True)
        pulls = Pulls(tasks, PullUnits(units), Roots(trees("user")).path, (("*", entry),))
        await pulls.open()
        pull = pulls.begin(Pulling(sys.argv[1]), "ada", Operations(None, "ada"))
        while pull.state is PullState.PULLING:
            pull = await pulls.get(pull.id, wait=True)
        print(pull.state.value, pull.object and pull.object.digest, pull.error)
        await pulls.close()
        await units.close()

asyncio.run(main())
"""
"""A user's manager's pulls and nothing else of it, in a process inside."""


def test_a_user_s_own_manager_pulls_too_in_what_a_user_s_manager_can_isolate(
    fleet: Fleet, remote: FakeRegistry
) -> None:
    host = fleet.host
    user = host.with_user_manager("ada")
    host.run(["keepctl", "install", "--user"], user=user)
    command = ["/opt/keepfleet/bin/python", "-I", "-c", USERS, address(remote)]
    done = host.run(command, user=user)
    assert done.stdout == f"done {DIGEST} None\n", done.stderr
    assert "web:1.2" in host.run(["keepctl", "store", "ls", "--in-place"], user=user).stdout
    assert host.units(PATTERN, user=user) == []


def test_a_manager_starts_with_a_thousand_objects_and_runs_the_last_of_them(fleet: Fleet) -> None:
    host = fleet.host
    host.run(["rm", "-rf", STORE])
    host.run(["/opt/keepfleet/bin/python", "-I", "-c", THOUSAND, STORE], input=MODULE.hex())
    try:
        fleet.restart()
        client = fleet.store()
        listing = client.listing()
        assert (len(listing.objects), len(listing.references)) == (1000, 1000)
        Life(fleet, fleet.client().create(module="web:999", start={"workload": None}).kuuid).remove()
    finally:
        host.run(["rm", "-rf", STORE])


THOUSAND = """
import io, sys
from module_store.disk import Disk
from module_store.store import Store

class Unflushed(Disk):
    def sync(self, descriptor):
        pass

module = bytes.fromhex(sys.stdin.read())
with Store.create(sys.argv[1], Unflushed()) as store:
    for number in range(1000):
        store.add(io.BytesIO(module + b"\\0\\4\\1x" + number.to_bytes(2, "big")), reference=f"web:{number}")
"""
"""Makes a store with a thousand modules, each of which runs: they differ in a custom section."""
