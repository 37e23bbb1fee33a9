"""Modules of the store on a real host: compiled once for all keeps that run them, whatever happens to compiler, cache,
disk, manager or client meanwhile."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from keep_manager.failpoints import Failpoint
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.states import State
from tests.system import modules
from tests.system.fixtures import module_s_fleet
from tests.system.fleet import MANAGER, Fleet
from tests.system.host import Host, message_of
from tests.system.journal import Entry
from tests.system.life import Life, example
from tests.system.test_compilation import LONG
from tests.system.test_stored_keeps import STORE, add

CACHE = "/var/lib/keepfleet/artifacts"
STARTS = "Starting keep-compile@"
SMALL_DISK = "64k"
HELLO = "hello-c/hello"
UPGRADE = """
import os, sys
from module_store.artifacts import Artifacts
with Artifacts(sys.argv[1]) as cache, cache.scratch() as file:
    (key,) = cache.keys()
    os.write(file, b"what another engine compiled")
    os.close(cache.put(key.replace(engine="e" * 64), file).descriptor)
    cache.discard(key, "as if it had never been")
"""
"""Leaves the cache as an upgrade of the engine does: with what the one before had compiled."""

STRANGE = """
import os, sys
from module_store.artifacts import Artifacts
with Artifacts(sys.argv[1]) as cache, cache.scratch() as file:
    (key,) = cache.keys()
    os.write(file, b"\\x7fELF and nothing that an engine takes")
    os.close(cache.put(key, file).descriptor)
"""
"""Leaves what has the manager's own seal, and is no compiled module."""

fleet = pytest.fixture(scope="module")(module_s_fleet)


@pytest.fixture(autouse=True)
def emptied(fleet: Fleet) -> Iterator[None]:
    """Before each test, too: other modules' tests run what they add."""
    _empty(fleet.host)
    yield
    _empty(fleet.host)


def _empty(host: Host) -> None:
    host.run(["rm", "-rf", STORE])
    host.run(["sh", "-c", f"rm -f {CACHE}/[0-9a-f]*"])


def compilations(host: Host, cursor: str) -> int:
    lines = [str(entry.get("MESSAGE")) for entry in host.journal(since_cursor=cursor, _PID="1")]
    return len([line for line in lines if line.startswith(STARTS)])


def run(fleet: Fleet, module: str, profile: str = "") -> KeepInfo:
    return fleet.client().create(module=module, start={"workload": None}, profile=profile)


def ended(fleet: Fleet, module: str) -> Life:
    """A keep that has run the module to its end, well."""
    life = Life(fleet, run(fleet, module).kuuid)
    if life.info.state is State.STARTED:
        life.until(State.STARTED, State.COMPLETE)
    assert life.info.outcome is not None and life.info.outcome.text == "exited 0"
    return life


def artifact(host: Host) -> str:
    """The one that there is."""
    (name,) = [name for name in host.run(["ls", CACHE]).stdout.split() if name != "key"]
    return f"{CACHE}/{name}"


def maps_of(host: Host, unit: str) -> str:
    """What the processes of a unit have mapped."""
    group = host.show(unit, "ControlGroup")["ControlGroup"]
    script = f"cat /sys/fs/cgroup/systemd{group}/cgroup.procs 2>&- || cat /sys/fs/cgroup{group}/cgroup.procs"
    pids = host.run(["sh", "-c", script]).stdout.split()
    return host.run(["cat", *(f"/proc/{pid}/maps" for pid in pids)]).stdout


@pytest.mark.parametrize("profile", ["standard", "strict"])
def test_ten_starts_of_one_module_compile_it_once_and_each_maps_the_same_file(fleet: Fleet, profile: str) -> None:
    add(fleet, modules.sleeps(), "sleeps:1")
    cursor = fleet.host.cursor()
    with ThreadPoolExecutor(5) as pool:
        keeps = list(pool.map(lambda _: run(fleet, "sleeps:1", profile=profile), range(5)))
    assert compilations(fleet.host, cursor) == 1
    name = artifact(fleet.host).rpartition("/")[2]
    for keep in keeps:
        life = Life(fleet, keep.kuuid)
        life.line("asleep")
        assert name in maps_of(fleet.host, life.unit)
        life.remove()


