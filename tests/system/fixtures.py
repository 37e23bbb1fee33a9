"""One host for all system tests of a worker: a private systemd with keepfleet installed as an operator would.

A plugin of `tests/conftest.py`, for tests/system and tests/rare.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from keep_client.peer import ConnectionFailed
from keep_protocol.errors import KeepfleetError
from tests.system.fleet import Fleet
from tests.system.host import Host, layout, message_of
from tests.system.life import Bystanders, Life
from tools.sandbox import linux
from tools.sandbox.sandbox import Sandbox

ROOT = Path(__file__).resolve().parent.parent.parent
INSTALLED = "/opt/keepfleet"
SHOWN_LINES = 100
"""Journal lines shown with a failed test: a creation, an upload and a kill write about thirty."""
_BEGAN = pytest.StashKey[float]()
_MACHINE_S_NETWORK = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
"""That of this process until it has a host, whose network it then enters."""


@pytest.fixture(scope="session")
def prefix() -> Path:
    """The installed keepfleet that `./run test` built, or, without it, the one `./run prefix` builds."""
    given = os.environ.get("KEEPFLEET_TEST_PREFIX")
    if given:
        return Path(given)
    built = subprocess.run([ROOT / "run", "prefix"], stdout=subprocess.PIPE, text=True, check=True)
    return Path(built.stdout.strip())


@pytest.fixture(scope="session")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The host's /etc/keepfleet, so that tests outside can read its certificates."""
    return tmp_path_factory.mktemp("etc-keepfleet")


@pytest.fixture(scope="session")
def host(prefix: Path, configuration: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """The session's host; one systemd for all tests, ended and removed with the session, Ctrl-C included."""
    shared = tmp_path_factory.mktemp("shared")
    for directory in (shared, configuration):
        directory.chmod(0o755)
    binds = (
        (str(prefix), INSTALLED, True),
        (str(configuration), "/etc/keepfleet", False),
        (str(shared), str(shared), False),
    )
    with Sandbox(f"tests-{os.getpid()}", layout(binds)) as sandbox, sandbox.network():
        yield Host(sandbox, shared)


@pytest.fixture(scope="module", autouse=True)
def network(request: pytest.FixtureRequest) -> Iterator[None]:
    """A module without use for the host is in the machine's network, which may have a way to a registry."""
    module: ModuleType = request.module
    items = [item for item in request.session.items if getattr(item, "module", None) is module]
    if any("host" in getattr(item, "fixturenames", ()) for item in items):
        yield
        return
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(_MACHINE_S_NETWORK)
        yield
    finally:
        _enter(before)
        os.close(before)


def _enter(network: int) -> None:
    """Changes the calling thread's network where it is another one; so that no right is needed for nothing."""
    if not os.path.samestat(os.fstat(network), os.stat("/proc/thread-self/ns/net")):
        linux.setns(network, linux.CLONE_NEWNET)


@pytest.fixture(scope="session")
def installed_fleet(host: Host, configuration: Path) -> Fleet:
    """The session's manager, started once. Tests use `fleet`."""
    fleet = Fleet(host, configuration)
    fleet.install()
    return fleet


@pytest.fixture(scope="module")
def bystanders(fleet: Fleet) -> Bystanders:
    """Two keeps besides those that a module's tests are about; its `fleet` must be the module's own."""
    return Bystanders(fleet)


@pytest.fixture
def undisturbed(fleet: Fleet, bystanders: Bystanders) -> Iterator[None]:
    """After the test the bystanders are as they were, and nothing of any other keep is left, nor is after a failure."""
    yield
    left = fleet.left_over(bystanders.owns)
    if left:
        with contextlib.suppress(ConnectionFailed):
            fleet.remove_all(bystanders.owns)
        fleet.end_units([unit for unit in fleet.keep_units() if not bystanders.owns(unit)])
    bystanders.check()
    assert left == []


def module_s_fleet(installed_fleet: Fleet) -> Iterator[Fleet]:
    """The manager of a module whose tests remove their own keeps: `fleet = pytest.fixture(scope="module")(…)`."""
    yield installed_fleet
    installed_fleet.clear()


@pytest.fixture
def life(fleet: Fleet) -> Iterator[Life]:
    """A new keep, removed after the test."""
    life = Life.create(fleet)
    yield life
    with contextlib.suppress(KeepfleetError):
        fleet.client().remove(life.kuuid)


@pytest.fixture
def fleet(installed_fleet: Fleet) -> Iterator[Fleet]:
    """The manager, running and without keeps; what a test leaves is ended after it."""
    yield installed_fleet
    installed_fleet.clear()


def _host_of(item: pytest.Item) -> Host | None:
    arguments = getattr(item, "funcargs", None) or {}  # none when all of the item's fixtures have ended
    value = arguments.get("host")
    if value is None and (fleet := arguments.get("fleet")):
        value = fleet.host
    return value if isinstance(value, Host) else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    """Remembers when the test began."""
    item.stash[_BEGAN] = time.time()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows what its host's journal got meanwhile."""
    report = yield
    host = _host_of(item)
    if report.failed and host and host.sandbox.pid:
        try:
            lines = [
                f"{entry.get('SYSLOG_IDENTIFIER', '?')}: {message_of(entry)}"
                for entry in host.latest(SHOWN_LINES)
                if int(entry["__REALTIME_TIMESTAMP"]) >= item.stash[_BEGAN] * 1e6
            ]
        except Exception as error:  # noqa: BLE001 - the test may have failed for the same reason; the run goes on
            lines = [f"cannot be read: {error!r}"]
        report.sections.append(("the host's journal", "\n".join(lines)))
    return report
