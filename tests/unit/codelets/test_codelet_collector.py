"""The data collector and the application: attached, killed, restarted, hostile, over a real socket."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from codelets import Collector, pack
from codelets.__main__ import main as codelets_main
from codelets.collector_ring import Reader
from codelets.collector_server import MAX_PACKET, CollectorServer
from codelets.listening import Listener
from keep_protocol.errors import ErrorKind, KeepfleetError
from tests.unit.codelets.application import Application, codelet, function, packet

ROOT = Path(__file__).resolve().parents[3]
STREAM, OTHER = bytes.fromhex("00112233445566778899aabbccddeeff"), bytes.fromhex("ff112233445566778899aabbccddeeff")
ECHO = codelet(
    """(if (i32.eq (call $receive (i32.const 0) (i32.const 8)) (i32.const -1)) (then (i32.store (i32.const 0)
       (i32.load (local.get $context))) (i32.store (i32.const 4) (i32.const 0))))
       (i64.extend_i32_s (call $send (i32.const 0) (i32.const 8)))""",
    function("output:8:64", "samples.send", "(param i32 i32) (result i32)")
    + function("input:8:4", "config.receive", "(param i32 i32) (result i32)"),
)
"""Sends what it was sent, or its context's first number."""
CHANNELS = f"""out_io_channel: [{{name: samples, stream_id: "{STREAM.hex()}"}}]
in_io_channel: [{{name: config, stream_id: "{OTHER.hex()}"}}]"""


def number(message: bytes) -> int:
    return int.from_bytes(message[:4], "little")


@pytest.fixture
def address(tmp_path: Path) -> str:
    return str(tmp_path / "collector.sock")


@pytest.fixture
def collected(tmp_path: Path, address: str) -> Iterator[Application]:
    application = Application(tmp_path, in_c=False, collector_socket=address)
    application.load("echo", ECHO, more=CHANNELS)
    application.runtime.start_delivering(0.001)
    yield application
    application.runtime.close()
    assert not os.path.exists(address)


@pytest.fixture
def server(address: str) -> Iterator[CollectorServer]:
    """The application's side alone, with a small ring; input to STREAM is taken, to others not."""

    def send_input(stream: bytes, message: bytes) -> bool:
        if stream != STREAM:
            raise KeepfleetError(ErrorKind.NOT_FOUND, "no codelet reads it")
        return message != b"full"

    made = CollectorServer(address, send_input, ring_bytes=64 * 1024)
    yield made
    made.close()


class Gathering(threading.Thread):
    """A collector in a thread: waits for messages, and for its end."""

    def __init__(self, address: str, wait_seconds: float = 30) -> None:
        super().__init__(daemon=True)
        self.collector = Collector(address, wait_seconds)
        self.found: list[tuple[bytes, bytes]] = []
        self.error: KeepfleetError | None = None
        self._came = threading.Condition()
        self.start()

    def run(self) -> None:
        try:
            for each in self.collector:
                with self._came:
                    self.found.append(each)
                    self._came.notify_all()
        except KeepfleetError as error:
            self.error = error

    def wait_for(self, count: int) -> None:
        with self._came:
            assert self._came.wait_for(lambda: len(self.found) >= count, 30), len(self.found)


def attached(server: Any) -> None:
    """Returns when a collector is attached."""
    while not (server.attached if isinstance(server, CollectorServer) else server.collector().attached):
        pass


def detached(server: CollectorServer) -> None:
    while server.attached:
        pass


def test_a_collector_gets_what_codelets_send(collected: Application, address: str) -> None:
    gathering = Gathering(address)
    for size in range(40):
        collected.choose(packet(size))
    gathering.wait_for(40)
    assert [(stream, number(message)) for stream, message in gathering.found] == [(STREAM, size) for size in range(40)]
    assert collected.runtime.collector().to_wire() == {"attached": True, "sent": 40, "lost": 0}
    gathering.collector.close()
    gathering.join(30)
    assert gathering.error is None


def test_a_receiver_in_the_application_gets_them_too(collected: Application, address: str) -> None:
    received: list[bytes] = []
    came = threading.Event()

    def receive(stream: bytes, message: bytes) -> None:
        received.append(message)
        came.set()

    gathering = Gathering(address)
    attached(collected.runtime)
    collected.runtime.on_output(STREAM, receive)
    collected.choose(packet(7))
    gathering.wait_for(1)
    assert came.wait(30)
    assert [number(message) for message in received] == [7]
    gathering.collector.close()


