"""The manager's calls from the command line, against a manager and a stub over real TLS."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from keep_protocol.keep import Module, Outcome, OutcomeKind, ShownDirectory, Uploader, WorkloadSummary
from keep_protocol.spec import RestartPolicy
from keep_protocol.states import State
from keepctl.layout import Layout
from tests.fakes.client_pki import Pki
from tests.fakes.manager_in_memory import FIRST_ID, ManagerInMemory
from tests.fakes.tls_peer import refusing_port
from tests.fakes.upload_stub import UploadStub
from tests.unit.keepctl.conftest import MODULE, Run


def test_a_keep_is_made_started_shown_stopped_and_removed(run: Run, manager: ManagerInMemory, pki: Pki) -> None:
    assert run("ps").output.split() == ["ID", "NAME", "STATE", "AGE", "MODULE", "ADDRESS", "DETAIL"]
    kuuid = run("new").output.strip()
    assert kuuid == str(FIRST_ID)
    started = run("start", kuuid, "--port", "4040", "--name", "edge.example")
    assert started.output == f"address     127.0.0.1:4040\nfingerprint {pki.fingerprint}\n"
    row = run("ps").output.splitlines()[1]
    assert re.fullmatch(rf"{kuuid}  -     2 started  \d+ (s|min)  -       127\.0\.0\.1:4040  awaiting-workload", row)
    assert json.loads(run("inspect", kuuid).output)["fingerprint"] == pki.fingerprint
    assert run("stop", kuuid).output == "stopped by its owner\n"
    assert run("rm", kuuid).output == f"removed {kuuid}\n"
    assert manager.keeps == {}


def test_keeps_are_listed_newest_first_with_age_and_module(
    run: Run, manager: ManagerInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr("keepctl.commands.keeps.time", SimpleNamespace(time=lambda: now))
    ages = {"old": 3 * 86400 + 60, "young": 61, "middle": 3 * 3600, "unknown": None}
    for number, (name, age) in enumerate(ages.items()):
        run("new", "--name", name)
        manager.change(FIRST_ID + number, created_at=None if age is None else now - age)
    manager.change(FIRST_ID, module=Module("sha256:" + "ab" * 32, "hello\x1b.wasm", 13577))
    manager.change(FIRST_ID + 1, module=Module("sha256:" + "cd" * 32))
    rows = [row.split("  ") for row in run("ps").output.splitlines()]
    cells = [[cell.strip() for cell in row if cell] for row in rows]
    assert [(row[1], row[3], row[4]) for row in cells] == [
        ("NAME", "AGE", "MODULE"),
        ("young", "61 s", "sha256:cdcdcdcdcdcd"),
        ("middle", "3 h", "-"),
        ("old", "3 d", "hello\\x1b.wasm"),
        ("unknown", "-", "-"),
    ]
    assert run("ps", "-q").output.split() == [str(FIRST_ID + number) for number in (1, 2, 0, 3)]
    assert [keep["name"] for keep in json.loads(run("ps", "-o", "json").output)] == [
        "young",
        "middle",
        "old",
        "unknown",
    ]


def test_what_runs_can_be_seen(run: Run, manager: ManagerInMemory) -> None:
    run("new", "--name", "web", "--idle", "1h")
    manager.change(
        FIRST_ID,
        state=State.STARTED,
        module=Module("sha256:" + "ab" * 32, "site.wasm", 13577),
        workload=WorkloadSummary(
            ("-v", "two words", "\x1b"),
            "serve",
            (ShownDirectory("/site"), ShownDirectory("/out", True)),
            ("token",),
            True,
        ),
        uploaded_by=Uploader("sha256:" + "cd" * 32, "alice", "1f"),
        uploaders=("name:alice",),
        restart=RestartPolicy.ON_FAILURE,
        created_at=0.0,
    )
    text = run("inspect", "-o", "text", "web").output
    facts = {line[:12].strip(): line[13:] for line in text.splitlines()}
    assert facts["module"] == f"site.wasm sha256:{'ab' * 32}, 13.3 KiB"
    assert facts["uploaded by"] == f"alice (serial 1f) sha256:{'cd' * 32}"
    assert facts["arguments"] == "-v 'two words' '\\x1b'"
    assert (facts["export"], facts["secrets"], facts["stdin"]) == ("serve", "token", "yes")
    assert facts["directories"] == "/site (read-only), /out (read-write)"
    assert (facts["restart"], facts["lease"]) == ("on-failure", "1 h unstarted")
    assert facts["created"].startswith(("1970-01-01", "1969-12-31"))
    assert "may upload" not in facts
    assert json.loads(run("inspect", "web").output)["workload"]["secrets"] == ["token"]


def test_before_the_upload_it_is_shown_who_may(run: Run, manager: ManagerInMemory) -> None:
    run("new", "--name", "web")
    manager.change(FIRST_ID, uploaders=("name:alice", "name:bob"))
    assert "may upload   name:alice, name:bob\n" in run("inspect", "-o", "text", "web").output


def test_json_is_what_the_manager_said(run: Run, manager: ManagerInMemory) -> None:
    made = json.loads(run("new", "-o", "json").output)
    assert made == manager.keeps[FIRST_ID].to_wire()
    assert json.loads(run("ps", "-o", "json").output) == [made]
    assert json.loads(run("start", str(FIRST_ID), "-o", "json").output)["state"] == 2


def test_a_file_is_uploaded_to_the_pinned_keep(run: Run, manager: ManagerInMemory, pki: Pki, module: str) -> None:
    with UploadStub(pki.keep()) as stub:
        manager.upload_port = stub.port
        kuuid = run("new").output.strip()
        run("start", kuuid)
        result = run("upload", kuuid, module)
    assert result.exit_code == 0, result.output
    assert "8 bytes received whole, sha256:" in result.output
    assert stub.received == MODULE


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (Outcome(OutcomeKind.EXITED, "exited 0", exit_code=0), 0),
        (Outcome(OutcomeKind.EXITED, "exited 3", exit_code=3), 3),
        (Outcome(OutcomeKind.TRAPPED, "trapped: \x1b[2J unreachable"), 134),
    ],
)
def test_waiting_says_and_exits_as_the_workload_ended(
    run: Run, manager: ManagerInMemory, pki: Pki, module: str, outcome: Outcome, code: int
) -> None:
    def end() -> None:
        manager.change(FIRST_ID, state=State.COMPLETE, outcome=outcome)

    with UploadStub(pki.keep(), accepted=end) as stub:
        manager.upload_port = stub.port
        run("new")
        run("start", str(FIRST_ID))
        result = run("upload", str(FIRST_ID), module, "--wait")
    assert result.exit_code == code
    assert result.stdout.splitlines()[-1] == outcome.text.replace("\x1b", "\\x1b")


def test_a_refused_file_is_said_with_its_reason(run: Run, manager: ManagerInMemory, pki: Pki, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    with UploadStub(pki.keep()) as stub:
        manager.upload_port = stub.port
        run("new")
        run("start", str(FIRST_ID))
        result = run("upload", str(FIRST_ID), str(tmp_path / "text"))
        assert run("upload", "--wait", str(FIRST_ID), str(tmp_path / "text")).exit_code == 126
    assert result.exit_code == 1
    assert result.stderr == "keepctl: cannot run it: \\x1b[31mnot a module\n    magic header\n"


def test_a_wait_that_fails_is_no_exit_code_of_a_workloads(run: Run, manager: ManagerInMemory) -> None:
    del manager
    assert run("wait", "web").exit_code == 125
    assert run("upload", "--wait", "web", "/nowhere.wasm").exit_code == 125


@pytest.mark.parametrize(
    ("detail", "state"),
    [
        ("restarting: its loader has just ended; the unit is activating (auto-restart)", "0 restarting"),
        ("starting: the unit is inactive (dead)", "0 starting"),
        ("it was removed", "0 undefined"),
    ],
)
def test_a_keep_that_is_being_restarted_is_shown_as_that(
    run: Run, manager: ManagerInMemory, detail: str, state: str
) -> None:
    run("new")
    manager.change(FIRST_ID, state=State.UNDEFINED, detail=detail)
    assert f"  {state}  " in run("ps").output
    assert f"{state}: {detail}" in run("inspect", "-o", "text", str(FIRST_ID)).output
    assert f"  {state}  " in run("top", "-a").output


def test_nothing_is_uploaded_to_a_keep_that_is_not_started(run: Run, manager: ManagerInMemory, module: str) -> None:
    run("new")
    result = run("upload", str(FIRST_ID), module)
    assert result.exit_code == 1
    assert f"cannot send anything to keep {FIRST_ID}: it is listening" in result.stderr
    assert manager.keeps[FIRST_ID].state is State.LISTENING


def test_the_managers_refusal_is_one_line_with_its_evidence_below(run: Run, manager: ManagerInMemory) -> None:
    del manager
    result = run("inspect", "12")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "keepctl: cannot find keep 12: there is none; see: keepctl ps\n    a line of evidence\n"


def test_one_keep_that_cannot_be_removed_does_not_keep_the_others(run: Run, manager: ManagerInMemory) -> None:
    run("new")
    result = run("rm", "12", str(FIRST_ID))
    assert result.exit_code == 1
    assert manager.keeps == {}


@pytest.mark.parametrize(
    "command",
    [("ps",), ("new",), ("start", "7"), ("inspect", "7"), ("stop", "7"), ("rm", "7", "8"), ("upload", "7", "f")],
)
def test_a_manager_out_of_reach_is_exit_code_3_and_one_line(run: Run, pki: Pki, command: tuple[str, ...]) -> None:
    layout = Layout(pki.layout.directory)
    trust = ("--ca", layout.ca_certificate, "--cert", layout.client_certificate("admin"))
    with refusing_port() as port:
        result = run(*command, "--manager", f"127.0.0.1:{port}", *trust)
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.startswith("keepctl: cannot reach the manager")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("text", ["", "1.5", "1\n", "Web", "é", "keep@7.service", "\\x2e", "../7", "x" * 64])
def test_what_can_mean_no_keep_is_wrong_usage(run: Run, text: str) -> None:
    result = run("inspect", "--", text)
    assert result.exit_code == 2
    assert "write its ID, the beginning of its ID, or its name" in result.stderr


def test_without_certificates_it_says_how_to_get_some(run: Run) -> None:
    result = run("ps")
    assert result.exit_code == 1
    assert "make a PKI with `keepctl init`" in result.stderr
