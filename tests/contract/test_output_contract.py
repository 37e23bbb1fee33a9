"""Output and input over HTTP: the clients' fake manager and the real one, with a fake loader, say the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import pytest

from keep_client.manager import ManagerClient
from keep_client.output import GAP, Output
from keep_client.peer import Endpoint
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import Outcome, OutcomeKind
from keep_protocol.ring import MAX_FRAME, STDERR, STDOUT
from keep_protocol.states import Event, State
from tests.fakes.client_pki import Pki
from tests.fakes.fake_output import FakeOutput
from tests.fakes.manager_in_memory import ManagerInMemory
from tests.fakes.manager_thread import manager_thread
from tests.fakes.running_manager import RunningManager

STREAMED: dict[str, object] = {"stdin": {"stream": True}}
ENOUGH = 60.0


class Subject(Protocol):
    """A manager, and how a test makes its keeps' guests behave."""

    def client(self) -> ManagerClient: ...
    def write(self, kuuid: int, stream: int, data: bytes) -> None: ...
    def end(self, kuuid: int) -> None: ...
    def received(self, kuuid: int) -> bytes: ...


class InMemory:
    """The clients' fake."""

    def __init__(self, fake: ManagerInMemory, pki: Pki) -> None:
        self._fake, self._pki = fake, pki

    def client(self) -> ManagerClient:
        return ManagerClient(
            Endpoint("127.0.0.1", self._fake.port, "the manager"), self._pki.credentials().manager_context()
        )

    def write(self, kuuid: int, stream: int, data: bytes) -> None:
        self._fake.accept(kuuid)
        self._fake.write(kuuid, stream, data)

    def end(self, kuuid: int) -> None:
        outcome = Outcome(OutcomeKind.EXITED, "exited", exit_code=0)
        self._fake.change(kuuid, state=State.COMPLETE, outcome=outcome)

    def received(self, kuuid: int) -> bytes:
        return bytes(self._fake.input[kuuid])


class Real:
    """The manager over its fake loaders."""

    def __init__(self, manager: RunningManager) -> None:
        self._manager = manager

    def client(self) -> ManagerClient:
        endpoint = Endpoint("127.0.0.1", self._manager.port, "the manager")
        return ManagerClient(endpoint, self._manager.context(self._manager.operator))

    def _do(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        assert self._manager.loop is not None
        asyncio.run_coroutine_threadsafe(work(), self._manager.loop).result(ENOUGH)

    def _output(self, kuuid: int) -> FakeOutput:
        output = self._manager.units.loaders[kuuid].output
        assert output is not None
        return output

    def write(self, kuuid: int, stream: int, data: bytes) -> None:
        async def write() -> None:
            self._output(kuuid).write(stream, data)

        self._do(write)

    def end(self, kuuid: int) -> None:
        async def end() -> None:
            loader = self._manager.units.loaders[kuuid]
            await loader.move(Event.ACCEPT)
            await loader.move(Event.FINISH)

        self._do(end)

    def received(self, kuuid: int) -> bytes:
        found: list[bytes] = []

        async def whole() -> None:
            output = self._output(kuuid)
            while not output.complete:
                await output.input_changed.wait()
                output.input_changed.clear()
            found.append(output.input)

        self._do(whole)
        return found[0]


@pytest.fixture(params=["in memory", "real"])
def subject(request: pytest.FixtureRequest, fake_place: str, tmp_path: Path) -> Iterator[Subject]:
    if request.param == "real":
        with manager_thread(Path(fake_place)) as manager:  # pytest's own path is too long for a socket's
            yield Real(manager)
        return
    pki = Pki(tmp_path)
    with ManagerInMemory(pki.manager(), pki.keep_pem, pki.fingerprint) as fake:
        yield InMemory(fake, pki)


def started(client: ManagerClient, workload: dict[str, object] | None = None) -> int:
    kuuid = client.create().kuuid
    client.start(kuuid, "127.0.0.1", workload=workload)
    return kuuid


def read(output: Output) -> dict[int, bytes]:
    """What came of each stream, and of each how many bytes are missing, as -STREAM."""
    found = {STDOUT: b"", STDERR: b""}
    for pieces in output.pieces():
        for stream, of, data in pieces:
            if stream == GAP:
                found[-of] = bytes(data)
            elif stream in found:
                found[stream] += bytes(data)
    return found


def test_what_is_there_is_sent_and_then_the_keep(subject: Subject) -> None:
    with subject.client() as client:
        kuuid = started(client)
        subject.write(kuuid, STDOUT, b"one\0\r\n")
        subject.write(kuuid, STDERR, b"\xff")
        subject.write(kuuid, STDOUT, b"two")
        output = Output(client, kuuid)
        assert read(output) == {STDOUT: b"one\0\r\ntwo", STDERR: b"\xff"}
        assert output.keep is not None
        assert (output.keep.kuuid, output.keep.state) == (kuuid, State.STARTED)
        assert client.keep(kuuid).kuuid == kuuid, "and the connection serves another request"


def test_a_follower_is_attached_before_there_is_anything_and_gets_all_to_the_end(subject: Subject) -> None:
    with subject.client() as client, ThreadPoolExecutor(1) as pool:
        kuuid = started(client)
        output = Output(client, kuuid, follow=True, hold=True)
        output.attach()
        reading = pool.submit(read, output)
        for number in range(50):
            subject.write(kuuid, STDOUT, b"%d\n" % number)
        subject.end(kuuid)
        assert reading.result(ENOUGH)[STDOUT] == b"".join(b"%d\n" % number for number in range(50))
        assert output.keep is not None and output.keep.outcome is not None
        assert (output.keep.state, output.keep.outcome.exit_code) == (State.COMPLETE, 0)


def test_what_was_overwritten_is_counted(subject: Subject) -> None:
    with subject.client() as client:
        kuuid = started(client)
        subject.write(kuuid, STDERR, b"early")
        for _ in range(80):
            subject.write(kuuid, STDOUT, b"x" * MAX_FRAME)
        found = read(Output(client, kuuid))
        assert int(found[-STDOUT]) + len(found[STDOUT]) == 80 * MAX_FRAME
        assert found[STDERR] == b""


def test_input_goes_to_its_end_and_is_taken_once(subject: Subject) -> None:
    with subject.client() as client:
        kuuid = started(client, STREAMED)
        parts = [b"one ", b"x" * 200_000, b"y"]
        assert client.send_input(kuuid, parts) == (200_005, True)
        assert subject.received(kuuid) == b"".join(parts)


def test_a_keep_that_takes_no_input_is_a_conflict(subject: Subject) -> None:
    with subject.client() as client:
        kuuid = started(client)
        with pytest.raises(KeepfleetError) as raised:
            client.send_input(kuuid, [b"x"])
        assert raised.value.kind is ErrorKind.CONFLICT
