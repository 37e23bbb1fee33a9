"""A start that describes a workload: what is granted is checked, parked by its name, passed on, and dropped."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from keep_loader.state import is_stored_name
from keep_protocol.control import CommandType
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.states import State
from keep_protocol.workload import MAX_DIRECTORIES, MAX_SECRETS, MAX_WORKLOAD_JSON, Directory, Workload
from tests.fakes.loader_process import FINGERPRINT, Endpoint, LoaderProcess, Stub, opened
from tests.unit.loader.test_strays import opened_by

NAMES = ("workload", "stdin", "directory-0", "directory-1", "secret-0")
ENDPOINT = {"listener", "client-ca", "revoked", "identity"}
GIVEN = Workload(
    arguments=("-v",), stdin=True, directories=(Directory("/data"), Directory("/out", True)), secrets=("token",)
)


@dataclass
class Grants:
    """Open files below a directory of the test's, closed at its end."""

    place: Path
    stack: ExitStack

    def keep(self, descriptor: int) -> int:
        self.stack.callback(os.close, descriptor)
        return descriptor

    def file(self, name: str, data: bytes = b"", flags: int = os.O_RDONLY) -> int:
        (self.place / name).write_bytes(data)
        return self.keep(os.open(self.place / name, flags))

    def directory(self, name: str) -> int:
        (self.place / name).mkdir(exist_ok=True)
        return self.keep(os.open(self.place / name, os.O_RDONLY | os.O_DIRECTORY))

    def pipe(self) -> tuple[int, int]:
        reader, writer = os.pipe()
        return self.keep(reader), self.keep(writer)

    def workload(self, workload: Workload) -> int:
        return self.file("workload.json", workload.to_json())

    def given(self) -> list[int]:
        """What GIVEN takes, in order."""
        return [
            self.workload(GIVEN),
            self.pipe()[0],
            self.directory("data"),
            self.directory("out"),
            self.file("token", b"secret"),
        ]


@pytest.fixture
def grants(place: Path) -> Iterator[Grants]:
    directory = place.parent / "grants"
    directory.mkdir()
    with ExitStack() as stack:
        yield Grants(directory, stack)


def given(loader: LoaderProcess, passed: Endpoint, grants: Grants) -> tuple[Stub, list[int]]:
    """A keep that awaits a workload for which GIVEN was granted."""
    descriptors = grants.given()
    peer = loader.peer()
    peer.start({**passed.named, **dict(zip(NAMES, descriptors, strict=True))})
    stub = loader.stub()
    stub.listen()
    assert peer.answer().state is State.STARTED
    return stub, descriptors


def links(descriptors: list[int]) -> list[str]:
    return [os.readlink(f"/proc/self/fd/{number}") for number in descriptors]


def test_every_name_of_a_grant_may_come_back_from_systemd() -> None:
    workload = Workload(
        stdin=True,
        directories=tuple(Directory(f"/{number}") for number in range(MAX_DIRECTORIES)),
        secrets=tuple(f"s{number}" for number in range(MAX_SECRETS)),
    )
    assert all(is_stored_name(name) for name in workload.grant_names)
    assert not any(is_stored_name(name) for name in ("", "record", "stored", "directory-x", "stdin-1", "secret"))


def test_grants_are_parked_by_name_and_go_to_the_runner_alone(
    loader: LoaderProcess, passed: Endpoint, grants: Grants
) -> None:
    stub, descriptors = given(loader, passed, grants)
    assert stub.names == ["listener", "client-ca", "revoked", "checks"]
    assert set(stub.descriptors) == set(range(8))
    loader.systemd.wait_for("STATUS", "started: awaiting")
    assert loader.systemd.parked == ENDPOINT | {"workload", "stdin", "directory-0", "directory-1", "secret-0"}
    assert os.pread(loader.systemd.stored["secret-0"], 10, 0) == b"secret"
    runner = stub.connect()
    assert runner.names == ["checks", "workload"]
    assert runner.passed["workload"] == links(descriptors)[0]
    stub.accept()
    assert list(stub.given) == ["compiled", *NAMES]
    assert [stub.given[name] for name in NAMES] == links(descriptors)


