"""Applications on this host whose codelets callers load through the manager: which there are, and asking one.

An application is known by a file NAME.yaml in a directory that root alone writes, or, for a user's own manager, that
user: who could write one could have the manager, which is root, speak to any socket of the host. The file says the
socket and as whom the application listens there. Before a byte is sent the kernel says who listens (unix(7),
SO_PEERCRED): another user's socket in that place gets nothing. What goes over it is a descriptor that was read here
and names modules of the application's store; code never does. An answer is parsed, bounded in bytes and in time, and
awaited without a thread.

Import rule: the standard library, keep_protocol, strict_yaml, and of codelets what needs no engine.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
import stat
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from codelets.descriptor import read_descriptor
from codelets.faults import CodeletError
from codelets.lcm import (
    HEAD_BYTES,
    Command,
    Request,
    answer_in,
    checked,
    cut,
    frame_size,
    hooks_in,
    request_frame,
    sets_in,
)
from codelets.states import HookState, SetState
from keep_protocol.codelets import (
    MAX_APPLICATIONS,
    MAX_ATTACHMENT_BYTES,
    NAME,
    SUFFIX,
    SYSTEM_DIRECTORY,
    Application,
    Attachment,
    check_set_id,
)
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.patterns import matches
from strict_yaml import records, tree

ASK_SECONDS = 5.0
"""A list or statistics: the application copies some numbers."""
CHANGE_SECONDS = 60.0
"""A load: sixteen modules are verified and compiled in two seconds on an idle host."""
MAX_ASKED = 4
"""Requests that one application answers at the same time, of the 16 connections that its socket takes."""
MAX_PARSED = 2
"""Descriptors that are read at the same time: 256 KiB of YAML take a second of processor time."""
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


def directory_of(instance: str) -> str:
    """Where applications' files are."""
    if instance == "system":
        return SYSTEM_DIRECTORY
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return os.path.join(home, "keepfleet", os.path.basename(SYSTEM_DIRECTORY))


class Applications:
    """The applications whose files are in `directory`, which is read for each request: no reload is needed."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._asked: Counter[str] = Counter()
        self._parsing = asyncio.Semaphore(MAX_PARSED)

    def __repr__(self) -> str:
        return f"Applications({self._directory}, {self._asked.total()} requests)"

    async def list(self) -> tuple[Application, ...]:
        """All, by name; one whose file is not as it must be says so in its detail. Raises KeepfleetError."""
        return await asyncio.to_thread(self._read_all)

    async def find(self, name: str) -> Application:
        """One. Raises KeepfleetError(NOT_FOUND)."""
        found = await asyncio.to_thread(self._read, name) if matches(NAME, name) else None
        if found is None:
            why = "none of that name is attached"
            raise KeepfleetError(ErrorKind.NOT_FOUND, f"cannot find the application {name[:63]!r}: {why}")
        return found

    async def load(self, application: Application, descriptor: str, variables: tuple[tuple[str, str], ...]) -> str:
        """Has a set loaded; its ID. Raises KeepfleetError."""
        async with self._parsing:  # what is no descriptor never reaches the application
            wanted = await asyncio.to_thread(read_descriptor, descriptor.encode(), "", dict(variables))
        await self._ask(application, Request(Command.LOAD, descriptor, variables), CHANGE_SECONDS)
        return wanted.codeletset_id

    async def unload(self, application: Application, name: str) -> None:
        """Has a set unloaded. Raises KeepfleetError."""
        await self._ask(application, Request(Command.UNLOAD, codeletset_id=check_set_id(name)), CHANGE_SECONDS)

    async def sets(self, application: Application) -> tuple[SetState, ...]:
        """Its sets. Raises KeepfleetError."""
        found = await self._ask(application, Request(Command.LIST), ASK_SECONDS)
        with _understood(application):
            return await asyncio.to_thread(sets_in, found)

    async def hooks(self, application: Application) -> tuple[HookState, ...]:
        """Its hooks. Raises KeepfleetError."""
        found = await self._ask(application, Request(Command.STATS), ASK_SECONDS)
        with _understood(application):
            return await asyncio.to_thread(hooks_in, found)

    # --- the files ---------------------------------------------------------------------------------------------------

    def _read_all(self) -> tuple[Application, ...]:
        try:
            there = sorted(os.listdir(self._directory))
        except FileNotFoundError:
            return ()
        except OSError as error:
            why = f"cannot read {self._directory}: {error.strerror}"
            raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot list the applications: {why}") from error
        names = [each.removesuffix(SUFFIX) for each in there if each.endswith(SUFFIX)]
        found = [self._read(name) for name in names if matches(NAME, name)]
        return tuple(each for each in found if each is not None)[:MAX_APPLICATIONS]

    def _read(self, name: str) -> Application | None:
        path = os.path.join(self._directory, name + SUFFIX)
        try:
            _check_owned(os.stat(self._directory), self._directory)
            said = _attachment(_bytes_of(path), path)
        except FileNotFoundError:
            return None
        except OSError as error:
            return Application(name, "", "", "", f"cannot read {path}: {error.strerror}")
        except KeepfleetError as error:
            return Application(name, "", "", "", error.message)
        return Application(name, said.owner, said.socket, said.user)

    # --- the sockets -------------------------------------------------------------------------------------------------

    async def _ask(self, application: Application, request: Request, seconds: float) -> dict[str, Any]:
        """The answer's members. Raises the error that it holds, and KeepfleetError(UNAVAILABLE) where there is none."""
        if application.detail:
            raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot ask {application.name}: {application.detail}")
        user = await asyncio.to_thread(_user_id, application)
        with self._counted(application.name):
            try:
                async with asyncio.timeout(seconds):
                    body = await _exchange(application, user, request_frame(request))
            except TimeoutError:
                raise _unavailable(application, f"no answer in {seconds:g} s") from None
            except OSError as error:
                raise _unavailable(application, error.strerror or str(error)) from error
        with _understood(application):
            found = await asyncio.to_thread(answer_in, body)
        try:
            return checked(found)
        except KeepfleetError as error:
            raise _passed_on(application, error) from None

    @contextmanager
    def _counted(self, name: str) -> Iterator[None]:
        if self._asked[name] >= MAX_ASKED:
            why = f"it has {MAX_ASKED} requests to answer; try again"
            raise KeepfleetError(ErrorKind.TOO_MANY, f"cannot ask {name}: {why}")
        self._asked[name] += 1
        try:
            yield
        finally:
            self._asked[name] -= 1
            if not self._asked[name]:
                del self._asked[name]


