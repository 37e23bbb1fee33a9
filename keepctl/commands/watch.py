"""`keepctl logs`, `wait` and `events`: what keeps say, how they end, and what happens to them."""

from __future__ import annotations

from keep_client.manager import ManagerClient
from keep_client.text import one_line
from keep_protocol.errors import KeepfleetError
from keep_protocol.outcome import exit_code_of
from keep_protocol.sse import JOURNAL_SOURCE, KEEP_SOURCE, WORKLOAD_SOURCE, EventType, LogLine
from keepctl.access import CONNECTION, KEEP, KEEPS, OUTPUT, Access, connected
from keepctl.arguments import Command, Number, Option
from keepctl.describe import EXIT_CODES, event_text, exit_code_of_error, moment_text, named_ending
from keepctl.display import echo, json_line, json_text, line_printer, output_reader, refuse_raw_terminal
from keepctl.ending import show_error
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
        found = list(client.lines(kuuid, last=min(asked, MAX_LAST)))
        said = [line for line in found if line.source != KEEP_SOURCE]
        if len(said) >= count or len(found) < asked or asked >= MAX_LAST:
            return said[-count:], found[-1].cursor if found else ""
        asked *= 4


@connected
def _logs(
    keep: str,
    output: str,
    follow: bool,
    last: int | None,
    everything: bool,
    timestamps: bool,
    raw: bool,
    access: Access,
) -> int:
    refuse_raw_terminal(raw)
    printer = line_printer(raw, output == "json")

    def show(line: LogLine) -> None:
        if everything or line.source in (WORKLOAD_SOURCE, JOURNAL_SOURCE):
            printer(line, f"{moment_text(line.at)} " if timestamps and output == "text" else "")

    with access.client() as client:
        kuuid, after = resolve(client, keep), ""
        if last is not None and not everything:
            said, after = last_lines(client, kuuid, last)
            for line in said:
                show(line)
            last = None
            if not follow:
                return 0
        lines = client.lines(kuuid, follow, last, after, reader=output_reader())
        try:
            for line in lines:
                show(line)
        finally:
            lines.close()
    return 0


@connected
def _wait(keeps: tuple[str, ...], output: str, access: Access) -> int:
    ended = []
    try:
        with access.client() as client:
            for kuuid in [resolve(client, reference) for reference in keeps]:
                ended.append(client.ended(kuuid))
                if output == "text":
                    echo(one_line(named_ending(ended[-1], len(keeps) > 1)))
    except KeepfleetError as error:
        show_error(error)
        return exit_code_of_error(error)
    if output == "json":
        echo(json_text([keep.to_wire() for keep in ended]))
    return exit_code_of(ended[-1].outcome)


@connected
def _events(keep: str | None, output: str, last: int | None, no_follow: bool, access: Access) -> int:
    past = no_follow or last is not None
    with access.client() as client:
        kuuid = None if keep is None else resolve_past(client, keep) if past else resolve(client, keep)
        following = client.events(kuuid, last, follow=not no_follow, reader=output_reader())
        try:
            for event in following:
                echo(json_line(event.to_wire()) if output == "json" else event_text(event))
                if kuuid is not None and event.type is EventType.REMOVED:
                    break
        finally:
            following.close()
    return 0


LOGS = Command(
    "logs",
    _logs,
    "Shows what a keep printed.",
    """Shows what a keep's guest printed.

    \b
    keepctl logs -f -n 20 web
    """,
    (
        *CONNECTION,
        OUTPUT,
        Option(("-f", "--follow"), "follow", "Go on until it ends; Ctrl-C leaves it running."),
        Option(("-n", "--lines"), "last", "Only the last lines.", Number(1, MAX_LAST)),
        Option(("--all",), "everything", "Also what the keep itself says, and not only its guest."),
        Option(("-t", "--timestamps"), "timestamps", "Each line's time before it."),
        Option(("--raw",), "raw", "The output as it is, control characters and all; into a pipe or a file."),
    ),
    (KEEP,),
)
WAIT = Command(
    "wait",
    _wait,
    "Waits until keeps have ended, and exits as the last one did.",
    "Waits until each keep has ended, says why, and exits as the last one's workload did.\n\n"
    f"\b\nkeepctl wait web && echo done\n\n{EXIT_CODES}",
    (*CONNECTION, OUTPUT),
    (KEEPS,),
)
EVENTS = Command(
    "events",
    _events,
    "Shows what happens to keeps.",
    """Shows what happens to keeps, or to one, line by line; of one until it is removed, else until Ctrl-C.

    \b
    keepctl events -o json
    """,
    (
        *CONNECTION,
        OUTPUT,
        Option(("-n", "--lines"), "last", "First the last events.", Number(1, MAX_LAST)),
        Option(("--no-follow",), "no_follow", "Only what has happened so far, as far as the journal goes back."),
    ),
    (KEEP.replace(metavar="[KEEP]", required=False),),
)
