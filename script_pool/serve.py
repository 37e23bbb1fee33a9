"""Who may speak to the pool, and where: on a Unix socket, or standard input and output, to the end."""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import stat
import struct
import sys
from collections.abc import Callable

from keep_isolation.locks import what_the_kernel_lacks
from keep_protocol.errors import ErrorKind, KeepfleetError
from script_pool.connection import Connection
from script_pool.pool import ScriptPool

MAX_CONNECTIONS = 128
"""Each may hold a line of 5 MiB."""

KEPT_BYTES = 4 * 1024 * 1024
"""Larger buffers are mapped, and more free memory at the heap's end is given back."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

WITHOUT_A_UNIT = (
    "it is no unit of systemd: its processes have this user's identity, memory and processor time, and no namespaces",
)
"""What a child lacks in any case that a keep's runner has."""


def keep_buffers() -> None:
    """Has the allocator keep what asyncio reads into, 256 KiB for each read: by itself it maps memory and unmaps it
    again, six system calls and a page fault in each call of a script (man 3 mallopt)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # another C library than GNU's has its own ways
        mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)


def what_is_missing() -> tuple[str, ...]:
    """A sentence for each part of a keep's isolation that the children do not have here."""
    return (*WITHOUT_A_UNIT, *what_the_kernel_lacks())


class Service:
    """The pool and its clients, to the end."""

    def __init__(self, pool: ScriptPool, allowed: frozenset[int]) -> None:
        keep_buffers()
        self._pool, self._allowed = pool, allowed
        self._connections: set[Connection] = set()
        self._over = asyncio.Event()
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"Service({len(self._connections)} connections)"

    def stop(self) -> None:
        """Ends the service: what it has been asked is answered first, within the pool's time."""
        self._over.set()

    async def on_stdio(self) -> None:
        """Serves the one client at the other end of standard input and output, to its end. Raises KeepfleetError."""
        for number, what in ((0, "input"), (1, "output")):
            if stat.S_ISREG(os.fstat(number).st_mode):
                raise KeepfleetError(
                    ErrorKind.CONFIGURATION,
                    f"cannot serve on standard {what}: it is a regular file; use a pipe, as in cat FILE | script-pool",
                )
        loop = asyncio.get_running_loop()
        connection = Connection(self._pool, self._left)
        self._connections.add(connection)
        ours, other = os.fstat(0), os.fstat(1)
        if stat.S_ISSOCK(ours.st_mode) and os.path.samestat(ours, other):
            await loop.connect_accepted_socket(lambda: connection, socket.socket(fileno=os.dup(0)))
        else:
            writing, _ = await loop.connect_write_pipe(lambda: _Output(connection), os.fdopen(os.dup(1), "wb", 0))
            connection.attach(None, writing)
            reading, _ = await loop.connect_read_pipe(lambda: _Input(connection), os.fdopen(os.dup(0), "rb", 0))
            connection.attach(reading, writing)
        await self._serve_until_over(alone=True)

    async def on_socket(self, path: str, listening: Callable[[], None]) -> None:
        """Serves clients that connect to `path`. Raises KeepfleetError where it cannot be listened on."""
        with listen(path) as listener:
            identity = os.stat(path)
            server = await asyncio.get_running_loop().create_unix_server(self._accept, sock=listener)
            try:
                listening()
                await self._serve_until_over()
            finally:
                server.close()
                _remove(path, identity)

    def _accept(self) -> asyncio.Protocol:
        connection = _Accepted(self._pool, self._left, self._refusal)
        self._connections.add(connection)
        return connection

    def _refusal(self, uid: int) -> str:
        """Why a peer is not served; empty where it is."""
        if uid not in self._allowed:
            return f"user {uid} is not one of {', '.join(map(str, sorted(self._allowed)))}"
        if len(self._connections) > MAX_CONNECTIONS:
            return f"there are {MAX_CONNECTIONS} connections"
        return ""

    def _left(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._changed.set()

    async def _serve_until_over(self, alone: bool = False) -> None:
        """`alone`: to the end of the one client."""
        over = asyncio.create_task(self._over.wait())
        while not over.done() and (self._connections or not alone):
            self._changed.clear()
            changed = asyncio.create_task(self._changed.wait())
            await asyncio.wait([over, changed], return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
        over.cancel()
        for connection in list(self._connections):
            connection.finish()
        await self._pool.drain()
        try:
            async with asyncio.timeout(self._pool.settings.drain_seconds):
                while self._connections:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            for connection in list(self._connections):
                connection.abort()


class _Accepted(Connection):
    """A connection on the socket: its peer is asked for first."""

    def __init__(self, pool: ScriptPool, ended: Callable[[Connection], None], refusal: Callable[[int], str]) -> None:
        super().__init__(pool, ended)
        self._refusal = refusal

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        _, uid, _ = struct.unpack(
            "iII",
            transport.get_extra_info("socket").getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII")
            ),
        )
        self._owner = f"uid {uid}"
        if why := self._refusal(uid):
            print(f"script-pool: refused a connection: {why}", file=sys.stderr, flush=True)
            self.abort()


class _Input(asyncio.Protocol):
    """Standard input, of which a connection is made."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def data_received(self, data: bytes) -> None:
        self._connection.data_received(data)

    def eof_received(self) -> bool:
        return self._connection.eof_received()


class _Output(asyncio.Protocol):
    """Standard output, likewise."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        self._connection.connection_lost(error)


def listen(path: str) -> socket.socket:
    """A socket bound to `path`, of mode 0600 from its first moment on. One that is not served any more is replaced.

    Raises KeepfleetError.
    """
    listener = socket.socket(socket.AF_UNIX)
    try:
        if _is_stale(path):
            os.unlink(path)
        before = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(before)
    except (OSError, KeepfleetError) as error:
        listener.close()
        if isinstance(error, KeepfleetError):
            raise
        raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot listen on {path}: {error.strerror or error}") from error
    return listener


def _is_stale(path: str) -> bool:
    """Whether there is a socket that no process serves. Raises KeepfleetError for anything else that is there."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(mode):
        raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot listen on {path}: there is something else than a socket")
    with socket.socket(socket.AF_UNIX) as tried:
        tried.setblocking(False)  # a full backlog is no stale socket
        try:
            tried.connect(path)
        except ConnectionRefusedError:
            return True
        except BlockingIOError:
            pass
    raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot listen on {path}: another process serves it")


def _remove(path: str, identity: os.stat_result) -> None:
    """Removes the socket that was bound, and no other that has taken its place."""
    try:
        if os.path.samestat(os.lstat(path), identity):
            os.unlink(path)
    except FileNotFoundError:
        return
