"""`keepctl run`, `logs`, `wait`, against a manager and a stub over real TLS."""

from __future__ import annotations

import json
import os
import re
import signal
import ssl
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from keep_protocol.keep import Outcome, OutcomeKind
from keep_protocol.ring import STDOUT
from keep_protocol.spec import Compiler, Profile
from keep_protocol.sse import EventType, KeepEvent, LogLine
from keep_protocol.states import State
from keepctl.commands.shared import build
from tests.fakes.client_pki import Pki
from tests.fakes.manager_in_memory import FIRST_ID, ManagerInMemory
from tests.fakes.upload_stub import UploadStub
from tests.unit.keepctl.conftest import MODULE, MakeStub, Run, say

TRAP = Outcome(OutcomeKind.TRAPPED, "trapped: \x1b[2J unreachable", backtrace=("0: boom", "1: _start"))


def test_words_after_the_dashes_are_the_guests_also_where_a_manifest_names_the_module(
    run: Run, manager: ManagerInMemory, stub: MakeStub, module: str, tmp_path: Path
) -> None:
    manifest = tmp_path / "workload.yaml"
    manifest.write_text(f"module: {module}\n")
    with stub(Outcome(OutcomeKind.EXITED, "exited 0", exit_code=0)):
        result = run("run", "-f", str(manifest), "--", "100", "--", "x")
    assert (result.exit_code, result.stderr) == (0, "")
    assert manager.workloads[FIRST_ID] == {"arguments": ["100", "--", "x"]}


def test_a_keep_that_is_removed_meanwhile_is_reported_as_that(
    run: Run, manager: ManagerInMemory, pki: Pki, module: str
) -> None:
    def removed() -> None:
        manager.keeps.clear()
        manager.accept(FIRST_ID)

    with UploadStub(pki.keep(), removed) as at:
        manager.upload_port = at.port
        result = run("run", module)
    assert result.exit_code == 125
    assert f"keepctl: cannot say how keep {FIRST_ID} ended: it was removed meanwhile" in result.stderr


def test_a_program_is_run_its_output_shown_and_its_exit_code_is_ours(
    run: Run, manager: ManagerInMemory, stub: MakeStub, module: str
) -> None:
    say(manager, "started", source="keep")
    say(manager, "hello", "\x1b[31mred\r")
    with stub(Outcome(OutcomeKind.EXITED, "exited 3", exit_code=3)) as at:
        result = run("run", module, "--", "-v", "x")
    assert at.received == MODULE
    assert result.stdout_bytes == b"hello\n\x1b[31mred\r\n"
    assert result.stderr == f"keepctl: keep {FIRST_ID}: exited 3\n"
    assert result.exit_code == 3
    assert manager.workloads[FIRST_ID] == {"arguments": ["-v", "x"]}
    assert list(manager.keeps) == [FIRST_ID]


def test_a_good_end_says_nothing_of_its_own_and_rm_removes_the_keep(
    run: Run, manager: ManagerInMemory, stub: MakeStub, module: str
) -> None:
    say(manager, "hello")
    with stub():
        result = run("run", "--rm", "--raw", module)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "hello\n", "")
    assert manager.keeps == {}


def test_everything_asked_for_reaches_the_manager(
    run: Run, manager: ManagerInMemory, stub: MakeStub, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with stub():
        result = run(
            "run", "-d", "--name", "web", "--label", "app=a=b", "--memory", "64M", "--time", "1m30s", "--cpus", "0.5",
            "--limit", "tasks=20", "--env", "A=", "--dir", "/srv/x:/x", "--dir", "d:/d:rw", "--stdin", "/in",
            "--secret", "t=/s", "--restart", "on-failure", "--export", "add", "--compiler", "fast",
            module, "--", "1", "2",
        )  # fmt: skip
    assert (result.exit_code, result.output) == (0, f"{FIRST_ID}\n")
    keep = manager.keeps[FIRST_ID]
    assert (keep.name, keep.labels, keep.compiler) == ("web", (("app", "a=b"),), Compiler.FAST)
    limits = keep.limits
    assert (limits.memory_bytes, limits.wall_seconds, limits.cpu_percent, limits.tasks) == (64 << 20, 90, 50, 20)
    assert manager.workloads[FIRST_ID] == {
        "environment": {"A": ""},
        "export": "add",
        "export_arguments": ["1", "2"],
        "stdin": {"file": "/in"},
        "directories": [
            {"host": "/srv/x", "guest": "/x", "writable": False},
            {"host": str(tmp_path / "d"), "guest": "/d", "writable": True},
        ],
        "secrets": [{"name": "t", "file": "/s"}],
        "restart": "on-failure",
    }
    assert len(manager.headers[0]["idempotency-key"]) == 32


def test_a_strict_keep_is_asked_for_and_shown_and_has_no_fast_compiler(
    run: Run, manager: ManagerInMemory, stub: MakeStub, module: str
) -> None:
    with stub():
        assert run("run", "-d", "--profile", "strict", module).exit_code == 0
    assert manager.keeps[FIRST_ID].profile is Profile.STRICT
    assert json.loads(run("inspect", str(FIRST_ID)).stdout)["profile"] == "strict"
    refused = run("run", "--profile", "strict", "--compiler", "fast", module)
    assert "cannot have compiler fast with profile strict" in refused.stderr


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (TRAP, 134),
        (Outcome(OutcomeKind.LIMITED, "over its time limit of 10 s"), 124),
        (Outcome(OutcomeKind.KILLED, "killed", signal=11), 139),
        (Outcome(OutcomeKind.STOPPED, "stopped by alice"), 143),
        (Outcome(OutcomeKind.LOST, "lost"), 125),
        (Outcome(OutcomeKind.EXITED, "exited 256", exit_code=256), 1),
    ],
)
def test_each_way_to_end_has_its_exit_code_and_its_reason(
    run: Run, manager: ManagerInMemory, stub: MakeStub, module: str, outcome: Outcome, code: int
) -> None:
    with stub(outcome):
        result = run("run", module)
        assert run("wait", str(FIRST_ID)).exit_code == code
    assert result.exit_code == code
    reason = outcome.text.replace("\x1b", "\\x1b")
    assert result.stderr.splitlines()[0] == f"keepctl: keep {FIRST_ID}: {reason}"
    assert result.stderr.splitlines()[1:] == [f"    {frame}" for frame in outcome.backtrace]


