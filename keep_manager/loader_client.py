"""Speaks the control protocol to loaders, over the Unix socket in each keep's runtime directory.

A loader is not trusted: its answers are bounded in size and time, the socket must be a socket of the directory's
own owner (a compromised loader could have put a symbolic link to another service there), and an answer that speaks
of another keep is refused. One of the version before, which does not know `keep-hello`, gets the requests of its time.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager

from keep_manager.model import Answer, LoaderGone, UnixUser
from keep_protocol.constants import CONTROL_REPLY_SECONDS, MAX_CONTROL_FRAME, control_socket_path
from keep_protocol.control import (
    CONTROL_VERSION,
    Command,
    CommandType,
    StartMessage,
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
GONE = (ConnectionError, FileNotFoundError)
"""What a loader that has ended leaves behind: no socket, one that refuses, or a connection that breaks off."""


def _unreachable(kuuid: int, why: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot reach the loader of keep {kuuid}: {why}")


def _failed(kuuid: int, error: OSError) -> KeepfleetError:
    failure = _unreachable(kuuid, str(error.strerror))
    return LoaderGone(failure.kind, failure.message) if isinstance(error, GONE) else failure


def decode_answer(frame: bytes) -> Answer:
    """What a loader's answer says. Raises the error it reports, or KeepfleetError(BAD_REQUEST) for another shape.

    Of what it claims to be, the owner never counts; and none of it where it is malformed.
    """
    report = decode_reply(frame)
    try:
        claims = claimed_spec(frame).replace(owner="")
    except KeepfleetError:
        claims = KeepSpec()
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
            raise _unreachable(self._kuuid, f"no answer to {command.type.value} in {seconds:g} s") from None
        except OSError as error:
            raise _failed(self._kuuid, error) from error
        answer = decode_answer(frame)
        if answer.report.kuuid != self._kuuid:
            raise KeepfleetError(
                ErrorKind.KEEP_FAILED,
                f"cannot trust the loader of keep {self._kuuid}: it says it is {answer.report.kuuid}",
            )
        return answer

    async def hello(self) -> Answer:
        """The keep; from then on the session speaks the newest protocol that both know. Raises as `ask` does."""
        try:
            answer = await self.ask(hello())
        except KeepfleetError as error:
            if error.kind is not ErrorKind.UNKNOWN_COMMAND:
                raise
            return await self.ask(Command(CommandType.INFO))
        self._version = min(answer.report.control_version, CONTROL_VERSION)
        return answer

    async def start(self, message: StartMessage, port: int, files: Sequence[int], seconds: float) -> Answer:
        """Lets the keep begin with `files`, which `message` names in this order; the first listens on `port`.

        A loader of the version before knows no uploaders: there every certificate of the client CA may upload. Raises
        as `ask` does.
        """
        if self._version >= CONTROL_VERSION:
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
                raise ConnectionResetError(104, "it closed the connection without an answer")
            parts.append(data)
            size += len(data)
            if size > MAX_CONTROL_FRAME:
                raise KeepfleetError(
                    ErrorKind.TOO_LARGE, f"cannot read the answer of keep {self._kuuid}: it is too long"
                )
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
                raise _unreachable(kuuid, f"its socket stayed busy for {CONTROL_REPLY_SECONDS:g} s") from None
            except OSError as error:
                raise _failed(kuuid, error) from error
            yield LoaderSession(sock, kuuid, user)


async def _connect(sock: socket.socket, path: str) -> UnixUser:
    """Connects to exactly the socket at `path`, no link followed from its directory on; returns who listens there.

    Raises OSError, PermissionError too where the socket is not the directory owner's.
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
        while True:
            try:
                sock.connect(f"/proc/self/fd/{file}")
                break
            except BlockingIOError:
                await asyncio.sleep(BUSY_SECONDS)
    finally:
        os.close(file)
    _, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    if uid != owner:
        raise PermissionError(1, f"uid {uid} listens on the socket of uid {owner}")
    return UnixUser(uid, gid)
