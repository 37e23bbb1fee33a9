"""Starting a keep's app-loader: what is passed over, what is answered, and that a failed start leaves nothing."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from keep_protocol.control import CONTROL_VERSION, CommandType
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.limits import DEFAULT_LIMITS
from keep_protocol.states import State
from tests.fakes.loader_process import FAKES, FINGERPRINT, KUUID, Endpoint, LoaderProcess, Peer, opened


def test_an_idle_loader_says_what_it_is(loader: LoaderProcess) -> None:
    info = loader.peer().ask(CommandType.INFO)
    assert (info.kuuid, info.state, info.port, info.address) == (KUUID, State.LISTENING, 0, "")
    assert (info.phase, info.control_version) == ("idle", CONTROL_VERSION)
    assert info.detail == "ready for a start"
    assert loader.systemd.statuses == ["listening: ready for a start"]


def test_the_control_socket_is_for_its_owner_alone(loader: LoaderProcess) -> None:
    assert (loader.directory / "control.sock").stat().st_mode & 0o777 == 0o600


def test_a_start_is_answered_when_the_endpoint_listens(loader: LoaderProcess, passed: Endpoint) -> None:
    peer = loader.peer()
    peer.ask(CommandType.ADDR, "127.0.0.1")
    peer.ask(CommandType.PORT, str(passed.port))
    peer.ask(CommandType.NAMES, "a.example,10.0.0.1")
    peer.send(CommandType.START, "", passed.descriptors)
    stub = loader.stub()
    assert loader.peer().ask(CommandType.INFO).state is State.LISTENING
    stub.listen()
    info = peer.answer()
    assert (info.state, info.detail) == (State.STARTED, "awaiting workload")
    assert (info.address, info.port) == ("127.0.0.1", passed.port)
    assert (info.fingerprint, info.certificate) == (FINGERPRINT, "PEM")
    shown = loader.systemd.wait_for("STATUS", "started")
    assert shown == f"started: awaiting workload on 127.0.0.1:{passed.port}, {FINGERPRINT[:19]}…"


def test_the_app_loader_gets_its_descriptors_at_their_numbers_and_nothing_else(
    loader: LoaderProcess, passed: Endpoint, place: Path
) -> None:
    peer = loader.peer()
    peer.ask(CommandType.NAMES, "a.example")
    peer.send(CommandType.START, "", passed.descriptors)
    stub = loader.stub()
    assert stub.descriptors[0] == "/dev/null"
    assert stub.descriptors[3].startswith("socket:")
    assert stub.descriptors[4] == os.readlink(f"/proc/self/fd/{passed.listener.fileno()}")
    assert stub.descriptors[5] == str(place.parent / "ca.crt")
    assert stub.descriptors[6] == str(place.parent / "revoked")
    assert stub.descriptors[7].startswith("socket:")
    assert set(stub.descriptors) == set(range(8))
    assert stub.environment == {
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "KEEPFLEET_KUUID": str(KUUID),
        "KEEPFLEET_ADDRESS": "127.0.0.1",
        "KEEPFLEET_PORT": str(passed.port),
        "KEEPFLEET_NAMES": "a.example",
        "KEEPFLEET_DESCRIPTORS": "listener,client-ca,revoked,checks",
        "KEEPFLEET_UPLOADERS": "*",
        "KEEPFLEET_RUNTIME_DIRECTORY": str(place),
        "KEEPFLEET_MAX_WORKLOAD": "268435456",
        "KEEPFLEET_LIMITS": DEFAULT_LIMITS.to_text(),
    }


def test_the_endpoint_is_parked_with_systemd(loader: LoaderProcess, passed: Endpoint) -> None:
    opened(loader, passed)
    loader.systemd.wait_for("STATUS", "started")
    assert loader.systemd.parked == {"listener", "client-ca", "revoked", "identity"}
    assert os.pread(loader.systemd.stored["identity"], 100, 0) == b"the key"


def test_a_second_start_is_a_conflict_and_disturbs_nothing(loader: LoaderProcess, passed: Endpoint) -> None:
    peer, _ = opened(loader, passed)
    before = loader.open_descriptors()
    with pytest.raises(KeepfleetError, match="awaiting-workload") as refused:
        peer.ask(CommandType.START, "", passed.descriptors)
    assert refused.value.kind is ErrorKind.CONFLICT
    assert peer.ask(CommandType.INFO).state is State.STARTED
    assert loader.open_descriptors() == before


def test_two_starts_of_two_peers_open_one_endpoint(loader: LoaderProcess, passed: Endpoint) -> None:
    first, second = loader.peer(), loader.peer()
    first.send(CommandType.START, "", passed.descriptors)
    stub = loader.stub()
    with pytest.raises(KeepfleetError) as refused:
        second.ask(CommandType.START, "", passed.descriptors)
    assert refused.value.kind is ErrorKind.CONFLICT
    stub.listen()
    assert first.answer().state is State.STARTED


def leaves_nothing(loader: LoaderProcess, passed: Endpoint, peer: Peer, before: int) -> None:
    """A start that failed is as if it had never been: a second one with the same descriptors works."""
    info = peer.ask(CommandType.INFO)
    assert (info.state, info.port, info.address, info.fingerprint) == (State.LISTENING, 0, "", "")
    assert loader.open_descriptors() == before
    loader.systemd.drain()
    assert loader.systemd.stored == {}
    peer.send(CommandType.START, "", passed.descriptors)
    loader.stub().listen()
    assert peer.answer().state is State.STARTED


@pytest.mark.parametrize(
    ("order", "why"),
    [
        ({"what": "exit", "code": 3}, "the app-loader exited 3"),
        ({"what": "signal", "number": 9}, "the app-loader was killed by SIGKILL"),
        ({"what": "hang-up"}, "the app-loader was killed by SIGKILL"),
        ({"what": "report", "report": {"report": "listening"}}, "showed no certificate"),
        (
            {"what": "report", "report": {"report": "listening", "fingerprint": FINGERPRINT, "certificate": "PEM"}},
            "did not pass its identity on",
        ),
        (
            {"what": "report", "report": {"report": "failed", "error": {"kind": "certificate", "message": "no key"}}},
            "no key",
        ),
    ],
)
def test_an_app_loader_that_does_not_open_is_an_error_and_leaves_nothing(
    loader: LoaderProcess, passed: Endpoint, order: dict[str, object], why: str
) -> None:
    peer = loader.peer()
    peer.ask(CommandType.INFO)
    before = loader.open_descriptors()
    peer.send(CommandType.START, "", passed.descriptors)
    stub = loader.stub()
    stub.order(str(order["what"]), **{name: value for name, value in order.items() if name != "what"})
    with pytest.raises(KeepfleetError, match=why):
        peer.answer()
    leaves_nothing(loader, passed, peer, before)


def test_an_app_loader_that_does_not_listen_in_time_is_killed(unstarted: LoaderProcess, passed: Endpoint) -> None:
    unstarted.start(
        *("signal:pause", "signal:pause"),
        environment={"FAKE_CONSTANTS": "keep_loader.forks:APPLOADER_START_SECONDS=0.3"},
    )
    peer = unstarted.peer()
    with pytest.raises(KeepfleetError, match=r"did not listen within 0\.3 s") as refused:
        peer.ask(CommandType.START, "", passed.descriptors)
    assert refused.value.kind is ErrorKind.TOO_SLOW
    assert unstarted.process is not None
    pid = unstarted.process.pid
    assert Path(f"/proc/{pid}/task/{pid}/children").read_text() == ""


def test_an_app_loader_that_cannot_be_imported_is_an_error(unstarted: LoaderProcess, passed: Endpoint) -> None:
    unstarted.start("nowhere:serve", "nowhere:run")
    peer = unstarted.peer()
    with pytest.raises(KeepfleetError, match="cannot import nowhere: ModuleNotFoundError: No module named 'nowhere'"):
        peer.ask(CommandType.START, "", passed.descriptors)
    assert peer.ask(CommandType.INFO).state is State.LISTENING


def test_an_isolation_failure_refuses_the_start_and_is_in_the_status(
    unstarted: LoaderProcess, passed: Endpoint
) -> None:
    unstarted.start(
        environment={"FAKE_ISOLATION_FAILURES": "/etc is not mounted read-only\nnew privileges can be gained"}
    )
    peer = unstarted.peer()
    with pytest.raises(KeepfleetError) as refused:
        peer.ask(CommandType.START, "", passed.descriptors)
    assert refused.value.kind is ErrorKind.ISOLATION_FAILURE
    assert refused.value.evidence == ("/etc is not mounted read-only", "new privileges can be gained")
    assert peer.ask(CommandType.INFO).isolation_failures == refused.value.evidence
    assert "2 isolation failures: /etc is not mounted read-only" in unstarted.systemd.statuses[0]


def test_what_is_no_endpoint_is_refused_and_closed(loader: LoaderProcess, passed: Endpoint, place: Path) -> None:
    peer = loader.peer()
    peer.ask(CommandType.INFO)
    before = loader.open_descriptors()
    listener, authority, revoked, *output = passed.descriptors
    reader, writer = os.pipe()
    writable = os.open(place.parent / "revoked", os.O_RDWR)
    with (
        socket.socket() as unbound,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        socket.socket(socket.AF_UNIX) as local,
    ):
        local.bind(str(place.parent / "other"))
        local.listen()
        wrong = [
            (),
            (listener,),
            (listener, authority, revoked, authority),
            (authority, listener, revoked),
            (unbound.fileno(), authority, revoked),
            (datagrams.fileno(), authority, revoked),
            (local.fileno(), authority, revoked),
            (listener, reader, revoked),
            (listener, authority, writable),
        ]
        for descriptors in wrong:
            with pytest.raises(KeepfleetError) as refused:
                peer.ask(CommandType.START, "", (*descriptors, *output))
            assert refused.value.kind is ErrorKind.BAD_REQUEST
    for descriptor in (reader, writer, writable):
        os.close(descriptor)
    leaves_nothing(loader, passed, peer, before)


def test_a_port_that_is_not_the_sockets_is_refused(loader: LoaderProcess, passed: Endpoint) -> None:
    peer = loader.peer()
    peer.ask(CommandType.PORT, "1")
    with pytest.raises(KeepfleetError, match=f"bound to {passed.port}"):
        peer.ask(CommandType.START, "", passed.descriptors)


@pytest.mark.parametrize(
    ("kind", "contents"),
    [
        (CommandType.ADDR, ""),
        (CommandType.ADDR, "localhost"),
        (CommandType.ADDR, "127.0.0.1\n[Service]"),
        (CommandType.ADDR, "\0"),
        (CommandType.PORT, "0"),
        (CommandType.PORT, "65536"),
        (CommandType.PORT, "٣"),
        (CommandType.NAMES, "a b"),
        (CommandType.NAMES, ",".join("a" * 17)),
        (CommandType.WAIT, "7"),
    ],
)
def test_wrong_contents_are_refused_in_words(loader: LoaderProcess, kind: CommandType, contents: str) -> None:
    with pytest.raises(KeepfleetError, match=r"cannot |invalid ") as refused:
        loader.peer().ask(kind, contents)
    assert refused.value.kind is ErrorKind.BAD_REQUEST


def test_a_started_keep_keeps_its_address(loader: LoaderProcess, passed: Endpoint) -> None:
    peer, _ = opened(loader, passed)
    for kind, contents in ((CommandType.ADDR, "10.0.0.1"), (CommandType.PORT, "99"), (CommandType.NAMES, "x")):
        with pytest.raises(KeepfleetError) as refused:
            peer.ask(kind, contents)
        assert refused.value.kind is ErrorKind.CONFLICT


def test_what_an_older_kernel_lacks_is_said_and_workloads_are_taken_all_the_same(place: Path, passed: Endpoint) -> None:
    with ExitStack() as stack:
        loader = LoaderProcess(place, stack, main=FAKES / "older_kernel.py")
        loader.start()
        peer, _ = opened(loader, passed)
        report = peer.ask(CommandType.INFO)
    assert report.isolation_failures == ()
    assert [note.split(":")[0] for note in report.isolation_notes] == [
        "the kernel has no Landlock",
        "the kernel has no PR_SET_MDWE",
    ]
