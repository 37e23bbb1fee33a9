"""`keepctl context`, `manifest`, `completion`: what needs no manager.

What only one of them needs is imported where it is: YAML costs 15 ms.
"""

from __future__ import annotations

import os

import click

from keep_client.credentials import check_readable, parse_manager
from keepctl import access
from keepctl.access import Contexts
from keepctl.commands.access import ContextName, output_option
from keepctl.commands.shared import FILE, Commands
from keepctl.display import json_text, show_table

SHELLS = ("bash", "zsh", "fish")


@click.group("context", cls=Commands, short_help="Managers by name.")
def context() -> None:
    """Remembers managers, and the files that let you in, by name.

    \b
    keepctl context set edge --manager edge.example:3030 --ca ca.crt --cert alice.crt
    keepctl context use edge
    """


@context.command("set")
@click.argument("name", type=ContextName())
@click.option("--manager", metavar="URL", help="The manager: HOST:PORT or https://HOST:PORT.")
@click.option("--address", metavar="IP", help="Where its keeps are to listen, instead of where it is reached itself.")
@click.option("--ca", metavar="FILE", type=FILE, help="The CA of the manager.")
@click.option("--cert", metavar="FILE", type=FILE, help="Your certificate.")
@click.option("--key", metavar="FILE", type=FILE, help="Its key; otherwise the .key next to it.")
@output_option
def set_context(
    name: str,
    manager: str | None,
    address: str | None,
    ca: str | None,
    cert: str | None,
    key: str | None,
    output: str,
) -> None:
    """Remembers what is given under NAME, in addition to what NAME has already; the first one is in use immediately.

    \b
    keepctl context set edge --manager edge.example:3030 --ca ca.crt --cert alice.crt
    """
    access.check_context_name(name)
    if manager is not None:
        parse_manager(manager)
    if address is not None:
        from keep_protocol.api import check_address  # here: 5 ms, for this command alone

        check_address(address)
    named = {field: os.path.abspath(file) for field, file in (("ca", ca), ("cert", cert), ("key", key)) if file}
    for file in named.values():
        check_readable(file)
    known = access.load_contexts()
    given = {field: text for field, text in (("manager", manager), ("address", address)) if text}
    context = {**known.contexts.get(name, {}), **given, **named}
    current = known.current or name
    where = access.save_contexts(Contexts(current, {**known.contexts, name: context}))
    if output == "json":
        click.echo(json_text({"name": name, "context": context, "current": current, "file": where}))
    else:
        click.echo(f"{name} is in {where}{', and in use' if current == name else ''}")


@context.command("use")
@click.argument("name", type=ContextName())
@output_option
def use(name: str, output: str) -> None:
    """Uses NAME from now on.

    \b
    keepctl context use edge
    """
    known = access.load_contexts()
    known.get(name)
    where = access.save_contexts(Contexts(name, known.contexts))
    click.echo(json_text({"current": name, "file": where}) if output == "json" else f"{name} is in use")


@context.command("rm")
@click.argument("name", type=ContextName())
@output_option
def remove(name: str, output: str) -> None:
    """Forgets NAME; the files it names stay.

    \b
    keepctl context rm edge
    """
    known = access.load_contexts()
    known.get(name)
    left = {other: context for other, context in known.contexts.items() if other != name}
    current = "" if known.current == name else known.current
    where = access.save_contexts(Contexts(current, left))
    if output == "json":
        click.echo(json_text({"removed": name, "current": current, "file": where}))
    else:
        click.echo(f"{name} is forgotten")


@context.command("list")
@output_option
def list_contexts(output: str) -> None:
    """Lists the contexts; the one in use has a star.

    \b
    keepctl context list -o json
    """
    known = access.load_contexts()
    if output == "json":
        click.echo(json_text({"current": known.current, "contexts": known.contexts}))
        return
    rows = [
        ("*" if name == known.current else " ", name, *(context.get(field, "") for field in access.CONTEXT_FIELDS))
        for name, context in sorted(known.contexts.items())
    ]
    show_table(("", "NAME", *(field.upper() for field in access.CONTEXT_FIELDS)), rows)


@click.group("manifest", cls=Commands, short_help="Checks the files that describe workloads.")
def manifest() -> None:
    """Checks manifests, the YAML files that describe workloads; `keepctl run -f` runs one.

    \b
    keepctl manifest check workload.yaml
    """


@manifest.command("check")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=FILE)
@output_option
def check_manifests(files: tuple[str, ...], output: str) -> None:
    """Says everything that is wrong with manifests, each fault with its line and column; exits 1 for the first bad one.

    \b
    keepctl manifest check workload.yaml
    """
    from keepctl.manifest.reading import read_job

    jobs = [(file, read_job(file)) for file in files]
    if output == "json":
        listed = [{"file": os.path.abspath(file), "name": job.name, "limits": job.limits} for file, job in jobs]
        click.echo(json_text(listed))
    else:
        for file, _ in jobs:
            click.echo(f"{file}: all is well")


@manifest.command("schema")
def print_schema() -> None:
    """Prints the JSON Schema of a manifest, for editors and other tools.

    \b
    keepctl manifest schema > keepfleet.schema.json
    """
    from keepctl.manifest.schema import SCHEMA

    click.echo(json_text(SCHEMA))


@click.command("completion", short_help="Prints a shell's completion script.")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Prints the script that makes SHELL complete keepctl's commands and options.

    \b
    bash: keepctl completion bash > ~/.local/share/bash-completion/completions/keepctl
    zsh:  keepctl completion zsh > "${fpath[1]}/_keepctl"
    fish: keepctl completion fish > ~/.config/fish/completions/keepctl.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None  # noqa: S101  # click has these three
    root = ctx.find_root()
    click.echo(found(root.command, {}, "keepctl", "_KEEPCTL_COMPLETE").source())
