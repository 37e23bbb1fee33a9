"""`-o json`: every command has it, standard output is then one JSON value, and errors stay what they are in text."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from keepctl.commands.shared import build
from keepctl.layout import Layout
from keepctl.pki import listed
from tests.unit.keepctl.conftest import Run
from tests.unit.keepctl.test_keepctl_install import make_prefix
from tests.unit.keepctl.test_keepctl_manners import ALL

EXCEPTIONS = {
    ("completion",): "it prints a script, for a shell to read",
    ("manifest", "schema"): "it prints nothing but JSON",
    ("mcp",): "it speaks a protocol of its own, in JSON",
}


def command_of(path: tuple[str, ...]) -> click.Command:
    command: click.Command = build()
    for name in path:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), name)
        assert found is not None
        command = found
    return command


LEAVES = [path for path in ALL if not isinstance(command_of(path), click.Group)]


def shown(run: Run, *arguments: str) -> dict[str, object]:
    """What a command says in JSON: one object, and nothing else."""
    result = run(*arguments, "-o", "json")
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_command_speaks_json_but_those_that_have_a_reason(path: tuple[str, ...]) -> None:
    options = {option: parameter for parameter in command_of(path).params for option in parameter.opts}
    if path in EXCEPTIONS:
        assert "--output" not in options, f"{' '.join(path)} is no exception any more"
        return
    assert {"-o", "--output"} <= set(options), f"{' '.join(path)} has no -o json"
    choice = options["--output"].type
    assert isinstance(choice, click.Choice) and {"text", "json"} <= set(choice.choices)


def test_every_exception_is_a_command() -> None:
    assert set(EXCEPTIONS) <= set(LEAVES)


def test_a_new_pki_is_said_with_its_files_serials_and_dates(run: Run, directory: Path) -> None:
    made = shown(run, "init", "--name", "edge.example", "--client", "ann")
    registered = {entry.name: entry for entry in listed(Layout(str(directory)))}
    manager, client = made.pop("manager"), made.pop("client")
    assert made == {
        "pki": str(directory),
        "ca": str(directory / "ca.crt"),
        "configuration": {"file": str(directory.parent / "manager.yaml"), "written": True, "address": "127.0.0.1"},
    }
    assert isinstance(manager, dict) and isinstance(client, dict)
    assert "edge.example" in manager.pop("names")
    assert (client.pop("role"), client.pop("keep")) == ("operator", None)
    assert client.pop("fingerprint") == registered["ann"].fingerprint
    for wire, name, path in ((manager, "keep-manager", "manager"), (client, "ann", "clients/ann")):
        assert wire == {
            "name": name,
            "certificate": str(directory / f"{path}.crt"),
            "key": str(directory / f"{path}.key"),
            "serial": registered[name].serial,
            "expires": registered[name].expires.timestamp(),
        }
    assert all(Path(wire["key"]).exists() for wire in (manager, client))


def test_certificates_are_said_alike_when_issued_renewed_revoked_and_listed(run: Run, directory: Path) -> None:
    run("init")
    issued = shown(run, "pki", "issue", "alice")
    assert issued["certificate"] == str(directory / "clients/alice.crt")
    assert issued["p12"] is None
    renewed = shown(run, "pki", "renew-server", "--name", "new.example")
    assert isinstance(renewed["names"], list) and "new.example" in renewed["names"]
    entries = {entry["serial"]: entry for entry in json.loads(run("pki", "list", "-o", "json").stdout)}
    for wire in (issued, renewed):
        entry = entries[wire["serial"]]
        assert (entry["name"], entry["expires"]) == (wire["name"], wire["expires"])
    assert shown(run, "pki", "revoke", "alice") == {"revoked": [issued["serial"]]}
    assert shown(run, "pki", "revoke", "alice") == {"revoked": []}


def test_a_password_is_asked_for_outside_of_the_json(run: Run, directory: Path, tmp_path: Path) -> None:
    del directory
    run("init")
    p12 = tmp_path / "alice.p12"
    result = run("pki", "issue", "alice", "--p12", str(p12), "-o", "json", input="geheim\ngeheim\n")
    assert json.loads(result.stdout)["p12"] == {"file": str(p12), "encrypted": True}
    assert "Password" in result.stderr


def test_units_are_said_with_what_became_of_each(run: Run, tmp_path: Path) -> None:
    make_prefix(tmp_path / "venv")
    where = ("--user", "--no-reload", "--unit-directory", str(tmp_path / "units"))
    for change in ("written", "unchanged", "removed"):
        words = ("uninstall",) if change == "removed" else ("install", "--prefix", str(tmp_path / "venv"))
        said = shown(run, *words, *where)
        units, roots = said.pop("units"), said.pop("roots")
        assert isinstance(roots, list)
        assert [root["change"] for root in roots] == ["built" if change == "written" else change]
        assert said == {"instance": "user", "versions": [], "programs": [], "reloaded": False}
        assert isinstance(units, list)
        assert {unit["change"] for unit in units} == {change}
        assert str(tmp_path / "units/keep-manager.service") in [unit["file"] for unit in units]
    assert shown(run, "uninstall", *where)["units"] == []


def test_contexts_are_said_with_the_one_in_use(run: Run, tmp_path: Path) -> None:
    file = str(tmp_path / "config/keepfleet/context.yaml")
    edge = {"manager": "edge.example"}
    said = shown(run, "context", "set", "edge", "--manager", "edge.example")
    assert said == {"name": "edge", "context": edge, "current": "edge", "file": file}
    assert shown(run, "context", "set", "west", "--manager", "w.example")["current"] == "edge"
    assert shown(run, "context", "use", "west") == {"current": "west", "file": file}
    assert shown(run, "context", "rm", "west") == {"removed": "west", "current": "", "file": file}
    assert shown(run, "context", "list") == {"current": "", "contexts": {"edge": edge}}


@pytest.mark.parametrize(
    "words",
    [
        ("pki", "issue", "alice"),
        ("pki", "renew-server"),
        ("pki", "revoke", "alice"),
        ("context", "use", "bob"),
        ("manifest", "check", "/nowhere.yaml"),
        ("install", "--prefix", "/nowhere"),
        ("ps", "--manager", "127.0.0.1:1"),
    ],
    ids=" ".join,
)
def test_an_error_is_the_same_line_and_exit_code_in_json_and_standard_output_empty(
    run: Run, words: tuple[str, ...]
) -> None:
    result, text = run(*words, "-o", "json"), run(*words)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", text.stderr)
    assert result.stderr.startswith("keepctl: cannot ")
