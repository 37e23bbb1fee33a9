"""Clients of a script pool: `Pool` for asyncio, `BlockingPool` for threads. Either starts a pool of its own, which ends
with it, or connects to one that serves a Unix socket.

    async with Pool() as pool:
        await pool.add("double", "x *= 2")
        print(await pool.run("double", {"x": 21}))

Both let scripts call functions of the application, which it names for each script, and keep state in sessions.

Import rule: the standard library alone.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import inspect
import json
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import Any, Self, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])
Functions = Sequence[str] | Mapping[str, Mapping[str, float]]
"""The host functions that a script may call: names, or for each of them `calls`, `bytes` and `seconds` that differ."""
MAX_VALUE = 5 * 1024 * 1024
"""Bytes of a host function's value: a longer line the pool does not read."""
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


def _add(name: str, code: str, language: str, functions: Functions) -> dict[str, object]:
    asked: dict[str, object] = {"cmd": "AddCode", "name": name, "code": code, "language": language}
    if functions:
        asked["hostFunctions"] = dict(functions) if isinstance(functions, Mapping) else list(functions)
    return asked


def _exec(
    name: str, sandbox: Mapping[str, Any], session: str | None, clock: float | None, zone: str | None
) -> dict[str, object]:
    asked: dict[str, object] = {"cmd": "ExecCode", "name": name, "inputSandbox": dict(sandbox)}
    more = {"session": session, "clock": clock, "zone": zone}
    return asked | {key: value for key, value in more.items() if value is not None}


def _result(asked: Mapping[str, Any], value: object) -> bytes:
    """The line that answers a call of a host function."""
    head = {"cmd": "HostResult", "id": asked["id"], "call": asked["hostCall"]["call"]}
    try:
        line = _line({**head, "value": value})
    except (TypeError, ValueError, RecursionError) as error:
        return _line({**head, "error": f"its value has no JSON: {error}"})
    return line if len(line) <= MAX_VALUE else _line({**head, "error": f"its value has over {MAX_VALUE} bytes"})


def _failed(asked: Mapping[str, Any], error: Exception) -> bytes:
    """The same for one that has raised. The script sees the kind of error and its message."""
    message = f"{type(error).__name__}: {error}"[:4096]
    return _line({"cmd": "HostResult", "id": asked["id"], "call": asked["hostCall"]["call"], "error": message})