def test_output_as_json_is_one_object_a_line_with_the_keep_last(
    run: Run, manager: ManagerInMemory, stub: MakeStub, module: str
) -> None:
    say(manager, "hello")
    with stub():
        lines = [json.loads(line) for line in run("run", "-o", "json", module).stdout.splitlines()]
    assert lines[0] == {"at": 0.0, "source": "stdout", "text": "hello"}
    assert lines[1]["keep"]["outcome"]["exit_code"] == 0


@pytest.mark.parametrize("words", [("run", "-d"), ("create",)], ids=" ".join)
def test_a_name_that_is_taken_is_refused_with_its_holder_or_taken_over(
    run: Run, manager: ManagerInMemory, stub: MakeStub, module: str, words: tuple[str, ...]
) -> None:
    words = (*words, "--name", "web", *[module] * ("run" in words))
    with stub(None):
        assert run(*words).exit_code == 0
        refused = run(*words)
        assert refused.exit_code != 0
        assert refused.stderr == (
            f"keepctl: cannot create keep web: keep {FIRST_ID} has that name already; with --replace that one is ended "
            "first\n"
        )
        assert list(manager.keeps) == [FIRST_ID]
    with stub(None):
        assert run(*words, "--replace").output == f"{FIRST_ID + 1}\n"
    assert manager.keeps[FIRST_ID].state is State.COMPLETE


def test_a_lease_is_asked_for_in_whole(run: Run, manager: ManagerInMemory) -> None:
    assert run("create", "--idle", "1h", "--await", "90s").exit_code == 0
    assert run("create", "--idle", "5m").exit_code == 0
    assert run("create").exit_code == 0
    leases = [(keep.lease.idle_seconds, keep.lease.await_seconds) for keep in manager.keeps.values()]
    assert leases == [(3600, 90), (300, 0), (0, 0)]
    assert run("create", "--idle", "soon").exit_code == 2


def test_a_refused_module_leaves_no_keep_behind(
    run: Run, manager: ManagerInMemory, stub: MakeStub, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("hello")
    with stub():
        result = run("run", str(tmp_path / "text"))
    assert result.exit_code == 126
    assert result.stderr == "keepctl: cannot run it: \\x1b[31mnot a module\n    magic header\n"
    assert manager.keeps == {}


def test_a_file_that_is_not_there_makes_no_keep(run: Run, manager: ManagerInMemory) -> None:
    result = run("run", "/nowhere.wasm")
    assert (result.exit_code, result.stderr) == (125, "keepctl: cannot read /nowhere.wasm: No such file or directory\n")
    assert manager.requests == []


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--rm", "-d", "m"),
        ("--memory", "lots", "m"),
        ("--time", "-1", "m"),
        ("--limit", "tasks=1", "m"),
        ("--limit", "speed=3", "m"),
        ("--dir", "/a", "m"),
        ("--env", "novalue", "m"),
        ("--restart", "sometimes", "m"),
    ],
)
def test_wrong_usage_is_exit_code_2(run: Run, manager: ManagerInMemory, arguments: tuple[str, ...]) -> None:
    assert run("run", *arguments).exit_code == 2
    assert manager.requests == []


