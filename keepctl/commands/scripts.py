"""`keepctl scripts …`: a script pool, in a keep or on a Unix socket, and the scripts in it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from keep_client.keep import endpoint_of
from keep_client.peer import one_line, printable
from keep_client.scripts import KeepStream, SocketStream, Stream, ask
from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.program import MAX_SCRIPT_BYTES
from keepctl import access
from keepctl.commands.access import connection_options, output_option
from keepctl.commands.shared import FILE, Commands
from keepctl.display import echo, json_text, remember, say, show_table
from keepctl.job import parse_size
from keepctl.modules import read_file
from keepctl.references import resolve
from keepctl.throughput import measure

LANGUAGES = {".js": "js", ".mjs": "js", ".cjs": "js", ".ts": "ts", ".py": "python"}
"""What a file's name says of the language that a pool is to run it as."""
_Command = TypeVar("_Command", bound=Callable[..., Any])


@click.group("scripts", cls=Commands, short_help="Runs scripts in a pool, and looks after what is in it.")
def group() -> None:
    """Runs scripts in a pool: of a keep that was made for that, by its name or ID, or with --socket of the program
    script-pool on this host.

    \b
    keepctl scripts add --pool rules discount discount.js
    keepctl scripts exec --pool rules discount '{"price": 100}'
    keepctl scripts ls --socket /run/user/1000/scripts.sock
    """


def pool_options(command: _Command) -> _Command:
    """Which pool: given to the command as `stream`."""

    @functools.wraps(command)
    def chosen(pool: str | None, path: str | None, **values: Any) -> Any:
        connection = {option.name: values.pop(option.name) for option in access.CONNECTION}
        if (pool is None) == (path is None):
            raise click.UsageError("say which pool: --pool, or --socket")
        with _opened(pool, path, connection) as stream:
            return command(stream=stream, **values)

    for option in (
        click.option("--socket", "path", metavar="PATH", type=FILE, help="A pool that script-pool serves there."),
        click.option("--pool", metavar="POOL", help="A pool in a keep: its name or ID."),
    ):
        chosen = option(chosen)
    return connection_options(chosen)  # type: ignore[return-value]  # click's change no signature


@contextmanager
def _opened(pool: str | None, path: str | None, connection: dict[str, str | None]) -> Iterator[Stream]:
    stream: Stream
    if path is not None:
        stream = SocketStream(path)
    else:
        found = access.find(**connection)
        remember(found.credentials)
        with found.client() as client:
            keep = client.keep(resolve(client, pool or ""))
            stream = KeepStream(endpoint_of(keep, client.endpoint.host), found.credentials)
    try:
        yield stream
    finally:
        stream.close()


def _done(answer: dict[str, object]) -> dict[str, object]:
    """Raises KeepfleetError for a request that was not done."""
    if answer.get("ok") is True:
        return answer
    parts = [str(answer[key]) for key in ("reason", "name", "message") if answer.get(key)]
    stack = answer.get("stack")
    evidence = tuple(str(line) for line in stack) if isinstance(stack, list) else ()
    raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot do what was asked of the pool: {': '.join(parts)}", evidence)


@group.command("create")
@click.argument("name", metavar="NAME")
@click.option("--max", "most", type=click.IntRange(1, 16), help="Processes at most; 2 otherwise.")
@click.option("--time", "seconds", type=click.FloatRange(0.01, 60), help="Seconds that a run may take; 1 otherwise.")
@click.option("--script-memory", "script_memory", metavar="SIZE", help="What a script may have; 64M otherwise.")
@click.option("--console", type=click.Choice(["return", "journal"]), help="Where what scripts print goes.")
@click.option("--memory", metavar="SIZE", help="What the whole pool may use.")
@click.option("--caller", "callers", multiple=True, metavar="WHO", help="Who may use it: name:NAME or a fingerprint.")
@click.option("--address", help="An address of the manager's host; otherwise the one it is reached by.")
@click.option("--port", type=click.IntRange(1, 65535), help="Otherwise the first free one.")
@click.option("--replace", is_flag=True, help="End the living keep of that name first.")
@connection_options
@output_option
def create(
    name: str,
    most: int | None,
    seconds: float | None,
    script_memory: str | None,
    console: str | None,
    memory: str | None,
    callers: tuple[str, ...],
    address: str | None,
    port: int | None,
    replace: bool,
    output: str,
    **connection: str | None,
) -> None:
    """Makes a pool in a keep of its own, whose owner is you; it goes with: keepctl rm NAME.

    \b
    keepctl scripts create rules --max 4 --time 0.5
    """
    found = access.find(**connection)
    remember(found.credentials)
    options: dict[str, object] = {"max": most, "time_ms": None if seconds is None else round(seconds * 1000)}
    options |= {"memory_bytes": parse_size(script_memory) if script_memory else None, "console": console}
    asked: dict[str, object] = {
        "name": name,
        "limits": {"memory_bytes": parse_size(memory)} if memory else {},
        "callers": list(callers),
        "replace": replace,
        "options": {key: value for key, value in options.items() if value is not None},
        "address": address or found.address,
        "port": port,
    }
    with found.client() as client:
        asked["address"] = asked["address"] or client.reach()
        info = client.create_pool({key: value for key, value in asked.items() if value not in (None, "")})
    if output == "json":
        echo(json_text(info.to_wire()))
    else:
        echo(str(info.kuuid))


