"""`keepctl run`: a workload from its file to its exit code, in one command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import click

from keep_client.manager import ManagerClient
from keep_client.text import one_line, printable
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.sse import JOURNAL_SOURCE, WORKLOAD_SOURCE, LogLine
from keepctl.commands.access import Access, connected, output_option
from keepctl.commands.begin import begin
from keepctl.commands.options import Wishes, creation_options, door_options, guest_options
from keepctl.commands.shared import FILE, show_error
from keepctl.display import json_line, json_text
from keepctl.endings import EXIT_CODES, INTERRUPTED, UNREAD, ending, exit_code_of, exit_code_of_error, succeeded
from keepctl.follow import Left, ending_signals, until_the_end
from keepctl.job import Job

_GUEST_WORDS = "keepctl.guest-words"
HELP = f"""Runs FILE in a new keep: shows its output until it ends, tells why it ended, and exits as it did.

\b
keepctl run hello.wasm
keepctl run --rm --memory 64M --time 10s filter.wasm -- --verbose
keepctl run -d --name web --dir /srv/site:/site --restart on-failure server.wasm
keepctl run -f workload.yaml

With -f the file describes all of it, and options are added on top. HOST, --stdin and --secret files are of the
manager's host, and below what its configuration grants you. Ctrl-C stops the workload, a second one leaves it running;
a reader that goes away (`| head`) stops it too.

{EXIT_CODES}"""


@dataclass(frozen=True)
class _How:
    """What is done with the keep beside running the workload in it."""

    address: str
    port: int | None
    remove: bool
    detach: bool
    raw: bool
    json: bool


def line_shower(raw: bool, json: bool) -> Callable[[LogLine], None]:
    """Prints a line of a log at once: as JSON, as it is, or with its control characters shown as escapes.

    What the journal says of lines it dropped goes to standard error: it is no output of the guest's.
    """

    def show(line: LogLine) -> None:
        if json:
            click.echo(json_line(line.to_wire()))
        elif line.source == JOURNAL_SOURCE:
            click.echo(f"keepctl: the journal: {one_line(line.text)}", err=True)
        else:
            click.echo(line.text if raw else printable(line.text))

    return show


def refuse_raw_terminal(raw: bool) -> None:
    """Raises UsageError where --raw would let a guest steer the terminal."""
    if raw and sys.stdout.isatty():
        raise click.UsageError("--raw is for a pipe or a file: what a guest prints could steer this terminal")


def _job(file: str | None, described: str | None, wishes: Wishes) -> Job:
    if file is not None and described is None and file.endswith((".yaml", ".yml")):
        raise click.UsageError(f"{file} is a manifest by its name; run it with: keepctl run -f {file}")
    job = wishes.on(_described(described) if described is not None else Job())
    module = file or job.module
    if not module:
        raise click.UsageError("name the module to run: keepctl run FILE.wasm, or `module:` in the manifest")
    return replace(job, module=module)


def _described(path: str) -> Job:
    from keepctl.manifest.reading import read_job  # here: YAML costs 15 ms, and only a manifest needs it

    return read_job(path)


def _tell_end(keep: KeepInfo) -> None:
    if succeeded(keep):
        return
    click.echo(f"keepctl: keep {keep.kuuid}: {one_line(ending(keep))}", err=True)
    for frame in keep.outcome.backtrace if keep.outcome is not None else ():
        click.echo(f"    {printable(frame)}", err=True)


def _follow(client: ManagerClient, kuuid: int, how: _How) -> int:
    shower = line_shower(how.raw, how.json)

    def show(line: LogLine) -> None:
        if line.source in (WORKLOAD_SOURCE, JOURNAL_SOURCE):
            shower(line)

    def stopping() -> None:
        click.echo(f"keepctl: stopping keep {kuuid}; Ctrl-C again leaves it running", err=True)

    try:
        keep, interrupted = until_the_end(client, kuuid, show, stopping)
    except Left:
        click.echo(f"keepctl: left keep {kuuid} running; see: keepctl logs -f {kuuid}", err=True)
        return INTERRUPTED
    except KeepfleetError as error:
        if error.kind is not ErrorKind.NOT_FOUND:
            raise
        why = (
            f"cannot tell how keep {kuuid} ended: somebody removed it meanwhile; its lines: journalctl KEEP_ID={kuuid}"
        )
        raise KeepfleetError(ErrorKind.NOT_FOUND, why) from error
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # nothing more can be written there, the exit flushes it
        with suppress(KeepfleetError):
            client.stop(kuuid)
        if how.remove:
            client.remove(kuuid, patient=True)
        return UNREAD
    if how.json:
        click.echo(json_line({"keep": keep.to_wire()}))
    if not interrupted:
        _tell_end(keep)
    if how.remove:
        client.remove(kuuid, patient=True)
    return INTERRUPTED if interrupted else exit_code_of(keep.outcome)


def _run(access: Access, job: Job, how: _How) -> int:
    client = access.client()
    keep = begin(access, client, job, how.address, how.port)
    if how.detach:
        click.echo(json_text(client.keep(keep.kuuid).to_wire()) if how.json else str(keep.kuuid))
        return 0
    return _follow(client, keep.kuuid, how)


class _GuestCommand(click.Command):
    """A command whose words after `--` are the guest's, whatever stands before: a manifest may name the module."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's, with those words put aside first."""
        split = args.index("--") if "--" in args else len(args)
        ctx.meta[_GUEST_WORDS] = tuple(args[split + 1 :])
        return super().parse_args(ctx, args[:split])


@click.command("run", cls=_GuestCommand, help=HELP, short_help="Runs a file in a new keep, and exits as it did.")
@click.argument("file", metavar="[FILE.wasm]", required=False, type=FILE)
@click.argument("arguments", metavar="[-- ARGS]...", nargs=-1)
@click.option(
    "-f", "--file", "described", metavar="FILE.yaml", type=FILE, help="A manifest that describes the workload."
)
@click.option("--rm", "remove", is_flag=True, help="Remove the keep when the workload has ended.")
@click.option("-d", "--detach", is_flag=True, help="Print the keep's ID and leave it running.")
@click.option("--raw", is_flag=True, help="Its output as it is, control characters and all; into a pipe or a file.")
@creation_options
@guest_options
@door_options
@connected
@output_option
def run(
    file: str | None,
    described: str | None,
    remove: bool,
    detach: bool,
    raw: bool,
    output: str,
    address: str,
    port: int | None,
    access: Access,
    **wishes: Any,  # the options that describe the workload, as click passes them
) -> None:
    if remove and detach:
        raise click.UsageError("--rm and -d exclude each other: nobody is there to remove the keep")
    refuse_raw_terminal(raw)
    wishes["arguments"] = (*wishes["arguments"], *click.get_current_context().meta[_GUEST_WORDS])
    how = _How(address, port, remove, detach, raw, output == "json")
    with ending_signals():
        try:
            code = _run(access, _job(file, described, Wishes(**wishes)), how)
        except KeepfleetError as error:
            show_error(error)
            code = exit_code_of_error(error)
        except KeyboardInterrupt:
            code = INTERRUPTED
    raise SystemExit(code)
