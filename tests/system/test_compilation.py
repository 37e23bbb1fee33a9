"""Compilations on a real systemd: each in a unit of its own, which touches its three files and nothing else, and whose
end costs no other keep anything."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from keep_manager.compilation import Wanted
from keep_manager.compilations import Compilations
from keep_manager.failpoints import VARIABLE, Failpoint
from keep_manager.systemd.compile_units import PATTERN, CompileUnits
from keep_manager.tasks import Group
from keep_protocol.compiling import End, Job
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.spec import Profile
from module_store.artifacts import Artifact, Artifacts
from module_store.engine import engine_of
from module_store.store import Store
from tests.system import hostile, inside
from tests.system.fleet import Fleet
from tests.system.host import PAUSE_SECONDS, Host, until
from tests.system.life import Bystanders, drop_in, example
from tests.system.probe import SECRETS

SCORE = 0.2
"""`systemd-analyze security`, 0 to 10: a keep's."""
LONG = hostile.in_loops(200, 1000)
"""Compiles for half a minute."""
USER = "ada"
COMPILE = "keep-compile@.service"
JSON_BYTES = 1 << 20
KILLED = "SIGSYS"
MANAGER = """
import asyncio, io, os, sys
from keep_manager.compilation import Wanted
from keep_manager.compilations import Compilations
from keep_manager.places import bus_address, trees
from keep_manager.systemd.compile_units import CompileUnits
from keep_manager.systemd.roots import Roots
from keep_manager.tasks import Group
from module_store.artifacts import Artifacts
from module_store.store import Store

async def main():
    module = sys.stdin.buffer.read()
    store, cache = Store.create(sys.argv[1] + "/store"), Artifacts(sys.argv[1] + "/artifacts")
    async with Group() as tasks:
        units = CompileUnits(tasks, bus_address(sys.argv[2]))
        await units.open()
        made = Compilations(tasks, cache, store.open_object, units, Roots(trees(sys.argv[2])).path)
        await made.open()
        artifact = await made.get(Wanted(store.add(io.BytesIO(module)).digest))
        print(os.pread(artifact.descriptor, 4, 0), artifact.size)
        await units.close()

asyncio.run(main())
"""
"""A manager's compilations and nothing else of it, in a process inside."""


@pytest.fixture(scope="module")
def fleet(installed_fleet: Fleet) -> Iterator[Fleet]:
    yield installed_fleet
    installed_fleet.clear()


@pytest.fixture(autouse=True)
def nothing_left(fleet: Fleet) -> Iterator[None]:
    yield
    assert left(fleet.host) == [], "no unit of a compilation is left, in whatever state"


def left(host: Host) -> list[str]:
    return host.units(PATTERN)


class Parts:
    """A manager's compilations in the test's own process, over the systemd inside."""

    def __init__(self, tasks: Group, host: Host, place: Path) -> None:
        self.host, self.inner = host, f"/proc/{host.sandbox.pid}/root"
        self.store, self.artifacts = Store.create(str(place / "store")), Artifacts(str(place / "artifacts"))
        self.units = CompileUnits(tasks, f"unix:path={self.inner}/run/dbus/system_bus_socket")
        self.compilations = Compilations(
            tasks, self.artifacts, self.store.open_object, self.units, self._root, self._engine
        )
        self._tree = inside.root_of(host)

    async def _root(self) -> str:
        return self._tree

    def _engine(self, root: str) -> str:
        return engine_of(self.inner + root)

    def wanted(self, module: bytes, job: Job = Job()) -> Wanted:  # noqa: B008 - a record cannot change
        return Wanted(self.store.add(io.BytesIO(module)).digest, job)

    async def get(self, wanted: Wanted) -> Artifact:
        artifact = await self.compilations.get(wanted)
        os.close(artifact.descriptor)
        return artifact


@asynccontextmanager
async def parts_on(host: Host, place: Path) -> AsyncIterator[Parts]:
    async with Group() as tasks:
        made = Parts(tasks, host, place)
        await made.units.open()
        await made.compilations.open()
        yield made
        await made.units.close()
        made.artifacts.close()
        made.store.close()