def test_one_changed_bit_is_found_and_the_module_compiled_again(fleet: Fleet) -> None:
    add(fleet, example("hello-wat/hello"), "hello:1")
    ended(fleet, "hello:1").remove()
    path, cursor = artifact(fleet.host), fleet.host.cursor()
    change = f"chmod 600 {path}; printf X | dd of={path} bs=1 seek=4321 conv=notrunc status=none; chmod 444 {path}"
    fleet.host.run(["sh", "-ec", change])
    ended(fleet, "hello:1").remove()
    assert compilations(fleet.host, cursor) == 1
    fleet.host.wait_journal("was removed: it is not what was written there", MANAGER, cursor)
    assert artifact(fleet.host) == path


def test_what_the_engine_of_a_keep_does_not_take_is_discarded_and_compiled_again_once(fleet: Fleet) -> None:
    """It is whole, and sealed by this host: only the engine itself finds out."""
    digest = add(fleet, example(HELLO), "hello:1")
    ended(fleet, "hello:1").remove()
    path, cursor = artifact(fleet.host), fleet.host.cursor()
    fleet.host.run(["/opt/keepfleet/bin/python", "-I", "-c", STRANGE, CACHE])
    ended(fleet, "hello:1").remove()
    fleet.host.wait_journal(f"was removed: the engine of a keep did not take it, for {digest}", MANAGER, cursor)
    fleet.host.wait_journal(f"compiled {digest}", MANAGER, cursor)
    assert (artifact(fleet.host), compilations(fleet.host, cursor)) == (path, 1)
    fleet.host.run(["/opt/keepfleet/bin/python", "-I", "-c", STRANGE, CACHE])
    ended(fleet, "hello:1").remove()
    ended(fleet, "hello:1").remove()
    assert compilations(fleet.host, cursor) == 1, "each keep compiles it itself from then on"


def test_compiled_code_is_taken_from_no_one_outside_not_even_this_host_s_own(fleet: Fleet) -> None:
    add(fleet, example(HELLO), "hello:1")
    ended(fleet, "hello:1").remove()
    own = Path(f"/proc/{fleet.host.sandbox.pid}/root{artifact(fleet.host)}").read_bytes()
    cursor = fleet.host.cursor()
    add(fleet, own, "native:1")
    for profile in ("standard", "strict"):
        with pytest.raises(KeepfleetError, match="it is a native program") as refused:
            fleet.client().create(module="native:1", start={"workload": None}, profile=profile)
        assert refused.value.kind is ErrorKind.INVALID_MODULE
    waiting = Life.awaiting(fleet)
    reply = waiting.upload(own)
    assert (reply.status, "it is a native program" in reply.error().message) == (422, True)
    waiting.remove()
    with pytest.raises(KeepfleetError, match="unknown field 'compiled'"):
        fleet.client().create(module="hello:1", start={"workload": None, "compiled": own[:16].hex()})
    assert len(fleet.host.run(["ls", CACHE]).stdout.split()) == 2, "the cache has its key, and what it made itself"
    assert not [line for line in _traced(fleet.host, cursor) if "was removed" in line]
    assert fleet.left_over() == []


def _traced(host: Host, cursor: str) -> list[str]:
    return [str(entry.get("MESSAGE")) for entry in host.journal(MANAGER, cursor)]


def test_after_an_upgrade_what_was_compiled_before_is_compiled_in_the_background_before_a_start_needs_it(
    fleet: Fleet,
) -> None:
    digest = add(fleet, example(HELLO), "hello:1")
    ended(fleet, "hello:1").remove()
    fleet.host.run(["/opt/keepfleet/bin/python", "-I", "-c", UPGRADE, CACHE])
    cursor = fleet.host.cursor()
    fleet.restart()
    fleet.host.wait_journal(f"compiled {digest}", MANAGER, cursor)
    ended(fleet, "hello:1").remove()
    assert compilations(fleet.host, cursor) == 1


