"""`keepctl logs`, `wait` and `events`: what keeps say, how they end, and what happens to them."""

from __future__ import annotations

import sys
import time

from keep_client.manager import ManagerClient
from keep_client.peer import one_line
from keep_protocol.errors import KeepfleetError
from keep_protocol.outcome import exit_code_of
from keep_protocol.sse import EventType
from keepctl.access import CONNECTION, KEEP, KEEPS, OUTPUT, RECONNECT, Access, connected
from keepctl.arguments import Command, Number, Option, Parsed
from keepctl.describe import EXIT_CODES, event_text, exit_code_of_error, named_ending, stamp_text
from keepctl.display import echo, json_line, json_text, line_printer, output_reader, show_error
from keepctl.references import resolve, resolve_past

MAX_LAST = 100_000
"""The most the manager is asked for in one request."""


def _moment(text: str | None) -> float | None:
    from keepctl.job import parse_moment  # here: 2 ms, and most read it all

    return None if text is None else parse_moment(text, time.time())


def _checked_moment(text: str) -> str:
    _moment(text)
    return text


@connected
def _logs(
    keep: str,
    output: str,
    follow: bool,
    last: int | None,
    everything: bool,
    timestamps: bool,
    raw: bool,
    out: bool,
    err: bool,
    since: str | None,
    until: str | None,
    access: Access,
) -> int:
    stream = "" if out is err else "stdout" if out else "stderr"
    is_text = output == "text"
    by_line = everything or timestamps or not is_text or any(one is not None for one in (last, since, until))
    with access.client() as client:
        kuuid = resolve(client, keep)
        if not by_line and (raw or not sys.stdout.isatty()):
            return _bytes(client, kuuid, follow, stream)
        printer = line_printer(raw, not is_text)
        lines = client.lines(
            *(kuuid, follow, last, "", False, output_reader(), stream),
            since=_moment(since),
            until=_moment(until),
            everything=everything,
        )
        try:
            for line in lines:
                printer(line, f"{stamp_text(line.at)} " if timestamps and is_text else "")
        finally:
            lines.close()
    return 0


def _bytes(client: ManagerClient, kuuid: int, follow: bool, stream: str) -> int:
    """What the guest wrote, byte for byte, both streams in one as they were written."""
    from keep_client.output import Output  # here: 3 ms with the rest, and a terminal is shown lines
    from keepctl.output import NAMES, Streams

    output = Output(client, kuuid, follow, reader=output_reader())
    shown = Streams(True, merged=True, only={name: number for number, name in NAMES.items()}.get(stream))
    arriving = output.pieces(patient=False)
    try:
        for pieces in arriving:
            shown.show(pieces)
    finally:
        arriving.close()
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
    """Shows what a keep's guest printed, on standard output: lines on a terminal; into a pipe or a file, without an
    option that chooses lines, the bytes as they were.

    \b
    keepctl logs -f -n 20 web
    keepctl logs --stderr --since 10m -t web
    keepctl logs --stdout web > out

    TIME is 10m or 2h30m (ago), 2026-11-28 01:25, 01:25:14 (today), with a zone (+01:00, Z) or in yours, or @SECONDS of
    the epoch.
    """,
    (
        *CONNECTION,
        OUTPUT,
        Option(("-f", "--follow"), "follow", "Go on until it ends; Ctrl-C leaves it running."),
        RECONNECT,
        Option(("-n", "--tail", "--lines"), "last", "Only the last lines.", Number(1, MAX_LAST)),
        Option(("--stdout",), "out", "Only its standard output."),
        Option(("--stderr",), "err", "Only its standard error."),
        Option(("--since",), "since", "Only what came then or later.", Parsed(_checked_moment), "TIME"),
        Option(("--until",), "until", "Only what came until then.", Parsed(_checked_moment), "TIME"),
        Option(("--all",), "everything", "Also what the keep itself says, and not only its guest."),
        Option(("-t", "--timestamps"), "timestamps", "Each line's time before it, with its zone."),
        Option(("--raw",), "raw", "Control characters steer this terminal, too."),
    ),
    (KEEP,),
)
WAIT = Command(
    "wait",
    _wait,
    "Waits until keeps have ended, and exits as the last one did.",
    "Waits until each keep has ended, says why, and exits as the last one's workload did.\n\n"
    f"\b\nkeepctl wait web && echo done\n\n{EXIT_CODES}",
    (*CONNECTION, OUTPUT, RECONNECT),
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
        RECONNECT,
        Option(("-n", "--lines"), "last", "First the last events.", Number(1, MAX_LAST)),
        Option(("--no-follow",), "no_follow", "Only what has happened so far, as far as the journal goes back."),
    ),
    (KEEP.replace(metavar="[KEEP]", required=False),),
)