@pytest.fixture
async def parts(fleet: Fleet, host: Host, tmp_path: Path) -> AsyncIterator[Parts]:
    async with parts_on(host, tmp_path) as made:
        yield made


async def until_running(host: Host) -> str:
    """The unit that compiles, once its program has read the module."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for unit in await asyncio.to_thread(left, host):
            shown = await asyncio.to_thread(host.show, unit, "MainPID", "ActiveState")
            if shown["ActiveState"] == "activating" and shown["MainPID"] not in ("", "0"):
                return unit
        await asyncio.sleep(PAUSE_SECONDS)
    raise AssertionError("no compilation began")


# --- what it does ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", Profile)
async def test_a_module_is_compiled_by_a_unit_once_for_all_who_ask_concurrently(parts: Parts, profile: Profile) -> None:
    wanted, cursor = parts.wanted(example("hello-c/hello"), Job(profile=profile)), parts.host.cursor()
    got = await asyncio.gather(*[parts.get(wanted) for _ in range(5)])
    assert {artifact.size for artifact in got} == {got[0].size}
    await parts.get(wanted)
    lines = [str(entry.get("MESSAGE")) for entry in parts.host.journal(since_cursor=cursor, _PID="1")]
    assert len([line for line in lines if line.startswith("Starting keep-compile@")]) == 1


async def test_a_module_that_is_refused_says_why_in_the_checker_s_words(parts: Parts) -> None:
    with pytest.raises(KeepfleetError, match="imports what a keep does not have: 'env' 'open_the_door'") as caught:
        await parts.get(parts.wanted(example("unknown-import/unknown-import")))
    assert caught.value.kind is ErrorKind.INVALID_MODULE


@pytest.mark.parametrize(
    ("module", "job", "words"),
    [
        (LONG, Job(seconds=1), "takes more than 1 s of processor time"),
        (hostile.BOMBS["a million nested blocks"](), Job(memory_bytes=256 << 20), "takes more than 256 MiB of memory"),
    ],
    ids=["time", "memory"],
)
async def test_a_compile_bomb_ends_only_itself(
    parts: Parts, bystanders: Bystanders, module: bytes, job: Job, words: str
) -> None:
    bomb, good = parts.wanted(module, job), parts.wanted(example("hello-c/hello"))
    results = await asyncio.gather(parts.get(bomb), parts.get(good), return_exceptions=True)
    assert isinstance(results[0], KeepfleetError)
    assert (results[0].kind, words in results[0].message) == (ErrorKind.TOO_COMPLEX, True)
    assert isinstance(results[1], Artifact)
    bystanders.check()


async def test_a_compiler_killed_from_outside_says_nothing_of_the_module_which_can_be_tried_again(parts: Parts) -> None:
    wanted = parts.wanted(LONG)
    asked = asyncio.create_task(parts.get(wanted))
    unit = await until_running(parts.host)
    await asyncio.to_thread(parts.host.systemctl, "kill", "--signal=KILL", unit)
    with pytest.raises(KeepfleetError, match="killed from outside") as caught:
        await asked
    assert caught.value.kind is ErrorKind.UNAVAILABLE


GATE = "/run/gate"


@pytest.fixture
def gate(host: Host) -> Iterator[str]:
    """Each compilation waits for who writes to this pipe."""
    host.run(["mkfifo", "--mode=644", GATE])
    waits = f"ExecStartPre={inside.PYTHON} -c \"open('{GATE}').close()\""
    with drop_in(host, COMPILE, f"[Service]\nBindReadOnlyPaths={GATE}\n{waits}\n"):
        yield GATE
    host.remove(GATE)


async def test_a_compilation_goes_on_when_the_bus_goes_away_and_its_result_arrives(parts: Parts, gate: str) -> None:
    asked = asyncio.create_task(parts.get(parts.wanted(example("hello-c/hello"))))
    host = parts.host
    await asyncio.to_thread(until, lambda: left(host), lambda: "no compilation began")
    await asyncio.to_thread(host.systemctl, "kill", "--signal=KILL", "dbus.service")
    assert len(await asyncio.to_thread(left, host)) == 1, "the bus is back"
    assert not asked.done()
    await asyncio.to_thread(host.run, ["sh", "-c", f": >{gate}"])
    assert (await asked).size > 0


async def test_what_is_stopped_with_its_manager_leaves_no_unit(host: Host, tmp_path: Path) -> None:
    async with parts_on(host, tmp_path) as parts:
        asked = asyncio.create_task(parts.get(parts.wanted(LONG)))
        await until_running(host)
        asked.cancel()
    # The next manager's first step, where the last one's connection was gone before it could stop the unit.
    async with parts_on(host, tmp_path):
        assert left(host) == []


# --- what it may -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(fleet: Fleet) -> dict[str, Any]:
    """The report of the probe in the compiler's place."""

    async def run(tasks: Group, bus: str, root: str, files: inside.Files) -> object:
        units = CompileUnits(tasks, bus)
        await units.open()
        try:
            return await units.run("0" * 16, Job(), root, files, background=False)
        finally:
            await units.close()

    return inside.probe_in_a_oneshot(fleet.host, COMPILE, fleet.port, fleet.manager_pid, run)