def test_what_finds_no_room_in_the_ring_stays_in_its_channel(
    collected: Application, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = collected.runtime
    runtime.stop_delivering()
    monkeypatch.setattr(runtime._delivery.collector, "_ring_bytes", 4096)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        reader = attach(connection, address)
        attached(runtime)
        for _ in range(4):
            for _ in range(64):
                collected.choose(packet())
            runtime.deliver()
        assert len(reader.take()) == 4096 // 28
        while runtime.deliver():
            pass
        kept = len(reader.take())
        reader.close()
    [state] = [each for each in runtime.stats() if each.name == "choose"]
    assert kept == 64
    assert 4096 // 28 + kept + state.drops == 4 * 64
    assert runtime.collector().lost == 0


@pytest.mark.parametrize("unloaded", [False, True])
def test_what_was_taken_for_a_collector_that_goes_meanwhile_is_counted_as_lost(
    collected: Application, address: str, monkeypatch: pytest.MonkeyPatch, unloaded: bool
) -> None:
    runtime, server = collected.runtime, collected.runtime._delivery.collector
    assert server is not None
    runtime.stop_delivering()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    attach(connection, address).close()
    attached(runtime)
    for _ in range(3):
        collected.choose(packet())
    if unloaded:
        runtime.unload("echo")
        connection.close()
        detached(server)
    else:
        finds_room = server.fitting

        def goes(message_bytes: int) -> int:
            found = finds_room(message_bytes)
            connection.close()
            detached(server)
            return found

        monkeypatch.setattr(server, "fitting", goes)
    runtime.deliver()
    assert runtime.collector().to_wire() == {"attached": False, "sent": 0, "lost": 3}


def test_the_ring_is_as_large_as_the_application_says(tmp_path: Path) -> None:
    address = str(tmp_path / "sized.sock")
    Application(tmp_path, collector_socket=address, collector_bytes=8192)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        reader = attach(connection, address)
        assert reader.capacity == 8192
        reader.close()


@pytest.mark.parametrize("size", [0, 4095, 5000, 1 << 40, -4096])
def test_a_ring_that_cannot_be_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(KeepfleetError, match=f"cannot make a ring of {size} bytes: it must be a multiple of 4096"):
        CollectorServer(str(tmp_path / "none.sock"), lambda stream, message: True, ring_bytes=size)
    assert not (tmp_path / "none.sock").exists()


def test_a_message_larger_than_the_ring_is_lost_and_the_others_are_not(tmp_path: Path, server: CollectorServer) -> None:
    address = str(tmp_path / "small.sock")
    small = CollectorServer(address, lambda stream, message: True, ring_bytes=4096)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        reader = attach(connection, address)
        attached(small)
        assert small.fitting(5000) == 1
        small.write(STREAM, [bytes(5000)])
        small.write(STREAM, [b"short"])
        assert reader.take() == [(STREAM, b"short")]
        assert (small.state().sent, small.state().lost) == (1, 1)
        reader.close()
    small.close()


def test_a_receiver_does_not_wait_for_the_collector(
    collected: Application, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = collected.runtime
    runtime.stop_delivering()
    received: list[bytes] = []
    runtime.on_output(STREAM, lambda stream, message: received.append(message))
    monkeypatch.setattr(runtime._delivery.collector, "_ring_bytes", 4096)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        attach(connection, address).close()
        attached(runtime)
        for _ in range(4):
            for _ in range(64):
                collected.choose(packet())
            runtime.deliver()
        assert len(received) == 4 * 64
        assert runtime.collector().lost == 4 * 64 - 4096 // 28


def test_input_reaches_the_codelet_as_it_is(collected: Application, address: str) -> None:
    gathering = Gathering(address)
    assert gathering.collector.send(OTHER, (42).to_bytes(8, "little"))
    collected.choose(packet(1))
    gathering.wait_for(1)
    assert number(gathering.found[0][1]) == 42
    assert [gathering.collector.send(OTHER.hex(), bytes(8)) for _ in range(5)] == [True] * 4 + [False]
    with pytest.raises(KeepfleetError, match="too long") as too_long:
        gathering.collector.send(OTHER, bytes(9))
    with pytest.raises(KeepfleetError, match="no codelet reads it") as unknown:
        gathering.collector.send(STREAM, bytes(8))
    assert (too_long.value.kind, unknown.value.kind) == (ErrorKind.BAD_REQUEST, ErrorKind.NOT_FOUND)
    gathering.collector.close()


def test_a_second_collector_is_refused_with_the_firsts_process(server: CollectorServer, address: str) -> None:
    gathering = Gathering(address)
    attached(server)
    with Collector(address) as second, pytest.raises(KeepfleetError, match=f"process {os.getpid()} collects") as caught:
        next(iter(second))
    assert caught.value.kind is ErrorKind.CONFLICT
    server.write(STREAM, [b"for the first"])
    gathering.wait_for(1)
    gathering.collector.close()


_COLLECTS = """
import sys
from codelets.collector import Collector
for stream, message in Collector(sys.argv[1]):
    print(message.hex(), flush=True)
"""


def test_a_collector_that_is_killed_leaves_the_application_and_the_next_a_new_ring(
    server: CollectorServer, address: str
) -> None:
    for round_number in range(2):
        command = [sys.executable, "-c", _COLLECTS, address]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            attached(server)
            server.write(STREAM, [bytes([round_number])])
            assert process.stdout.readline() == f"{round_number:02x}\n"
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)  # it takes effect some time after the call
            server.write(STREAM, [b"never read"] * 3)
            process.kill()
        gathering = Gathering(address)  # immediately, whether or not its death was seen
        while not gathering.found:  # until it is attached, what is sent goes into the ring of the one that was killed
            server.write(STREAM, [b"next"])
            gathering.join(0.01)
        gathering.collector.close()
        gathering.join(30)
        assert {message for _, message in gathering.found} == {b"next"}
        detached(server)
    assert server.state().lost >= 6


def test_no_wake_is_missed_however_the_two_processes_meet(server: CollectorServer, address: str) -> None:
    command = [sys.executable, "-c", _COLLECTS, address]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        attached(server)
        for turn in range(2000):
            server.write(STREAM, [turn.to_bytes(2, "big")])
            assert process.stdout.readline() == f"{turn:04x}\n"  # it waits again in this moment, or soon
        process.kill()


def test_a_collector_that_is_stopped_does_not_stop_the_application(server: CollectorServer, address: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        reader = attach(connection, address)
        attached(server)
        for _ in range(5000):
            reader.must_wait()  # it is to be woken each time, and takes none of the packets that do
            server.write(STREAM, [bytes(64)] * 10)
        state = server.state()
        assert state.sent + state.lost == 50_000
        assert state.sent == 64 * 1024 // 84
        assert len(reader.take()) == state.sent
        reader.close()


_APPLICATION = """
import sys
from codelets.collector_server import CollectorServer
server = CollectorServer(sys.argv[1], lambda stream, message: True)
print("listens", flush=True)
while not server.attached:
    pass
server.write(bytes(16), [sys.argv[2].encode() + b"%d" % number for number in range(1000)])
print("sent", flush=True)
sys.stdin.read()
"""


def test_a_collector_survives_the_application_and_reads_what_it_had_written(address: str) -> None:
    gathering = Gathering(address)
    for name in ("a", "b"):
        command = [sys.executable, "-c", _APPLICATION, address, name]
        with subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as application:
            assert application.stdout is not None
            assert application.stdout.readline() == "listens\n"
            assert gathering.collector.send(STREAM, b"input")
            assert application.stdout.readline() == "sent\n"
            application.kill()
    gathering.wait_for(2000)
    expected = [b"%c%d" % (ord(name), each) for name in "ab" for each in range(1000)]
    assert [message for _, message in gathering.found] == expected
    gathering.collector.close()
    gathering.join(30)
    assert gathering.error is None


def test_an_application_that_closes_leaves_its_last_messages(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = CollectorServer(address, lambda stream, message: True)
    gathering = Gathering(address, wait_seconds=0.1)
    attached(server)
    ends_connections = Listener.close

    def seen(listener: Listener) -> None:
        ends_connections(listener)
        detached(server)  # by the connection's thread, where that is first to see the end

    monkeypatch.setattr(Listener, "close", seen)
    server.write(STREAM, [b"last"] * 3)
    server.close()
    gathering.join(30)
    assert len(gathering.found) == 3
    assert gathering.error is not None
    assert gathering.error.kind is ErrorKind.UNAVAILABLE
    assert server.state().to_wire() == {"attached": False, "sent": 3, "lost": 0}


def test_a_collector_that_waits_for_no_application_says_so(tmp_path: Path) -> None:
    with (
        Collector(str(tmp_path / "none"), wait_seconds=0) as collector,
        pytest.raises(KeepfleetError, match="cannot reach the application at"),
    ):
        next(iter(collector))
    with pytest.raises(KeepfleetError, match="cannot reach"):
        collector.send(STREAM, b"")


def test_a_collector_is_closed_while_it_waits_for_an_application(tmp_path: Path) -> None:
    gathering = Gathering(str(tmp_path / "none"))
    gathering.collector.close()
    gathering.join(30)
    assert not gathering.is_alive()
    assert gathering.error is None


def attach(connection: socket.socket, address: str) -> Reader:
    """The ring, as another vendor's program would get it."""
    connection.connect(address)
    connection.send(b'{"role":"output"}')
    answer, [file], _, _ = socket.recv_fds(connection, 1000, 1)
    assert json.loads(answer) == {"ok": True}
    return Reader(file)


@pytest.mark.parametrize("index", [1, 1 << 63])
def test_a_collector_that_scribbles_on_the_ring_is_detached_and_the_next_attached(
    server: CollectorServer, address: str, index: int
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        hostile = attach(connection, address)
        attached(server)
        hostile._words[:] = memoryview(index.to_bytes(8, "little") * 512).cast("Q")
        server.write(STREAM, [b"message"])
        assert not server.attached
        assert connection.recv(10) == b""
        hostile.close()
    gathering = Gathering(address)
    attached(server)
    server.write(STREAM, [b"next"])
    gathering.wait_for(1)
    assert server.state().lost == 1
    gathering.collector.close()


def test_a_collector_that_sends_where_it_may_not_is_detached(server: CollectorServer, address: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        attach(connection, address).close()
        attached(server)
        connection.send(b"packet")
        detached(server)


@pytest.mark.parametrize("first", [b"{}", b"[]", b"\xff", b'{"role":"both"}', b'{"role":"output","x":1}', b"x" * 20000])
def test_a_first_packet_that_is_none_is_answered_and_ends_the_connection(
    server: CollectorServer, address: str, first: bytes
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(address)
        connection.send(first)
        assert json.loads(connection.recv(20000))["ok"] is False
        assert connection.recv(1) == b""
    assert not server.attached


def test_input_is_bounded_and_a_bad_packet_is_an_error(server: CollectorServer, address: str) -> None:
    def ask(connection: socket.socket, packet: bytes) -> dict[str, Any]:
        connection.send(packet)
        answer: dict[str, Any] = json.loads(connection.recv(20000))
        return answer

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(address)
        assert ask(connection, b'{"role":"input"}') == {"ok": True}
        assert ask(connection, b"short")["error"]["kind"] == "bad-request"
        assert ask(connection, pack(OTHER, b"message"))["error"]["kind"] == "not-found"
        assert ask(connection, pack(STREAM, b"full")) == {"ok": True, "taken": False}
        assert ask(connection, pack(STREAM, bytes(MAX_PACKET - 16))) == {"ok": True, "taken": True}
        assert ask(connection, bytes(MAX_PACKET + 1))["error"]["kind"] == "too-large"
        assert connection.recv(1) == b""


def test_only_the_applications_user_and_root_may_attach(
    server: CollectorServer, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert os.stat(address).st_mode & 0o777 == 0o600
    monkeypatch.setattr(server, "_users", frozenset({12345}))
    with Collector(address) as collector:
        with pytest.raises(KeepfleetError, match="may not; only the application's own user"):
            next(iter(collector))
        with pytest.raises(KeepfleetError, match="may not; only"):
            collector.send(STREAM, b"message")


def test_the_collectors_socket_in_use_is_not_taken_over(collected: Application, address: str, tmp_path: Path) -> None:
    with pytest.raises(KeepfleetError, match="an application listens there"):
        type(collected.runtime)(str(tmp_path / "store"), lcm_socket=str(tmp_path / "lcm"), collector_socket=address)
    assert not (tmp_path / "lcm").exists()
    with pytest.raises(KeepfleetError, match="an application listens there"):
        type(collected.runtime)(str(tmp_path / "store"), lcm_socket=address)


@pytest.mark.parametrize(("options", "line"), [([], f"{STREAM.hex()} 00aa\n"), (["--json"], "")])
def test_codelets_collect_prints_messages(server: CollectorServer, address: str, options: list[str], line: str) -> None:
    def send() -> None:
        attached(server)
        server.write(STREAM, [b"\0\xaa"] * 3)

    sender = threading.Thread(target=send)
    sender.start()
    done = CliRunner().invoke(codelets_main, ["collect", "--address", address, "--messages", "2", *options])
    sender.join()
    assert done.exit_code == 0, done.output
    expected = line or json.dumps({"stream": STREAM.hex(), "message": "00aa"}) + "\n"
    assert done.output == expected * 2


def test_codelets_collect_says_why_it_cannot(tmp_path: Path) -> None:
    arguments = ["collect", "--address", str(tmp_path / "none"), "--wait", "0"]
    done = CliRunner().invoke(codelets_main, arguments)
    assert done.exit_code == 1
    assert "cannot reach the application at" in done.output
