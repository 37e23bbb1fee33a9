"""app-loader-tester: what it sends, to whom, and what it says to every answer."""

from __future__ import annotations

import ssl
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app_loader.receive.requests import STATUS_OF
from keep_protocol.keep import KeepInfo
from keep_protocol.states import State
from testers.app_loader_tester.__main__ import main
from testers.app_loader_tester.send import MEANINGS
from tests.fakes.client_pki import Pki
from tests.fakes.manager_in_memory import ManagerInMemory
from tests.fakes.tls_peer import TlsPeer, answer, read_head, refusing_port
from tests.fakes.upload_stub import UploadStub

MODULE = b"\0asm\1\0\0\0"
Tester = Callable[..., int]


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def stub(pki: Pki) -> Iterator[UploadStub]:
    with UploadStub(pki.keep()) as fake:
        yield fake


@pytest.fixture
def module(tmp_path: Path) -> str:
    path = tmp_path / "m.wasm"
    path.write_bytes(MODULE)
    return str(path)


@pytest.fixture
def tester(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> Tester:
    monkeypatch.setenv("KEEPFLEET_PKI", pki.layout.directory)

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["app-loader-tester", *map(str, arguments)])
        return main()

    return run


@pytest.mark.parametrize(("encoding", "confirmed"), [("wasm", "Payload received"), ("raw", "8 bytes received whole")])
def test_a_module_is_sent_in_either_encoding_and_confirmed(
    tester: Tester, stub: UploadStub, pki: Pki, module: str, encoding: str, confirmed: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert tester(stub.port, "--fingerprint", pki.fingerprint, "--encoding", encoding, module) == 0
    output = capsys.readouterr().out
    assert "< 200" in output
    assert confirmed in output
    assert "The keep has accepted it" in output
    assert stub.received == MODULE


def test_without_a_fingerprint_the_manager_is_asked_for_it(
    tester: Tester, stub: UploadStub, pki: Pki, module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with ManagerInMemory(pki.manager(), pki.keep_pem, pki.fingerprint) as manager:
        manager.keeps[6] = KeepInfo(6, State.COMPLETE, address="127.0.0.1", port=stub.port, fingerprint="sha256:00")
        manager.keeps[7] = KeepInfo(7, State.STARTED, address="127.0.0.1", port=stub.port, fingerprint=pki.fingerprint)
        assert tester(stub.port, "--manager", f"127.0.0.1:{manager.port}", module) == 0
    assert f"keep 7 listens there: {pki.fingerprint}" in capsys.readouterr().out


def test_a_keep_the_manager_does_not_know_is_sent_nothing(
    tester: Tester, stub: UploadStub, pki: Pki, module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with ManagerInMemory(pki.manager(), pki.keep_pem, pki.fingerprint) as manager:
        manager.keeps[7] = KeepInfo(7, State.STARTED, address="192.0.2.7", port=stub.port, fingerprint=pki.fingerprint)
        assert tester(stub.port, "--manager", f"127.0.0.1:{manager.port}", module) == 1
    assert "knows no started keep there" in capsys.readouterr().err
    assert stub.received is None


def test_a_keep_with_another_certificate_is_sent_nothing(
    tester: Tester, stub: UploadStub, module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tester(stub.port, "--fingerprint", "sha256:" + "0" * 64, module) == 1
    assert "cannot trust the keep" in capsys.readouterr().err
    assert stub.received is None


def test_a_second_workload_is_explained(
    tester: Tester, stub: UploadStub, pki: Pki, module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tester(stub.port, "--fingerprint", pki.fingerprint, module) == 0
    assert tester(stub.port, "--fingerprint", pki.fingerprint, module) == 1
    error = capsys.readouterr().err
    assert "the keep has a workload already, or is receiving one; it takes only one (409)" in error


def test_what_is_no_module_is_said_with_the_reason_and_without_its_control_characters(
    tester: Tester, stub: UploadStub, pki: Pki, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("hello")
    assert tester(stub.port, "--fingerprint", pki.fingerprint, tmp_path / "text") == 1
    captured = capsys.readouterr()
    assert "will not run it; it goes on waiting for another (422)" in captured.err
    assert "\\x1b[31mnot a module" in captured.err
    assert "\x1b" not in captured.out + captured.err


@pytest.mark.parametrize("encoding", ["wasm", "raw"])
def test_a_file_over_the_keeps_limit_is_refused_while_it_is_sent(
    tester: Tester, pki: Pki, tmp_path: Path, encoding: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(connection: ssl.SSLSocket) -> None:
        read_head(connection)
        connection.sendall(answer(413, b'{"error":{"kind":"too-large","message":"cannot take it","evidence":[]}}'))

    large = tmp_path / "large"
    with open(large, "wb") as file:
        file.truncate(8 << 20)
    with TlsPeer(pki.keep(), refuse) as peer:
        assert tester(peer.port, "--fingerprint", pki.fingerprint, "--encoding", encoding, large) == 1
    assert "the file is larger than the keep takes (413)\n    cannot take it" in capsys.readouterr().err


def test_a_refused_connection_is_explained(
    tester: Tester, pki: Pki, module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with refusing_port() as port:
        assert tester(port, "--fingerprint", pki.fingerprint, module) == 3
    error = capsys.readouterr().err
    assert "nothing listens there; a keep closes its upload endpoint once it has its workload" in error
    assert error.count("\n") == 1


def test_an_unexpected_answer_is_a_surprise(
    tester: Tester, pki: Pki, module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def teapot(connection: ssl.SSLSocket) -> None:
        read_head(connection)
        connection.sendall(answer(418, b"short and stout"))

    with TlsPeer(pki.keep(), teapot) as peer:
        assert tester(peer.port, "--fingerprint", pki.fingerprint, module) == 1
    assert "answered something unexpected (418)" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["none.wasm", "."])
def test_a_file_that_cannot_be_read_is_an_error_in_words(
    tester: Tester, pki: Pki, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tester(3031, "--fingerprint", pki.fingerprint, file) == 1
    assert capsys.readouterr().err.startswith(f"app-loader-tester: cannot read {file}: ")


@pytest.mark.parametrize("arguments", [["0", "f"], ["3031"], ["3031", "f", "--fingerprint", "12"]])
def test_wrong_usage_is_exit_code_2(tester: Tester, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        tester(*arguments)
    assert raised.value.code == 2


def test_every_status_that_a_keep_answers_is_explained() -> None:
    assert {*STATUS_OF.values(), 500} <= set(MEANINGS) | {404}, "404 is for other paths than ours"
