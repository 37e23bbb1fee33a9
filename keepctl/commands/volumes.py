"""`keepctl volume ls | rm`: the directories of declared keeps that last."""

from __future__ import annotations

import click

from keep_client.credentials import parse_manager
from keep_client.declared import VolumeClient
from keep_client.peer import one_line
from keep_protocol.errors import KeepfleetError
from keep_protocol.volumes import Volume
from keepctl.access import CONNECTION, OUTPUT, Access, connected
from keepctl.arguments import Argument, Command
from keepctl.commands.access import made_of
from keepctl.commands.shared import Commands
from keepctl.describe import moment_text, size_text
from keepctl.display import echo, json_text, show_failure, show_table

_HEADER = ("NAME", "OWNER", "SIZE", "INODES", "MADE", "STATE", "DECLARED")


def _client(access: Access) -> VolumeClient:
    return VolumeClient(parse_manager(access.manager), access.credentials.manager_context())


@connected
def _list(output: str, access: Access) -> int:
    with _client(access) as client:
        found = client.volumes()
    if output == "json":
        echo(json_text([each.to_wire() for each in found]))
    else:
        show_table(_HEADER, [_row(each) for each in found])
    return 0


def _row(each: Volume) -> tuple[str, ...]:
    if each.detail:
        return each.name, "", "", "", "", one_line(each.detail), " ".join(each.declared)
    state = "in use" if each.in_use else "free"
    made = moment_text(each.created_at)
    size = size_text(each.size_bytes)
    return each.name, each.owner, size, str(each.inodes), made, state, " ".join(each.declared)


@connected
def _remove(names: tuple[str, ...], output: str, access: Access) -> int:
    code, removed = 0, []
    with _client(access) as client:
        for name in names:
            try:
                client.remove_volume(name)
            except KeepfleetError as error:
                code = show_failure(error)
            else:
                removed.append(name)
                if output == "text":
                    echo(f"{name}: removed")
    if output == "json":
        echo(json_text({"removed": removed}))
    return code


LIST = Command(
    "ls",
    _list,
    "Lists the volumes.",
    """Lists the volumes of the manager's host that are yours, or that you may see, with the declared keeps that name
    them.

    \b
    keepctl volume ls
    """,
    (*CONNECTION, OUTPUT),
)
REMOVE = Command(
    "rm",
    _remove,
    "Removes volumes and all that is in them.",
    """Removes volumes and all that is in them; not one that a declared keep names, or that a keep still has.

    \b
    keepctl volume rm data
    """,
    (*CONNECTION, OUTPUT),
    (Argument("names", "NAME...", many=True),),
)


@click.group("volume", cls=Commands, short_help="Lists and removes the volumes of declared keeps.")
def group() -> None:
    """Volumes: directories of declared keeps that last, over their end, replacement, and a reboot. A manifest's
    `volume` makes one; it stays when that is declared no more.

    \b
    keepctl volume ls
    """


for _command in (LIST, REMOVE):
    group.add_command(made_of(_command))
