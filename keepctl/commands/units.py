"""`keepctl install`, `uninstall` and `doctor`: units, the keeps' root, versions, and programs on PATH."""

from __future__ import annotations

import functools
import os
import sys
from _collections_abc import Callable

import click

from keep_root.trees import Trees
from keepctl import installation
from keepctl.commands.access import output_option
from keepctl.display import json_text
from keepctl.installation import Target
from keepctl.prefix import Prefix, find_prefix, target_for, values_for
from keepctl.versions import Change


def _where(work: Callable[[Target, Prefix, str], None]) -> Callable[..., None]:
    """A command's function that is given what these options mean: where to, and which version."""

    @functools.wraps(work)
    def command(
        variant: str | None,
        unit_directory: str | None,
        program_directory: str | None,
        tree_directory: str | None,
        no_reload: bool,
        root: str,
        output: str,
    ) -> None:
        chosen = variant or ("system" if os.geteuid() == 0 else "user")
        where = installation.target(chosen, unit_directory, program_directory, tree_directory, reload=not no_reload)
        work(where, find_prefix(root), output)

    options = (
        click.option("--system", "variant", flag_value="system", help="For the host's systemd (the default for root)."),
        click.option("--user", "variant", flag_value="user", help="For your own service manager (else the default)."),
        click.option("--unit-directory", metavar="DIR", help="Instead of where that service manager looks first."),
        click.option("--program-directory", metavar="DIR", help="Instead of /usr/local/bin or ~/.local/bin."),
        click.option(
            "--tree-directory", metavar="DIR", help="Instead of /var/lib/keepfleet or ~/.local/share/keepfleet."
        ),
        click.option("--no-reload", is_flag=True, help="Ask systemd nothing, and do not have it read its units again."),
        click.option("--prefix", "root", default=sys.prefix, metavar="P", help="The version's virtual environment."),
    )
    given: Callable[..., None] = command
    for option in reversed(options):
        given = option(given)
    return given


def _show(changes: list[Change], where: Target, output: str) -> None:
    if output == "json":
        named = {
            f"{kind}s": [{"file": change.path, "change": change.what} for change in changes if change.kind == kind]
            for kind in ("unit", "root", "version", "program")
        }
        click.echo(json_text({"instance": where.variant, **named, "reloaded": where.reload}))
        return
    for change in changes:
        click.echo(f"{change.what:<9} {change.path}")
    if not changes:
        click.echo("nothing of ours was there")
    if where.reload:
        click.echo("systemd has read its units again")


@click.command("install", short_help="Makes this version the installed one.")
@_where
@output_option
def install(where: Target, found: Prefix, output: str) -> None:
    """Writes the units for this version, builds the root its keeps will see, makes it the current one, and links its
    programs into PATH; may be repeated.

    Keeps go on in the root they were made with; versions that nothing uses any more are removed. The system's manager
    sees no home, so the version must lie elsewhere: not below /root or /home.

    \b
    keepctl install && systemctl restart keep-manager
    """
    changes = installation.install(
        where, found, values_for(found, where.variant, where.trees), Trees(where.trees, target_for(found))
    )
    _show(changes, where, output)
    if output == "text":
        _say_next(where, any(change.what != "unchanged" for change in changes), found.is_managed)


def _say_next(where: Target, changed: bool, linked: bool) -> None:
    """What an operator does now."""
    if linked and where.programs not in os.environ.get("PATH", "").split(os.pathsep):
        click.echo(f"Not on your PATH: {where.programs}; log in again, or: PATH={where.programs}:$PATH")
    user = " --user" if where.variant == "user" else ""
    if where.reload and not installation.is_manager_running(where):
        click.echo(f"Next: keepctl init, then systemctl{user} enable --now keep-manager")
    elif where.reload and changed:
        click.echo(f"Next: systemctl{user} restart keep-manager; keeps go on with the root they were made with")


@click.command("uninstall", short_help="Removes units, programs and versions again.")
@_where
@output_option
def uninstall(where: Target, found: Prefix, output: str) -> None:
    """Removes what install made: units, programs, roots and all versions. Certificates and configuration stay.

    Refuses while keeps or the manager run.

    \b
    systemctl stop keep-manager && keepctl uninstall
    """
    _show(installation.uninstall(where, found), where, output)


@click.command("doctor", short_help="Checks what install made.")
@_where
@output_option
def doctor(where: Target, found: Prefix, output: str) -> None:
    """Checks units, the link to the current version, and every file of the root that keeps see. Changes nothing.

    Its exit status is 1 where it finds something.

    \b
    keepctl doctor
    """
    said = installation.findings(
        where, found, values_for(found, where.variant, where.trees), Trees(where.trees, target_for(found))
    )
    if output == "json":
        click.echo(json_text({"instance": where.variant, "findings": said}))
    else:
        for line in said or ["all is well"]:
            click.echo(line)
    if said:
        raise SystemExit(1)
