"""A streamed standard input: as it came, no faster than the guest reads, and never cut off in silence."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from keep_loader.streams import MAX_PACKET
from keep_protocol.control import CommandType
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import OutcomeKind
from keep_protocol.states import State
from keep_protocol.workload import COMPLETE, DATA, NO_MORE, Workload
from tests.fakes.loader_process import DEADLINE, Endpoint, LoaderProcess, Peer, Stub

PIECE = bytes(range(256)) * 200


class Streamed:
    """A keep whose workload's standard input comes from this end of a socket."""

    def __init__(self, loader: LoaderProcess, passed: Endpoint, place: Path) -> None:
        self.loader, self.passed = loader, passed
        (place / "w").write_bytes(Workload(streams_input=True).to_json())
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(DEADLINE)
        description = os.open(place / "w", os.O_RDONLY)
        with theirs:
            self.peer: Peer = loader.peer()
            self.peer.start({**passed.named, "workload": description, "input": theirs.fileno()})
        os.close(description)
        self.stub: Stub = loader.stub()
        self.stub.listen()
        assert self.peer.answer().state is State.STARTED

    def run(self) -> Stub:
        self.stub.accept()
        self.loader.systemd.wait_for("STATUS", "started: running")
        return self.stub

    def send_all(self) -> int:
        """Sends until nothing is taken any more, with the guest not reading; how many bytes went."""
        self.sock.setblocking(False)
        sent = 0
        try:
            while True:
                sent += self.sock.send(DATA + PIECE) - 1
        except BlockingIOError:
            self.sock.settimeout(DEADLINE)
            return sent

    def read(self, size: int) -> bytes:
        """What the guest reads next."""
        data = b""
        while len(data) < size and (piece := self.stub.do("read", size=size - len(data)).encode("latin-1")):
            data += piece
        return data

    def exit(self, code: int = 0) -> None:
        self.stub.report("ended", outcome={"kind": "exited", "text": f"exited {code}", "exit_code": code})
        self.stub.order("exit", code=code)


@pytest.fixture
def streamed(loader: LoaderProcess, passed: Endpoint, place: Path) -> Iterator[Streamed]:
    made = Streamed(loader, passed, place.parent)
    with made.sock:
        yield made


def test_every_byte_comes_as_it_was_sent_and_the_end_is_an_end(streamed: Streamed) -> None:
    streamed.sock.send(DATA + b"sent before the workload ran\n")
    streamed.run()
    streamed.sock.send(DATA + PIECE)
    assert streamed.read(29 + len(PIECE)) == b"sent before the workload ran\n" + PIECE
    streamed.sock.send(COMPLETE)
    assert streamed.read(1) == b""
    assert streamed.sock.recv(16) == b""
    streamed.exit(3)
    assert streamed.loader.ended(streamed.passed).detail == "exited 3"


def test_a_guest_that_never_reads_holds_its_client_up_and_nothing_else(streamed: Streamed) -> None:
    streamed.run()
    first = streamed.send_all()
    assert streamed.peer.ask(CommandType.INFO).phase == "running"
    sent = first + streamed.send_all()
    assert sent < 64 * MAX_PACKET
    assert streamed.read(sent) == (PIECE * (sent // len(PIECE) + 1))[:sent]
    streamed.sock.send(COMPLETE)
    streamed.exit()
    assert streamed.loader.ended(streamed.passed).detail == "exited 0"


def test_a_guest_that_closes_its_input_says_so_and_goes_on(streamed: Streamed) -> None:
    streamed.run()
    streamed.stub.do("close", to=0)
    assert streamed.sock.recv(16) == NO_MORE
    assert streamed.sock.recv(16) == b""
    streamed.stub.do("write", to=1, text="goes on\n")
    streamed.exit()
    assert streamed.loader.ended(streamed.passed).detail == "exited 0"
    assert streamed.passed.written(1) == b"goes on\n"


def test_a_guest_that_ends_takes_no_more(streamed: Streamed) -> None:
    streamed.run()
    streamed.send_all()
    streamed.exit()
    assert streamed.sock.recv(16) == NO_MORE
    assert streamed.loader.ended(streamed.passed).detail == "exited 0"


@pytest.mark.parametrize("packet", [b"", b"x", b"e and more", b"\0" * MAX_PACKET, b"D"])
def test_an_input_that_breaks_off_ends_the_guest_before_it_can_take_it_for_the_end(
    streamed: Streamed, packet: bytes
) -> None:
    streamed.run()
    streamed.sock.send(DATA + b"half of it")
    assert streamed.read(10) == b"half of it"
    streamed.stub.order("read", size=1)
    if packet:
        streamed.sock.send(packet)
    else:
        streamed.sock.close()
    report = streamed.loader.ended(streamed.passed)
    assert (report.state, report.detail) == (State.ERROR, "lost: its input was cut")
    assert report.outcome is not None and report.outcome.kind is OutcomeKind.LOST
    assert streamed.stub.is_gone()


def test_an_input_that_broke_off_before_the_run_ends_it_too(streamed: Streamed) -> None:
    streamed.sock.close()
    assert streamed.peer.ask(CommandType.INFO).state is State.STARTED
    with suppress(ConnectionError, ValueError):  # its runner may be ended before it answers
        streamed.stub.accept()
    assert streamed.loader.ended(streamed.passed).detail == "lost: its input was cut"


def test_a_loader_after_a_crash_has_no_input_and_says_so(streamed: Streamed) -> None:
    streamed.loader.end(signal.SIGKILL)
    os.kill(streamed.stub.pid, signal.SIGKILL)
    assert streamed.sock.recv(16) == b""
    streamed.loader.systemd.drain()
    streamed.loader.start()
    assert streamed.loader.ended(streamed.passed).detail == "lost: its input was cut"


def test_a_stop_closes_it(streamed: Streamed) -> None:
    streamed.run()
    assert streamed.peer.ask(CommandType.STOP, "alice").detail == "stopped by alice"
    assert streamed.sock.recv(16) == NO_MORE
    assert streamed.sock.recv(16) == b""


@contextmanager
def opened_file(path: Path) -> Iterator[int]:
    path.touch()
    descriptor = os.open(path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def test_what_is_no_such_socket_is_refused(loader: LoaderProcess, passed: Endpoint, place: Path) -> None:
    (place.parent / "w").write_bytes(Workload(streams_input=True).to_json())
    with opened_file(place.parent / "w") as description, opened_file(place.parent / "f") as file:
        peer = loader.peer()
        for wrong in (file, passed.journal.fileno(), passed.listener.fileno()):
            peer.start({**passed.named, "workload": description, "input": wrong})
            with pytest.raises(KeepfleetError, match="its descriptor input") as refused:
                peer.answer()
            assert refused.value.kind is ErrorKind.BAD_REQUEST
        peer.start({**passed.named, "workload": description})
        with pytest.raises(KeepfleetError, match="input is missing"):
            peer.answer()
