"""`keepctl secret`: values that the manager keeps for declared keeps, and that no one reads again."""

from __future__ import annotations

import sys

import click

from keep_client.credentials import parse_manager
from keep_client.declared import SecretsClient
from keep_client.peer import one_line
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.secrets import MAX_VALUE_BYTES, check_secret_name
from keepctl.access import CONNECTION, OUTPUT, Access, connected
from keepctl.arguments import FILE, Argument, Command, Option
from keepctl.commands.access import made_of
from keepctl.commands.shared import Commands
from keepctl.commands.storing import reading
from keepctl.describe import moment_text
from keepctl.display import echo, json_text, show_table

_HEADER = ("NAME", "OWNER", "SET", "STORED", "USED BY")
_FROM_FILE = Option(("--from-file",), "file", "The value is this file's content; else standard input's.", FILE, "FILE")
_RESTART = Option(
    ("--restart",), "restart", "Restart the declared keeps that use it; else they have it when they start."
)


@click.group("secret", cls=Commands, short_help="Keeps secrets for declared keeps.")
def group() -> None:
    """Keeps secrets for declared keeps, whose manifests name them under `secrets:`, and whose guests find them as
    files in /run/secrets. A value is on no command line and in no environment; no one can read it again.

    \b
    keepctl secret set db-password <password.txt
    keepctl secret ls
    """


def _client(access: Access) -> SecretsClient:
    return SecretsClient(parse_manager(access.manager), access.credentials.manager_context())


def _read(file: str | None) -> bytes:
    """The value, bounded. Raises KeepfleetError."""
    if not file and sys.stdin is not None and sys.stdin.isatty():
        why = "standard input is a terminal, which would show it; use --from-file FILE, or <FILE"
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read the secret: {why}")
    data = b""
    with reading(file or "-") as opened:
        while len(data) <= MAX_VALUE_BYTES and (piece := opened.read(MAX_VALUE_BYTES + 1 - len(data))):
            data += piece
    if len(data) > MAX_VALUE_BYTES:
        raise KeepfleetError(ErrorKind.TOO_LARGE, f"cannot set the secret: it is over {MAX_VALUE_BYTES} bytes")
    return data


@connected
def _set(name: str, file: str | None, restart: bool, output: str, access: Access) -> int:
    check_secret_name(name)
    value = _read(file)
    with _client(access) as client:
        made = client.set_secret(name, value, restart=restart)
    if output == "json":
        echo(json_text(made.to_wire()))
        return 0
    how = "encrypted with the host's key" if made.encrypted else "as it is: this manager's host encrypts none"
    echo(f"{name}: set, stored {how}")
    if made.used_by:
        when = "restarted" if restart else "have it when they start next"
        echo(one_line(f"{name}: used by {', '.join(made.used_by)}: {when}"))
    return 0


@connected
def _list(output: str, access: Access) -> int:
    with _client(access) as client:
        found = client.secrets()
    if output == "json":
        echo(json_text([each.to_wire() for each in found]))
        return 0
    rows = [
        (
            each.name,
            each.owner,
            moment_text(each.set_at),
            "encrypted" if each.encrypted else "plain",
            one_line(each.detail or ", ".join(each.used_by)),
        )
        for each in found
    ]
    show_table(_HEADER, rows)
    return 0


@connected
def _remove(names: tuple[str, ...], output: str, access: Access) -> int:
    with _client(access) as client:
        for name in names:
            client.remove_secret(name)
            if output == "text":
                echo(f"removed {name}")
    if output == "json":
        echo(json_text(list(names)))
    return 0


SET = Command(
    "set",
    _set,
    "Sets a secret, new or again.",
    """Sets a secret to what a file or standard input holds, byte for byte, at most 1 MiB: all of it or nothing.

    \b
    keepctl secret set db-password <password.txt
    keepctl secret set --restart tls-key --from-file key.pem
    """,
    (*CONNECTION, OUTPUT, _FROM_FILE, _RESTART),
    (Argument("name", "NAME"),),
)
LIST = Command(
    "ls",
    _list,
    "Lists secrets, never their values.",
    """Lists secrets by name: whose each is, when it was set, how it lies on disk, and what uses it.

    \b
    keepctl secret ls
    """,
    (*CONNECTION, OUTPUT),
)
REMOVE = Command(
    "rm",
    _remove,
    "Removes secrets that nothing uses.",
    """Removes secrets; not those that a declared keep names.

    \b
    keepctl secret rm db-password
    """,
    (*CONNECTION, OUTPUT),
    (Argument("names", "NAME...", many=True),),
)
for command in (SET, LIST, REMOVE):
    group.add_command(made_of(command))
