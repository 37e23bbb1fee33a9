"""The control socket: framing, order, descriptors and limits, against a real loader."""

from __future__ import annotations

import os
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from keep_loader.control import IDLE_SECONDS, MAX_QUEUED, Connection, ControlServer
from keep_loader.loop import Loop
from keep_protocol.constants import MAX_CONTROL_CONNECTIONS, MAX_CONTROL_FDS, MAX_CONTROL_FRAME
from keep_protocol.control import Command, CommandType, encode_command
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.states import State
from tests.fakes.loader_process import FINGERPRINT, KUUID, Endpoint, LoaderProcess, Peer

INFO = encode_command(Command(CommandType.INFO))


def refused(peer: Peer) -> ErrorKind:
    with pytest.raises(KeepfleetError) as error:
        peer.answer()
    return error.value.kind


def test_commands_sent_together_are_answered_in_order(loader: LoaderProcess) -> None:
    peer = loader.peer()
    peer.sock.sendall(INFO.strip() + b'{"commandtype":"apploader-port","commandcontents":"x"}' + INFO)
    assert peer.answer().kuuid == KUUID
    assert refused(peer) is ErrorKind.BAD_REQUEST
    assert peer.answer().kuuid == KUUID


def test_a_command_sent_byte_by_byte_is_one_command(loader: LoaderProcess) -> None:
    peer = loader.peer()
    for byte in INFO:
        peer.sock.sendall(bytes([byte]))
    assert peer.answer().kuuid == KUUID


def test_the_next_command_waits_for_the_answer_before(loader: LoaderProcess, passed: Endpoint) -> None:
    peer = loader.peer()
    line = encode_command(Command(CommandType.START))
    stop = encode_command(Command(CommandType.STOP, "alice"))
    socket.send_fds(peer.sock, [INFO + line + INFO + stop + INFO], list(passed.descriptors))
    listening = {"report": "listening", "fingerprint": FINGERPRINT, "certificate": "PEM"}
    loader.stub().order(
        "report", report=listening, files={"identity": "the key"}
    )  # the stop may end it before it answers
    assert [peer.answer().state for _ in range(5)] == [
        State.LISTENING,
        State.STARTED,
        State.STARTED,
        State.COMPLETE,
        State.COMPLETE,
    ]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b'{"commandtype":"no-such","commandcontents":""}', ErrorKind.UNKNOWN_COMMAND),
        (b'{"commandtype":5}', ErrorKind.BAD_REQUEST),
        (b'{"commandcontents":""}', ErrorKind.BAD_REQUEST),
        (b'{"commandtype":"keep-info","commandtype":"keep-info"}', ErrorKind.BAD_REQUEST),
        (b'{"commandtype":"keep-info","commandcontents":NaN}', ErrorKind.BAD_REQUEST),
        (b'{"a":"\xff"}', ErrorKind.BAD_REQUEST),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, ErrorKind.BAD_REQUEST),
    ],
)
def test_a_bad_command_is_answered_and_the_connection_goes_on(
    loader: LoaderProcess, line: bytes, kind: ErrorKind
) -> None:
    peer = loader.peer()
    peer.sock.sendall(line + INFO)
    assert refused(peer) is kind
    assert peer.answer().kuuid == KUUID


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b"GET / HTTP/1.1\r\n", ErrorKind.BAD_REQUEST),
        (b"[1]", ErrorKind.BAD_REQUEST),
        (b'{"a":"' + b"x" * MAX_CONTROL_FRAME, ErrorKind.TOO_LARGE),
        (b"{}" * (MAX_QUEUED + 1), ErrorKind.TOO_MANY),
    ],
)
def test_what_is_no_stream_of_commands_is_answered_and_closed(
    loader: LoaderProcess, line: bytes, kind: ErrorKind
) -> None:
    peer = loader.peer()
    peer.sock.sendall(line)
    assert refused(peer) is kind
    assert peer.has_hung_up()
    assert loader.peer().ask(CommandType.INFO).kuuid == KUUID


def test_a_peer_that_has_said_all_is_answered(loader: LoaderProcess) -> None:
    peer = loader.peer()
    peer.sock.sendall(INFO + INFO)
    peer.sock.shutdown(socket.SHUT_WR)
    assert (peer.answer().kuuid, peer.answer().kuuid) == (KUUID, KUUID)
    assert peer.has_hung_up()


def test_descriptors_of_another_command_are_closed_immediately(loader: LoaderProcess, passed: Endpoint) -> None:
    peer = loader.peer()
    peer.ask(CommandType.INFO)
    before = loader.open_descriptors()
    for _ in range(20):
        peer.ask(CommandType.INFO, "", passed.descriptors)
    assert loader.open_descriptors() == before