def test_a_workload_without_grants_has_its_description_alone(
    loader: LoaderProcess, passed: Endpoint, grants: Grants
) -> None:
    descriptor = grants.workload(Workload(arguments=("x",)))
    peer = loader.peer()
    peer.send(CommandType.START, "", (*passed.descriptors, descriptor))
    stub = loader.stub()
    stub.listen()
    stub.accept()
    assert list(stub.given) == ["compiled", "workload"]
    assert [stub.given["workload"]] == links([descriptor])


def test_the_most_that_can_be_granted_is_passed_on(loader: LoaderProcess, passed: Endpoint, grants: Grants) -> None:
    workload = Workload(
        stdin=True,
        directories=tuple(Directory(f"/{number}") for number in range(MAX_DIRECTORIES)),
        secrets=tuple(f"s{number}" for number in range(MAX_SECRETS)),
    )
    descriptors = [grants.workload(workload), grants.file("in")]
    descriptors += [grants.directory(f"d{number}") for number in range(MAX_DIRECTORIES)]
    descriptors += [grants.file(f"s{number}") for number in range(MAX_SECRETS)]
    peer = loader.peer()
    peer.send(CommandType.START, "", (*passed.descriptors, *descriptors))
    stub = loader.stub()
    stub.listen()
    assert peer.answer().state is State.STARTED
    stub.accept()
    assert [stub.given[name] for name in ("workload", *workload.grant_names)] == links(descriptors)


def test_a_file_a_pipe_and_a_socket_can_be_standard_input(
    loader: LoaderProcess, passed: Endpoint, grants: Grants
) -> None:
    described = grants.workload(Workload(stdin=True))
    left, right = socket.socketpair()
    with left, right:
        for source in (grants.file("in"), grants.pipe()[0], left.fileno()):
            peer = loader.peer()
            peer.send(CommandType.START, "", (*passed.descriptors, described, source))
            loader.stub().order("exit", code=1)
            with pytest.raises(KeepfleetError, match="exited 1"):
                peer.answer()


def refusals(grants: Grants) -> Iterator[tuple[list[int], str]]:
    """What follows the descriptors of the endpoint, and a word of the refusal."""
    workload, stdin, data, out, token = grants.given()
    place = str(grants.place)
    yield [stdin], "workload must be a regular file"
    yield [grants.file("w", GIVEN.to_json(), os.O_RDWR)], "workload must be read-only"
    yield [grants.keep(os.open(place, os.O_TMPFILE | os.O_RDWR))], "workload must be read-only"
    yield [grants.file("empty")], "cannot read the workload's description"
    yield [grants.file("other", b'{"arguments":5}')], "invalid workload description"
    yield [grants.file("large", b" " * (MAX_WORKLOAD_JSON + 1))], "over"
    yield [workload], "it takes 11 descriptors, not 7"
    yield [workload, stdin, data, out], "it takes 11 descriptors, not 10"
    yield [workload, stdin, data, out, token, token], "it takes 11 descriptors, not 12"
    yield [workload, data, data, out, token], "stdin must be a regular file, a pipe or a socket"
    yield [workload, grants.pipe()[1], data, out, token], "stdin must be read-only"
    yield [workload, grants.keep(os.open("/dev/zero", os.O_RDONLY)), data, out, token], "stdin must be a regular file"
    yield [workload, stdin, token, out, token], "directory-0 must be a directory"
    yield [workload, stdin, data, stdin, token], "directory-1 must be a directory"
    yield [workload, stdin, data, out, data], "secret-0 must be a regular file"
    yield [workload, stdin, data, out, grants.file("rw", b"", os.O_RDWR)], "secret-0 must be read-only"
    yield [workload, stdin, data, out, grants.file("path", b"", os.O_PATH)], "secret-0 must be read-only"


