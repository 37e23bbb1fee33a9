"""A pool for language models: a server of the Model Context Protocol on standard input and output, which offers to run
code that a model has written.

Each call is a script of its own in a pool of this server's, or in one that serves a Unix socket, which is asked as any
client asks it. What a pool can run is found by asking: a language that it has not is not offered. A session that a
model names is this server's alone, and ends with it. Host functions are those that the operator names.
Needs the package `mcp`: pip install keepfleet[mcp].
"""

from __future__ import annotations

import inspect
import runpy
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations

from script_pool.client import PROGRAM, Pool, PoolError, ScriptError
from script_pool.fetching import Fetch

Function = Callable[..., Any]
INSTRUCTIONS = (
    "Runs code in a sandbox: each call begins in a fresh world without files, network, timers or modules, and ends at "
    "a limit of time and of memory. What is to be computed on is passed as `input`; what the code leaves in global "
    "variables, and what it logs, comes back."
)
_JAVASCRIPT = (
    "Runs JavaScript (ES2023; with typescript=true TypeScript, whose types are taken away and not checked) once, in a "
    "sandbox. The members of `input` are its global variables. `output` is the global variables as the code leaves "
    "them: assign what you want to know, as in `total = items.length`; declarations with let and const, functions and "
    "undefined are left out. `console` is what console.log wrote. `await` may stand at its top; then declare with var "
    "what you want to know. With `session`, a name of your choice, the call goes on in the world that the last call of "
    "that session left, declarations included, and a call that fails leaves it as it was."
)
_PYTHON = {
    "python": (
        "Runs Python once, in a sandbox. The members of `input` are its global variables. `output` is the global "
        "variables as the code leaves them, those that have JSON and do not begin with an underscore. `console` is "
        "what was printed."
    ),
    "micropython": (
        "Runs MicroPython 1.27 once, in a sandbox: the language of Python 3.4 with f-strings and async, without match, "
        "and of the library json, re, math, collections, io, hashlib, heapq, time, struct, binascii and array alone "
        "(no datetime, itertools, dataclasses or random). The members of `input` are its global variables. `output` is "
        "the global variables as the code leaves them: assign what you want to know; functions, classes, modules and "
        "names that begin with an underscore are left out. `console` is what was printed."
    ),
}
"""Of each Python that a pool may have, the best one first."""
_END = "Forgets a session of run_javascript, and what it holds. One that is not used for a while ends by itself."
_READ_ONLY = ToolAnnotations(read_only_hint=True, open_world_hint=False)
"""Nothing outside of a call changes by it; what a host function does, the operator knows."""
_PROBE = "pass"
"""Does nothing, in either Python."""


class Tools:
    """What a model may call, done by a pool. functions: what scripts may call, by name."""

    def __init__(self, pool: Pool, functions: Mapping[str, Function] | None = None) -> None:
        self._pool, self._functions = pool, dict(functions or {})
        self._numbers, self._server = count(1), uuid.uuid4().hex
        for name, function in self._functions.items():
            pool.host_function(function, name=name)

    def __repr__(self) -> str:
        return f"Tools({self._pool!r}, {len(self._functions)} host functions)"

    async def python(self) -> str:
        """Which Python the pool has, "" for none. Raises PoolError."""
        for language in _PYTHON:
            try:
                await self._pool.add(f"mcp-{self._server}", _PROBE, language)
                await self._pool.remove(f"mcp-{self._server}")
            except ScriptError:
                continue
            return language
        return ""

    async def run(self, code: str, given: dict[str, Any], language: str, session: str | None = None) -> dict[str, Any]:
        """One script once. Raises ToolError, which the model reads."""
        name = f"mcp-{self._server}-{next(self._numbers)}"
        try:
            await self._pool.add(name, code, language, tuple(self._functions))
            try:
                ran = await self._pool.call(name, given, session=session and self._named(session))
            finally:
                await self._pool.remove(name)
        except ScriptError as error:
            raise ToolError(in_words(error)) from error
        except PoolError as error:
            raise ToolError(f"the sandbox cannot be reached: {error}") from error
        return {"output": ran.output, "console": list(ran.console), "seconds": round(ran.seconds, 6)}

    async def end(self, session: str) -> dict[str, Any]:
        """Ends a session. Raises ToolError."""
        try:
            await self._pool.session(self._named(session)).end()
        except (ScriptError, PoolError) as error:
            raise ToolError(str(error)) from error
        return {"ended": session}

    def _named(self, session: str) -> str:
        """The session's name in the pool, where other servers may have one of the same name."""
        return f"mcp-{self._server}-{session}"

    def description(self, language: str) -> str:
        """What the tool does, with the functions that a script may call."""
        text = _PYTHON.get(language, _JAVASCRIPT)
        if not self._functions:
            return text
        how = "plain calls" if language in _PYTHON else "each returns a promise: `var x = await f()`"
        return "\n".join([f"{text} It may call these functions ({how}):", *map(_described, self._functions.items())])

    @property
    def annotations(self) -> ToolAnnotations | None:
        """What a client may take for granted."""
        return None if self._functions else _READ_ONLY