def test_descriptors_of_half_a_command_are_closed_with_the_connection(loader: LoaderProcess, passed: Endpoint) -> None:
    peer = loader.peer()
    peer.ask(CommandType.INFO)
    before = loader.open_descriptors()
    other = loader.peer()
    socket.send_fds(other.sock, [b'{"commandtype":'], list(passed.descriptors))
    other.close()
    with pytest.raises(KeepfleetError):
        peer.ask(CommandType.STOP)
    assert loader.comes_back_to(before, peer)


def test_more_descriptors_than_a_command_may_carry_end_the_connection(loader: LoaderProcess) -> None:
    peer = loader.peer()
    peer.ask(CommandType.INFO)
    before = loader.open_descriptors()
    other = loader.peer()
    reader, writer = os.pipe()
    socket.send_fds(other.sock, [b"{"], [reader] * (MAX_CONTROL_FDS * 3))
    assert refused(other) is ErrorKind.BAD_REQUEST
    assert other.has_hung_up()
    assert loader.comes_back_to(before, peer)
    os.close(reader)
    os.close(writer)


def test_only_so_many_connections_are_taken(loader: LoaderProcess) -> None:
    peers = [loader.peer() for _ in range(MAX_CONTROL_CONNECTIONS)]
    assert peers[-1].ask(CommandType.INFO).kuuid == KUUID
    extra = loader.peer()
    assert refused(extra) is ErrorKind.TOO_MANY
    assert extra.has_hung_up()
    peers[0].close()
    peers[1].ask(CommandType.INFO)
    assert loader.peer().ask(CommandType.INFO).kuuid == KUUID


def test_a_peer_that_reads_nothing_costs_little_and_holds_no_other_up(loader: LoaderProcess) -> None:
    deaf = loader.peer()
    deaf.sock.setblocking(False)
    sent = 0
    with pytest.raises(BlockingIOError):
        while sent < 50_000_000:
            sent += deaf.sock.send(INFO)
    assert sent < 5_000_000
    assert loader.peer().ask(CommandType.INFO).kuuid == KUUID


def test_a_silent_peer_is_hung_up_on_and_a_waiting_one_is_not(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the clock put forward once all that was sent has been read: with a short limit who is late is silent."""
    path, loop, heard, later, clock = str(place / "control.sock"), Loop(), list[CommandType](), [0.0], time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + later[0])
    server = ControlServer(loop, path, lambda command, _descriptors, _peer: heard.append(command.type))
    with ExitStack() as stack:
        stack.callback(server.close)
        silent, half, waiting = peers = [Peer(path) for _ in range(3)]
        for peer in peers:
            stack.callback(peer.close)
        half.sock.sendall(b'{"commandtype":')
        waiting.send(CommandType.WAIT, "1")
        turns = iter(range(20))  # of which each takes one peer, and reads what each of the others has sent

        def turn() -> None:
            if next(turns, None) is None:
                later[0] = IDLE_SECONDS
                loop.after("end", 0.0, loop.stop)
            else:
                loop.after("turn", 0.0, turn)

        turn()
        loop.run()
        assert heard == [CommandType.WAIT]
        assert silent.has_hung_up()
        assert half.has_hung_up()
        waiting.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            waiting.sock.recv(1)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_stranger_is_hung_up_on_and_logged(loader: LoaderProcess) -> None:
    for path in (loader.directory.parent, loader.directory, loader.directory / "control.sock"):
        path.chmod(0o777)  # as if every other protection of the socket were gone
    os.seteuid(65534)
    try:
        peer = loader.peer()
    finally:
        os.seteuid(0)
    assert peer.has_hung_up()
    assert "refused a control connection of uid 65534" in loader.log_text()


def test_descriptors_of_a_command_that_is_refused_are_closed_before_it_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(command: Command, descriptors: list[int], connection: Connection) -> None:
        raise KeepfleetError(ErrorKind.CONFLICT, "it is started")

    loop, left = Loop(), list[bytes]()
    server = ControlServer(loop, str(tmp_path / "control.sock"), refuse)
    reading, writing = os.pipe2(os.O_NONBLOCK)

    def answered(connection: Connection, answer: bytes) -> None:
        left.append(os.read(reading, 1))  # blocks, as it says, while another end for writing is open
        loop.stop()

    monkeypatch.setattr(Connection, "reply", answered)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(tmp_path / "control.sock"))
        socket.send_fds(peer, [encode_command(Command(CommandType.KEEP_START, "{}"))], [writing])
        os.close(writing)
        loop.run()
    server.close()
    os.close(reading)
    assert left == [b""]