def test_it_reaches_no_bus_no_network_and_no_manager(found: dict[str, Any]) -> None:
    attempts = found["attempts"]
    assert {how for name, how in attempts.items() if name.startswith("connect /")} == {"ENOENT"}
    assert attempts["connect to the manager"] == "EAFNOSUPPORT"
    assert {how for name, how in attempts.items() if name.startswith("socket ")} == {"EAFNOSUPPORT"}
    assert found["interfaces"] == ["lo"]


def test_it_can_write_nowhere_not_in_temporary_places_either(found: dict[str, Any]) -> None:
    written = {name for name, how in found["attempts"].items() if name.startswith("write in ") and how == "done"}
    assert written == set()
    assert {place for place, flag in found["mounts"].items() if "w" in flag} == set()


def test_it_executes_nothing_but_the_interpreter(found: dict[str, Any]) -> None:
    tried = {name: how for name, how in found["attempts"].items() if name.startswith(("execute", "map code"))}
    assert len(tried) == 11
    assert {how for how in tried.values() if how == "done"} == set()


def test_no_system_call_that_it_does_not_need_is_there(found: dict[str, Any]) -> None:
    calls = {name: how for name, how in found["attempts"].items() if name.startswith("call ")}
    assert len(calls) > 20
    assert {name: how for name, how in calls.items() if how == "done"} == {}


def test_it_sees_no_file_of_the_host_s(found: dict[str, Any]) -> None:
    seen = {name: how for name, how in found["attempts"].items() if name.startswith("read /")}
    assert len(seen) == len(SECRETS)
    assert {name: how for name, how in seen.items() if how not in ("ENOENT", "EACCES", "empty")} == {}
    assert found["descriptors"][:3] == [0, 1, 2]
    assert len(found["descriptors"]) == 4, "its three files, and that which lists them"


async def test_its_unit_is_a_user_s_of_its_own_limited_and_little_exposed(parts: Parts) -> None:
    asked = asyncio.create_task(parts.get(parts.wanted(LONG, Job(memory_bytes=512 << 20))))
    host, unit = parts.host, await until_running(parts.host)
    host.systemctl("kill", "--signal=STOP", unit)  # it is looked at, and need not compile meanwhile
    try:
        shown = host.show(unit, "MemoryMax", "TasksMax", "Slice", "MainPID", "Environment", "UID")
        assert shown["MemoryMax"] == str((512 + 128) << 20)
        assert (shown["TasksMax"], shown["Slice"]) == ("4", "keep-compile.slice")
        assert int(shown["UID"]) >= 61184, "a dynamic user's (man systemd.exec)"
        fds = host.run(["ls", f"/proc/{shown['MainPID']}/fd"]).stdout.split()
        assert {"0", "1", "2"} <= set(fds)
        said = host.run(["systemd-analyze", "security", "--no-pager", unit]).stdout
        exposure = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
        assert exposure is not None
        assert float(exposure[1]) <= SCORE
        verified = host.run(["systemd-analyze", "verify", "--man=no", f"/run/systemd/transient/{unit}"], check=False)
        lines = (verified.stdout + verified.stderr).splitlines()
        assert [line for line in lines if "/keepfleet/python is not executable" not in line] == []
    finally:
        host.systemctl("kill", "--signal=KILL", unit)
        with pytest.raises(KeepfleetError):
            await asked


