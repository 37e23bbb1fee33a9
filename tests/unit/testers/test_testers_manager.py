"""keep-manager-tester: every step against a manager that behaves, and against managers that do not."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from keep_protocol.states import State
from testers.keep_manager_tester.__main__ import main
from tests.fakes.client_pki import Pki
from tests.fakes.manager_in_memory import FIRST_ID, ManagerInMemory
from tests.fakes.tls_peer import refusing_port

ROOT = Path(__file__).resolve().parents[3]
Tester = Callable[..., int]


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def manager(pki: Pki) -> Iterator[ManagerInMemory]:
    with ManagerInMemory(pki.manager(), pki.keep_pem, pki.fingerprint) as fake:
        yield fake


@pytest.fixture
def tester(pki: Pki, manager: ManagerInMemory, monkeypatch: pytest.MonkeyPatch) -> Tester:
    monkeypatch.setenv("KEEPFLEET_PKI", pki.layout.directory)

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["keep-manager-tester", "--manager", f"127.0.0.1:{manager.port}", *arguments])
        return main()

    return run


def test_the_walk_ends_with_the_exact_next_command(
    tester: Tester, manager: ManagerInMemory, pki: Pki, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tester("--yes") == 0
    output = capsys.readouterr().out
    command = f"app-loader-tester 3031 --address 127.0.0.1 --fingerprint {pki.fingerprint} FILE.wasm"
    assert output.splitlines()[-1] == command
    assert manager.requests == ["GET /"] + ["POST /keeps_post"] * 4
    assert '> POST /keeps_post {"command":"new-keep","keep-arch":"wasi","auth-token":"a3f9cb07"}' in output
    assert "2 started    its app-loader waits for a workload, or runs it" in output


def test_several_walks_on_one_manager_each_start_the_keep_they_made(tester: Tester, manager: ManagerInMemory) -> None:
    for number in (1, 2, 3):
        assert tester("--yes") == 0
        assert [keep.state for keep in manager.keeps.values()] == [State.STARTED] * number


def test_a_manager_that_lists_the_newest_keep_elsewhere_is_a_surprise(
    tester: Tester, manager: ManagerInMemory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tester("--yes") == 0
    manager.newest_first = True
    assert tester("--yes") == 1
    assert f"keep {FIRST_ID + 1} was created last and is not listed last" in capsys.readouterr().err


def test_certificates_that_were_named_are_named_in_the_next_command_too(
    tester: Tester, pki: Pki, capsys: pytest.CaptureFixture[str]
) -> None:
    certificate = pki.layout.client_certificate("admin")
    assert tester("--yes", "--cert", certificate, "--address", "192.0.2.7", "--port", "4040") == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert words[:4] == ["app-loader-tester", "4040", "--address", "192.0.2.7"]
    assert words[-3:] == ["--cert", certificate, "FILE.wasm"]


def test_on_127_0_0_1_the_port_may_have_moved_up(
    tester: Tester, manager: ManagerInMemory, capsys: pytest.CaptureFixture[str]
) -> None:
    manager.upload_port = 3050
    assert tester("--yes") == 0
    assert "app-loader-tester 3050" in capsys.readouterr().out


def test_on_another_address_a_moved_port_is_a_surprise(
    tester: Tester, manager: ManagerInMemory, capsys: pytest.CaptureFixture[str]
) -> None:
    manager.upload_port = 3050
    assert tester("--yes", "--address", "192.0.2.7") == 1
    assert "cannot go on: it listens on port 3050, and 3031 was asked for" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("twist", "complaint"),
    [
        ({"state": 15, "detail": "no room"}, "a new keep must be in state 1, and is in 15 (error)\n    no room"),
        ({"state": 0}, "must be in state 1, and is in 0 (undefined)"),
        ({"state": 7}, "invalid keep: field 'state' must be one of"),
        ({"phase": "melted"}, "invalid keep: field 'phase' must be empty or one of"),
        ({"kuuid": 0}, "the new keep's ID is 0"),
        ({"kuuid": "1"}, "invalid keep: field 'kuuid' must be a whole number"),
        ({"app_loader_bind_port": 3031}, "claims to listen on :3031 before it was started"),
        ({"bindaddress": "127.0.0.1"}, "before it was started"),
    ],
)
def test_a_new_keep_that_is_not_as_it_should_be_is_a_surprise(
    tester: Tester,
    manager: ManagerInMemory,
    capsys: pytest.CaptureFixture[str],
    twist: dict[str, object],
    complaint: str,
) -> None:
    manager.twist = twist
    assert tester("--yes") == 1
    error = capsys.readouterr().err
    assert error.startswith(("keep-manager-tester: cannot ", "keep-manager-tester: invalid keep: "))
    assert complaint in error


@pytest.mark.parametrize(
    ("fingerprint", "complaint"),
    [
        ("", "named no fingerprint"),
        ("sha256:12", "64 hexadecimal digits"),
        ("sha256:" + "0" * 64, "the keep's certificate is sha256:"),
    ],
)
def test_a_fingerprint_that_is_not_the_certificates_is_a_surprise(
    pki: Pki,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    fingerprint: str,
    complaint: str,
) -> None:
    monkeypatch.setenv("KEEPFLEET_PKI", pki.layout.directory)
    with ManagerInMemory(pki.manager(), pki.keep_pem, fingerprint) as manager:
        monkeypatch.setattr(sys, "argv", ["x", "--manager", f"127.0.0.1:{manager.port}", "--yes"])
        assert main() == 1
    assert complaint in capsys.readouterr().err


def test_another_protocols_banner_is_a_surprise(
    tester: Tester, manager: ManagerInMemory, capsys: pytest.CaptureFixture[str]
) -> None:
    manager.banner = "It works!"
    assert tester("--yes") == 1
    assert "this is no keep-manager of our protocol" in capsys.readouterr().err
    assert manager.keeps == {}


def test_no_manager_is_exit_code_3_and_one_line(
    pki: Pki, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEEPFLEET_PKI", pki.layout.directory)
    with refusing_port() as port:
        monkeypatch.setattr(sys, "argv", ["x", "--manager", f"127.0.0.1:{port}", "--yes"])
        assert main() == 3
    error = capsys.readouterr().err
    assert "nothing listens there; is it running?" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--port", "0"], ["--port", "x"], ["--address", "edge"], ["--manager", "a b"]])
def test_wrong_usage_is_exit_code_2(tester: Tester, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        tester(*arguments)
    assert raised.value.code == 2


def walk(pki: Pki, manager: ManagerInMemory, keys: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "testers.keep_manager_tester", "--manager", f"127.0.0.1:{manager.port}"]
    environment = {**os.environ, "KEEPFLEET_PKI": pki.layout.directory}
    return subprocess.run(
        command, input=keys, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=60, check=False
    )


def test_without_yes_each_step_waits_for_enter(pki: Pki, manager: ManagerInMemory) -> None:
    done = walk(pki, manager, "\n" * 5)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Press <Enter>: ") == 5


def test_input_that_ends_too_early_is_an_error_in_words(pki: Pki, manager: ManagerInMemory) -> None:
    done = walk(pki, manager, "\n" * 2)
    assert done.returncode == 1
    assert done.stderr == "keep-manager-tester: cannot wait for <Enter>: there is no more input; use --yes\n"
    assert list(manager.keeps) == [FIRST_ID]