@pytest.mark.parametrize("name", ["Web", "é", "a\nb", "keep@7.service", "\\x2d", "x" * 64, "a b"])
def test_a_name_no_keep_may_have_is_refused_in_clear_words(run: Run, manager: ManagerInMemory, name: str) -> None:
    result = run("run", "--name", name, "m.wasm")
    assert result.exit_code == 125
    assert "it must be 1 to 63 of a-z, 0-9 and -" in result.stderr
    assert result.stderr.count("\n") == 1
    assert manager.requests == []


def test_ctrl_c_stops_the_workload_and_its_last_words_are_shown(
    manager: ManagerInMemory, stub: MakeStub, module: str
) -> None:
    words = ["last words"]

    def last_words(_: ssl.SSLSocket) -> None:
        if stopped(manager):
            with suppress(IndexError):
                say(manager, words.pop())  # once: the first connection may come to this after the stop, too

    manager.on_follow = last_words
    say(manager, "working")
    with stub(None), started("run", module) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"working\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == b"last words\n"
        said = f"keepctl: stopping keep {FIRST_ID}; Ctrl-C again leaves it running\n"
        assert process.stderr.read().decode() == said
        assert process.wait() == 130
    assert manager.keeps[FIRST_ID].state is State.COMPLETE


@pytest.mark.parametrize("rm", [False, True], ids=["without --rm", "with --rm"])
def test_a_second_ctrl_c_leaves_the_keep_or_removes_it_as_rm_says(
    manager: ManagerInMemory, stub: MakeStub, module: str, rm: bool
) -> None:
    pids: list[int] = []

    def again(connection: ssl.SSLSocket) -> None:
        if stopped(manager):
            with suppress(IndexError):
                os.kill(pids.pop(), signal.SIGTERM)  # once, likewise
            connection.recv(1)  # until the client hangs up
            raise ConnectionResetError

    manager.on_follow = again
    say(manager, "working")
    with stub(None), started("run", *["--rm"] * rm, module) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"working\n"
        pids.append(process.pid)
        process.send_signal(signal.SIGINT)
        last = process.stderr.read().decode().splitlines()[-1]
        assert process.wait() == 130
    left = f"left it running; see: keepctl logs -f {FIRST_ID}; stop it: keepctl stop {FIRST_ID}"
    assert last == f"keepctl: keep {FIRST_ID}: {'removed it' if rm else left}"
    assert (FIRST_ID in manager.keeps) is not rm


def stopped(manager: ManagerInMemory) -> bool:
    """Whether the first keep is there and was stopped."""
    keep = manager.keeps.get(FIRST_ID)
    return keep is not None and keep.state is State.COMPLETE


