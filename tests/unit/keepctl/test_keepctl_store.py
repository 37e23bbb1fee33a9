"""`keepctl store …` on a store of its own: what it says, in text and JSON, and how it ends."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from keepctl.__main__ import exit_code
from tests.unit.keepctl.conftest import MODULE, Run

DIGEST = f"sha256:{hashlib.sha256(MODULE).hexdigest()}"
OTHER = b"\0asm\1\0\0\0\0"


@pytest.fixture
def store(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the store is to be; nothing is there."""
    del directory
    monkeypatch.setenv("KEEPFLEET_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture
def other(tmp_path: Path) -> str:
    (tmp_path / "other.wasm").write_bytes(OTHER)
    return str(tmp_path / "other.wasm")


def done(run: Run, *words: str) -> str:
    """What a command that succeeds prints."""
    result = run("store", *words)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


def failed(run: Run, *words: str) -> str:
    """Why a command does not succeed, in one line."""
    result = run("store", *words)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("keepctl: cannot ")
    return result.stderr


@pytest.mark.usefixtures("store")
def test_a_module_is_added_listed_and_inspected(run: Run, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "alice")
    assert done(run, "add", module, "web:1.2") == f"web:1.2  {DIGEST}  8 B\n"
    listed = done(run, "ls")
    assert listed.splitlines()[0].split() == ["REFERENCE", "DIGEST", "SIZE", "ADDED"]
    assert listed.splitlines()[1].startswith(f"web:1.2    {DIGEST[:19]}  8 B   20")
    shown = done(run, "inspect", "web:1.2")
    assert f"digest      {DIGEST}\nsize        8 bytes\nadded       20" in shown
    assert "needed by   web:1.2\nmoved       20" in shown and f"by alice to {DIGEST[:19]}" in shown


@pytest.mark.usefixtures("store")
def test_every_answer_is_json_where_that_is_asked_for(run: Run, module: str, tmp_path: Path) -> None:
    def shown(*words: str) -> dict[str, object]:
        found = json.loads(done(run, *words, "-o", "json"))
        assert isinstance(found, dict)
        return found

    added = shown("add", module, "web:1")
    assert {**added, "added": 0} == {"digest": DIGEST, "size": 8, "added": 0, "reference": "web:1"}
    assert shown("ls")["references"] == [{"name": "web:1", "digest": DIGEST}]
    assert shown("inspect", DIGEST)["needed_by"] == ["web:1"]
    assert shown("inspect", "web:1")["history"] == shown("tag", "web:1", "web:1")["history"]
    assert shown("verify") == {"store": str(tmp_path / "store"), "findings": []}
    file = str(tmp_path / "e.tar")
    counts = {"objects": 1, "attachments": 0, "references": 1, "bytes": 8, "file": file}
    assert shown("export", "--to", file) == shown("import", file) == counts
    assert shown("rm", "web:1") == {"removed": ["web:1"]}
    collected = shown("gc", "--grace", "0")
    removed = collected.pop("removed")
    assert isinstance(removed, list) and [each["digest"] for each in removed] == [DIGEST]
    assert collected == {"young": [], "bytes": 8, "dry_run": False}


@pytest.mark.usefixtures("store")
def test_a_digest_is_meant_by_its_beginning_and_a_reference_may_say_the_digest_too(run: Run, module: str) -> None:
    assert done(run, "add", module).startswith("no reference  sha256:")
    assert done(run, "tag", DIGEST[:15], "web:1") == f"web:1  {DIGEST}\n"
    assert DIGEST in done(run, "inspect", f"web:1@{DIGEST}")
    assert "cannot find sha256:00000000" in failed(run, "inspect", "sha256:00000000")
    assert "cannot read 'sha256:0' as a digest" in failed(run, "inspect", "sha256:0")


@pytest.mark.usefixtures("store")
def test_a_moved_reference_keeps_what_it_named_until_its_history_is_dropped(
    run: Run, module: str, other: str, store: Path
) -> None:
    done(run, "add", module, "web:1")
    done(run, "add", other, "web:1")
    for path in (store / "objects").iterdir():
        os.utime(path, (1, 1))
    assert done(run, "gc", "--dry-run") == "would be removed: 0, 0 B\n"
    assert done(run, "inspect", DIGEST).splitlines()[-1] == "needed by   the history of web:1"
    assert done(run, "gc", "--history", "0") == f"removed {DIGEST}  8 B\nremoved: 1, 8 B\n"


@pytest.mark.usefixtures("store")
def test_what_is_needed_is_not_removed_and_what_is_young_not_collected(run: Run, module: str) -> None:
    done(run, "add", module, "web:1")
    assert f"cannot remove {DIGEST}: it is needed by web:1" in failed(run, "rm", DIGEST)
    assert done(run, "rm", "web:1") == "removed web:1\n"
    assert done(run, "gc") == "removed: 0, 0 B; too young to go: 1\n"
    assert done(run, "rm", DIGEST[:20]) == f"removed {DIGEST}\n"


def test_a_store_is_made_by_adding_and_by_nothing_else_and_others_say_what_makes_it(run: Run, store: Path) -> None:
    for words in (("ls",), ("gc",), ("verify",), ("tag", "a:1", "b:1"), ("rm", "a:1"), ("export", "--to", "x.tar")):
        assert "there is no module store; `keepctl store add` makes one" in failed(run, *words)
    assert not store.exists()


@pytest.mark.usefixtures("store")
def test_another_file_than_was_meant_is_refused(run: Run, module: str, other: str) -> None:
    assert "its digest is" in failed(run, "add", other, "web:1", "--digest", DIGEST)
    assert done(run, "add", module, "--digest", DIGEST)
    assert "cannot read /nowhere: No such file or directory" in failed(run, "add", "/nowhere")
    assert "cannot read 'Web' as a reference: it must be NAME:TAG" in failed(run, "add", module, "Web")


def test_damage_is_found_listed_and_repaired_by_adding_again(run: Run, module: str, store: Path) -> None:
    done(run, "add", module, "web:1")
    done(run, "tag", "web:1", "web:2")
    (store / "references" / "web:2").unlink()
    (store / "references" / "web:2").write_bytes(b"")
    os.chmod(store / "references" / "web:2", 0o400)
    (store / "objects" / DIGEST[7:]).unlink()
    (store / "objects" / DIGEST[7:]).write_bytes(OTHER)
    os.chmod(store / "objects" / DIGEST[7:], 0o400)
    assert "web:2      damaged" in done(run, "ls")
    result = run("store", "verify")
    assert result.exit_code == 1
    assert f"    cannot use {DIGEST}" in "".join(result.stderr) and "it was moved to" in result.stderr
    assert "its contents are not those that were written" in result.stderr
    assert "web:1      sha256" in done(run, "ls") and "missing" in done(run, "ls")
    done(run, "add", module, "web:2")
    (quarantined,) = (store / "quarantine").iterdir()
    quarantined.unlink()
    assert done(run, "verify") == f"{store}: all is well\n"


def test_a_store_goes_through_a_pipe_into_another(module: str, store: Path, tmp_path: Path) -> None:
    keepctl = f"{sys.executable} -m keepctl store"
    script = f"{keepctl} add - web:1 <{module} && {keepctl} export | {keepctl} import - --store {tmp_path}/copy"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == "-: objects: 1, references: 1, attachments: 0; 8 B"
    assert (tmp_path / "copy" / "objects" / DIGEST[7:]).read_bytes() == MODULE


@pytest.mark.usefixtures("store")
def test_an_export_that_fails_leaves_no_file_and_the_older_one_as_it_was(run: Run, module: str, tmp_path: Path) -> None:
    done(run, "add", module, "web:1")
    (tmp_path / "e.tar").write_bytes(b"older")
    before = sorted(os.listdir(tmp_path))
    failed(run, "export", "web:9", "--to", str(tmp_path / "e.tar"))
    assert (tmp_path / "e.tar").read_bytes() == b"older"
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.usefixtures("store")
def test_an_export_is_not_written_to_a_terminal_or_together_with_json(
    run: Run, module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done(run, "add", module, "web:1")
    result = run("store", "export", "-o", "json")
    assert result.exit_code == 2 and "-o json goes with --to" in result.stderr

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    assert exit_code(["store", "export"]) == 2
    assert "name one by --to" in capsys.readouterr().err
