"""Applications on this host whose codelets callers load through the manager: which there are, and asking one.

An application is known by a file NAME.yaml in a directory that root alone writes, or, for a user's own manager, that
user: who could write one could have the manager, which is root, speak to any socket of the host. The file says the
socket and as whom the application listens there. What goes over it is a descriptor that was read here and names modules
of the application's store; code never does.

Import rule: the standard library, keep_protocol, strict_yaml, codelet_connection, and of codelets what needs no engine.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from codelets.descriptor import read_descriptor
from codelets.lcm import DEFAULT_EVERY_MS, Command, Request, hooks_in, sets_in
from codelets.states import HookState, SetState
from keep_manager.codelet_connection import ApplicationConnection, understood
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
from strict_yaml import records

ASK_SECONDS = 5.0
"""A list or statistics: the application copies some numbers."""
CHANGE_SECONDS = 60.0
"""A load: sixteen modules are verified and compiled in two seconds on an idle host."""
MAX_ASKED = 4
"""Requests that one application answers at the same time, of the 16 connections that its socket takes."""
MAX_WATCHED = 4
"""Requests that watch one application at the same time, likewise."""
MAX_PARSED = 2
"""Descriptors that are read at the same time: 256 KiB of YAML take a second of processor time."""


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
        self._watched: Counter[str] = Counter()
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
        with understood(application):
            return await asyncio.to_thread(sets_in, found)

    async def hooks(self, application: Application) -> tuple[HookState, ...]:
        """Its hooks. Raises KeepfleetError."""
        found = await self._ask(application, Request(Command.STATS), ASK_SECONDS)
        with understood(application):
            return await asyncio.to_thread(hooks_in, found)

    async def watch(self, application: Application) -> AsyncGenerator[tuple[SetState, ...], None]:
        """Its sets, again and again: as soon as one comes or goes, and otherwise each second. Raises KeepfleetError."""
        async with self._connection(application, self._watched, MAX_WATCHED) as connection:
            found = await connection.ask(Request(Command.WATCH, every_ms=DEFAULT_EVERY_MS), ASK_SECONDS)
            while True:
                with understood(application):
                    sets = await asyncio.to_thread(sets_in, found)
                yield sets
                found = await connection.answer(ASK_SECONDS)

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
        async with self._connection(application, self._asked, MAX_ASKED) as connection:
            return await connection.ask(request, seconds)

    @asynccontextmanager
    async def _connection(
        self, application: Application, counted: Counter[str], most: int
    ) -> AsyncIterator[ApplicationConnection]:
        """A connection to an application that has fewer than `most` of its kind. Raises KeepfleetError."""
        name = application.name
        if application.detail:
            raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot ask {name}: {application.detail}")
        if counted[name] >= most:
            why = f"it has {most} requests to answer; try again"
            raise KeepfleetError(ErrorKind.TOO_MANY, f"cannot ask {name}: {why}")
        counted[name] += 1
        try:
            with ApplicationConnection(application) as connection:
                await connection.connect()
                yield connection
        finally:
            counted[name] -= 1
            if not counted[name]:
                del counted[name]


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
    found, faults = records.read_bytes(Attachment, data)
    if found is None:
        why = f"{faults[0].message} at line {faults[0].line}" if faults else "it is empty"
        raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot use {path}: {why}")
    return found
