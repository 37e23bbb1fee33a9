"""A real loader process on a real Unix socket, with the test in systemd's place and a stub for its app-loader."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keep_protocol.constants import OUTPUT_DESCRIPTORS, START_DESCRIPTORS
from keep_protocol.control import (
    Command,
    CommandType,
    FrameDecoder,
    StartMessage,
    claimed_spec,
    decode_reply,
    encode_command,
    start,
)
from keep_protocol.keep import KeepReport
from keep_protocol.record import KeepRecord, read_record
from keep_protocol.ring import MARK, MIN_CAPACITY, Frame, RingReader, RingWriter, decode_mark
from keep_protocol.spec import KeepSpec
from keep_protocol.states import State
from tests.fakes.notify_socket import listening

FAKES = Path(__file__).resolve().parent
STUB = ("tests.fakes.app_loader_stub:endpoint", "tests.fakes.app_loader_stub:runner")
KUUID = 7
ROUNDS = 100
"""Commands answered until everything sent before them has been seen to; each is one turn of the loader's loop."""
FINGERPRINT = "sha256:" + "ab" * 32
UPLOAD = {"name": "alice", "serial": "ab12", "fingerprint": "sha256:" + "12" * 32}
ARTIFACTS = {"compiled": "machine code", "module": "the module"}
MODULE = {"name": "hello.wasm", "digest": "sha256:" + "34" * 32, "bytes": 1234}
DEADLINE = 60.0
"""Seconds until a test gives up on another process; each of them answers in milliseconds."""


class Peer:
    """One control connection."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(DEADLINE)
        try:
            self.sock.connect(path)
        except OSError:
            self.sock.close()
            raise
        self._decoder = FrameDecoder()
        self._frames: list[bytes] = []
        self.frame = b""

    def send(self, kind: CommandType, contents: str = "", descriptors: tuple[int, ...] = ()) -> None:
        self.give(Command(kind, contents), descriptors)

    def give(self, command: Command, descriptors: tuple[int, ...] = ()) -> None:
        line = encode_command(command)
        if descriptors:
            socket.send_fds(self.sock, [line], list(descriptors))
        else:
            self.sock.sendall(line)

    def start(self, passed: dict[str, int], **message: Any) -> None:
        """A start of version 2 with descriptors by name."""
        self.give(start(StartMessage(descriptors=tuple(passed), **message)), tuple(passed.values()))

    def answer(self) -> KeepReport:
        """The next answer. Raises the error the loader reports, or EOFError when it hangs up."""
        while not self._frames:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError
            self._frames += self._decoder.feed(data)
        self.frame = self._frames.pop(0)
        return decode_reply(self.frame)

    def ask(self, kind: CommandType, contents: str = "", descriptors: tuple[int, ...] = ()) -> KeepReport:
        self.send(kind, contents, descriptors)
        return self.answer()

    def hears_that_it_runs(self) -> None:
        """Until the loader has read its runner's report, which has been sent."""
        assert any(self.ask(CommandType.INFO).begun for _ in range(ROUNDS))

    def claims(self) -> KeepSpec:
        """What the loader says of the keep's spec, as a manager of version 1 reads it."""
        self.ask(CommandType.INFO)
        return claimed_spec(self.frame)

    def has_hung_up(self) -> bool:
        """Waits until the loader closes the connection, whatever it still says."""
        try:
            while self.sock.recv(65536):
                continue
        except ConnectionResetError:
            return True
        return True

    def close(self) -> None:
        self.sock.close()


