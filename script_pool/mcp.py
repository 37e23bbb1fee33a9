"""A pool for language models: a server of the Model Context Protocol on standard input and output, which offers to run
code that a model has written.

Each call is a script of its own in a pool of this server's, or in one that serves a Unix socket, which is asked as any
client asks it. What a pool can run is found by asking: a language that it has not is not offered.
Needs the package `mcp`: pip install keepfleet[mcp].
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations

from script_pool.client import PROGRAM, Pool, PoolError, ScriptError

INSTRUCTIONS = (
    "Runs code in a sandbox: each call begins in a fresh world without files, network, timers or modules, and ends at "
    "a limit of time and of memory. What is to be computed on is passed as `input`; what the code leaves in global "
    "variables, and what it logs, comes back."
)
_JAVASCRIPT = (
    "Runs JavaScript (ES2023; with typescript=true TypeScript, whose types are taken away and not checked) once, in a "
    "sandbox. The members of `input` are its global variables. `output` is the global variables as the code leaves "
    "them: assign what you want to know, as in `total = items.length`; declarations with let and const, functions and "
    "undefined are left out. `console` is what console.log wrote. `await` may stand at its top."
)
_PYTHON = (
    "Runs Python once, in a sandbox. `input` is a dictionary; the members that it has at the end, with those that were "
    "assigned, are `output`, and what was printed is `console`."
)
_READ_ONLY = ToolAnnotations(read_only_hint=True, open_world_hint=False)
"""Nothing outside of a call changes by it."""
_PROBES = {"python": "pass"}
"""Languages that a pool may have, and a script of each that does nothing."""


class Tools:
    """What a model may call, done by a pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._numbers = count(1)

    def __repr__(self) -> str:
        return f"Tools({self._pool!r})"

    async def speaks(self, language: str) -> bool:
        """Whether the pool has the language. Raises PoolError."""
        try:
            await self._pool.add("mcp-probe", _PROBES[language], language)
            await self._pool.remove("mcp-probe")
        except ScriptError:
            return False
        return True

    async def run(self, code: str, given: dict[str, Any], language: str) -> dict[str, Any]:
        """One script once. Raises ToolError, which the model reads."""
        name = f"mcp-{next(self._numbers)}"
        try:
            await self._pool.add(name, code, language)
            try:
                ran = await self._pool.call(name, given)
            finally:
                await self._pool.remove(name)
        except ScriptError as error:
            raise ToolError(in_words(error)) from error
        except PoolError as error:
            raise ToolError(f"the sandbox cannot be reached: {error}") from error
        return {"output": ran.output, "console": list(ran.console), "seconds": round(ran.seconds, 6)}


def in_words(error: ScriptError) -> str:
    """Why a script has no result, with its own lines, and what it had logged by then."""
    lines = [str(error), *(f"    {line}" for line in error.stack)]
    if error.console:
        lines += ["console:", *(f"    {line}" for line in error.console)]
    return "\n".join(lines)


async def serve(options: Sequence[str], path: str | None, program: Sequence[str] = PROGRAM) -> None:
    """Serves until standard input ends. path: the socket of a pool that is there; without one a pool is started, with
    these options. Raises PoolError."""
    async with Pool(path, options, program) as pool:
        await _server(Tools(pool)).run_stdio_async()


def _server(tools: Tools) -> MCPServer[None]:
    @asynccontextmanager
    async def lifespan(server: MCPServer[None]) -> AsyncIterator[None]:
        try:
            if await tools.speaks("python"):
                server.add_tool(_python(tools), "run_python", "Run Python", _PYTHON, _READ_ONLY)
        except PoolError as error:
            print(f"script-pool: {error}", file=sys.stderr, flush=True)
            raise
        yield

    server: MCPServer[None] = MCPServer("keepfleet", instructions=INSTRUCTIONS, lifespan=lifespan, log_level="WARNING")

    async def run_javascript(
        code: str,
        input: dict[str, Any] | None = None,
        typescript: bool = False,
    ) -> dict[str, Any]:
        return await tools.run(code, input or {}, "ts" if typescript else "js")

    server.add_tool(run_javascript, "run_javascript", "Run JavaScript", _JAVASCRIPT, _READ_ONLY)
    return server


def _python(tools: Tools) -> Any:
    async def run_python(code: str, input: dict[str, Any] | None = None) -> dict[str, Any]:
        return await tools.run(code, input or {}, "python")

    return run_python