async def test_without_the_installed_drop_in_nothing_is_started(parts: Parts) -> None:
    place = "/etc/systemd/system/keep-compile@.service.d/10-keepfleet.conf"
    parts.host.run(["mv", place, "/etc/moved.conf"])
    parts.host.systemctl("daemon-reload")
    try:
        with pytest.raises(KeepfleetError, match="run keepctl install") as caught:
            await parts.get(parts.wanted(example("hello-c/hello")))
        assert caught.value.kind is ErrorKind.CONFIGURATION
    finally:
        parts.host.run(["mv", "/etc/moved.conf", place])
        parts.host.systemctl("daemon-reload")


async def test_a_unit_by_another_s_name_is_ended_and_this_one_made(parts: Parts) -> None:
    """As a manager that was killed leaves one, where another asks before it has looked."""
    files = [os.open("/tmp", os.O_TMPFILE | os.O_RDWR) for _ in range(6)]
    os.write(files[0], LONG)
    os.write(files[3], example("hello-c/hello"))
    root = inside.root_of(parts.host)
    first = asyncio.create_task(
        parts.units.run("1" * 16, Job(), root, (files[0], files[1], files[2]), background=False)
    )
    await until_running(parts.host)
    assert await parts.units.run("1" * 16, Job(), root, (files[3], files[4], files[5]), background=False) is None
    assert os.fstat(files[4]).st_size > 0
    ended = await first
    assert ended is None or ended[0] in (End.KILLED, End.EXITED, End.TIMEOUT)
    for file in files:
        os.close(file)


IN_A_KEEP = """
import os, sys
sys.path.append("/keepfleet/packages")
from app_loader.check import imports
from app_loader.engine.compiled import Compiled, Module
from app_loader.engine.settings import settings_for, make_engine
from app_loader.engine.store import Linker, Store, Wasi
from keep_isolation.landlock import READ
from keep_isolation.locks import lock_loader, lock_loader_files, lock_runner
from keep_protocol.limits import Limits
from keep_protocol.workload import Workload
settings = settings_for(0, Limits(), Workload())
engine = make_engine(settings)
lock_loader()
lock_loader_files([(0, READ)], (), ())
if os.fork():
    os.wait()
else:
    module = Module.load(engine, 0)
    maps = open("/proc/self/maps").read().splitlines()
    found = sorted({line.split()[1] for line in maps if "artifacts/" in line})
    try:
        os.close(os.open("/proc/self/fd/0", os.O_RDWR))
    except OSError as error:
        found.append(os.strerror(error.errno))
    linker, store = Linker(engine), Store(engine)
    store.take(Wasi())
    function = linker.replace_exit(store)
    lock_runner()
    instance = linker.instantiate(store, module)
    os.write(1, f"{settings.images} {found}\\n".encode())
    os.read(2, 1)  # until the test has looked
"""
"""What a keep's loader and runner do with compiled code that they were passed, and in their order."""


async def test_two_keeps_map_one_file_by_its_descriptor_behind_all_that_isolates_them_and_share_it(
    parts: Parts,
) -> None:
    host, artifact = parts.host, await parts.compilations.get(parts.wanted(example("words-rust/words")))
    host.run(["tee", "/etc/in-a-keep.py"], input=IN_A_KEEP)
    (first, first_s), (second, second_s), (go_on, gone_on) = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
    shown = "BindReadOnlyPaths=/etc/in-a-keep.py:/run/in-a-keep.py\n"
    with drop_in(host, COMPILE, f"[Service]\n{shown}ExecStart=\nExecStart={inside.PYTHON} /run/in-a-keep.py\n"):
        root = inside.root_of(host)
        keeps = [
            asyncio.create_task(
                parts.units.run(name * 16, Job(), root, (artifact.descriptor, output, go_on), background=False)
            )
            for name, output in (("a", first_s), ("b", second_s))
        ]
        said = [await asyncio.to_thread(os.read, file, 4096) for file in (first, second)]
        units = await asyncio.to_thread(left, host)
        shares = [shared_of(host, unit, artifact.key.name) for unit in units]
        os.close(gone_on)
        assert await asyncio.gather(*keeps) == [None, None]
    assert said == [b"True ['r--p', 'r-xp', 'Permission denied']\n"] * 2
    assert len(shares) == 2
    for shared, copied in shares:
        assert shared > 0
        assert copied == 0
    for file in (first, first_s, second, second_s, go_on, artifact.descriptor):
        os.close(file)


