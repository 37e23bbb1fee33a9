"""An escape, assumed: native code in the place of the guest, the endpoint, the checker and the loader of real keeps, in
the system's and in a user's own instance, with and without grants. docs/security.md has a row for each attack."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.attack import ATTACKS
from tests.system.attacked import PLACES, Attacked, Reports, install_attacks
from tests.system.fixtures import INSTALLED
from tests.system.fleet import Fleet, free_port
from tests.system.host import Host, layout
from tests.system.life import example
from tools.sandbox.sandbox import Sandbox

USER = "ada"
GRANTED = "/run/granted"
REFUSED = {"EPERM", "EACCES"}
ABSENT = {"ENOENT", "EROFS", "ENOTDIR"}
"""What it was tried on is not there, or is read-only for all."""
NO_PROCESS = {"ESRCH"}
ANSWERS = {
    "make a socket": REFUSED,
    "turn the listener round": REFUSED,
    "reach a bus, a service manager or the keep's control socket": REFUSED,
    "write in another unit's name to the journal": REFUSED | ABSENT,
    "notify systemd in the loader's name": REFUSED,
    "use a socket of systemd's that was left open": set(),
    "read or change another process's memory": REFUSED | NO_PROCESS,
    "take another process's descriptors": REFUSED | NO_PROCESS,
    "signal another process, or change its limits": REFUSED | NO_PROCESS,
    "reach another keep": REFUSED | ABSENT,
    "read or change the host's files": REFUSED | ABSENT,
    "leave what was granted, or change what was granted to be read": REFUSED | ABSENT | {"ELOOP", "EXDEV"},
    "use kernel keys": REFUSED,
    "run a program": REFUSED,
    "start a process": REFUSED,
    "make code": REFUSED | ABSENT,
    "make a namespace or a mount": REFUSED,
    "reach rarely used parts of the kernel": REFUSED,
    "use up the inodes of /run or of a temporary directory": REFUSED | ABSENT | {"EEXIST"},
    "take the control socket away": REFUSED | ABSENT,
    "leave a dump of its memory": REFUSED,
}
"""How each attempt of an attack must be answered."""
RIGHTS = {
    ("loader", "notify systemd in the loader's name"): "it is the loader",
    ("loader", "use a socket of systemd's that was left open"): "it notifies systemd",
    ("loader", "start a process"): "its processes are its forks",
    ("checker", "make code"): "it compiles",
    ("waiting runner", "start a process"): "it forks the checkers",
    ("waiting runner", "make code"): "it maps what was compiled, before the workload's first instruction",
}
"""What a process may do, and why."""
OF_A_USER = {
    ("loader", "signal another process, or change its limits"): "a signal to its children is one to the user's others",
}
"""The same in a user's own instance, where all processes are the user's."""


@pytest.fixture(scope="module")
def attacked(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    """The host, with both managers running."""
    directories = {name: tmp_path_factory.mktemp(name) for name in ("opt", "etc", "shared")}
    for directory in directories.values():
        directory.chmod(0o755)
    install_attacks(prefix, directories["opt"])
    places = {"opt": INSTALLED, "etc": "/etc/keepfleet", "shared": directories["shared"]}
    binds = tuple((str(directories[name]), str(place), name == "opt") for name, place in places.items())
    with Sandbox(f"attacked-{os.getpid()}", layout(binds)) as sandbox, sandbox.network():
        fleet = Fleet(Host(sandbox, directories["shared"]), directories["etc"])
        fleet.install()
        (directories["shared"] / "hello.wasm").write_bytes(example("hello-wat/hello"))
        attacked = Attacked(fleet, USER)
        attacked.prepare_grants(GRANTED, None)
        with attacked.managers_drop_in(GRANTED):
            fleet.configure(callers=_callers(GRANTED))
            fleet.restart()
            yield attacked


def _callers(directory: str) -> str:
    return f'{{"*": {{grant_roots: [{{path: {directory}}}, {{path: {directory}/write, writable: true}}]}}}}'


@pytest.fixture(scope="module")
def users_port(attacked: Attacked) -> int:
    """Where the user's own manager listens."""
    host = attacked.host
    host.with_user_manager(USER)
    host.run(["keepctl", "install", "--user"], user=USER)
    host.run(["keepctl", "init"], user=USER)
    home = host.run(["sh", "-c", "echo ~"], user=USER).stdout.strip()
    attacked.prepare_grants(f"{home}/granted", USER)
    port = free_port()
    settings = f"port: {port}\ncallers: {_callers(f'{home}/granted')}\n"
    host.run(["tee", "--append", f"{home}/.config/keepfleet/manager.yaml"], user=USER, input=settings)
    host.run(["sed", "-i", "0,/^port: /{/^port: /d}", f"{home}/.config/keepfleet/manager.yaml"], user=USER)
    host.systemctl("start", "keep-manager", user=USER)
    return port


def _options(directory: str) -> tuple[str, ...]:
    return (
        "--dir", f"{directory}/read:/read", "--dir", f"{directory}/write:/write:rw", "--secret",
        f"token={directory}/token",
    )  # fmt: skip


KINDS = [
    f"{whose}{what}"
    for whose in ("system", "user")
    for what in ("", ", with grants", ", of a spare", ", of a spare, with grants")
]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Whose instance, what the workload has, and whether its keep was a spare, whose forks wait for their start."""
    return str(request.param)


@pytest.fixture(scope="module")
def reports(kind: str, request: pytest.FixtureRequest, attacked: Attacked) -> Reports:
    """What the processes of one keep reported."""
    user = USER if kind.startswith("user") else None
    port: int = request.getfixturevalue("users_port") if user else attacked.fleet.port
    home = attacked.host.run(["sh", "-c", "echo ~"], user=user).stdout.strip()
    granted = f"{home}/granted" if user else GRANTED
    options = _options(granted) if "grants" in kind else ()
    of_a_spare = "spare" in kind
    return attacked.run(attacked.host.path / "hello.wasm", port, user, options, of_a_spare=of_a_spare)


@pytest.mark.parametrize("place", PLACES)
def test_every_attack_comes_to_nothing(place: str, kind: str, reports: Reports) -> None:
    user = kind.startswith("user")
    expected = kind.endswith("spare") or place != "waiting runner"
    assert set(reports[place]) == (set(ATTACKS) if expected else set())
    found: dict[str, dict[str, str]] = {}
    for attack, tried in reports[place].items():
        if (place, attack) not in RIGHTS and (place, attack) not in (OF_A_USER if user else {}):
            through = {name: how for name, how in tried.items() if how not in ANSWERS[attack]}
            found |= {attack: through} if through else {}
    assert found == {}


def test_nothing_was_forged(attacked: Attacked, reports: Reports) -> None:
    """No line, no state and no descriptor of another's came of what was tried."""
    assert reports
    assert attacked.host.journal(MESSAGE="forged") == []
    assert "forged" not in attacked.host.run(["systemctl", "show", "--property=StatusText", "*"]).stdout
    assert "reception only permitted" not in attacked.host.run(["journalctl", "--no-pager"]).stdout


def test_every_attack_has_its_answers() -> None:
    assert set(ANSWERS) == set(ATTACKS)