@group.command("add")
@click.argument("name", metavar="NAME")
@click.argument("file", metavar="FILE", type=FILE)
@click.option("--language", metavar="WORD", help="js, ts, …; otherwise what the file's name says.")
@pool_options
@output_option
def add(name: str, file: str, language: str | None, stream: Stream, output: str) -> None:
    """Makes NAME stand for the script in FILE, for every later request. Its syntax is checked now.

    \b
    keepctl scripts add --pool rules discount discount.js
    """
    ending = file[file.rfind(".") :] if "." in file else ""
    chosen = language or LANGUAGES.get(ending)
    if chosen is None:
        raise click.UsageError(f"{file} does not say by its name what it is in: --language js")
    code = read_file(file, MAX_SCRIPT_BYTES).decode("utf-8", "surrogateescape")
    _done(ask(stream, {"cmd": "AddCode", "name": name, "code": code, "language": chosen}))
    _said({"name": name, "language": chosen}, output)


@group.command("rm")
@click.argument("name", metavar="NAME")
@pool_options
@output_option
def remove(name: str, stream: Stream, output: str) -> None:
    """Makes NAME stand for nothing.

    \b
    keepctl scripts rm --pool rules discount
    """
    _done(ask(stream, {"cmd": "RemoveCode", "name": name}))
    _said({"name": name}, output)


def _said(what: dict[str, object], output: str) -> None:
    """What was done, for who asked for JSON; a person hears nothing where all is well."""
    if output == "json":
        echo(json_text(what))


@group.command("exec")
@click.argument("name", metavar="NAME")
@click.argument("sandbox", metavar="[JSON]", required=False)
@pool_options
@output_option
def execute(name: str, sandbox: str | None, stream: Stream, output: str) -> None:
    """Runs the script once and prints what it leaves, as JSON; what it logs goes to standard error. Its input is an
    object of JSON: the argument, standard input for `-`, or nothing.

    \b
    keepctl scripts exec --pool rules discount '{"price": 100}'
    """
    text = sys.stdin.read() if sandbox == "-" else sandbox or "{}"
    given = strict_json.loads_object(text.encode("utf-8", "surrogateescape"), MAX_SCRIPT_BYTES, "the script's input")
    answer = ask(stream, {"cmd": "ExecCode", "name": name, "inputSandbox": given})
    if output == "json":
        echo(json_text({key: value for key, value in answer.items() if key != "id"}))
        click.get_current_context().exit(0 if answer.get("ok") is True else 1)
    lines = answer.get("console")
    for line in lines if isinstance(lines, list) else ():
        say(printable(str(line)))
    echo(json_text(_done(answer)["outputSandbox"]))


@group.command("ls")
@pool_options
@output_option
def list_scripts(stream: Stream, output: str) -> None:
    """Lists the scripts that are in the pool.

    \b
    keepctl scripts ls --pool rules
    """
    found = _done(ask(stream, {"cmd": "ListCode"}))["scripts"]
    scripts = [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
    if output == "json":
        echo(json_text({"scripts": scripts}))
        return
    show_table(("NAME", "LANGUAGE"), [(one_line(str(each["name"])), str(each["language"])) for each in scripts])


@group.command("bench")
@click.argument("name", metavar="NAME")
@click.argument("sandbox", metavar="[JSON]", required=False)
@click.option("--calls", type=click.IntRange(1, 1_000_000), default=1000, show_default=True, help="Of each round.")
@click.option("--in-flight", multiple=True, type=click.IntRange(1, 512), help="Concurrently; 1, 2 and 8 otherwise.")
@pool_options
@output_option
def bench(name: str, sandbox: str | None, calls: int, in_flight: tuple[int, ...], stream: Stream, output: str) -> None:
    """Calls the script many times with one input, and prints calls a second and how long a call takes.

    \b
    keepctl scripts bench --pool rules discount '{"price": 100}' --calls 2000
    """
    given = strict_json.loads_object((sandbox or "{}").encode(), MAX_SCRIPT_BYTES, "the script's input")
    _done(ask(stream, {"cmd": "ExecCode", "name": name, "inputSandbox": given}))
    rounds = [measure(stream, name, given, calls, many) for many in in_flight or (1, 2, 8)]
    if output == "json":
        echo(json_text({"rounds": [each.to_wire() for each in rounds]}))
        return
    head = ("IN FLIGHT", "CALLS/S", "MEDIAN MS", "99 % WITHIN MS", "REFUSED")
    show_table(head, [each.row() for each in rounds])