def _described(entry: tuple[str, Function]) -> str:
    name, function = entry
    return f"- {name}{inspect.signature(function)}: {' '.join((inspect.getdoc(function) or '').split())}"


def host_functions(path: str | None, hosts: Iterable[str]) -> dict[str, Function]:
    """What the operator allows: the functions that `__all__` of a file in Python names, which is trusted and run here,
    and `fetch` from hosts. Raises ValueError."""
    found: dict[str, Function] = {}
    if hosts := list(hosts):
        fetch = Fetch(hosts)

        def asked(url: str, options: dict[str, Any] | None = None) -> dict[str, object]:
            return fetch(url, options)

        asked.__doc__ = f"Asks {', '.join(hosts)} alone; gives status, ok, headers and body, a string."
        found["fetch"] = asked
    if path is None:
        return found
    try:
        module = runpy.run_path(path)
    except OSError as error:
        raise ValueError(f"cannot read the host functions in {path}: {error.strerror}") from error
    names = module.get("__all__")
    if not isinstance(names, (list, tuple)) or not all(callable(module.get(name)) for name in names):
        raise ValueError(f"cannot offer the host functions in {path}: its __all__ must list functions that it defines")
    return found | {str(name): module[name] for name in names}


def in_words(error: ScriptError) -> str:
    """Why a script has no result, with its own lines, and what it had logged by then."""
    lines = [str(error), *(f"    {line}" for line in error.stack)]
    if error.console:
        lines += ["console:", *(f"    {line}" for line in error.console)]
    return "\n".join(lines)


async def serve(
    options: Sequence[str],
    path: str | None,
    functions: Mapping[str, Function],
    program: Sequence[str] = PROGRAM,
) -> None:
    """Serves until standard input ends. path: the socket of a pool that is there; without one a pool is started, with
    these options. Raises PoolError."""
    async with Pool(path, options, program) as pool:
        await _server(Tools(pool, functions)).run_stdio_async()


def _server(tools: Tools) -> MCPServer[None]:
    @asynccontextmanager
    async def lifespan(server: MCPServer[None]) -> AsyncIterator[None]:
        try:
            if language := await tools.python():
                text = tools.description(language)
                server.add_tool(_python(tools, language), "run_python", "Run Python", text, tools.annotations)
        except PoolError as error:
            print(f"script-pool: {error}", file=sys.stderr, flush=True)
            raise
        yield

    server: MCPServer[None] = MCPServer("keepfleet", instructions=INSTRUCTIONS, lifespan=lifespan, log_level="WARNING")

    async def run_javascript(
        code: str,
        input: dict[str, Any] | None = None,
        typescript: bool = False,
        session: str | None = None,
    ) -> dict[str, Any]:
        return await tools.run(code, input or {}, "ts" if typescript else "js", session)

    text = tools.description("js")
    server.add_tool(run_javascript, "run_javascript", "Run JavaScript", text, tools.annotations)
    server.add_tool(tools.end, "end_session", "End a session", _END, _READ_ONLY)
    return server


def _python(tools: Tools, language: str) -> Any:
    async def run_python(code: str, input: dict[str, Any] | None = None) -> dict[str, Any]:
        return await tools.run(code, input or {}, language)

    return run_python
