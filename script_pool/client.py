"""Clients of a script pool: `Pool` for asyncio, `BlockingPool` for threads. Either starts a pool of its own, which ends
with it, or connects to one that serves a Unix socket.

    async with Pool() as pool:
        await pool.add("double", "x *= 2")
        print(await pool.run("double", {"x": 21}))

Import rule: the standard library alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import Any, Self

MAX_ANSWER = 64 * 1024 * 1024
"""One line of a pool: an output of 5 MiB, or what its operator has set."""
END_SECONDS = 30.0
"""From the end of its standard input to the end of a pool's process, which answers what it was asked first."""
START_SECONDS = 180.0
"""To the first answer of a pool that is started: the first one of an installation may compile its engine."""
PROGRAM = (sys.executable, "-m", "script_pool", "--stdio")
"""The pool of this installation."""


class PoolError(Exception):
    """The pool is not there, or has gone."""


class ScriptError(Exception):
    """A request that was not done: `reason` is the pool's word for why, the rest is its evidence."""

    def __init__(self, answer: Mapping[str, Any]) -> None:
        self.reason = str(answer.get("reason", ""))
        self.name = str(answer.get("name", ""))
        self.message = str(answer.get("message", ""))
        self.stack = tuple(map(str, answer.get("stack", ())))
        self.console = tuple(map(str, answer.get("console", ())))
        told = ": ".join(part for part in (self.name, self.message) if part)
        super().__init__(f"{self.reason}: {told}" if told else self.reason)


@dataclass(frozen=True, slots=True)
class Ran:
    """A run: the sandbox as the script left it, what it logged, and the seconds it took."""

    output: dict[str, Any]
    console: tuple[str, ...]
    seconds: float


