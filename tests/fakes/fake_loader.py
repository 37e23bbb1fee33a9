"""A keep-loader without a keep: answers the control protocol on a real Unix socket, from the real state table."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from keep_loader.settings import ENTRIES
from keep_protocol.constants import (
    MAX_CONTROL_FDS,
    OUTPUT_DESCRIPTORS,
    START_DESCRIPTORS,
    WORKLOAD_DESCRIPTOR,
    control_socket_path,
)
from keep_protocol.control import (
    CONTROL_VERSION,
    UNSTORED,
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
from keep_protocol.outcome import unit_status_of
from keep_protocol.spec import KeepSpec, decode_spec
from keep_protocol.states import STATE_OF, Event, Phase, advance
from keep_protocol.workload import Workload, workload_from_json
from tests.fakes.fake_output import FakeOutput

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
    as; below 3 it keeps no output, and does not exit once it has ended. `output` is what it does with its start's
    output, record, journal and input, None before that. `exit_status` is what it has exited with once the keep had
    ended, None before that; `exited` is called with it then. `silent` makes it accept and never answer, `lies` answer
    each wait immediately; `refuse` is the error the next START gets; `dies` makes STOP wait until it is set, as for a
    process that takes its time; `hold` makes START wait until it is set, and sets `held`; `heard` is set by each
    command; `received` are the inode numbers of START's descriptors, `started` its message; `workload` is the
    description that came with it, and `granted` what that grants, open
    until the loader ends; `brought` what the module and its compiled code were that came with a stored keep's start.
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
        self.brought: dict[str, bytes] = {}
        self.workload: Workload | None = None
        self.granted: list[int] = []
        self.commands: list[Command] = []
        self.heard = asyncio.Event()
        self.stopped_by = ""
        self.says_it_is = kuuid
        self.output: FakeOutput | None = None
        self.journal_gone = self.unstored = False
        self.begun = False
        self.exit_status: int | None = None
        self.exited: Callable[[int], None] = lambda _: None
        self._answering = 0
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
        try:
            self._listener.bind(self._path)
        except OSError:
            self._listener.close()  # no one else would
            raise
        self._listener.listen(16)
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)

    async def close(self) -> None:
        """Closes every connection and the socket, as a loader that has ended."""
        if self._listener.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
        others = self._tasks - {asyncio.current_task()}
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others)
        for sock in self._peers:  # of those whose task was ended before it began
            sock.close()
        self._listener.close()
        while self.granted:
            os.close(self.granted.pop())
        if self.output is not None:
            self.output.close()
            self.output = None
        with suppress(FileNotFoundError):
            os.unlink(self._path)

    async def move(self, event: Event, outcome: Outcome | None = None) -> None:
        """Moves the keep along the real table and answers those who wait; `outcome` is how its workload ended."""
        async with self._changed:
            started = self.phase not in (Phase.BOOTING, Phase.IDLE, Phase.OPENING)
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
            if self._outcome is not None and self.output is not None:
                self._outcome = self._outcome.replace(
                    output_bytes=self.output.written, lost_bytes=0, journal_skipped_bytes=0
                )
            if self.output is not None:
                self.output.note(self.report())
            self._changed.notify_all()
            if started and self.output is not None and self.phase in (Phase.ENDED, Phase.FAILED):
                self._spawn(self._exit())

    async def _exit(self) -> None:
        """Everyone who waits is answered; then it exits as its workload ended."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._answering)
        self.exit_status = unit_status_of(self._outcome)
        await self.close()
        self.exited(self.exit_status)

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
            FINGERPRINT if listening and self._port else "",
            isolation_failures=self.isolation_failures,
            outcome=self._outcome,
            restart=self.restart,
            restarts=self.restarts,
            module=self.module,
            uploaded_by=self.uploaded_by,
            uploaders=self.uploaders,
            control_version=self.version,
            journal_gone=self.journal_gone,
            begun=self.begun,
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
                    self._answering += 1
                    try:
                        reply = await self._obey(frame, descriptors)
                        if reply is not None:
                            await asyncio.get_running_loop().sock_sendall(sock, encode_reply(reply, self.spec))
                    finally:
                        self._answering -= 1
                    async with self._changed:
                        self._changed.notify_all()
        except (ConnectionResetError, BrokenPipeError):
            return
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
            sock.close()
            self._peers.discard(sock)

    @property
    def _unknown(self) -> tuple[CommandType, ...]:
        """The commands that its version has not."""
        of_3 = (CommandType.FOLLOW, CommandType.JOURNAL)
        return of_3 * (self.version < 3) + (CommandType.HELLO, CommandType.KEEP_START) * (self.version < 2)

    async def _obey(self, frame: bytes, descriptors: list[int]) -> KeepReport | KeepfleetError | None:
        try:
            command = decode_command(frame)
            if command.type in self._unknown:
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
                names = START_DESCRIPTORS + OUTPUT_DESCRIPTORS * (self.version >= 3)
                await self._take_start(StartMessage(descriptors=names), descriptors)
            case CommandType.CLAIM:
                spec = decode_spec(command.contents)
                if not self.spec.spare or (self.spec.owner and self.spec != spec):
                    raise KeepfleetError(ErrorKind.CONFLICT, "cannot make the keep another one: it is no spare")
                self.spec, self.restart, self.uploaders = spec, spec.restart, spec.uploaders
            case CommandType.KEEP_START:
                await self._take_start(decode_start(command.contents), descriptors)
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
            case CommandType.JOURNAL if command.contents == UNSTORED:
                self.unstored = True
            case CommandType.FOLLOW | CommandType.JOURNAL:
                if self.output is None or len(descriptors) != 1:
                    raise KeepfleetError(ErrorKind.CONFLICT, "cannot take a descriptor: the keep was not started")
                if command.type is CommandType.FOLLOW:
                    self.output.follow(descriptors.pop())
                else:
                    self.journal_gone = False
                    self.output.take_journal(descriptors.pop())

    def _passed(self, message: StartMessage, descriptors: list[int]) -> dict[str, int]:
        """What came with a start, by name."""
        names = message.descriptors
        if WORKLOAD_DESCRIPTOR not in names and len(descriptors) > len(names):  # as version 1 passes it
            self.workload = workload_from_json(os.pread(descriptors[len(names)], 1 << 22, 0))
            names = (*names, WORKLOAD_DESCRIPTOR, *self.workload.grant_names)
        entries = ENTRIES[self.spec.kind]
        wanted = entries.brings + OUTPUT_DESCRIPTORS * (self.version >= 3)
        missing = [name for name in wanted if name not in names]
        unknown = OUTPUT_DESCRIPTORS * (self.version < 3)
        if missing or len(names) != len(descriptors) or set(names) & set(unknown):
            raise KeepfleetError(
                ErrorKind.BAD_REQUEST, f"cannot start the keep: it brings {len(descriptors)}, {', '.join(names)}"
            )
        return dict(zip(names, descriptors, strict=True))

    async def _take_start(self, message: StartMessage, descriptors: list[int]) -> None:
        try:
            await self._start(message, descriptors)
        finally:
            while descriptors:
                os.close(descriptors.pop())

    async def _start(self, message: StartMessage, descriptors: list[int]) -> None:
        advance(self.phase, Event.START)
        passed = self._passed(message, descriptors)
        if WORKLOAD_DESCRIPTOR in passed:
            self.workload = workload_from_json(os.pread(passed[WORKLOAD_DESCRIPTOR], 1 << 22, 0))
            self.restart = self.workload.restart
            self.granted = [os.dup(passed[name]) for name in self.workload.grant_names]
        if self.version >= 3:
            self.output = FakeOutput(passed)
        stored = "module" in passed
        if stored:
            self.module = Module(self.spec.digest, self.spec.module, os.fstat(passed["module"]).st_size)
            self.brought = {
                name: os.pread(passed[name], 1 << 20, 0) for name in ("module", "compiled") if name in passed
            }
            if "follow" in passed and self.output is not None:
                self.output.follow(os.dup(passed["follow"]))
        if message.address:
            with socket.socket(fileno=os.dup(passed["listener"])) as listener:
                self._address, self._port = message.address, listener.getsockname()[1]
        self.started, self.uploaders = message, message.uploaders
        await self.move(Event.RUN if stored else Event.START)
        self.received = [os.fstat(descriptor).st_ino for descriptor in descriptors]
        if self.hold is not None:
            self.held.set()
            await self.hold.wait()
        if self.refuse is not None:
            error, self.refuse = self.refuse, None
            await self.move(Event.FAIL if stored else Event.START_FAILED)
            if self.output is not None:
                self.output.close()
                self.output = None
            raise error
        if not stored:
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
