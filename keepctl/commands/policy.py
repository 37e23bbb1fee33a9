"""`keepctl store policy …`: what a module of the store must be by its contents, to start."""

from __future__ import annotations

import click

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.store import MAX_POLICY_BYTES
from keepctl.commands.access import output_option
from keepctl.commands.shared import FILE, Commands
from keepctl.commands.storing import Modules, in_place_options, store_options
from keepctl.display import echo, json_text
from keepctl.modules import read_file
from module_store.keys import Keys
from module_store.store import Store


@click.group("policy", cls=Commands, short_help="What a module must be, by its contents.")
def group() -> None:
    """Looks after the store's policy: a module that does not pass it does not start. `keepctl verify FILE --policy
    FILE` says beforehand whether one does.

    \b
    keepctl store policy set edge.yaml
    """


@group.command("set")
@click.argument("file", metavar="FILE", type=FILE)
@in_place_options
@output_option
def set_policy(file: str, directory: str | None, output: str) -> None:
    """Has modules pass the policy in FILE to start, from now on.

    \b
    keepctl store policy set edge.yaml
    """
    from module_store.verify.policy_file import read_policy  # here: YAML is 15 ms

    data = read_file(file, MAX_POLICY_BYTES)
    policy = read_policy(data, file)
    with Store.create(directory) as store:
        Keys(store.place.path).set_policy(data)
    echo(json_text({"policy": policy.name}) if output == "json" else f"modules must pass the policy {policy.name}")


@group.command("show")
@store_options
@output_option
def show(modules: Modules, output: str) -> None:
    """Prints the policy's file.

    \b
    keepctl store policy show
    """
    policy = modules.requirements().policy
    if output == "json":
        echo(json_text({"policy": policy}))
    elif policy is None:
        raise KeepfleetError(ErrorKind.NOT_FOUND, "cannot show the policy: the module store has none")
    else:
        echo(policy.rstrip("\n"))


@group.command("rm")
@in_place_options
@output_option
def remove(directory: str | None, output: str) -> None:
    """Has modules start whatever is in them, from now on: the engine's and the keep's own limits hold all the same.

    \b
    keepctl store policy rm
    """
    with Store.open(directory) as store:
        Keys(store.place.path).set_policy(None)
    echo(json_text({"policy": None}) if output == "json" else "no policy is asked")