def _bytes_of(path: str) -> bytes:
    """A file's bytes, which only root or we may have written. Raises OSError, KeepfleetError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        there = os.fstat(descriptor)
        _check_owned(there, path)
        if not stat.S_ISREG(there.st_mode):
            raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot use {path}: it is no regular file")
        return file.read(MAX_ATTACHMENT_BYTES + 1)


def _check_owned(there: os.stat_result, path: str) -> None:
    if there.st_uid not in (0, os.geteuid()) or there.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        why = "others than root or the manager's user may write it; have it be theirs, with mode 0644 or 0755"
        raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot use {path}: {why}")


def _attachment(data: bytes, path: str) -> Attachment:
    if len(data) > MAX_ATTACHMENT_BYTES:
        why = f"it is over {MAX_ATTACHMENT_BYTES} bytes"
        raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot use {path}: {why}")
    root, faults = tree.parse(data)
    found = None
    if root is not None and not faults:
        found, faults = records.read(Attachment, root)
    if found is None:
        why = f"{faults[0].message} at line {faults[0].line}" if faults else "it is empty"
        raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot use {path}: {why}")
    return found


def _user_id(application: Application) -> int:
    if application.user.isdecimal():
        return int(application.user)
    try:
        return pwd.getpwnam(application.user).pw_uid
    except KeyError:
        raise _unavailable(application, f"this host has no user {application.user}") from None


async def _exchange(application: Application, user: int, data: bytes) -> bytes:
    """Sends a frame to the application, if `user` listens there; the answer's body. Raises OSError, KeepfleetError."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as connection:
        try:
            connection.connect(application.socket)  # which is done immediately, or not at all
        except BlockingIOError:
            raise _unavailable(application, "as many as it takes wait to connect already") from None
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        listening = struct.unpack("3i", credentials)[1]
        if listening != user:
            why = f"user {listening} listens on {application.socket}, not {application.user}"
            raise _unavailable(application, why)
        with suppress(BrokenPipeError, ConnectionResetError):  # why it was refused can be read all the same
            await loop.sock_sendall(connection, data)
        try:
            head = await _receive(connection, HEAD_BYTES)
            size = frame_size(head)
            body = await _receive(connection, size)
            if len(body) < size:
                raise cut()
        except KeepfleetError as error:
            raise _unavailable(application, error.message) from None
        return body


async def _receive(connection: socket.socket, size: int) -> bytes:
    """`size` bytes; fewer where the other end has closed. Raises OSError."""
    loop, found = asyncio.get_running_loop(), bytearray()
    while len(found) < size and (data := await loop.sock_recv(connection, min(size - len(found), 65536))):
        found += data
    return bytes(found)


@contextmanager
def _understood(application: Application) -> Iterator[None]:
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
