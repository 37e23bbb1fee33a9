"""`keepctl store …` over a manager's API: which store is meant, and that both say the same."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from module_store import place as places_of_stores
from module_store.keys import Keys
from module_store.store import Store
from tests.fakes.manager_thread import manager_thread
from tests.fakes.running_manager import RunningManager
from tests.unit.keepctl.conftest import MODULE, Run, let_operator_in
from tests.unit.module_store.signers import Signer

POLICY = "name: edge\n"


@pytest.fixture(scope="module")
def manager() -> Iterator[RunningManager]:
    with tempfile.TemporaryDirectory(prefix="km") as name, manager_thread(Path(name)) as made:
        yield made


@pytest.fixture(autouse=True)
def let_in(manager: RunningManager, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PKI directory with what lets the operator in, and a store that stands for this host's; no manager is chosen."""
    monkeypatch.setattr(places_of_stores, "SYSTEM", str(tmp_path / "system"))
    let_operator_in(manager, directory)
    monkeypatch.delenv("KEEPFLEET_STORE", raising=False)


@pytest.fixture
def url(manager: RunningManager) -> str:
    return f"127.0.0.1:{manager.port}"


def references(run: Run, *words: str) -> list[str]:
    result = run("store", "ls", "-o", "json", *words)
    if result.exit_code == 1 and "there is no module store" in result.stderr:
        return []
    assert result.exit_code == 0, result.stderr
    return [each["name"] for each in json.loads(result.stdout)["references"]]


def test_a_manager_that_is_chosen_is_asked_and_otherwise_this_host_s_store_is_used(
    run: Run, module: str, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert run("store", "add", module, "here:1").exit_code == 0
    assert run("store", "add", module, "there:1", "--manager", url).exit_code == 0
    assert references(run) == ["here:1"]
    assert references(run, "--manager", url) == ["there:1"]
    monkeypatch.setenv("KEEPFLEET_MANAGER", url)
    assert references(run) == ["there:1"]
    assert references(run, "--in-place") == ["here:1"]
    assert references(run, "--store", str(tmp_path / "none")) == []
    monkeypatch.setenv("KEEPFLEET_STORE", str(tmp_path / "none"))
    assert references(run) == []
    assert references(run, "--manager", url) == ["there:1"]
    monkeypatch.delenv("KEEPFLEET_STORE")
    monkeypatch.delenv("KEEPFLEET_MANAGER")
    assert run("context", "set", "far", "--manager", url).exit_code == 0
    assert run("context", "use", "far").exit_code == 0
    assert references(run) == ["there:1"]
    wrong = run("store", "ls", "--in-place", "--manager", url)
    assert (wrong.exit_code, "--in-place is about this host's store" in wrong.stderr) == (2, True)


def test_what_is_for_the_host_alone_is_refused_where_a_manager_is_chosen(
    run: Run, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "edge.yaml").write_text(POLICY)
    monkeypatch.setenv("KEEPFLEET_MANAGER", url)
    for words in (
        ("key", "add", "release", "RW"),
        ("key", "require", "release"),
        ("policy", "set", str(tmp_path / "edge.yaml")),
        ("policy", "rm"),
        ("check", "web:1"),
    ):
        result = run("store", *words)
        assert result.exit_code == 1
        assert f"cannot do `store {' '.join(words[: 2 if words[0] in ('key', 'policy') else 1])}`" in result.stderr
        assert "for the store of this host: --in-place" in result.stderr


def test_every_command_over_the_api_does_what_it_does_in_place(
    run: Run, module: str, url: str, manager: RunningManager, tmp_path: Path
) -> None:
    signer = Signer("release")
    (tmp_path / "m.minisig").write_bytes(signer.sign(MODULE))
    (tmp_path / "edge.yaml").write_text(POLICY)
    places = {"here": str(tmp_path / "here"), "there": manager.parts.modules.directory}
    said: dict[str, list[str]] = {}
    for name, place in places.items():
        with Store.create(place) as store:
            for each in store.reference_names():
                store.untag(each)
            Keys(place).add("release", signer.public)
        assert run("store", "policy", "set", str(tmp_path / "edge.yaml"), "--store", place).exit_code == 0
        where = ["--store", place] if name == "here" else ["--manager", url]
        tar, signature = str(tmp_path / f"{name}.tar"), str(tmp_path / "m.minisig")
        said[name] = []
        for words in (
            ["add", module, "web:1", "--signature", signature],
            ["attach", "web:1", signature],
            ["tag", "web:1", "web:2", "--force"],
            ["inspect", "web:2", "-o", "json"],
            ["key", "ls"],
            ["policy", "show"],
            ["export", "web:1", "--to", tar],
            ["rm", "web:1", "web:2"],
            ["gc", "--grace", "0"],
            ["import", tar],
            ["verify", "-o", "json"],
            ["key", "revoke", "release", "--reason", "lost"],
        ):
            result = run("store", *words, *where)
            assert result.exit_code == 0, (words, result.output)
            text = result.stdout.replace(tar, "TAR").replace(place, "STORE")
            if words[0] == "inspect":
                shown = json.loads(text)
                assert [move["who"] for move in shown["history"]] == ["operator"] * (name == "there") or name == "here"
                text = json.dumps([shown["digest"], shown["needed_by"], len(shown["history"])])
            if words[0] != "key" or words[1] != "revoke":
                said[name].append(text)
        assert result.stdout == "release is revoked\n"
    assert said["here"] == said["there"]