class Stub:
    """A fake endpoint or runner that has called; an endpoint gets a runner next to it, and is that one once it has
    accepted: the workload. `calls` gives the next fake that calls."""

    def __init__(self, sock: socket.socket, calls: Callable[[], Stub]) -> None:
        self._next = calls
        self.runner: Stub | None = None  # what waits next to an endpoint that has a client
        self.given: dict[str, str] = {}  # what each descriptor of the workload is open on, by name
        sock.settimeout(DEADLINE)
        self._sock = sock
        self._lines = sock.makefile("rw", encoding="utf-8")
        hello = json.loads(self._lines.readline())
        self.pid = int(hello["pid"])
        self.role: str = hello.get("role", "")
        self.environment: dict[str, str] = hello["environment"]
        self.descriptors: dict[int, str] = {int(number): path for number, path in hello["descriptors"].items()}
        self.names = list(filter(None, self.environment.get("KEEPFLEET_DESCRIPTORS", "").split(",")))

    @property
    def passed(self) -> dict[str, str]:
        """What each descriptor that was passed by name is open on."""
        return {name: self.descriptors[number] for number, name in enumerate(self.names, 4)}

    def do(self, what: str, **more: object) -> str:
        """Gives an order and waits until it is done."""
        self.order(what, **more)
        return str(json.loads(self._lines.readline()))

    def order(self, what: str, **more: object) -> None:
        """Gives an order that is not answered."""
        self._lines.write(json.dumps({"do": what, **more}) + "\n")
        self._lines.flush()

    def report(self, kind: str, files: dict[str, str] | None = None, **more: object) -> None:
        """Reports with files attached, by name."""
        self.do("report", report={"report": kind, **more}, files=files or {})

    def listen(self, fingerprint: str = FINGERPRINT, identity: str = "the key") -> None:
        self.report("listening", {"identity": identity}, fingerprint=fingerprint, certificate="PEM")

    def connect(self) -> Stub:
        """The first client is there; the runner that this brings."""
        self.report("connected")
        self.runner = self._next()
        return self.runner

    def accept(self, **more: object) -> None:
        """Its runner has found a module good, and it takes it; ends, and is its runner from then on."""
        runner = self.runner or self.connect()
        runner.report("checked", ARTIFACTS)
        self.do("report", report={"report": "accepted", "upload": UPLOAD, "module": MODULE, **more})
        self.given = json.loads(runner.do("run"))
        self.order("exit", code=0)
        self.close()
        self._sock, self._lines, self.pid, self.role = runner._sock, runner._lines, runner.pid, runner.role

    def is_gone(self) -> bool:
        """Waits until the process has ended, whatever it still answers."""
        with suppress(ConnectionResetError):  # it had not read its last order
            self._lines.read()
        return True

    def close(self) -> None:
        self._lines.close()
        self._sock.close()