def test_with_a_full_disk_a_keep_compiles_its_module_itself_and_the_journal_says_so(fleet: Fleet) -> None:
    host = fleet.host
    digest = add(fleet, example(HELLO), "hello:1")
    host.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK},mode=700", "tmpfs", CACHE])
    try:
        fleet.restart()  # it has held the directory open from its start on
        cursor = host.cursor()
        for _ in range(2):
            ended(fleet, "hello:1").remove()
        assert compilations(host, cursor) == 1, "and not at every start"
        host.wait_journal(f"keeps compile {digest} themselves for the next minutes: ", MANAGER, cursor)
        assert host.run(["ls", "-A", CACHE]).stdout.split() == ["key"]
    finally:
        fleet.host.systemctl("stop", MANAGER)
        host.run(["umount", CACHE])
        fleet.restart()


def test_a_cache_that_others_could_enter_is_not_used_and_keeps_start_all_the_same(fleet: Fleet) -> None:
    add(fleet, example("hello-wat/hello"), "hello:1")
    fleet.host.run(["chmod", "755", CACHE])
    try:
        cursor = fleet.host.cursor()
        fleet.restart()
        fleet.host.wait_journal("keeps compile their modules themselves: cannot use", MANAGER, cursor)
        ended(fleet, "hello:1").remove()
        assert compilations(fleet.host, cursor) == 0
    finally:
        fleet.host.run(["chmod", "700", CACHE])
        fleet.restart()


def test_a_compile_bomb_makes_no_keep_and_its_client_gets_the_reason(fleet: Fleet) -> None:
    add(fleet, LONG, "bomb:1")
    add(fleet, modules.sleeps(), "sleeps:1")
    bystander = Life(fleet, run(fleet, "sleeps:1").kuuid)
    for _ in range(2):
        with pytest.raises(KeepfleetError, match="compiling it takes more than 2 s of processor time") as refused:
            fleet.client().create(module="bomb:1", start={"workload": None}, limits={"compile_seconds": 2})
        assert refused.value.kind is ErrorKind.TOO_COMPLEX
    assert bystander.look().state is State.STARTED
    bystander.remove()
    assert fleet.left_over() == []


def test_a_client_is_shown_that_it_waits_and_goes_on_waiting_when_the_manager_is_killed(fleet: Fleet) -> None:
    host = fleet.host
    add(fleet, LONG, "long:1")
    cursor = host.cursor()
    command = ["keepctl", "run", "--rm", "long:1"]
    with host.popen(command, env={"KEEPFLEET_MANAGER": f"127.0.0.1:{fleet.port}"}) as client:
        assert client.stdout is not None
        line = client.stdout.readline()
        assert line.startswith("keepctl: compiling the module, "), line
        fleet.kill()
        started = set[str]()

        def again(entry: Entry) -> bool:
            if message_of(entry).startswith(STARTS):
                started.add(str(entry["__CURSOR"]))
            return len(started) == 2

        host.wait_journal(again, None, cursor)
        assert client.poll() is None
        client.send_signal(signal.SIGINT)
        client.wait()
    assert compilations(host, cursor) == 2
    host.systemctl("kill", "--signal=KILL", "keep-compile@*.service")
    assert fleet.left_over() == []


@pytest.mark.parametrize("point", [Failpoint.COMPILE_AFTER_CALL, Failpoint.COMPILE_AFTER_WRITE])
def test_a_manager_killed_while_it_compiles_leaves_nothing_and_the_next_one_starts_the_module(
    fleet: Fleet, point: Failpoint
) -> None:
    add(fleet, example(HELLO), "hello:1")
    with fleet.killed_at(point), pytest.raises(KeepfleetError):
        run(fleet, "hello:1")
    ended(fleet, "hello:1").remove()
    assert fleet.left_over() == []
    assert len(fleet.host.run(["ls", "-A", CACHE]).stdout.split()) == 2
