"""Speaks the control protocol to loaders, over the Unix socket in each keep's runtime directory.

A loader is not trusted: its answers are bounded in size and time, the socket must be a socket of the directory's
own owner (a compromised loader could have put a symbolic link to another service there), and an answer that speaks
of another keep is refused. One of the version before, which does not know `keep-hello`, gets the requests of its time.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import stat
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager

from keep_manager.model import NAMED_STARTS, Answer, LoaderGone, UnixUser
from keep_protocol.constants import CONTROL_REPLY_SECONDS, MAX_CONTROL_FRAME, control_socket_path
from keep_protocol.control import (
    CONTROL_VERSION,
    UNSTORED,
    Command,
    CommandType,
    StartMessage,
    claim,
    claimed_spec,
    decode_reply,
    encode_command,
    hello,
    start,
)
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.spec import KeepSpec

BUSY_SECONDS = 0.005
"""Pause before another attempt at a socket whose queue is full; the kernel does not say when it has room."""
ASKED_TOGETHER = 64
"""Loaders that one round asks at the same time. Each takes a millisecond of processor time to answer, and has
CONTROL_REPLY_SECONDS: on a host whose processors are busy ten times over, 512 had the last ones answer too late."""
NO_SPEC = KeepSpec()
GONE = (ConnectionError, FileNotFoundError)
"""What a loader that has ended leaves behind: no socket, one that refuses, or a connection that breaks off."""


_HUNG_UP = errno.ECONNRESET, "it closed the connection without an answer"


def _unreachable(kuuid: int, why: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot reach the loader of keep {kuuid}: {why}")


def _silent(kuuid: int, command: Command, seconds: float) -> KeepfleetError:
    return _unreachable(kuuid, f"no answer to {command.type.value} in {seconds:g} s")


def _busy(kuuid: int) -> KeepfleetError:
    return _unreachable(kuuid, f"its socket stayed busy for {CONTROL_REPLY_SECONDS:g} s")


def _too_long(kuuid: int) -> KeepfleetError:
    return KeepfleetError(ErrorKind.TOO_LARGE, f"cannot read the answer of keep {kuuid}: it is too long")


def _failed(kuuid: int, error: OSError) -> KeepfleetError:
    failure = _unreachable(kuuid, str(error.strerror))
    return LoaderGone(failure.kind, failure.message) if isinstance(error, GONE) else failure


def decode_answer(kuuid: int, frame: bytes) -> Answer:
    """What the answer of a keep's loader says. Raises the error it reports, BAD_REQUEST for another shape, or
    KEEP_FAILED where it speaks of another keep.

    What it claims to be counts where it is of version 1, and is not malformed; the owner never does.
    """
    report = decode_reply(frame)
    if report.kuuid != kuuid:
        raise KeepfleetError(
            ErrorKind.KEEP_FAILED, f"cannot trust the loader of keep {kuuid}: it says it is {report.kuuid}"
        )
    if report.control_version >= NAMED_STARTS:
        return Answer(report, NO_SPEC)
    try:
        claims = claimed_spec(frame).replace(owner="")
    except KeepfleetError:
        claims = NO_SPEC
    return Answer(report, claims)


class LoaderSession:
    """One connection to one loader; commands are answered in order."""

    def __init__(self, sock: socket.socket, kuuid: int, user: UnixUser) -> None:
        self._sock = sock
        self.user = user
        self._kuuid = kuuid
        self._rest = b""
        self._version = 1

    def __repr__(self) -> str:
        return f"LoaderSession({self._kuuid}, control protocol {self._version})"

    async def ask(
        self, command: Command, seconds: float = CONTROL_REPLY_SECONDS, descriptors: Sequence[int] = ()
    ) -> Answer:
        """The loader's answer; `descriptors` travel with the command's first byte and stay the caller's.

        Raises the loader's error, or KeepfleetError UNAVAILABLE when it does not answer whole in `seconds`: LoaderGone
        where it has ended.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._send(encode_command(command), descriptors)
                frame = await self._line()
        except TimeoutError:
            raise _silent(self._kuuid, command, seconds) from None
        except OSError as error:
            raise _failed(self._kuuid, error) from error
        return decode_answer(self._kuuid, frame)

    async def hello(self, seconds: float = CONTROL_REPLY_SECONDS) -> Answer:
        """The keep; from then on the session speaks the newest protocol that both know. Raises as `ask` does."""
        try:
            answer = await self.ask(hello(), seconds)
        except KeepfleetError as error:
            if error.kind is not ErrorKind.UNKNOWN_COMMAND:
                raise
            return await self.ask(Command(CommandType.INFO), seconds)
        self._version = min(answer.report.control_version, CONTROL_VERSION)
        return answer

    async def claim(self, spec: KeepSpec) -> Answer:
        """Has a spare be the keep that `spec` describes; again, too. Raises as `ask` does."""
        return await self.ask(claim(spec))

    async def unstored(self) -> None:
        """Says that journald stores nothing. Raises as `ask` does, but not where the loader is of a version that does
        not understand it."""
        try:
            await self.ask(Command(CommandType.JOURNAL, UNSTORED))
        except KeepfleetError as error:
            if error.kind not in (ErrorKind.CONFLICT, ErrorKind.BAD_REQUEST, ErrorKind.UNKNOWN_COMMAND):
                raise

    async def start(self, message: StartMessage, port: int, files: Sequence[int], seconds: float) -> Answer:
        """Lets the keep begin with `files`, which `message` names in this order; the first listens on `port`.

        A loader of version 1 knows no uploaders: there every certificate of the client CA may upload. Raises
        as `ask` does.
        """
        if self._version >= NAMED_STARTS:
            return await self.ask(start(message), seconds, files)
        await self.ask(Command(CommandType.ADDR, message.address))
        await self.ask(Command(CommandType.PORT, str(port)))
        await self.ask(Command(CommandType.NAMES, ",".join(message.names)))
        return await self.ask(Command(CommandType.START), seconds, files)

    async def _send(self, data: bytes, descriptors: Sequence[int]) -> None:
        sent = 0
        if descriptors:
            while not sent:
                try:
                    sent = socket.send_fds(self._sock, [data], list(descriptors))
                except BlockingIOError:
                    await _writable(self._sock)
        await asyncio.get_running_loop().sock_sendall(self._sock, data[sent:])

    async def _line(self) -> bytes:
        loop = asyncio.get_running_loop()
        parts, size = [self._rest], len(self._rest)
        while b"\n" not in parts[-1]:
            data = await loop.sock_recv(self._sock, MAX_CONTROL_FRAME)
            if not data:
                raise ConnectionResetError(*_HUNG_UP)
            parts.append(data)
            size += len(data)
            if size > MAX_CONTROL_FRAME:
                raise _too_long(self._kuuid)
        line, _, self._rest = b"".join(parts).partition(b"\n")
        return line


