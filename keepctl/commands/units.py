"""`keepctl install` and `keepctl uninstall`: the units."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from keepctl import installation, prefix
from keepctl.commands.access import output_option
from keepctl.display import json_text
from keepctl.installation import Change, Target

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _where(command: _Command) -> _Command:
    options = (
        click.option("--system", "variant", flag_value="system", help="For the host's systemd (the default for root)."),
        click.option("--user", "variant", flag_value="user", help="For your own service manager (else the default)."),
        click.option("--unit-directory", metavar="DIR", help="Instead of where that service manager looks first."),
        click.option("--no-reload", is_flag=True, help="Do not tell systemd."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _target(variant: str | None, unit_directory: str | None, no_reload: bool) -> Target:
    chosen = variant or ("system" if os.geteuid() == 0 else "user")
    return installation.target(chosen, unit_directory, reload=not no_reload)


def _tell(changes: list[Change], where: Target, output: str) -> None:
    if output == "json":
        units = [{"file": change.path, "change": change.what} for change in changes]
        click.echo(json_text({"instance": where.variant, "units": units, "reloaded": where.reload}))
        return
    for change in changes:
        click.echo(f"{change.what:<9} {change.path}")
    if not changes:
        click.echo("nothing of ours was there")
    if where.reload:
        click.echo("systemd has read its units again")


@click.command("install", short_help="Writes the units of systemd.")
@_where
@click.option("--prefix", "root", default=sys.prefix, metavar="P", help="The virtual environment keepfleet lives in.")
@output_option
def install(variant: str | None, unit_directory: str | None, no_reload: bool, root: str, output: str) -> None:
    """Writes the units, filled in for this prefix and interpreter; may be repeated.

    The system's keeps are users of their own, so the prefix must be readable by any user: not below /root or /home.

    \b
    keepctl install && keepctl init && systemctl enable --now keep-manager
    """
    where = _target(variant, unit_directory, no_reload)
    _tell(installation.install(where, prefix.values_for(root, where.variant)), where, output)
    if where.reload and output == "text":
        user = " --user" if where.variant == "user" else ""
        click.echo(f"Next: keepctl init, then systemctl{user} enable --now keep-manager")


@click.command("uninstall", short_help="Removes the units again.")
@_where
@output_option
def uninstall(variant: str | None, unit_directory: str | None, no_reload: bool, output: str) -> None:
    """Removes the units again; certificates and configuration stay. Refuses while keeps or the manager run.

    \b
    systemctl stop keep-manager && keepctl uninstall
    """
    where = _target(variant, unit_directory, no_reload)
    _tell(installation.uninstall(where), where, output)
