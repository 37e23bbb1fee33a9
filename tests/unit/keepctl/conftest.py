"""keepctl as a person runs it: in process, with a directory of its own for everything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from keep_protocol.keep import Outcome, OutcomeKind
from keep_protocol.ring import MARK, STDERR, STDOUT, Mark
from keep_protocol.sse import LogLine
from keep_protocol.states import State
from keepctl.__main__ import exit_code
from tests.fakes.client_pki import Pki
from tests.fakes.manager_in_memory import FIRST_ID, ManagerInMemory
from tests.fakes.running_manager import RunningManager
from tests.fakes.upload_stub import UploadStub
from tests.unit.client.conftest import unhurried
from tests.unit.manager.conftest import patient_with_loaders

__all__ = ["patient_with_loaders", "unhurried"]

Run = Callable[..., Result]
MODULE = b"\0asm\1\0\0\0"
GOOD = Outcome(OutcomeKind.EXITED, "exited 0", exit_code=0)
MakeStub = Callable[..., UploadStub]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the PKI is to be."""
    path = tmp_path / "keepfleet" / "pki"
    monkeypatch.setenv("KEEPFLEET_PKI", str(path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    for variable in ("KEEPFLEET_MANAGER", "KEEPFLEET_CONTEXT"):
        monkeypatch.delenv(variable, raising=False)
    return path


def let_operator_in(manager: RunningManager, directory: Path) -> None:
    """Has the PKI in `directory` be the operator's of that manager."""
    (directory / "clients").mkdir(parents=True)
    both = Path(manager.operator.file).read_text()
    for name, text in (
        ("ca.crt", Path(manager.authority.file).read_text()),
        ("clients/admin.crt", both),
        ("clients/admin.key", both),
    ):
        (directory / name).write_text(text)
    (directory / "clients/admin.key").chmod(0o600)


class Keepctl(click.Command):
    """What click's runner takes for a command, and what a person gets: the reader of tables first, then click."""

    def __init__(self) -> None:
        super().__init__("keepctl")

    def main(self, args: Sequence[str] = (), *_: object, **__: object) -> None:  # type: ignore[override]  # as called
        raise SystemExit(exit_code(list(args)))


@pytest.fixture
def run(directory: Path) -> Run:
    """Runs `keepctl` with these arguments; anything but a clean exit fails the test."""
    del directory

    def invoke(*arguments: str, input: str | None = None) -> Result:
        result = CliRunner().invoke(Keepctl(), list(arguments), input=input)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.output
        return result

    return invoke


@pytest.fixture(scope="package")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def manager(pki: Pki, monkeypatch: pytest.MonkeyPatch, run: Run) -> Iterator[ManagerInMemory]:
    """A manager that `run` speaks to."""
    del run  # which sets the variable this fixture sets again
    with ManagerInMemory(pki.manager(), pki.keep_pem, pki.fingerprint) as fake:
        monkeypatch.setenv("KEEPFLEET_PKI", pki.layout.directory)
        monkeypatch.setenv("KEEPFLEET_MANAGER", f"127.0.0.1:{fake.port}")
        yield fake


@pytest.fixture
def module(tmp_path: Path) -> str:
    """A file the fake stub takes."""
    path = tmp_path / "m.wasm"
    path.write_bytes(MODULE)
    return str(path)


STREAMS = {"stdout": STDOUT, "stderr": STDERR}


def say(manager: ManagerInMemory, *texts: str, source: str = "stdout") -> None:
    """The first keep, or its guest, prints these lines."""
    for number, text in enumerate(texts):
        manager.lines.setdefault(FIRST_ID, []).append(LogLine(float(number), source, text))
        data = Mark(0, text).encode() if source == "keep" else f"{text}\n".encode()
        manager.write(FIRST_ID, STREAMS.get(source, MARK), data, float(number))


@pytest.fixture
def stub(manager: ManagerInMemory, pki: Pki) -> MakeStub:
    """A stub whose workload ends as asked as soon as it has arrived."""

    def make(outcome: Outcome | None = GOOD) -> UploadStub:
        def accepted() -> None:
            manager.accept(FIRST_ID)
            if outcome is not None:
                state = State.COMPLETE if outcome.kind is OutcomeKind.EXITED else State.ERROR
                manager.change(FIRST_ID, state=state, detail="ended", outcome=outcome)

        stub = UploadStub(pki.keep(), accepted)
        manager.upload_port = stub.port
        return stub

    return make
