"""`keepctl ps`, `create`, `start`, `upload`, `inspect`, `stop`, `rm`: the manager's calls."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import click

from keep_client.keep import open_workload
from keep_client.peer import ConnectionFailed, authority
from keep_client.text import one_line, printable
from keep_protocol.api import ARCHITECTURES
from keep_protocol.errors import KeepfleetError
from keep_protocol.keep import KeepInfo
from keepctl.commands.access import Access, connected, keep_argument, keeps_argument, output_option
from keepctl.commands.options import JobOptions, Parsed, creation_options, endpoint_options, guest_options
from keepctl.commands.shared import FAILED, FILE, NO_ANSWER, exiting_as_the_workload, show_error
from keepctl.describe import (
    EXIT_CODES,
    age_text,
    ending,
    exit_code_of,
    module_text,
    named_ending,
    newest_first,
    state_text,
    summary,
)
from keepctl.display import json_text, show_table
from keepctl.job import Job, parse_pair
from keepctl.references import resolve
from keepctl.run import create as create_keep
from keepctl.run import listen, send

_HEADER = ("ID", "NAME", "STATE", "AGE", "MODULE", "ADDRESS", "DETAIL")


def _row(keep: KeepInfo, now: float) -> tuple[str, ...]:
    where = authority(keep.address, keep.port) if keep.port else ""
    return (
        *(str(keep.kuuid), keep.name, state_text(keep), age_text(keep, now), module_text(keep)),
        *(where, keep.detail),
    )


@click.command("ps", short_help="Lists the keeps.")
@connected
@output_option
@click.option(
    "--label", "labels", multiple=True, type=Parsed(parse_pair), metavar="K=V", help="Only keeps so labelled."
)
@click.option("-q", "--quiet", is_flag=True, help="Only the IDs.")
def ps(output: str, labels: tuple[tuple[str, str], ...], quiet: bool, access: Access) -> None:
    """Lists the keeps, the newest first.

    \b
    keepctl ps --label app=web
    keepctl rm $(keepctl ps -q --label app=web)
    """
    keeps = newest_first(access.client().keeps(dict(labels)))
    if output == "json":
        click.echo(json_text([keep.to_wire() for keep in keeps]))
    elif quiet:
        for keep in keeps:
            click.echo(str(keep.kuuid))
    else:
        now = time.time()
        show_table(_HEADER, [_row(keep, now) for keep in keeps])


@click.command("create", short_help="Creates a keep and prints its ID.")
@connected
@output_option
@click.option("--arch", type=click.Choice(ARCHITECTURES), default="wasi", show_default=True, help="The kind of keep.")
@creation_options
def create(
    output: str, arch: str, replace: bool, access: Access, **options: Any
) -> None:  # the options, as click passes them
    """Creates a keep and prints its ID; `new` and `create` are the same.

    \b
    ID=$(keepctl create --name web --memory 64M --time 1h --label app=web)
    """
    job = JobOptions(**options).on(Job())
    keep = create_keep(access.client(), job, arch, replace)
    click.echo(json_text(keep.to_wire()) if output == "json" else str(keep.kuuid))


@click.command("start", short_help="Lets a keep listen for its workload.")
@keep_argument
@click.argument("arguments", metavar="[-- ARGS]...", nargs=-1)
@connected
@output_option
@endpoint_options
@click.option("--name", "names", multiple=True, metavar="DNS|IP", help="Another name for its certificate.")
@guest_options
def start(
    keep: str,
    output: str,
    address: str,
    port: int | None,
    names: tuple[str, ...],
    access: Access,
    **options: Any,  # the guest's options, as click passes them
) -> None:
    """Lets a keep listen for its workload, and says what its guest will be given.

    \b
    keepctl start web --dir /srv/site:/site --env LEVEL=info -- --verbose
    """
    job = JobOptions(**options).on(Job())
    client, kuuid = access.keep(keep)
    info = listen(client, kuuid, address or access.address, port, names, job)
    if output == "json":
        click.echo(json_text(info.to_wire()))
    else:
        click.echo(f"address     {authority(info.address, info.port)}")
        click.echo(f"fingerprint {printable(info.fingerprint)}")


@click.command(
    "upload",
    short_help="Sends a file to a started keep.",
    help="Sends FILE to a started keep, whose certificate must be the one the manager names.\n\n"
    f"\b\nkeepctl upload --wait web site.wasm\n\nWith --wait: {EXIT_CODES[3:]}",
)
@keep_argument
@click.argument("file", type=FILE)
@connected
@output_option
@click.option("--wait", is_flag=True, help="Wait for the workload's end; exit as it did.")
def upload(keep: str, file: str, output: str, wait: bool, access: Access) -> None:
    with exiting_as_the_workload() if wait else nullcontext():
        info = _upload(access, keep, file, output, wait)
    raise SystemExit(exit_code_of(info.outcome) if wait else 0)


def _upload(access: Access, keep: str, file: str, output: str, wait: bool) -> KeepInfo:
    client, kuuid = access.keep(keep)
    with open_workload(file) as workload:
        confirmed = send(access.credentials, client.keep(kuuid), client.endpoint.host, workload)
    if output == "text":
        click.echo(one_line(confirmed))
    info = client.ended(kuuid) if wait else client.keep(kuuid)
    if output == "json":
        click.echo(json_text(info.to_wire()))
    elif wait:
        click.echo(one_line(ending(info)))
    return info


@click.command("inspect", short_help="Shows everything about a keep.")
@keep_argument
@connected
@click.option(
    "-o", "--output", type=click.Choice(("json", "text")), default="json", show_default=True, help="How to print it."
)
def inspect(keep: str, output: str, access: Access) -> None:
    """Prints everything known about a keep: what it runs and was given, where it is, its limits, how its workload ended
    and why.

    \b
    keepctl inspect -o text web
    """
    client, kuuid = access.keep(keep)
    info = client.keep(kuuid)
    click.echo(json_text(info.to_wire()) if output == "json" else "\n".join(map(printable, summary(info))))


@click.command("stop", short_help="Ends what keeps run.")
@keeps_argument
@connected
@output_option
def stop(keeps: tuple[str, ...], output: str, access: Access) -> None:
    """Ends what keeps run; their outcomes stay to be seen. One that cannot be stopped does not keep the others.

    \b
    keepctl stop web
    """
    client = access.client()
    stopped: list[KeepInfo] = []

    def one(reference: str) -> None:
        stopped.append(client.stop(resolve(client, reference)))
        if output == "text":
            click.echo(one_line(named_ending(stopped[-1], len(keeps) > 1)))

    code = _each(keeps, one)
    if output == "json":
        click.echo(json_text([keep.to_wire() for keep in stopped]))
    raise SystemExit(code)


@click.command("rm", short_help="Stops and forgets keeps.")
@keeps_argument
@connected
@output_option
def remove(keeps: tuple[str, ...], output: str, access: Access) -> None:
    """Stops and forgets keeps. One that cannot be removed does not keep the others.

    \b
    keepctl rm web 4503599627370495
    """
    client = access.client()
    removed: list[int] = []

    def one(reference: str) -> None:
        kuuid = resolve(client, reference)
        client.remove(kuuid)
        removed.append(kuuid)
        if output == "text":
            click.echo(f"removed {kuuid}")

    code = _each(keeps, one)
    if output == "json":
        click.echo(json_text(removed))
    raise SystemExit(code)


def _each(references: tuple[str, ...], work: Callable[[str], None]) -> int:
    """Does `work` for each; the exit code. A manager that does not answer ends it immediately."""
    code = 0
    for reference in references:
        try:
            work(reference)
        except ConnectionFailed as error:
            show_error(error)
            return NO_ANSWER
        except KeepfleetError as error:
            show_error(error)
            code = FAILED
    return code