class LoaderProcess:
    """A loader in `directory`, its notify socket, and the place its app-loaders call.

    main, stub, calls and path: the program, its app-loader, the socket that this calls, and where the packages lie;
    ours, where nothing else is said.
    """

    def __init__(
        self,
        directory: Path,
        stack: ExitStack,
        *,
        main: Path = FAKES / "loader_main.py",
        stub: tuple[str, ...] = STUB,
        calls: str = "stub.sock",
        path: str = os.pathsep.join(filter(None, sys.path)),
    ) -> None:
        self.directory, self._stack = directory, stack
        self._main, self._stub_command, self._path = main, stub, path
        self.log = directory.parent / "log"
        self.systemd = stack.enter_context(listening(str(directory.parent / "notify"), DEADLINE))
        self._calls = stack.enter_context(socket.socket(socket.AF_UNIX))
        self._calls.settimeout(DEADLINE)
        self._calls.bind(str(directory / calls))
        self._calls.listen(8)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *command: str, environment: dict[str, str] | None = None, strays: tuple[int, ...] = ()) -> None:
        """Starts the loader and waits until it is READY; what systemd keeps is passed to it, and `strays` are open."""
        stored = dict(self.systemd.stored)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, self._main, str(KUUID), *(command or self._stub_command)],
                env={
                    "PYTHONPATH": self._path,
                    "RUNTIME_DIRECTORY": str(self.directory),
                    "NOTIFY_SOCKET": self.systemd.path,
                    "FAKE_STORED": ",".join(f"{name}={number}" for name, number in stored.items()),
                    **(environment or {}),
                },
                stdin=subprocess.DEVNULL,
                stderr=log,
                pass_fds=[*stored.values(), *strays],
            )
        self._stack.callback(self.end)
        self.systemd.wait_for("READY")

    def end(self, number: int = signal.SIGKILL) -> int:
        """Ends the loader as systemd would, with its process group's rest left to the test; returns its status."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(DEADLINE)

    def ended(self, passed: Endpoint) -> KeepReport:
        """The keep, once the loader has exited of itself: what is written down of it."""
        assert self.process is not None
        self.process.wait(DEADLINE)
        return passed.recorded.report

    def peer(self) -> Peer:
        """A new control connection."""
        peer = Peer(str(self.directory / "control.sock"))
        self._stack.callback(peer.close)
        return peer

    def stub(self) -> Stub:
        """The next endpoint or runner that calls."""
        sock, _ = self._calls.accept()
        stub = Stub(sock, self.stub)
        self._stack.callback(stub.close)
        return stub

    def log_text(self) -> str:
        return self.log.read_text()

    def open_descriptors(self) -> int:
        """How many descriptors the loader has."""
        assert self.process is not None
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def comes_back_to(self, descriptors: int, peer: Peer) -> bool:
        """Whether the loader has that many descriptors again, once it has seen to what was sent to it before; or fewer,
        as it may have had others still to close."""
        for _ in range(ROUNDS):
            peer.ask(CommandType.INFO)
            if self.open_descriptors() <= descriptors:
                return True
        return False


@dataclass
class Endpoint:
    """What a start brings. journald: the other end of its socket to the journal."""

    listener: socket.socket
    authority: int
    revoked: int
    output: int
    record: int
    journal: socket.socket
    journald: socket.socket

    @property
    def descriptors(self) -> tuple[int, ...]:
        entering = self.listener.fileno(), self.authority, self.revoked
        return *entering, self.output, self.record, self.journal.fileno()

    @property
    def named(self) -> dict[str, int]:
        """The same by name."""
        return dict(zip((*START_DESCRIPTORS, *OUTPUT_DESCRIPTORS), self.descriptors, strict=True))

    @property
    def recorded(self) -> KeepRecord:
        """What the loader has written down last."""
        return read_record(self.record)[0]

    @property
    def frames(self) -> list[Frame]:
        """What the ring has."""
        ring = RingReader(self.output)
        return ring.read(0, ring.capacity)[0]

    def written(self, stream: int) -> bytes:
        """What the ring has of a stream."""
        return b"".join(frame.data for frame in self.frames if frame.stream == stream)

    @property
    def lines(self) -> list[str]:
        """The loader's own lines in the ring."""
        return [line for frame in self.frames if frame.stream == MARK and (line := decode_mark(frame.data).line)]

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])


@contextmanager
def endpoint(directory: Path) -> Iterator[Endpoint]:
    """A listening socket on a free port, two files that can be read alone, and what takes the output."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        numbers: list[int] = []
        for name in ("ca.crt", "revoked"):
            (directory / name).write_text(name)
            numbers.append(os.open(directory / name, os.O_RDONLY))
            stack.callback(os.close, numbers[-1])
        for name in ("output", "record"):
            numbers.append(os.open(directory / name, os.O_RDWR | os.O_CREAT, 0o600))
            stack.callback(os.close, numbers[-1])
        RingWriter.create(numbers[2], MIN_CAPACITY)
        journal, journald = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with journal, journald:
            authority, revoked, output, record = numbers
            yield Endpoint(listener, authority, revoked, output, record, journal, journald)


def opened(loader: LoaderProcess, passed: Endpoint) -> tuple[Peer, Stub]:
    """A keep that awaits its workload."""
    peer = loader.peer()
    peer.start(passed.named)
    stub = loader.stub()
    stub.listen()
    assert peer.answer().state is State.STARTED
    return peer, stub
