"""A connection to an application of this host: requests on its life-cycle socket, and answers.

Before a byte is sent the kernel says who listens (unix(7), SO_PEERCRED): another user's socket in that place gets
nothing. An answer is parsed, bounded in bytes and in time, and awaited without a thread.

Import rule: the standard library, keep_protocol, and of codelets what needs no engine.
"""

from __future__ import annotations

import asyncio
import pwd
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from codelets.faults import CodeletError
from codelets.lcm import HEAD_BYTES, Request, answer_in, checked, cut, frame_size, request_frame
from keep_protocol.codelets import Application
from keep_protocol.errors import ErrorKind, KeepfleetError

MAX_MESSAGE, MAX_LINES = 1024, 64
"""Of an application's error: jbpf's length of a text, and as many lines of evidence as a reader can use."""
_PASSED_ON = frozenset(
    {
        ErrorKind.BAD_REQUEST,
        ErrorKind.NOT_FOUND,
        ErrorKind.CONFLICT,
        ErrorKind.TOO_LARGE,
        ErrorKind.TOO_MANY,
        ErrorKind.INVALID_MODULE,
        ErrorKind.TOO_COMPLEX,
        ErrorKind.NO_SPACE,
    }
)
"""Kinds of an application's errors that are about the request. Any other would say something of the manager, or of the
caller's rights here: that is for the manager to say, and these are UNAVAILABLE."""


class ApplicationConnection:
    """One connection. Its methods raise the errors that answers hold, and KeepfleetError(UNAVAILABLE) where there is no
    answer, or none in time."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)

    def __repr__(self) -> str:
        return f"ApplicationConnection({self._application.name})"

    def __enter__(self) -> ApplicationConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    async def connect(self) -> None:
        """Connects, if it is the application's user who listens."""
        application = self._application
        user = await asyncio.to_thread(_user_id, application)
        try:
            self._socket.connect(application.socket)  # which is done immediately, or not at all
            credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        except BlockingIOError:
            raise _unavailable(application, "as many as it takes wait to connect already") from None
        except OSError as error:
            raise _unavailable(application, error.strerror or str(error)) from error
        listening = struct.unpack("3i", credentials)[1]
        if listening != user:
            why = f"user {listening} listens on {application.socket}, not {application.user}"
            raise _unavailable(application, why)

    async def ask(self, request: Request, seconds: float) -> dict[str, Any]:
        """The answer's members."""
        return await self._answered(request_frame(request), seconds)

    async def answer(self, seconds: float) -> dict[str, Any]:
        """The next answer to a request that has several."""
        return await self._answered(b"", seconds)

    async def _answered(self, data: bytes, seconds: float) -> dict[str, Any]:
        try:
            async with asyncio.timeout(seconds):
                body = await self._exchange(data)
        except TimeoutError:
            raise _unavailable(self._application, f"no answer in {seconds:g} s") from None
        except OSError as error:
            raise _unavailable(self._application, error.strerror or str(error)) from error
        with understood(self._application):
            found = await asyncio.to_thread(answer_in, body)
        try:
            return checked(found)
        except KeepfleetError as error:
            raise _passed_on(self._application, error) from None

    async def _exchange(self, data: bytes) -> bytes:
        with suppress(BrokenPipeError, ConnectionResetError):  # why it was refused can be read all the same
            await asyncio.get_running_loop().sock_sendall(self._socket, data)
        with understood(self._application):
            size = frame_size(await self._received(HEAD_BYTES))
            body = await self._received(size)
            if len(body) < size:
                raise cut()
            return body

    async def _received(self, size: int) -> bytes:
        """`size` bytes; fewer where the other end has closed. Raises OSError."""
        loop, found = asyncio.get_running_loop(), bytearray()
        while len(found) < size and (data := await loop.sock_recv(self._socket, min(size - len(found), 65536))):
            found += data
        return bytes(found)


def _user_id(application: Application) -> int:
    if application.user.isdecimal():
        return int(application.user)
    try:
        return pwd.getpwnam(application.user).pw_uid
    except KeyError:
        raise _unavailable(application, f"this host has no user {application.user}") from None


@contextmanager
def understood(application: Application) -> Iterator[None]:
    """What an application has answered is not the caller's fault. Raises KeepfleetError(UNAVAILABLE)."""
    try:
        yield
    except KeepfleetError as error:
        raise _unavailable(application, error.message) from None


def _passed_on(application: Application, error: KeepfleetError) -> KeepfleetError:
    """An application's error as the manager's, bounded; jbpf's number is a line of its evidence."""
    lines = tuple(line[:MAX_MESSAGE] for line in error.evidence[:MAX_LINES])
    if isinstance(error, CodeletError):
        lines = (f"failure: {error.failure.value}, jbpf's number {error.failure.number}", *lines)
    if error.kind in _PASSED_ON:
        return KeepfleetError(error.kind, error.message[:MAX_MESSAGE], lines)
    return _unavailable(application, error.message[:MAX_MESSAGE], lines)


def _unavailable(application: Application, why: str, lines: tuple[str, ...] = ()) -> KeepfleetError:
    return KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot ask the application {application.name}: {why}", lines)
