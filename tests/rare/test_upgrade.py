"""Upgrades and downgrades on a real host: every keep goes on with the version that made it, and nothing is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from keep_protocol.states import State
from tests.system import modules
from tests.system.fleet import Fleet
from tests.system.host import Host
from tests.system.life import Life
from tests.system.versions import COMPILED, ROOT, VERSIONS, Installation, download, imported, versions_of
from tools.sandbox.layout import Layout
from tools.sandbox.sandbox import Sandbox

OLDER_ENGINE = Path(__file__).with_name("older-engine.lock")
OLD, NEW = "0.1.0-old", "0.2.0-new"
PRINTED = b"printed by the guest\n"


@pytest.fixture(scope="module")
def older_engine(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a wasmtime whose compiled artifacts the lock file's cannot load, nor the other way round."""
    (wheel,) = download(prefix, OLDER_ENGINE, tmp_path_factory.mktemp("engine"))
    return wheel


@pytest.fixture(scope="module")
def installation(prefix: Path, older_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A host of its own, because versions of keepfleet are switched on it."""
    directories = {name: tmp_path_factory.mktemp(name) for name in ("opt", "programs", "etc", "shared")}
    for directory in directories.values():
        directory.chmod(0o755)
    (directories["opt"] / "versions").mkdir()
    places = {"opt": ROOT, "programs": "/usr/local/bin", "etc": "/etc/keepfleet", "shared": directories["shared"]}
    compiled = prefix.parent / "compiled"
    compiled.mkdir(exist_ok=True)
    binds = (
        *((str(directories[name]), str(place), False) for name, place in places.items()),
        (str(compiled), COMPILED, False),
    )
    with Sandbox(f"upgrade-{os.getpid()}", Layout(binds)) as sandbox, sandbox.network():
        fleet = Fleet(Host(sandbox, directories["shared"]), directories["etc"])
        yield Installation(fleet, directories["opt"], prefix, {OLD: older_engine})


@pytest.fixture
def fleet(installation: Installation) -> Iterator[Fleet]:
    """The manager of whatever version; a test installs what it is about."""
    yield installation.fleet
    installation.fleet.clear()


def service(fleet: Fleet) -> Life:
    """A keep whose workload is started again whatever ends it; it runs."""
    module = fleet.host.path / "service.wasm"
    module.write_bytes(modules.sleeps())
    command = ["keepctl", "run", "--detach", "--restart", "always", "--time", "1h", str(module)]
    kuuid = fleet.host.run(command, env={"KEEPFLEET_MANAGER": f"127.0.0.1:{fleet.port}"}).stdout
    life = Life(fleet, int(kuuid))
    life.shown("running the workload")
    return life


def finish(life: Life) -> None:
    """Uploads a workload, which runs to its end."""
    assert life.upload(modules.says(PRINTED, code=7)).status == 200
    outcome = life.until(State.STARTED, State.COMPLETE).outcome
    assert outcome is not None and outcome.exit_code == 7, life.info
    assert PRINTED.decode().strip() in life.output()


@pytest.mark.parametrize(("before", "after"), [(OLD, NEW), (NEW, OLD)], ids=["upgrade", "downgrade"])
def test_every_keep_goes_on_with_its_own_version_and_a_new_one_has_the_new(
    installation: Installation, fleet: Fleet, before: str, after: str
) -> None:
    installation.begin_with(before)
    idle, awaiting, running, restarting = Life.create(fleet), Life.awaiting(fleet), Life.running(fleet), service(fleet)
    lives = (idle, awaiting, running, restarting)
    seen, pids = [life.look() for life in lives], [life.loader_pid for life in lives]

    installation.install(after)

    assert [life.look() for life in lives] == seen
    assert [life.loader_pid for life in lives] == pids
    assert [versions_of(life) for life in lives] == [{before}] * 4
    for life in (idle, awaiting):  # what systemd starts again is the version it was made with
        life.kill_loader()
        assert versions_of(life) == {before}
    for round_s_process in range(2):  # and so is a workload, whose artifact only its own engine can load
        cursor = fleet.host.cursor()
        restarting.signal(restarting.runner_pid, signal.SIGKILL)
        restarting.line("-> running", cursor)
        assert versions_of(restarting) == {before}, round_s_process
    idle.start()
    for life in (idle, awaiting):
        finish(life)
        assert imported(life) == {(package, before) for package in ("keep_loader", "app_loader", "keep_protocol")}
    fresh = Life.awaiting(fleet)
    assert versions_of(fresh) == {after}
    finish(fresh)
    assert [life.look().state for life in (running, restarting)] == [State.STARTED] * 2


def test_an_idle_keep_imports_what_it_needs_later_from_its_own_version(
    installation: Installation, fleet: Fleet
) -> None:
    installation.begin_with(OLD)
    idle = Life.create(fleet)
    first = imported(idle)
    installation.install(NEW)
    idle.start()
    finish(idle)
    assert {version for _, version in imported(idle)} == {OLD}
    assert ("app_loader", OLD) in imported(idle) - first, "it imported nothing later, so this shows nothing"


def test_a_version_is_removed_by_the_first_installation_that_finds_it_unused(
    installation: Installation, fleet: Fleet
) -> None:
    installation.begin_with(OLD)
    removal = f"removed   {VERSIONS}/{OLD}\n"
    life = Life.awaiting(fleet)
    assert removal not in installation.install(NEW), "its manager ran"
    assert installation.names() == {OLD, NEW}
    assert removal in installation.install(NEW), "a keep does not need it: it has a root of its own"
    assert installation.names() == {NEW}
    life.kill_loader()
    assert versions_of(life) == {OLD}
    finish(life)


def test_a_unit_that_names_no_root_starts_nothing(installation: Installation, fleet: Fleet) -> None:
    installation.begin_with(NEW)
    host, unit = fleet.host, "keep@7.service"
    call = ["busctl", "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1"]
    call += ["org.freedesktop.systemd1.Manager", "StartTransientUnit", "ssa(sv)a(sa(sv))", unit, "fail", "0", "0"]
    cursor = host.cursor()
    host.run(call)
    host.wait_journal("status=203/EXEC", unit=unit, since_cursor=cursor)
    host.systemctl("stop", unit)
    host.systemctl("reset-failed", unit, check=False)
    assert fleet.left_over() == []
