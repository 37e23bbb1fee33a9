"""The context file, and which of options, environment and contexts wins."""

from __future__ import annotations

import json
import ssl
from pathlib import Path

import pytest

from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError
from tests.fakes.client_pki import Pki
from tests.fakes.manager_in_memory import FIRST_ID, ManagerInMemory
from tests.fakes.tls_peer import answer
from tests.unit.keepctl.conftest import Run


@pytest.fixture
def bare(manager: ManagerInMemory, monkeypatch: pytest.MonkeyPatch) -> ManagerInMemory:
    """A manager nothing in the environment speaks of."""
    monkeypatch.delenv("KEEPFLEET_MANAGER")
    monkeypatch.delenv("KEEPFLEET_PKI")
    return manager


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config" / "keepfleet" / "context.yaml"


def set_up(run: Run, pki: Pki, name: str, port: int) -> None:
    ca, certificate = pki.layout.ca_certificate, pki.layout.client_certificate("admin")
    result = run("context", "set", name, "--manager", f"127.0.0.1:{port}", "--ca", ca, "--cert", certificate)
    assert result.exit_code == 0, result.output


def test_a_context_remembers_all_that_a_command_needs(run: Run, bare: ManagerInMemory, pki: Pki, file: Path) -> None:
    set_up(run, pki, "edge", bare.port)
    assert run("ps").exit_code == 0
    assert file.stat().st_mode & 0o777 == 0o600
    listed = run("context", "list").output.splitlines()
    assert listed[0].split() == ["NAME", "MANAGER", "ADDRESS", "CA", "CERT", "KEY"]
    assert listed[1].split()[:4] == ["*", "edge", f"127.0.0.1:{bare.port}", "-"]


def test_one_of_several_is_used_or_asked_for(
    run: Run, bare: ManagerInMemory, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(run, pki, "away", 1)
    set_up(run, pki, "edge", bare.port)
    assert run("ps").exit_code == 3
    assert run("ps", "--context", "edge").exit_code == 0
    assert run("context", "use", "edge").output == "edge is in use\n"
    assert run("ps").exit_code == 0
    assert run("ps", "--manager", "127.0.0.1:1").exit_code == 3
    monkeypatch.setenv("KEEPFLEET_CONTEXT", "away")
    assert run("ps").exit_code == 3
    monkeypatch.delenv("KEEPFLEET_CONTEXT")
    monkeypatch.setenv("KEEPFLEET_MANAGER", "127.0.0.1:1")
    assert run("ps").exit_code == 3, "the environment wins over the context in use"
    assert run("ps", "--context", "edge").exit_code == 0, "and a context asked for wins over the environment"


def test_the_port_of_this_hosts_configuration_is_used(
    run: Run, manager: ManagerInMemory, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KEEPFLEET_MANAGER")
    path = Path(pki.layout.directory).parent / "manager.yaml"
    path.write_text(f"port: {manager.port}\n")
    try:
        assert run("ps").exit_code == 0
    finally:
        path.unlink()


def test_a_keep_listens_where_the_option_or_the_context_says_else_where_the_manager_is_reached(
    run: Run, bare: ManagerInMemory, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(run, pki, "edge", bare.port)

    def listens(*words: str) -> str:
        kuuid = run("new", *(words if "--manager" in words else ())).output.strip()
        assert run("start", kuuid, *words).exit_code == 0
        return bare.keeps[int(kuuid)].address

    assert listens() == "127.0.0.1"
    assert run("context", "set", "edge", "--address", "192.0.2.9").exit_code == 0
    assert listens() == "192.0.2.9"
    assert listens("--address", "192.0.2.10") == "192.0.2.10"
    files = ("--ca", pki.layout.ca_certificate, "--cert", pki.layout.client_certificate("admin"))
    assert listens("--manager", f"localhost:{bare.port}", *files) == "127.0.0.1", "another manager, another address"
    monkeypatch.setenv("KEEPFLEET_MANAGER", f"localhost:{bare.port}")
    assert listens() == "127.0.0.1"


@pytest.mark.parametrize("is_older", [False, True], ids=["one request", "a manager of before"])
def test_an_address_that_the_managers_host_has_not_is_refused_with_the_next_step(
    run: Run, manager: ManagerInMemory, module: str, is_older: bool
) -> None:
    def refuse(connection: ssl.SSLSocket) -> None:
        error = KeepfleetError(ErrorKind.PORT_UNAVAILABLE, "cannot listen on 127.0.0.1: port 3031: no such address")
        connection.sendall(answer(503, strict_json.dumps({"error": error.to_wire()})))

    manager.is_older = is_older
    manager.instead["POST /v1/keeps" + f"/{FIRST_ID}/start" * is_older] = [refuse, refuse]
    result = run("run", module)
    assert (result.exit_code, manager.keeps) == (125, {})
    assert "name an address of the manager's host with --address, or in: keepctl context set NAME" in result.stderr
    assert "--address" not in run("run", "--address", "192.0.2.7", module).stderr


def test_a_context_is_changed_in_part_and_forgotten(run: Run, bare: ManagerInMemory, pki: Pki) -> None:
    set_up(run, pki, "edge", 1)
    run("context", "set", "edge", "--manager", f"127.0.0.1:{bare.port}")
    assert run("ps").exit_code == 0
    assert run("context", "rm", "edge").output == "edge is forgotten\n"
    assert json.loads(run("context", "list", "-o", "json").output) == {"current": "", "contexts": {}}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("use", "bob"), "cannot use context 'bob': there is none; see: keepctl context list"),
        (("rm", "bob"), "cannot use context 'bob'"),
        (("set", "a b"), "cannot name a context 'a b'"),
        (("set", "é"), "cannot name a context 'é'"),
        (("set", "x", "--manager", "a b"), "cannot read 'a b' as the manager's address"),
        (("set", "x", "--ca", "/nowhere"), "/nowhere: there is no such file"),
        (("set", "x", "--address", "edge"), "'edge'"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(run: Run, arguments: tuple[str, ...], said: str) -> None:
    result = run("context", *arguments)
    assert result.exit_code == 1
    assert said in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "text",
    [
        "a: &x 1",
        "contexts: [1]",
        "current: 3",
        "other: 1",
        "- a",
        "contexts: {x: {manager: 3}}",
        "contexts: {x: {y: z}}",
    ],
)
def test_a_context_file_of_another_shape_is_refused_and_named(run: Run, file: Path, text: str) -> None:
    file.parent.mkdir(parents=True)
    file.write_text(text)
    result = run("ps")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"keepctl: cannot read {file}: correct it or remove it\n    ")