def test_what_was_not_described_is_refused_and_leaves_nothing(
    loader: LoaderProcess, passed: Endpoint, grants: Grants
) -> None:
    peer = loader.peer()
    peer.ask(CommandType.INFO)
    before = loader.open_descriptors()
    for descriptors, why in refusals(grants):
        with pytest.raises(KeepfleetError, match=why) as refused:
            peer.ask(CommandType.START, "", (*passed.descriptors, *descriptors))
        assert refused.value.kind in (ErrorKind.BAD_REQUEST, ErrorKind.TOO_LARGE)
        assert peer.ask(CommandType.INFO).state is State.LISTENING
    assert loader.open_descriptors() == before
    loader.systemd.drain()
    assert loader.systemd.stored == {}


def test_a_failed_start_lets_go_of_what_was_granted(loader: LoaderProcess, passed: Endpoint, grants: Grants) -> None:
    peer = loader.peer()
    peer.ask(CommandType.INFO)
    before = loader.open_descriptors()
    peer.send(CommandType.START, "", (*passed.descriptors, *grants.given()))
    loader.stub().order("exit", code=1)
    with pytest.raises(KeepfleetError):
        peer.answer()
    assert loader.open_descriptors() == before
    loader.systemd.drain()
    assert loader.systemd.stored == {}
    peer.send(CommandType.START, "", passed.descriptors)
    assert set(loader.stub().descriptors) == set(range(8))


def test_a_workload_that_an_endpoint_opened_again_takes_has_what_was_granted(
    loader: LoaderProcess, passed: Endpoint, grants: Grants
) -> None:
    stub, descriptors = given(loader, passed, grants)
    os.kill(stub.pid, signal.SIGKILL)
    again = loader.stub()
    assert again.names == ["listener", "client-ca", "revoked", "identity", "checks"]
    loader.end(signal.SIGKILL)
    os.kill(again.pid, signal.SIGKILL)
    loader.systemd.drain()
    loader.start()
    third = loader.stub()
    assert third.names == again.names
    third.report("listening", fingerprint=FINGERPRINT, certificate="PEM")
    loader.systemd.wait_for("STATUS", "started: awaiting workload")
    third.accept()
    assert [third.given[name] for name in NAMES] == links(descriptors)


def test_a_grant_that_systemd_did_not_keep_ends_the_keep_with_the_reason(
    loader: LoaderProcess, passed: Endpoint, grants: Grants
) -> None:
    stub, _ = given(loader, passed, grants)
    loader.end(signal.SIGKILL)
    os.kill(stub.pid, signal.SIGKILL)
    loader.systemd.drain()
    os.close(loader.systemd.stored.pop("directory-1"))
    loader.start()
    info = loader.ended(passed)
    assert (info.state, "did not keep its directory-1" in info.detail) == (State.ERROR, True)
    loader.systemd.drain()
    assert loader.systemd.parked == set()


def test_an_accepted_workload_keeps_its_grants_and_the_loader_none(
    loader: LoaderProcess, passed: Endpoint, grants: Grants
) -> None:
    stub, descriptors = given(loader, passed, grants)
    stub.accept()
    loader.systemd.wait_for("STATUS", "started: running")
    assert loader.systemd.parked == set()
    assert loader.process is not None
    assert not opened_by(loader.process.pid) & set(links(descriptors))


def test_a_stop_lets_go_of_what_was_granted(loader: LoaderProcess, passed: Endpoint, grants: Grants) -> None:
    given(loader, passed, grants)
    loader.peer().ask(CommandType.STOP, "alice")
    loader.systemd.wait_for("STATUS", "complete")
    assert loader.systemd.parked == set()


def test_a_workload_that_was_not_described_gets_its_module_alone(loader: LoaderProcess, passed: Endpoint) -> None:
    _, stub = opened(loader, passed)
    stub.accept()
    assert list(stub.given) == ["compiled"]