def shared_of(host: Host, unit: str, name: str) -> tuple[int, int]:
    """Of the pages of a file that a unit's last process has mapped, how many kB others map too, and how many it copied.

    A clean page that this process alone maps says nothing: which neighbours of a page the kernel maps with it depends
    on what it has read of the file so far.
    """
    group = host.show(unit, "ControlGroup")["ControlGroup"]
    pid = host.run(
        ["sh", "-c", f"cat /sys/fs/cgroup/systemd{group}/cgroup.procs || cat /sys/fs/cgroup{group}/cgroup.procs"]
    )
    smaps = host.run(["cat", f"/proc/{pid.stdout.split()[-1]}/smaps"]).stdout
    found = {"Shared_Clean": 0, "Private_Dirty": 0}
    in_file = False
    for line in smaps.splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            in_file = name in line
        elif in_file and (match := re.fullmatch(r"(\w+): +([0-9]+) kB", line)) and match[1] in found:
            found[match[1]] += int(match[2])
    return found["Shared_Clean"], found["Private_Dirty"]


# --- a manager that dies ---------------------------------------------------------------------------------------------


@pytest.fixture
def place(fleet: Fleet, host: Host) -> Iterator[str]:
    directory = "/var/lib/keepfleet-test"
    host.run(["mkdir", "--mode=700", directory])
    yield directory
    host.run(["rm", "--recursive", directory])


def manager(host: Host, place: str, point: Failpoint | None = None) -> subprocess.CompletedProcess[str]:
    """A manager that compiles a module, or kills itself at `point`."""
    module = Path(host.path, "module.wasm")
    module.write_bytes(example("hello-c/hello"))
    command = ["sh", "-c", 'exec /opt/keepfleet/bin/python -I -c "$1" "$2" system <"$3"', "-"]
    environment = {} if point is None else {VARIABLE: point.value}
    return host.run([*command, MANAGER, place, str(module)], env=environment, check=False)


@pytest.mark.parametrize("point", [point for point in Failpoint if point.name.startswith("COMPILE")])
def test_a_manager_killed_at_any_step_leaves_no_half_artifact_and_the_next_one_compiles(
    host: Host, place: str, point: Failpoint
) -> None:
    assert manager(host, place, point).returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
    done = manager(host, place)
    assert (done.returncode, done.stdout.startswith("b'\\x7fELF'")) == (0, True), done.stderr
    names = host.run(["ls", "--almost-all", f"{place}/artifacts"]).stdout.split()
    assert sorted(map(len, names)) == [len("key"), 64]
    assert manager(host, place).stdout == done.stdout


# --- a user's own manager --------------------------------------------------------------------------------------------


def test_a_user_s_own_manager_compiles_too_in_what_a_user_s_manager_can_isolate(host: Host, fleet: Fleet) -> None:
    user = host.with_user_manager(USER)
    home = host.run(["sh", "-c", "echo ~"], user=user).stdout.strip()
    host.run(["keepctl", "install", "--user"], user=user)
    module = Path(host.path, "module-of-a-user.wasm")
    module.write_bytes(example("hello-c/hello"))
    command = ["sh", "-c", 'exec /opt/keepfleet/bin/python -I -c "$1" "$2" user <"$3"', "-"]
    place = f"{home}/compiled"
    host.run(["mkdir", "--mode=700", place], user=user)
    for _ in range(2):
        done = host.run([*command, MANAGER, place, str(module)], user=user)
        assert done.stdout.startswith("b'\\x7fELF'"), done.stderr
    assert host.units(PATTERN, user=user) == []
