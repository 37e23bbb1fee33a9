"""Whatever ends `keepctl run`, it says what became of the keep, and --rm holds."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable

import pytest

from keep_client import connection
from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.ring import HEADER, Mark
from keep_protocol.states import State
from keepctl.__main__ import exit_code
from keepctl.access import Access
from keepctl.run import EndingSignals
from tests.fakes.manager_in_memory import FIRST_ID, ManagerInMemory
from tests.fakes.tls_peer import answer
from tests.unit.keepctl.conftest import MakeStub, Run, say

KEEP = f"/v1/keeps/{FIRST_ID}"
FOLLOW = f"GET {KEEP}/output?follow=true&hold=true"
FURTHER = f"GET {KEEP}/output?from={HEADER + len(Mark(0).encode())}&follow=true&hold=true"
"""After the mark with which output begins."""
LEFT = f"keepctl: keep {FIRST_ID}: left it running; see: keepctl logs -f {FIRST_ID}; stop it: keepctl stop {FIRST_ID}"
REMOVED = f"keepctl: keep {FIRST_ID}: removed it"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "RETRY_SECONDS", (0.01,))
    monkeypatch.setitem(Access._defaults, "reconnect_seconds", 0.05)


def too_many(connection: ssl.SSLSocket) -> None:
    error = KeepfleetError(ErrorKind.TOO_MANY, "cannot read the journal: 64 readers do already")
    connection.sendall(answer(429, strict_json.dumps({"error": error.to_wire()})))


def away(_: ssl.SSLSocket) -> None:
    """A manager that is being stopped: it answers nothing."""


WAYS = pytest.mark.parametrize("way", [too_many, away], ids=["64 followers", "a manager that is away"])


@WAYS
def test_a_guest_whose_output_cannot_be_had_does_not_begin(
    run: Run, manager: ManagerInMemory, stub: MakeStub, module: str, way: Callable[[ssl.SSLSocket], None]
) -> None:
    manager.instead[FOLLOW] = [way] * 100
    with stub(None) as at:
        result = run("run", module)
    assert (result.exit_code, result.stdout, at.received) == (125, "", None)
    assert manager.keeps == {}


@WAYS
@pytest.mark.parametrize("rm", [False, True], ids=["without --rm", "with --rm"])
def test_a_keep_that_cannot_be_followed_any_more_is_named_or_removed(
    run: Run, manager: ManagerInMemory, stub: MakeStub, module: str, way: Callable[[ssl.SSLSocket], None], rm: bool
) -> None:
    manager.on_follow = lost
    manager.instead[FURTHER] = [way] * 100
    with stub(None):
        result = run("run", *["--rm"] * rm, module)
    assert (result.exit_code, result.stdout) == (125, "")
    assert result.stderr.splitlines()[-1] == (REMOVED if rm else LEFT)
    assert (FIRST_ID in manager.keeps) is not rm


def lost(_: ssl.SSLSocket) -> None:
    """The connection is."""
    raise ConnectionResetError


def test_where_the_manager_stays_away_the_keep_that_rm_left_is_named(
    run: Run, manager: ManagerInMemory, stub: MakeStub, module: str
) -> None:
    manager.on_follow = lost
    manager.instead |= {FURTHER: [away] * 100, f"DELETE {KEEP}": [away]}
    with stub(None):
        result = run("run", "--rm", module)
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"keepctl: left keep {FIRST_ID}: ")
    assert last.endswith(f"; remove it: keepctl rm {FIRST_ID}")


def test_a_failed_removal_at_the_end_does_not_change_the_exit_code(
    run: Run, manager: ManagerInMemory, stub: MakeStub, module: str
) -> None:
    manager.instead[f"DELETE {KEEP}"] = [too_many]
    with stub():
        result = run("run", "--rm", module)
    assert result.exit_code == 0
    assert result.stderr.startswith(f"keepctl: left keep {FIRST_ID}: ")


def typed(shell: str, module: str) -> subprocess.CompletedProcess[bytes]:
    """What a person types at a shell, "$K" for keepctl and "$M" for the module."""
    environment = {**os.environ, "PY": sys.executable, "M": module}
    text = shell.replace("$K", '"$PY" -m keepctl').replace("$M", '"$M"')
    return subprocess.run(["bash", "-c", text], capture_output=True, env=environment, check=False)


@pytest.mark.parametrize("rm", [False, True], ids=["without --rm", "with --rm"])
def test_output_that_cannot_be_written_ends_the_workload_and_says_so(
    manager: ManagerInMemory, stub: MakeStub, module: str, rm: bool
) -> None:
    say(manager, *(f"line {number}" for number in range(2000)))
    with stub(None):
        done = typed(f"$K run {'--rm' if rm else ''} $M >/dev/full", module)
    assert done.stderr.decode().splitlines() == [
        f"keepctl: keep {FIRST_ID}: cannot write the output: No space left on device",
        REMOVED if rm else f"keepctl: keep {FIRST_ID}: stopped it; see: keepctl logs {FIRST_ID}",
    ]
    assert done.returncode == 125
    assert (manager.keeps == {}) if rm else (manager.keeps[FIRST_ID].state is State.COMPLETE)


def test_a_detached_keep_whose_id_cannot_be_written_is_named(
    manager: ManagerInMemory, stub: MakeStub, module: str
) -> None:
    with stub(None):
        done = typed("$K run -d $M >/dev/full", module)
    assert (done.returncode, done.stderr.decode().splitlines()[-1]) == (125, LEFT)
    assert manager.keeps[FIRST_ID].state is State.STARTED


def test_a_reader_that_goes_while_the_end_is_reported_does_not_keep_the_keep(
    manager: ManagerInMemory, stub: MakeStub, module: str
) -> None:
    say(manager, "one line")
    reader, writer = os.pipe()

    def hang_up(_: ssl.SSLSocket) -> None:
        os.close(reader)

    manager.on_follow = hang_up
    with stub(None), subprocess.Popen(
        [sys.executable, "-m", "keepctl", "run", "--rm", "-o", "json", module], stdout=writer, stderr=subprocess.PIPE
    ) as process:  # fmt: skip
        os.close(writer)
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait() == 141
    assert manager.keeps == {}


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_a_stream_that_is_closed_or_full_changes_nothing(
    manager: ManagerInMemory, stub: MakeStub, module: str, closed: str
) -> None:
    say(manager, "hello")
    with stub():
        done = typed(f"$K run --rm $M {closed}", module)
    assert (done.returncode, done.stderr) == (0, b"")
    assert manager.keeps == {}


def test_a_reason_that_cannot_be_said_leaves_the_exit_code_as_it_is(
    manager: ManagerInMemory, stub: MakeStub, module: str
) -> None:
    manager.instead[FOLLOW] = [too_many]
    with stub(None):
        assert typed("$K run $M 2>/dev/full", module).returncode == 125


@pytest.mark.parametrize("words", ["ps", "ps -o json", "inspect 45", "completion bash", "--help", "--version"])
def test_no_command_ends_with_a_traceback_where_its_output_cannot_be_written(
    run: Run, manager: ManagerInMemory, words: str
) -> None:
    run("new")
    done = typed(f"$K {words} >/dev/full", "")
    assert (done.returncode, done.stderr) == (1, b"keepctl: cannot go on: No space left on device\n"), manager.requests


def test_a_fault_of_our_own_names_the_keep_that_it_leaves(
    manager: ManagerInMemory,
    stub: MakeStub,
    module: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr("keepctl.commands.run.until_the_end", broken)
    with stub(None), pytest.raises(RuntimeError):
        exit_code(["run", module])
    assert capsys.readouterr().err.splitlines()[-1] == LEFT


def test_a_hangup_is_ctrl_c_unless_it_was_ignored_before_as_nohup_has_it() -> None:
    heard = []
    for handler in (signal.SIG_DFL, signal.SIG_IGN):
        before = signal.signal(signal.SIGHUP, handler)
        try:
            with EndingSignals():
                os.kill(os.getpid(), signal.SIGHUP)
            heard.append("nothing")
        except KeyboardInterrupt:
            heard.append("Ctrl-C")
        finally:
            assert signal.signal(signal.SIGHUP, before) is handler
    assert heard == ["Ctrl-C", "nothing"]