def started(*words: str) -> subprocess.Popen[bytes]:
    """keepctl in a process of its own, whose signals are not ours."""
    return subprocess.Popen(
        [sys.executable, "-m", "keepctl", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )


def test_logs_shows_the_guests_lines_and_with_all_the_keeps_too(run: Run, manager: ManagerInMemory) -> None:
    run("new", "--name", "web")
    say(manager, "listening", source="keep")
    say(manager, "a", "b\x00", "c")
    say(manager, "broken", source="stderr")
    assert run("logs", "web").output == "a\nb\x00\nc\nbroken\n"
    assert run("logs", "--stdout", "web").output == "a\nb\x00\nc\n"
    assert run("logs", "--stderr", "-n", "5", "web").output == "broken\n"
    assert run("logs", "-n", "1", "web").output == "broken\n"
    assert run("logs", "--all", "-f", "web").output == "listening\na\nb\x00\nc\nbroken\n"
    assert run("logs", "--stdout", "--since", "@1", "--until", "@1", "web").output == "b\x00\n"
    assert re.fullmatch(r"\S+T\S+[+-]\d\d:\d\d c\n", run("logs", "--stdout", "-t", "-n", "1", "web").output)
    assert json.loads(run("logs", "-o", "json", "-n", "1", "web").output)["source"] == "stderr"


def test_the_bytes_of_a_keep_are_in_its_log_as_they_were(run: Run, manager: ManagerInMemory) -> None:
    run("new", "--name", "web")
    for number in range(0, 256, 5):
        manager.write(FIRST_ID, STDOUT, bytes(range(number, min(number + 5, 256))))
    assert run("logs", "web").stdout_bytes == bytes(range(256))


def test_what_is_missing_is_said_outside_of_the_output(run: Run, manager: ManagerInMemory) -> None:
    run("new", "--name", "web")
    manager.lines[FIRST_ID] = [LogLine(0.0, "stdout", "a"), LogLine(0.0, "gap", "7 bytes are missing here")]
    shown = run("logs", "-n", "9", "web")
    assert (shown.stdout, shown.stderr) == ("a\n", "keepctl: 7 bytes are missing here\n")
    assert json.loads(run("logs", "-o", "json", "-n", "1", "web").output)["source"] == "gap"


def test_what_happens_to_one_keep_is_shown_until_it_is_removed(run: Run, manager: ManagerInMemory) -> None:
    run("new", "--name", "web")
    keep = manager.keeps[FIRST_ID]
    manager.happened = [
        KeepEvent(0.0, EventType.CREATED, keep, "bob"),
        KeepEvent(1.0, EventType.REMOVED, keep, "alice"),
    ]
    created, removed = run("events", "web").output.splitlines()
    assert created.endswith(f" created {FIRST_ID} web listening (by bob)")
    assert removed.endswith(f" removed {FIRST_ID} web (by alice)")
    assert [json.loads(line)["event"] for line in run("events", "-o", "json", "web").output.splitlines()] == [
        "created",
        "removed",
    ]


def test_the_last_lines_are_the_guests_whatever_the_keep_says_after_them(run: Run, manager: ManagerInMemory) -> None:
    run("new", "--name", "web")
    say(manager, *(f"line {number}" for number in range(300)))
    say(manager, *["running -> ended (finish): exited 0"] * 150, source="keep")
    manager.change(FIRST_ID, state=State.COMPLETE)
    assert run("logs", "-n", "2", "web").output == "line 298\nline 299\n"
    assert run("logs", "-f", "-n", "2", "web").output == "line 298\nline 299\n"
    assert run("logs", "-n", "1000", "web").output.count("line") == 300
    assert run("logs", "--all", "-n", "1", "web").output == "running -> ended (finish): exited 0\n"


def test_what_happened_to_a_removed_keep_is_found_by_its_id(run: Run, manager: ManagerInMemory) -> None:
    assert run("events", "--no-follow", "77").output == ""
    assert manager.requests[-1] == "GET /v1/events?keep=77"
    assert run("events", "77").exit_code == 1
    assert run("events", "--no-follow", "web").exit_code == 1


def test_wait_says_how_each_keep_ended(run: Run, manager: ManagerInMemory) -> None:
    run("new")
    manager.change(FIRST_ID, state=State.ERROR, outcome=TRAP)
    result = run("wait", str(FIRST_ID))
    assert (result.exit_code, result.output) == (134, "trapped: \\x1b[2J unreachable\n")
    assert json.loads(run("wait", "-o", "json", str(FIRST_ID)).output)[0]["outcome"]["kind"] == "trapped"


def test_inspect_as_text_says_what_a_person_wants_to_know(run: Run, manager: ManagerInMemory) -> None:
    run("new", "--name", "web", "--label", "a=b")
    outcome = Outcome(
        OutcomeKind.TRAPPED, "trapped: boom", backtrace=("0: f",), wall_seconds=0.25, cpu_seconds=125.0,
        peak_bytes=3 << 20, output_bytes=10, started_at=0.0, ended_at=1.0, by="alice",
    )  # fmt: skip
    manager.change(FIRST_ID, state=State.ERROR, detail="trapped\x1b", outcome=outcome, restarts=2)
    text = run("inspect", "-o", "text", "web").output
    for said in ("trapped: boom", "  0: f", "ran 0.25 s, processor 2 min 5 s, peak 3 MiB, output 10 B", "a=b", "alice"):
        assert said in text
    assert "\x1b" not in text


def test_keeps_are_meant_by_id_by_its_beginning_and_by_name(run: Run, manager: ManagerInMemory) -> None:
    run("new", "--name", "web")
    run("new", "--name", "db", "--label", "app=x")
    for reference in (str(FIRST_ID), "web", "4503599627370495"):
        assert json.loads(run("inspect", reference).output)["kuuid"] == FIRST_ID
    several = run("inspect", "45")
    assert several.exit_code == 1
    assert "2 are called so or begin so" in several.stderr and f"    {FIRST_ID} web" in several.stderr
    assert run("stop", "bob").stderr == "keepctl: cannot find keep bob: there is none; see: keepctl ps\n"
    assert run("ps", "-q", "--label", "app=x").output == f"{FIRST_ID + 1}\n"
    assert json.loads(run("rm", "-o", "json", "web", "db").output) == [FIRST_ID, FIRST_ID + 1]
    assert manager.keeps == {}


def test_the_completion_knows_the_keeps_and_nothing_where_no_manager_answers(
    run: Run, manager: ManagerInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("new", "--name", "web")
    complete = ShellComplete(build(), {}, "keepctl", "_KEEPCTL_COMPLETE")
    assert [item.value for item in complete.get_completions(["logs"], "")] == ["web", str(FIRST_ID)]
    assert [item.value for item in complete.get_completions(["rm", "web"], "45")] == [str(FIRST_ID)]
    assert complete.get_completions(["logs", "--manager", "127.0.0.1:1"], "") == []