async def _writable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(sock.fileno(), ready.set_result, None)
    ready.add_done_callback(lambda _: loop.remove_writer(sock.fileno()))
    await ready


class Loaders:
    """Every loader below `runtime_root` (/run, or $XDG_RUNTIME_DIR)."""

    def __init__(self, runtime_root: str) -> None:
        self._root = runtime_root

    def __repr__(self) -> str:
        return f"Loaders({self._root!r})"

    async def ask(self, kuuid: int, command: Command, seconds: float = CONTROL_REPLY_SECONDS) -> Answer:
        """The answer to one command. Raises as LoaderSession.ask does."""
        async with self.session(kuuid) as session:
            return await session.ask(command, seconds)

    async def ask_all(self, kuuids: Sequence[int], command: Command) -> Mapping[int, Answer | KeepfleetError]:
        """The answer of each of these loaders to one command, or the error for which there is none."""
        try:
            asking = _Round(self._root, command)
        except OSError as error:
            return {kuuid: _failed(kuuid, error) for kuuid in kuuids}
        await asyncio.to_thread(asking.run, kuuids)
        return asking.found

    @asynccontextmanager
    async def session(self, kuuid: int) -> AsyncIterator[LoaderSession]:
        """A connection for several commands. Raises KeepfleetError(UNAVAILABLE), LoaderGone too, when there is none."""
        with ExitStack() as held:
            try:
                flags = socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
                sock = held.enter_context(socket.socket(socket.AF_UNIX, flags))
                async with asyncio.timeout(CONTROL_REPLY_SECONDS):
                    user = await _connect(sock, control_socket_path(self._root, kuuid))
            except TimeoutError:
                raise _busy(kuuid) from None
            except OSError as error:
                raise _failed(kuuid, error) from error
            yield LoaderSession(sock, kuuid, user)


async def _connect(sock: socket.socket, path: str) -> UnixUser:
    """Connects to exactly the socket at `path`, and waits while its queue is full. Raises as `_connect_now` does."""
    while True:
        try:
            return _connect_now(sock, path)
        except BlockingIOError:
            await asyncio.sleep(BUSY_SECONDS)