class _Functions:
    """The application's functions, by name."""

    def __init__(self) -> None:
        self._known: dict[str, Callable[..., Any]] = {}

    def offer(self, function: Function | None, name: str | None) -> Any:
        """As a decorator, with a name or without one."""
        if function is None:
            return lambda given: self.offer(given, name)
        self._known[name or function.__name__] = function
        return function

    def find(self, asked: Mapping[str, Any]) -> Callable[..., Any]:
        """What a script calls. Raises LookupError."""
        name = asked["hostCall"]["name"]
        if name not in self._known:
            raise LookupError(f"the application has no function {name}")
        return self._known[name]


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
        self._functions = _Functions()
        self._calls = set[asyncio.Task[None]]()
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
        for task in (self._reader, *self._calls):
            task.cancel()
        await asyncio.gather(self._reader, *self._calls, return_exceptions=True)
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        self._give_up("it is closed")

    async def add(self, name: str, code: str, language: str = "js", functions: Functions = ()) -> None:
        """Makes `name` stand for `code`, in `js`, `ts`, `python` or `micropython`, for every request after this one.
        `functions`: the host functions that it may call."""
        _done(await self._ask(_add(name, code, language, functions)))

    async def remove(self, name: str) -> None:
        """Makes `name` stand for nothing."""
        _done(await self._ask({"cmd": "RemoveCode", "name": name}))

    async def run(self, name: str, sandbox: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
        """The sandbox as the script leaves it; `settings` are those of `call`."""
        return (await self.call(name, sandbox, **settings)).output

    async def call(
        self,
        name: str,
        sandbox: Mapping[str, Any],
        *,
        session: str | None = None,
        clock: float | None = None,
        zone: str | None = None,
    ) -> Ran:
        """As `run`, with what the script logged and how long it took. `session`: whose state it goes on with; `clock`:
        milliseconds since 1970 that its clock begins at; `zone`: its time zone, as Europe/Berlin or +02:00."""
        return _ran(await self._ask(_exec(name, sandbox, session, clock, zone)))

    def host_function(self, function: Function | None = None, *, name: str | None = None) -> Any:
        """A decorator: scripts that are added with its name may call the function. A coroutine function runs in the
        event loop, any other in a thread."""
        return self._functions.offer(function, name)

    def session(self, name: str | None = None) -> Session:
        """State that is kept between calls: `await pool.session().run("script", {})`."""
        return Session(self, name or str(uuid.uuid4()))

    async def load_session(self, saved: bytes, name: str | None = None) -> Session:
        """A session that was saved, by this pool or one with the same key."""
        session = self.session(name)
        text = base64.b64encode(saved).decode("ascii")
        _done(await self._ask({"cmd": "LoadSession", "session": session.name, "saved": text}))
        return session

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
                if "hostCall" in answer:
                    task = asyncio.create_task(self._serve(answer))
                    self._calls.add(task)
                    task.add_done_callback(self._calls.discard)
                    continue
                asked = self._open.get(answer.get("id", 0))
                if asked is not None and not asked.done():
                    asked.set_result(answer)
            self._give_up("it has ended the connection; its standard error may say why")
        except (OSError, ValueError, PoolError) as error:  # a line over MAX_ANSWER is a ValueError
            self._give_up(str(error))

    async def _serve(self, asked: dict[str, Any]) -> None:
        """Calls a function of the application's for a script."""
        try:
            function, arguments = self._functions.find(asked), asked["hostCall"]["arguments"]
            if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
                value = await function(*arguments)
            else:
                value = await asyncio.to_thread(function, *arguments)
            line = _result(asked, value)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the script's to see
            line = _failed(asked, error)
        if self._writer is not None:
            with contextlib.suppress(OSError):  # the reader says that the pool has gone
                self._writer.write(line)
                await self._writer.drain()

    def _give_up(self, why: str) -> None:
        self._over = self._over or why
        for answer in self._open.values():
            if not answer.done():
                answer.set_exception(PoolError(f"cannot have the pool's answer: {why}"))


class Session:
    """State of a Pool that is kept between calls, until it ends or is not used for a while."""

    def __init__(self, pool: Pool, name: str) -> None:
        self._pool, self.name = pool, name

    def __repr__(self) -> str:
        return f"Session({self.name!r})"

    async def run(self, name: str, sandbox: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
        """As Pool.run, in the world that the session's last call has left. A call that fails leaves it as it was."""
        return await self._pool.run(name, sandbox, session=self.name, **settings)

    async def call(self, name: str, sandbox: Mapping[str, Any], **settings: Any) -> Ran:
        """As Pool.call."""
        return await self._pool.call(name, sandbox, session=self.name, **settings)

    async def save(self) -> bytes:
        """The session as signed bytes, for Pool.load_session."""
        answer = _done(await self._pool._ask({"cmd": "SaveSession", "session": self.name}))
        return base64.b64decode(answer["saved"])

    async def end(self) -> None:
        """Forgets it."""
        _done(await self._pool._ask({"cmd": "EndSession", "session": self.name}))


class BlockingPool:
    """As `Pool`, for programs without an event loop. Threads may share one, which asks for one after another. A host
    function is called in the thread that asks, and may ask the pool itself."""

    def __init__(self, path: str | None = None, options: Sequence[str] = (), program: Sequence[str] = PROGRAM) -> None:
        self._path, self._command = path, (*program, *options)
        self._lock = threading.RLock()
        self._ids = count(1)
        self._functions = _Functions()
        self._early: dict[int, dict[str, Any]] = {}
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

    def add(self, name: str, code: str, language: str = "js", functions: Functions = ()) -> None:
        """As Pool.add."""
        _done(self._ask(_add(name, code, language, functions)))

    def remove(self, name: str) -> None:
        """As Pool.remove."""
        _done(self._ask({"cmd": "RemoveCode", "name": name}))

    def run(self, name: str, sandbox: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
        """As Pool.run."""
        return self.call(name, sandbox, **settings).output

    def call(
        self,
        name: str,
        sandbox: Mapping[str, Any],
        *,
        session: str | None = None,
        clock: float | None = None,
        zone: str | None = None,
    ) -> Ran:
        """As Pool.call."""
        return _ran(self._ask(_exec(name, sandbox, session, clock, zone)))

    def host_function(self, function: Function | None = None, *, name: str | None = None) -> Any:
        """As Pool.host_function, for plain functions."""
        return self._functions.offer(function, name)

    def session(self, name: str | None = None) -> BlockingSession:
        """As Pool.session."""
        return BlockingSession(self, name or str(uuid.uuid4()))

    def load_session(self, saved: bytes, name: str | None = None) -> BlockingSession:
        """As Pool.load_session."""
        session, text = self.session(name), base64.b64encode(saved).decode("ascii")
        _done(self._ask({"cmd": "LoadSession", "session": session.name, "saved": text}))
        return session

    def _ask(self, request: dict[str, object]) -> dict[str, Any]:
        number = next(self._ids)
        line = _line({"id": number, **request})
        with self._lock:
            self._send(line)
            while number not in self._early:
                answer = self._receive()
                if "hostCall" in answer:
                    self._send(self._called(answer))
                else:
                    self._early[answer.get("id", 0)] = answer
            return self._early.pop(number)

    def _called(self, asked: dict[str, Any]) -> bytes:
        try:
            return _result(asked, self._functions.find(asked)(*asked["hostCall"]["arguments"]))
        except PoolError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the script's to see
            return _failed(asked, error)

    def _send(self, line: bytes) -> None:
        if self._socket is None:
            raise PoolError("cannot ask the pool: it is not open")
        try:
            self._socket.sendall(line)
        except OSError as error:
            self._close()
            raise PoolError(f"cannot ask the pool: {error.strerror or error}") from error

    def _receive(self) -> dict[str, Any]:
        try:
            answer = self._lines.readline(MAX_ANSWER)
        except (OSError, ValueError) as error:
            self._close()  # an answer that comes later would be taken for the next one's
            raise PoolError(f"cannot ask the pool: {error}") from error
        if not answer.endswith(b"\r\n"):
            self._close()
            raise PoolError("cannot have the pool's answer: it has ended the connection")
        return _answer(answer)

    def _close(self) -> None:
        if self._socket is not None:
            self._lines.close()
            self._socket.close()
            self._socket = None


class BlockingSession:
    """As Session, of a BlockingPool."""

    def __init__(self, pool: BlockingPool, name: str) -> None:
        self._pool, self.name = pool, name

    def __repr__(self) -> str:
        return f"BlockingSession({self.name!r})"

    def run(self, name: str, sandbox: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
        """As Session.run."""
        return self._pool.run(name, sandbox, session=self.name, **settings)

    def call(self, name: str, sandbox: Mapping[str, Any], **settings: Any) -> Ran:
        """As Session.call."""
        return self._pool.call(name, sandbox, session=self.name, **settings)

    def save(self) -> bytes:
        """As Session.save."""
        answer = _done(self._pool._ask({"cmd": "SaveSession", "session": self.name}))
        return base64.b64decode(answer["saved"])

    def end(self) -> None:
        """As Session.end."""
        _done(self._pool._ask({"cmd": "EndSession", "session": self.name}))
