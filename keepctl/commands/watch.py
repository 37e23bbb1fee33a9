"""`keepctl logs`, `wait` and `events`: what keeps say, how they end, and what happens to them."""

from __future__ import annotations

from contextlib import closing

import click

from keep_client.manager import ManagerClient
from keep_client.text import one_line
from keep_protocol.sse import JOURNAL_SOURCE, KEEP_SOURCE, WORKLOAD_SOURCE, EventType, LogLine
from keepctl.commands.access import Access, Reference, connected, keep_argument, keeps_argument, output_option
from keepctl.commands.run import refuse_raw_terminal
from keepctl.commands.shared import exiting_as_the_workload
from keepctl.describe import EXIT_CODES, event_text, exit_code_of, moment_text, named_ending
from keepctl.display import json_line, json_text, line_printer, output_reader
from keepctl.references import resolve, resolve_past

MAX_LAST = 100_000
"""The most the manager is asked for in one request."""
_OWN_LINES = 32
"""Of a keep, from its start to its end, and room for a few runs more."""


def last_lines(client: ManagerClient, kuuid: int, count: int) -> tuple[list[LogLine], str]:
    """The last `count` lines of the guest's, or of its that were dropped, and the cursor to go on after.

    The manager counts the keep's own lines too, and a keep that is started again says a few at each start.
    """
    asked = count + _OWN_LINES
    while True:
        with closing(client.lines(kuuid, last=min(asked, MAX_LAST))) as lines:
            found = list(lines)
        said = [line for line in found if line.source != KEEP_SOURCE]
        if len(said) >= count or len(found) < asked or asked >= MAX_LAST:
            return said[-count:], found[-1].cursor if found else ""
        asked *= 4


@click.command("logs", short_help="Shows what a keep printed.")
@keep_argument
@connected
@output_option
@click.option("-f", "--follow", is_flag=True, help="Go on until it ends; Ctrl-C leaves it running.")
@click.option("-n", "--lines", "last", type=click.IntRange(1, MAX_LAST), help="Only the last lines.")
@click.option("--all", "everything", is_flag=True, help="Also what the keep itself says, and not only its guest.")
@click.option("-t", "--timestamps", is_flag=True, help="Each line's time before it.")
@click.option("--raw", is_flag=True, help="The output as it is, control characters and all; into a pipe or a file.")
def logs(
    keep: str,
    output: str,
    follow: bool,
    last: int | None,
    everything: bool,
    timestamps: bool,
    raw: bool,
    access: Access,
) -> None:
    """Shows what a keep's guest printed.

    \b
    keepctl logs -f -n 20 web
    """
    refuse_raw_terminal(raw)
    client, kuuid = access.keep(keep)
    printer = line_printer(raw, output == "json")

    def show(line: LogLine) -> None:
        if everything or line.source in (WORKLOAD_SOURCE, JOURNAL_SOURCE):
            if timestamps and output == "text":
                click.echo(f"{moment_text(line.at)} ", nl=False)
            printer(line)

    after = ""
    if last is not None and not everything:
        said, after = last_lines(client, kuuid, last)
        for line in said:
            show(line)
        last = None
        if not follow:
            return
    with closing(client.lines(kuuid, follow, last, after, reader=output_reader())) as lines:
        for line in lines:
            show(line)


@click.command(
    "wait",
    short_help="Waits until keeps have ended, and exits as the last one did.",
    help="Waits until each keep has ended, says why, and exits as the last one's workload did.\n\n"
    f"\b\nkeepctl wait web && echo done\n\n{EXIT_CODES}",
)
@keeps_argument
@connected
@output_option
def wait(keeps: tuple[str, ...], output: str, access: Access) -> None:
    ended = []
    with exiting_as_the_workload():
        client = access.client()
        for kuuid in [resolve(client, reference) for reference in keeps]:
            keep = client.ended(kuuid)
            ended.append(keep)
            if output == "text":
                click.echo(one_line(named_ending(keep, len(keeps) > 1)))
    if output == "json":
        click.echo(json_text([keep.to_wire() for keep in ended]))
    raise SystemExit(exit_code_of(ended[-1].outcome))


@click.command("events", short_help="Shows what happens to keeps.")
@click.argument("keep", metavar="[KEEP]", type=Reference(), required=False)
@connected
@output_option
@click.option("-n", "--lines", "last", type=click.IntRange(1, MAX_LAST), help="First the last events.")
@click.option("--no-follow", is_flag=True, help="Only what has happened so far, as far as the journal goes back.")
def events(keep: str | None, output: str, last: int | None, no_follow: bool, access: Access) -> None:
    """Shows what happens to keeps, or to one, line by line; of one until it is removed, else until Ctrl-C.

    \b
    keepctl events -o json
    """
    client = access.client()
    past = no_follow or last is not None
    kuuid = None if keep is None else resolve_past(client, keep) if past else resolve(client, keep)
    with closing(client.events(kuuid, last, follow=not no_follow, reader=output_reader())) as following:
        for event in following:
            if output == "json":
                click.echo(json_line(event.to_wire()))
            else:
                click.echo(event_text(event))
            if kuuid is not None and event.type is EventType.REMOVED:
                return
