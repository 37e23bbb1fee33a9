"""`keepctl run` that gets no further than its beginning: no keep is left unnamed."""

from __future__ import annotations

import os
import signal
import ssl
from collections.abc import Callable

import pytest

from keep_client import connection
from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import Outcome, OutcomeKind
from keep_protocol.states import State
from keepctl.access import Access
from tests.fakes.client_pki import Pki
from tests.fakes.manager_in_memory import FIRST_ID, ManagerInMemory
from tests.fakes.tls_peer import TlsPeer, answer, read_head
from tests.fakes.upload_stub import UploadStub
from tests.unit.keepctl.conftest import Run

CREATE = "POST /v1/keeps"
START = f"POST /v1/keeps/{FIRST_ID}/start"
REMOVE = f"DELETE /v1/keeps/{FIRST_ID}"
INTERRUPTIONS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def hang_up(_: ssl.SSLSocket) -> None:
    """An answer that got lost."""


def interrupt(number: signal.Signals = signal.SIGINT) -> Callable[[ssl.SSLSocket], None]:
    """A signal to keepctl while it waits for the answer, which never comes."""

    def instead(connection: ssl.SSLSocket) -> None:
        os.kill(os.getpid(), number)
        connection.recv(1)  # until it hangs up

    return instead


def refuse(connection: ssl.SSLSocket) -> None:
    error = KeepfleetError(ErrorKind.INTERNAL, "cannot stop the unit: the bus is away")
    connection.sendall(answer(500, strict_json.dumps({"error": error.to_wire()})))


STEPS = pytest.mark.parametrize(
    ("is_older", "request_line"),
    [(False, CREATE), (True, CREATE), (True, START)],
    ids=["creation with a start", "creation by a manager of before", "start by a manager of before"],
)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "RETRY_SECONDS", (0.01,))
    monkeypatch.setitem(Access._defaults, "reconnect_seconds", 0.05)


@pytest.mark.parametrize("number", INTERRUPTIONS)
def test_a_signal_in_the_midst_of_the_upload_leaves_no_keep(
    run: Run, manager: ManagerInMemory, pki: Pki, module: str, number: signal.Signals
) -> None:
    def receive(connection: ssl.SSLSocket) -> None:
        read_head(connection)
        interrupt(number)(connection)

    with TlsPeer(pki.keep(), receive) as stub:
        manager.upload_port = stub.port
        result = run("run", module)
    assert (result.exit_code, result.stderr) == (130, "")
    assert manager.keeps == {}


@pytest.mark.parametrize("number", INTERRUPTIONS)
@STEPS
def test_a_signal_while_an_answer_is_on_its_way_leaves_no_keep(
    run: Run, manager: ManagerInMemory, module: str, number: signal.Signals, is_older: bool, request_line: str
) -> None:
    manager.is_older = is_older
    manager.lost[request_line] = [interrupt(number)]
    assert run("run", module).exit_code == 130
    assert manager.keeps == {}


@STEPS
def test_a_lost_answer_leaves_no_keep(
    run: Run, manager: ManagerInMemory, module: str, is_older: bool, request_line: str
) -> None:
    manager.is_older = is_older
    manager.lost[request_line] = [hang_up]
    result = run("run", module)
    assert result.exit_code != 0
    assert result.stderr.startswith("keepctl: cannot use the manager")
    assert manager.keeps == {}


def test_a_manager_that_is_away_when_the_keep_is_to_go_is_asked_again(
    run: Run, manager: ManagerInMemory, module: str
) -> None:
    manager.lost |= {CREATE: [hang_up], REMOVE: [hang_up]}
    result = run("run", module)
    assert result.stderr.count("\n") == 1
    assert manager.requests == [CREATE, CREATE, REMOVE, REMOVE], "the last one is said that the keep is gone"


def test_a_manager_of_before_is_asked_in_two_steps(run: Run, manager: ManagerInMemory, pki: Pki, module: str) -> None:
    manager.is_older = True
    with UploadStub(pki.keep()) as stub:
        manager.upload_port = stub.port
        assert run("run", "-d", module, "--", "x").exit_code == 0
    assert manager.requests == [CREATE, CREATE, START]
    assert manager.workloads[FIRST_ID] == {"arguments": ["x"]}


@pytest.mark.parametrize("way", [refuse, hang_up, interrupt()])
def test_a_keep_that_could_not_be_removed_is_named_with_what_to_do(
    run: Run, manager: ManagerInMemory, module: str, way: Callable[[ssl.SSLSocket], None]
) -> None:
    manager.is_older = True
    manager.instead |= {START: [hang_up], REMOVE: [way] * 100}
    lines = run("run", module).stderr.splitlines()
    assert lines[0].startswith(f"keepctl: left keep {FIRST_ID}")
    assert lines[0].endswith(f"; remove it: keepctl rm {FIRST_ID}")


def test_a_refused_creation_is_not_asked_for_again(run: Run, manager: ManagerInMemory, module: str) -> None:
    manager.instead[CREATE] = [refuse]
    assert run("run", module).exit_code != 0
    assert manager.requests == [CREATE]


@pytest.mark.parametrize("way", [hang_up, interrupt()])
def test_a_keep_that_was_to_be_replaced_is_not_ended_after_the_run_that_would_replace_it(
    run: Run, manager: ManagerInMemory, module: str, way: Callable[[ssl.SSLSocket], None]
) -> None:
    run("create", "--name", "web")
    manager.instead[CREATE] = [way]
    result = run("run", "--name", "web", "--replace", module)
    assert result.exit_code != 0
    assert "it is not known whether keep web was replaced; see: keepctl ps" in result.stderr
    assert [keep.state for keep in manager.keeps.values()] == [State.LISTENING]


def test_rm_asks_a_manager_again_that_is_away_for_a_moment(
    run: Run, manager: ManagerInMemory, pki: Pki, module: str
) -> None:
    def accepted() -> None:
        manager.change(FIRST_ID, state=State.COMPLETE, outcome=Outcome(OutcomeKind.EXITED, "exited 0", exit_code=0))

    manager.lost[REMOVE] = [hang_up]
    with UploadStub(pki.keep(), accepted) as stub:
        manager.upload_port = stub.port
        result = run("run", "--rm", module)
    assert (result.exit_code, result.stderr) == (0, "")
    assert manager.keeps == {}
