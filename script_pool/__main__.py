"""`script-pool`: serves a pool on standard input and output, or on a Unix socket."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from subprocess import TimeoutExpired

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.pools import Console
from script_pool.console import Journal
from script_pool.decisions import Settings
from script_pool.engine import cpython
from script_pool.engine.artifacts import Artifacts
from script_pool.engine.interface import Limits
from script_pool.pool import ENGINE, ScriptPool
from script_pool.serve import Service, what_is_missing
from script_pool.sessions import read_key

OF_A_POOL = (
    "min", "max", "recycle_after", "queue", "deadline", "drain", "time", "memory", "input", "output", "session_seconds",
    "console", "cache",
)  # fmt: skip
"""The options that a pool takes, by whatever it is started."""


def parser() -> argparse.ArgumentParser:
    """The options; each default is that of Settings or Limits."""
    settings, limits = Settings(maximum=max(2, os.cpu_count() or 1)), Limits()
    made = argparse.ArgumentParser(
        prog="script-pool",
        description="Runs other people's scripts, each call in a fresh"
        " world, in processes that are killed when they misbehave.",
    )
    where = made.add_mutually_exclusive_group(required=True)
    where.add_argument("--stdio", action="store_true", help="serve the program that has started this one")
    where.add_argument("--socket", metavar="PATH", help="serve who connects to this Unix socket, of mode 0600")
    where.add_argument(
        "--mcp",
        nargs="?",
        const="",
        metavar="PATH",
        help="serve a language model's program on standard input and output by the Model Context Protocol; with PATH, "
        "from the pool that serves that Unix socket (needs: pip install keepfleet[mcp])",
    )
    where.add_argument(
        "--make-python",
        action="store_true",
        help="make CPython, once, in the cache: scripts can then be in `python` (needs: pip install keepfleet[python])",
    )
    made.add_argument(
        "--allow-uid",
        type=int,
        action="append",
        default=[],
        metavar="UID",
        help="also serve this user, where the socket's directory and mode let it connect",
    )
    for option, kind, default, what in (
        ("--min", int, settings.minimum, "children that are always there"),
        ("--max", int, settings.maximum, "children at most"),
        ("--recycle-after", int, settings.recycle_after, "runs after which a child gives way to a new one"),
        ("--queue", int, settings.queue, "requests that wait at most"),
        ("--deadline", float, settings.deadline_seconds, "seconds from a request to its answer, waiting included"),
        ("--drain", float, settings.drain_seconds, "seconds that requests have at the end"),
        ("--time", float, limits.wall_seconds, "seconds a run may take (0.01 … 60)"),
        ("--memory", int, limits.memory_bytes >> 20, "MiB a script may have"),
        ("--input", int, limits.input_bytes, "bytes of an input sandbox or of code"),
        ("--output", int, limits.output_bytes, "bytes of an output sandbox"),
    ):
        made.add_argument(option, type=kind, default=default, help=f"{what} (default: %(default)s)")
    made.add_argument(
        "--session-seconds",
        type=float,
        default=settings.session_seconds,
        help="seconds after which a session that was not used ends (default: %(default)s)",
    )
    made.add_argument(
        "--console",
        choices=[each.value for each in Console],
        default=Console.RETURN.value,
        help="where what scripts print goes: into their answers, or to standard error, each line with its script's name"
        " (default: %(default)s)",
    )
    made.add_argument(
        "--session-key",
        metavar="FILE",
        help="the key that saved sessions are signed with, made where there is none; without it, a saved session can be"
        " loaded by this pool alone",
    )
    made.add_argument(
        "--functions",
        metavar="FILE",
        help="with --mcp: a file in Python, which is run here; scripts may call the functions that its __all__ names",
    )
    made.add_argument(
        "--fetch",
        action="append",
        default=[],
        metavar="HOST",
        help="with --mcp: scripts may fetch from this host over HTTPS, or from an origin as http://127.0.0.1:8080",
    )
    made.add_argument(
        "--cache",
        metavar="DIRECTORY",
        default=cache_directory(os.environ),
        help="where the compiled engine is kept, or nothing to compile it at each start (default: %(default)s)",
    )
    return made


def cache_directory(environment: Mapping[str, str]) -> str:
    """A unit's own where systemd names one (man 5 systemd.exec, CacheDirectory=), or that of the XDG base directory
    specification, which says that a path that is not absolute counts for nothing."""
    unit = environment.get("CACHE_DIRECTORY", "").partition(":")[0]
    home = environment.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(home):
        home = os.path.expanduser("~/.cache")
    return unit or os.path.join(home, "keepfleet", "scripts")


async def serve(arguments: argparse.Namespace, engine: str = ENGINE) -> None:
    """Serves until the client has gone, or a signal ends it. Raises KeepfleetError and ValueError."""
    settings = Settings(
        min(arguments.min, arguments.max),
        arguments.max,
        arguments.recycle_after,
        arguments.queue,
        arguments.deadline,
        drain_seconds=arguments.drain,
        session_seconds=arguments.session_seconds,
    )
    limits = Limits(arguments.time, arguments.memory << 20, arguments.input, arguments.output)
    key = None if arguments.session_key is None else read_key(arguments.session_key)
    console = Journal() if arguments.console == Console.JOURNAL.value else None
    pool = ScriptPool(settings, limits, engine, cache=arguments.cache, session_key=key, console=console)
    service = Service(pool, frozenset((os.getuid(), *arguments.allow_uid)))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, service.stop)
    for line in what_is_missing():
        say(f"isolation: {line}")
    await pool.start()
    if arguments.stdio:
        await service.on_stdio()
    else:
        await service.on_socket(arguments.socket, lambda: say(f"listening on {arguments.socket}"))


def make_python(cache: str) -> None:
    """Makes what `python` runs in, where it is not there. Raises KeepfleetError."""
    try:
        path = cpython.make(Artifacts(cache))
    except (ImportError, OSError, TimeoutExpired) as error:
        raise KeepfleetError(ErrorKind.CONFIGURATION, str(error)) from error
    say(f"CPython is at {path}")


async def serve_models(arguments: argparse.Namespace) -> None:
    """Serves the Model Context Protocol until standard input ends. Raises KeepfleetError."""
    try:
        from script_pool import mcp  # here: an optional package
    except ModuleNotFoundError as error:
        why = f"there is no package {error.name}; pip install keepfleet[mcp]"
        raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot serve the Model Context Protocol: {why}") from error
    given = vars(arguments)
    options = [f"--{name.replace('_', '-')}={given[name]}" for name in OF_A_POOL]
    await mcp.serve(options, arguments.mcp or None, mcp.host_functions(arguments.functions, arguments.fetch))


def say(line: str) -> None:
    """A line for the operator."""
    print(f"script-pool: {line}", file=sys.stderr, flush=True)


def main(engine: str = ENGINE) -> None:
    """The program. Exit status 1 where it cannot serve, 2 for options that cannot be."""
    arguments = parser().parse_args()
    if arguments.mcp is None and (arguments.functions or arguments.fetch):
        say("--functions and --fetch are of --mcp; the other clients offer functions themselves")
        sys.exit(2)
    try:
        if arguments.make_python:
            make_python(arguments.cache)
        else:
            asyncio.run(serve(arguments, engine) if arguments.mcp is None else serve_models(arguments))
    except ValueError as error:
        say(str(error))
        sys.exit(2)
    except KeepfleetError as error:
        say(error.message)
        sys.exit(1)


if __name__ == "__main__":
    main()
