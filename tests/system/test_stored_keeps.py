"""Keeps that run modules of the manager's store: no upload, no endpoint, and what was verified is what runs."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Iterator

import pytest

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.outcome import OutcomeKind
from keep_protocol.spec import Kind
from keep_protocol.states import State
from tests.system import modules
from tests.system.fleet import Fleet
from tests.system.life import Life, example

STORE = "/var/lib/keepfleet/store"


def add(fleet: Fleet, module: bytes, reference: str) -> str:
    """Adds a module to the manager's store; its digest."""
    return fleet.store().add(io.BytesIO(module), reference).digest


@pytest.fixture
def digest(fleet: Fleet) -> Iterator[str]:
    yield add(fleet, example("hello-wat/hello"), "hello:1")
    fleet.host.run(["rm", "-rf", STORE])


def keepctl(fleet: Fleet, *words: str) -> subprocess.CompletedProcess[str]:
    """What a person types on the host, who has nothing on standard input."""
    return fleet.host.run(["keepctl", *words], env={"KEEPFLEET_MANAGER": f"127.0.0.1:{fleet.port}"}, check=False)


def run(fleet: Fleet, module: str, workload: dict[str, object] | None = None, **limits: int) -> KeepInfo:
    """A keep of the store that was started by its creation."""
    return fleet.client().create(limits=limits, module=module, start={"workload": workload})


def test_a_module_of_the_store_runs_without_an_upload(fleet: Fleet, digest: str) -> None:
    info = run(fleet, "hello:1")
    assert (info.kind, info.port, info.fingerprint, info.certificate) == (Kind.STORED, 0, "", "")
    assert info.module is not None
    assert (info.module.digest, info.module.name) == (digest, "hello:1")
    life = Life(fleet, info.kuuid)
    life.until(State.STARTED, State.COMPLETE)
    outcome = life.info.outcome
    assert outcome is not None
    assert (outcome.kind, outcome.text) == (OutcomeKind.EXITED, "exited 0")
    assert outcome.output_bytes == len("Hello from WAT, inside a keep!\n")
    assert outcome.wall_seconds is not None and outcome.cpu_seconds is not None and outcome.peak_bytes is not None
    life.remove()
    assert fleet.left_over() == []


def test_a_reference_that_moves_before_the_start_does_not_matter(fleet: Fleet, digest: str) -> None:
    made = fleet.client().create(module="hello:1")
    assert made.state is State.LISTENING
    add(fleet, modules.says(b"another\n"), "hello:1")
    fleet.host.run(["keepctl", "store", "gc"])
    life = Life(fleet, made.kuuid)
    life.info = fleet.client().run_stored(made.kuuid)
    life.until(State.STARTED, State.COMPLETE)
    assert life.info.module is not None
    assert life.info.module.digest == digest
    assert life.info.outcome is not None
    assert life.info.outcome.output_bytes == len("Hello from WAT, inside a keep!\n")
    life.remove()


def test_a_damaged_object_is_refused_and_leaves_no_keep(fleet: Fleet, digest: str) -> None:
    path = f"{STORE}/objects/{digest.removeprefix('sha256:')}"
    fleet.host.run(["sh", "-ec", f"chmod 600 {path}; printf x >>{path}; chmod 400 {path}"])
    with pytest.raises(KeepfleetError, match="its contents are not those of its digest"):
        run(fleet, "hello:1")
    assert fleet.left_over() == []


def test_what_is_no_module_is_refused_with_the_reason_before_there_is_a_keep(fleet: Fleet, digest: str) -> None:
    add(fleet, b"not a module at all", "text:1")
    with pytest.raises(KeepfleetError, match="cannot take the module: it does not begin as a WebAssembly") as refused:
        run(fleet, "text:1")
    assert refused.value.kind is ErrorKind.INVALID_MODULE
    assert fleet.left_over() == []


def test_it_runs_again_by_its_policy_though_the_store_has_gone(fleet: Fleet, digest: str) -> None:
    add(fleet, modules.says(b"once more\n", code=3), "fails:1")
    info = run(fleet, "fails:1", {"restart": "on-failure"})
    fleet.host.run(["rm", "-rf", STORE])
    life = Life(fleet, info.kuuid)
    life.until(State.STARTED, State.ERROR)
    assert life.info.restarts == 4
    assert "gave it up after starting it again 4 times" in life.info.detail
    life.remove()


def test_a_loader_that_is_killed_is_followed_by_one_that_runs_the_module_again(fleet: Fleet, digest: str) -> None:
    add(fleet, modules.sleeps(), "sleeps:1")
    info = run(fleet, "sleeps:1", {"restart": "always"})
    life = Life(fleet, info.kuuid)
    life.line("asleep")
    fleet.host.run(["systemctl", "kill", "--kill-whom=main", "--signal=KILL", life.unit])
    life.shown("running the workload")
    assert life.look().state is State.STARTED
    life.remove()


def test_a_manager_that_is_killed_meanwhile_finds_it_again(fleet: Fleet, digest: str) -> None:
    add(fleet, modules.sleeps(), "sleeps:1")
    info = run(fleet, "sleeps:1")
    fleet.kill()
    life = Life(fleet, info.kuuid)
    assert (life.info.kind, life.info.state) == (Kind.STORED, State.STARTED)
    assert life.info.module is not None
    assert life.info.module.digest.startswith("sha256:")
    life.remove()


def test_keepctl_runs_a_module_of_the_store_and_shows_all_it_says(fleet: Fleet, digest: str) -> None:
    add(fleet, modules.says(b"first words\n", code=3), "says:1")
    for wanted, code, text in (
        ("hello:1", 0, "Hello from WAT, inside a keep!\n"),
        (digest, 0, "Hello from WAT, inside a keep!\n"),
        ("says:1", 3, "first words\n"),
    ):
        ran = keepctl(fleet, "run", "--rm", wanted)
        assert (ran.returncode, ran.stdout) == (code, text), ran.stderr
    assert fleet.left_over() == []


def test_keepctl_run_leaves_a_stored_module_running_and_takes_a_manifest(fleet: Fleet, digest: str) -> None:
    fleet.host.run(["tee", "/run/stored.yaml"], input=f"module: hello:1@{digest}\n")
    life = Life(fleet, int(keepctl(fleet, "run", "-d", "-f", "/run/stored.yaml").stdout))
    if life.info.state is State.STARTED:
        life.until(State.STARTED, State.COMPLETE)
    assert life.info.module is not None
    assert (life.info.module.digest, life.info.module.name) == (digest, "hello:1")
    life.remove()


def test_keepctl_run_says_why_a_module_of_the_store_cannot_be_run(fleet: Fleet, digest: str) -> None:
    refused = keepctl(fleet, "run", "--rm", "hello:2")
    assert refused.returncode == 125
    assert "cannot find the reference hello:2" in refused.stderr
    add(fleet, b"not a module at all", "text:1")
    refused = keepctl(fleet, "run", "--rm", "text:1")
    assert refused.returncode == 126
    assert "cannot take the module: it does not begin as a WebAssembly file does" in refused.stderr
    assert fleet.left_over() == []