def _connect_now(sock: socket.socket, path: str) -> UnixUser:
    """Connects to exactly the socket at `path`, no link followed from its directory on; returns who listens there.

    Raises OSError: PermissionError where the socket is not the directory owner's, BlockingIOError where its queue is
    full.
    """
    directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        owner = os.fstat(directory).st_uid
        file = os.open(os.path.basename(path), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    finally:
        os.close(directory)
    try:
        status = os.fstat(file)
        if not stat.S_ISSOCK(status.st_mode) or status.st_uid != owner:
            raise PermissionError(1, "what lies there is not its own socket")
        sock.connect(f"/proc/self/fd/{file}")
    finally:
        os.close(file)
    _, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    if uid != owner:
        raise PermissionError(1, f"uid {uid} listens on the socket of uid {owner}")
    return UnixUser(uid, gid)


class _Round:
    """One command to many loaders, in one poll loop: a task and its timeouts for each would cost twice as much."""

    def __init__(self, root: str, command: Command) -> None:
        self.found: dict[int, Answer | KeepfleetError] = {}
        self._root, self._command, self._request = root, command, encode_command(command)
        self._poller = select.epoll()
        self._asked: dict[int, tuple[int, socket.socket, bytearray, float]] = {}

    def __repr__(self) -> str:
        return f"_Round({self._command.type.value}, {len(self._asked)} asked, {len(self.found)} answers)"

    def run(self, kuuids: Sequence[int]) -> None:
        """Asks all, and returns when each has answered, or had CONTROL_REPLY_SECONDS to."""
        waiting = deque((kuuid, time.monotonic() + CONTROL_REPLY_SECONDS) for kuuid in kuuids)
        try:
            while waiting or self._asked:
                busy = self._ask_more(waiting)
                self._hear(BUSY_SECONDS if busy else CONTROL_REPLY_SECONDS)
        finally:
            for _, sock, _, _ in self._asked.values():
                sock.close()
            self._poller.close()

    def _ask_more(self, waiting: deque[tuple[int, float]]) -> bool:
        """Asks those that wait while there is room; whether the queue of one was full, which then waits again."""
        busy = False
        for _ in range(min(len(waiting), ASKED_TOGETHER - len(self._asked))):
            kuuid, deadline = waiting.popleft()
            try:
                self._ask(kuuid)
            except BlockingIOError:
                busy = True
                if time.monotonic() < deadline:
                    waiting.append((kuuid, deadline))
                else:
                    self.found[kuuid] = _busy(kuuid)
            except OSError as error:
                self.found[kuuid] = _failed(kuuid, error)
        return busy

    def _ask(self, kuuid: int) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            _connect_now(sock, control_socket_path(self._root, kuuid))
            sock.sendall(self._request)  # far less than any socket's buffer takes
        except BaseException:
            sock.close()
            raise
        self._asked[sock.fileno()] = kuuid, sock, bytearray(), time.monotonic() + CONTROL_REPLY_SECONDS
        self._poller.register(sock, select.EPOLLIN)

    def _hear(self, seconds: float) -> None:
        first = next((deadline for *_, deadline in self._asked.values()), 0.0)  # asked first, due first
        wait = min(seconds, first - time.monotonic()) if self._asked else seconds
        for number, _ in self._poller.poll(max(wait, 0.0)):
            kuuid, sock, data, _ = self._asked[number]
            try:
                received = sock.recv(MAX_CONTROL_FRAME)
                data += received
                answer = self._answer(kuuid, data) if received else _failed(kuuid, ConnectionResetError(*_HUNG_UP))
            except OSError as error:
                answer = _failed(kuuid, error)
            if answer is not None:
                self._done(number, answer)
        now = time.monotonic()
        for number in [number for number, (*_, deadline) in self._asked.items() if deadline <= now]:
            self._done(number, _silent(self._asked[number][0], self._command, CONTROL_REPLY_SECONDS))

    def _answer(self, kuuid: int, data: bytearray) -> Answer | KeepfleetError | None:
        """What has been received so far, None while it is not whole."""
        if len(data) > MAX_CONTROL_FRAME:
            return _too_long(kuuid)
        line, newline, _ = data.partition(b"\n")
        if not newline:
            return None
        try:
            return decode_answer(kuuid, bytes(line))
        except KeepfleetError as error:
            return error

    def _done(self, number: int, answer: Answer | KeepfleetError) -> None:
        kuuid, sock, _, _ = self._asked.pop(number)
        self.found[kuuid] = answer
        sock.close()  # which takes it out of the poller
