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
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from itertools import count
from types import TracebackType
from typing import Any, Self

from script_pool.asking import (
    MAX_ANSWER,
    PROGRAM,
    Function,
    Functions,
    Offered,
    PoolError,
    Ran,
    ScriptError,
    add_request,
    answer_of,
    await_end,
    connect,
    done,
    failure_line,
    line_of,
    ran,
    result_line,
    run_request,
)
from script_pool.blocking import BlockingPool, BlockingSession

__all__ = ("PROGRAM", "BlockingPool", "BlockingSession", "Pool", "PoolError", "Ran", "ScriptError", "Session")


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
        self._functions = Offered()
        self._calls = set[asyncio.Task[None]]()
        self._over = "it has not been opened"

    def __repr__(self) -> str:
        return f"Pool({self._path or 'its own'}, {len(self._open)} open requests)"

    async def __aenter__(self) -> Self:
        connected, self._program = connect(self._path, self._command)
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
            await asyncio.to_thread(await_end, self._program)
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
        done(await self._ask(add_request(name, code, language, functions)))

    async def remove(self, name: str) -> None:
        """Makes `name` stand for nothing."""
        done(await self._ask({"cmd": "RemoveCode", "name": name}))

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
        return ran(await self._ask(run_request(name, sandbox, session, clock, zone)))

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
        done(await self._ask({"cmd": "LoadSession", "session": session.name, "saved": text}))
        return session

    async def _ask(self, request: dict[str, object]) -> dict[str, Any]:
        if self._writer is None or self._over:
            raise PoolError(f"cannot ask the pool: {self._over}")
        number = next(self._ids)
        line = line_of({"id": number, **request})
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
                answer = answer_of(line)
                if "hostCall" in answer:
                    task = asyncio.create_task(self._serve(answer))
                    self._calls.add(task)
                    task.add_done_callback(self._calls.discard)
                    continue
                asked = self._open.get(answer.get("id", 0))
                if asked is not None and not asked.done():
                    asked.set_result(answer)
            self._give_up("it has ended the connection; its standard error may say why")
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody reads on: who waits must know
            self._give_up(str(error) or type(error).__name__)

    async def _serve(self, asked: dict[str, Any]) -> None:
        """Calls a function of the application's for a script."""
        try:
            function, arguments = self._functions.find(asked), asked["hostCall"]["arguments"]
            if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
                value = await function(*arguments)
            else:
                value = await asyncio.to_thread(function, *arguments)
            line = result_line(asked, value)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the script's to see
            line = failure_line(asked, error)
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
        answer = done(await self._pool._ask({"cmd": "SaveSession", "session": self.name}))
        return base64.b64decode(answer["saved"])

    async def end(self) -> None:
        """Forgets it."""
        done(await self._pool._ask({"cmd": "EndSession", "session": self.name}))