def _line(request: dict[str, object]) -> bytes:
    return json.dumps(request, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\r\n"


def _done(answer: dict[str, Any]) -> dict[str, Any]:
    if answer.get("ok") is not True:
        raise ScriptError(answer)
    return answer


def _ran(answer: dict[str, Any]) -> Ran:
    _done(answer)
    return Ran(answer["outputSandbox"], tuple(answer.get("console", ())), answer.get("timeTaken", 0.0) / 1000)


def _answer(line: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except ValueError as error:
        raise PoolError(f"cannot read the pool's answer: {error}") from error
    if not isinstance(answer, dict):
        raise PoolError("cannot read the pool's answer: it is no object")
    return answer


def _connect(path: str | None, program: Sequence[str]) -> tuple[socket.socket, subprocess.Popen[bytes] | None]:
    """A connection, and the process that serves it where there is one of our own. Raises PoolError."""
    if path is not None:
        made = socket.socket(socket.AF_UNIX)
        try:
            made.connect(path)
        except OSError as error:
            made.close()
            raise PoolError(f"cannot reach the pool at {path}: {error.strerror}") from error
        return made, None
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            started = subprocess.Popen(program, stdin=theirs.fileno(), stdout=theirs.fileno())
        except OSError as error:
            ours.close()
            raise PoolError(f"cannot start a pool: {program[0]}: {error.strerror}") from error
    return ours, started


def _await_end(program: subprocess.Popen[bytes]) -> None:
    try:
        program.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        program.kill()
        program.wait()


class Pool:
    """For asyncio. `path`: the socket of a pool that is there; without one `program` is started, with `options`, as
    `--max=4`.

    Its calls may be made concurrently. They raise ScriptError for a request that was not done, PoolError where there
    is no pool.
    """

    def __init__(self, path: str | None = None, options: Sequence[str] = (), program: Sequence[str] = PROGRAM) -> None:
        self._path, self._command = path, (*program, *options)
        self._writer: asyncio.StreamWriter | None = None
        self._reader: asyncio.Task[None] | None = None
        self._program: subprocess.Popen[bytes] | None = None
        self._open: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._ids = count(1)
        self._over = "it has not been opened"

    def __repr__(self) -> str:
        return f"Pool({self._path or 'its own'}, {len(self._open)} open requests)"

    async def __aenter__(self) -> Self:
        connected, self._program = _connect(self._path, self._command)
        reader, self._writer = await asyncio.open_connection(sock=connected, limit=MAX_ANSWER)
        self._over = ""
        self._reader = asyncio.create_task(self._read(reader))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is None or self._reader is None:
            return
        self._over = self._over or "it is closed"
        with contextlib.suppress(OSError):
            self._writer.write_eof()
        if self._program is not None:
            await asyncio.to_thread(_await_end, self._program)
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        self._give_up("it is closed")

    async def add(self, name: str, code: str, language: str = "js") -> None:
        """Makes `name` stand for `code` for every request after this one."""
        _done(await self._ask({"cmd": "AddCode", "name": name, "code": code, "language": language}))

    async def remove(self, name: str) -> None:
        """Makes `name` stand for nothing."""
        _done(await self._ask({"cmd": "RemoveCode", "name": name}))

    async def run(self, name: str, sandbox: Mapping[str, Any]) -> dict[str, Any]:
        """The sandbox as the script leaves it."""
        return (await self.call(name, sandbox)).output

    async def call(self, name: str, sandbox: Mapping[str, Any]) -> Ran:
        """As `run`, with what the script logged and how long it took."""
        return _ran(await self._ask({"cmd": "ExecCode", "name": name, "inputSandbox": dict(sandbox)}))

    async def _ask(self, request: dict[str, object]) -> dict[str, Any]:
        if self._writer is None or self._over:
            raise PoolError(f"cannot ask the pool: {self._over}")
        number = next(self._ids)
        line = _line({"id": number, **request})
        answer = self._open[number] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(line)
            await self._writer.drain()
            answered: dict[str, Any] = await answer
            return answered
        except OSError as error:
            raise PoolError(f"cannot ask the pool: {error.strerror}") from error
        finally:
            self._open.pop(number, None)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                answer = _answer(line)
                asked = self._open.get(answer.get("id", 0))
                if asked is not None and not asked.done():
                    asked.set_result(answer)
            self._give_up("it has ended the connection; its standard error may say why")
        except (OSError, ValueError, PoolError) as error:  # a line over MAX_ANSWER is a ValueError
            self._give_up(str(error))

    def _give_up(self, why: str) -> None:
        self._over = self._over or why
        for answer in self._open.values():
            if not answer.done():
                answer.set_exception(PoolError(f"cannot have the pool's answer: {why}"))


class BlockingPool:
    """As `Pool`, for programs without an event loop. Threads may share one, which asks for one after another."""

    def __init__(self, path: str | None = None, options: Sequence[str] = (), program: Sequence[str] = PROGRAM) -> None:
        self._path, self._command = path, (*program, *options)
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._program: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"BlockingPool({self._path or 'its own'}, {'open' if self._socket else 'closed'})"

    def __enter__(self) -> Self:
        self._socket, self._program = _connect(self._path, self._command)
        self._socket.settimeout(START_SECONDS)
        self._lines = self._socket.makefile("rb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        if self._program is not None:
            _await_end(self._program)

    def add(self, name: str, code: str, language: str = "js") -> None:
        """As Pool.add."""
        _done(self._ask({"cmd": "AddCode", "name": name, "code": code, "language": language}))

    def remove(self, name: str) -> None:
        """As Pool.remove."""
        _done(self._ask({"cmd": "RemoveCode", "name": name}))

    def run(self, name: str, sandbox: Mapping[str, Any]) -> dict[str, Any]:
        """As Pool.run."""
        return self.call(name, sandbox).output

    def call(self, name: str, sandbox: Mapping[str, Any]) -> Ran:
        """As Pool.call."""
        return _ran(self._ask({"cmd": "ExecCode", "name": name, "inputSandbox": dict(sandbox)}))

    def _ask(self, request: dict[str, object]) -> dict[str, Any]:
        line = _line({"id": 1, **request})
        with self._lock:
            if self._socket is None:
                raise PoolError("cannot ask the pool: it is not open")
            try:
                self._socket.sendall(line)
                answer = self._lines.readline(MAX_ANSWER)
            except OSError as error:
                self._close()  # an answer that comes later would be taken for the next one's
                raise PoolError(f"cannot ask the pool: {error.strerror or error}") from error
            if not answer.endswith(b"\r\n"):
                self._close()
                raise PoolError("cannot have the pool's answer: it has ended the connection")
        return _answer(answer)

    def _close(self) -> None:
        if self._socket is not None:
            self._lines.close()
            self._socket.close()
            self._socket = None
