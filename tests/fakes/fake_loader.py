"""A keep-loader without a keep: answers the control protocol on a real Unix socket, from the real state table."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from contextlib import suppress

from keep_protocol.constants import MAX_CONTROL_FDS, control_socket_path
from keep_protocol.control import (
    CONTROL_VERSION,
    START_DESCRIPTORS,
    Command,
    CommandType,
    FrameDecoder,
    StartMessage,
    decode_command,
    decode_start,
    encode_reply,
)
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepReport, Module, Outcome, OutcomeKind, Uploader
from keep_protocol.spec import KeepSpec
from keep_protocol.states import STATE_OF, Event, Phase, advance
from keep_protocol.workload import Workload, workload_from_json

FINGERPRINT = "sha256:" + "ab" * 32
NO_SPEC = KeepSpec()
WORDS = {
    Phase.BOOTING: "starting",
    Phase.IDLE: "ready for a start",
    Phase.OPENING: "opening the upload endpoint",
    Phase.AWAITING: "awaiting workload",
    Phase.REOPENING: "opening the upload endpoint again",
    Phase.RUNNING: "running a workload",
    Phase.RESTARTING: "starting the workload again",
    Phase.ENDED: "ended",
    Phase.FAILED: "failed",
}
"""As the real loader has them; tests/contract compares them."""


class FakeLoader:
    """One keep's loader.

    `version` is the control protocol it speaks; of version 1 its unit has no spec, and it says what it was described
    as. `silent` makes it accept and never answer, `lies` answer each wait immediately; `refuse` is the error the next
    START gets; `dies` makes STOP wait until it is set, as for a process that takes its time; `hold` makes START wait
    until it is set, and sets `held`; `heard` is set by each command; `received` are the inode numbers of START's
    descriptors, `started` its message; `workload` is the description that came with it, and `granted` what that grants,
    open until the loader ends.
    """

    def __init__(self, runtime_root: str, kuuid: int, spec: KeepSpec = NO_SPEC) -> None:
        self.kuuid = kuuid
        self.spec = spec
        self.version = CONTROL_VERSION
        self.uploaders: tuple[str, ...] = ()
        self.module: Module | None = None
        self.uploaded_by: Uploader | None = None
        self.started: StartMessage | None = None
        self.restart = spec.restart
        self.phase = Phase.IDLE
        self.silent = False
        self.lies = False
        self.refuse: KeepfleetError | None = None
        self.restarts = 0
        self.dies: asyncio.Event | None = None
        self.hold: asyncio.Event | None = None
        self.held = asyncio.Event()
        self.isolation_failures: tuple[str, ...] = ()
        self.received: list[int] = []
        self.workload: Workload | None = None
        self.granted: list[int] = []
        self.commands: list[Command] = []
        self.heard = asyncio.Event()
        self.stopped_by = ""
        self.says_it_is = kuuid
        self.connections = 0
        self._address, self._port, self._said = "", 0, ""
        self._outcome: Outcome | None = None
        self._changed = asyncio.Condition()
        self._path = control_socket_path(runtime_root, kuuid)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._tasks: set[asyncio.Task[None]] = set()
        self._peers: set[socket.socket] = set()

    def __repr__(self) -> str:
        return f"FakeLoader({self.kuuid}, {self.phase.value})"

    def open(self) -> None:
        """Listens on the keep's control socket, whose directory exists."""
        self._listener.bind(self._path)
        self._listener.listen(16)
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)

    async def close(self) -> None:
        """Closes every connection and the socket, as a loader that has ended."""
        if self._listener.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for sock in self._peers:  # of those whose task was ended before it began
            sock.close()
        self._listener.close()
        while self.granted:
            os.close(self.granted.pop())
        with suppress(FileNotFoundError):
            os.unlink(self._path)

    async def move(self, event: Event, outcome: Outcome | None = None) -> None:
        """Moves the keep along the real table and answers those who wait; `outcome` is how its workload ended."""
        async with self._changed:
            self.phase, self._said = advance(self.phase, event), ""
            if outcome is not None:
                self._outcome = outcome
            elif self.phase is Phase.ENDED:
                kind = OutcomeKind.STOPPED if event is Event.STOP else OutcomeKind.EXITED
                code = 0 if kind is OutcomeKind.EXITED else None
                at, since_boot = time.time(), time.monotonic()
                self._outcome = Outcome(
                    kind, kind.value, exit_code=code, ended_at=at, by=self.stopped_by, ended_monotonic=since_boot
                )
            self._changed.notify_all()

    async def say(self, detail: str) -> None:
        """Changes the sentence alone."""
        async with self._changed:
            self._said = detail
            self._changed.notify_all()

    async def hang_up(self) -> None:
        """Ends every connection, and goes on listening."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def report(self) -> KeepReport:
        """The keep as it is now."""
        listening = self.phase not in (Phase.BOOTING, Phase.IDLE, Phase.OPENING)
        ended = self._outcome is not None and self.phase is Phase.ENDED
        detail = self._outcome.text if ended and self._outcome is not None else self._said or WORDS[self.phase]
        return KeepReport(
            STATE_OF[self.phase],
            self.says_it_is,
            self._port if listening else 0,
            self._address if listening else "",
            self.phase.value,
            detail,
            FINGERPRINT if listening else "",
            isolation_failures=self.isolation_failures,
            outcome=self._outcome,
            restart=self.restart,
            restarts=self.restarts,
            module=self.module,
            uploaded_by=self.uploaded_by,
            uploaders=self.uploaders,
            control_version=self.version,
        )

    def _spawn(self, work: object) -> None:
        task = asyncio.ensure_future(work)  # type: ignore[call-overload] # a coroutine of this class
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _accept(self) -> None:
        """Takes one connection; not by a task, which loses one that comes in the moment it is ended."""
        sock, _ = self._listener.accept()
        sock.setblocking(False)
        self.connections += 1
        self._peers.add(sock)
        self._spawn(self._serve(sock))

    async def _serve(self, sock: socket.socket) -> None:
        decoder = FrameDecoder()
        descriptors: list[int] = []
        try:
            while True:
                data, received = await _receive(sock)
                descriptors += received
                if not data:
                    return
                for frame in decoder.feed(data):
                    reply = await self._obey(frame, descriptors)
                    if reply is not None:
                        await asyncio.get_running_loop().sock_sendall(sock, encode_reply(reply, self.spec))
        except (ConnectionResetError, BrokenPipeError):
            return
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
            sock.close()
            self._peers.discard(sock)

    async def _obey(self, frame: bytes, descriptors: list[int]) -> KeepReport | KeepfleetError | None:
        try:
            command = decode_command(frame)
            if self.version < CONTROL_VERSION and command.type in (CommandType.HELLO, CommandType.KEEP_START):
                raise KeepfleetError(ErrorKind.UNKNOWN_COMMAND, f"cannot obey {command.type.value!r}")
            self.commands.append(command)
            self.heard.set()
            if self.silent:
                return None
            await self._act(command, descriptors)
        except KeepfleetError as error:
            return error
        return self.report()

    async def _act(self, command: Command, descriptors: list[int]) -> None:
        match command.type:
            case CommandType.ADDR:
                self._address = command.contents
            case CommandType.PORT:
                self._port = int(command.contents)
            case CommandType.START:
                await self._start(StartMessage(descriptors=START_DESCRIPTORS), descriptors)
            case CommandType.KEEP_START:
                await self._start(decode_start(command.contents), descriptors)
            case CommandType.STOP if self.phase not in (Phase.ENDED, Phase.FAILED):
                advance(self.phase, Event.STOP)
                self.stopped_by = command.contents
                if self.dies is not None:
                    await self.dies.wait()
                await self.move(Event.STOP)
            case CommandType.WAIT if not self.lies:
                async with self._changed:
                    await self._changed.wait_for(
                        lambda: (
                            command.contents
                            not in (
                                str(int(STATE_OF[self.phase])),
                                self.phase.value,
                                f"{self.phase.value} {self.report().detail}",
                            )
                        )
                    )
            case CommandType.DROPPED if command.contents and self._outcome is not None:
                self._outcome = self._outcome.with_dropped(int(command.contents))

    async def _start(self, message: StartMessage, descriptors: list[int]) -> None:
        if message.descriptors[:3] != START_DESCRIPTORS or len(descriptors) < 3:
            raise KeepfleetError(
                ErrorKind.BAD_REQUEST, f"cannot start the keep: {len(descriptors)} descriptors, not three"
            )
        if len(descriptors) > 3:
            self.workload = workload_from_json(os.pread(descriptors[3], 1 << 22, 0))
            self.restart = self.workload.restart
            self.granted = [os.dup(descriptor) for descriptor in descriptors[4:]]
        if message.address:
            with socket.socket(fileno=os.dup(descriptors[0])) as listener:
                self._address, self._port = message.address, listener.getsockname()[1]
        self.started, self.uploaders = message, message.uploaders
        await self.move(Event.START)
        self.received = [os.fstat(descriptor).st_ino for descriptor in descriptors]
        if self.hold is not None:
            self.held.set()
            await self.hold.wait()
        if self.refuse is not None:
            error, self.refuse = self.refuse, None
            while descriptors:
                os.close(descriptors.pop())
            await self.move(Event.START_FAILED)
            raise error
        await self.move(Event.ENDPOINT_READY)


async def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    loop = asyncio.get_running_loop()
    while True:
        try:
            data, descriptors, _, _ = socket.recv_fds(sock, 65536, MAX_CONTROL_FDS)
            return data, list(descriptors)
        except BlockingIOError:
            readable: asyncio.Future[None] = loop.create_future()
            loop.add_reader(sock.fileno(), _complete, readable)
            try:
                await readable
            finally:
                loop.remove_reader(sock.fileno())


def _complete(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
