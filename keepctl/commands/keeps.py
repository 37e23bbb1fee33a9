"""`keepctl ps`, `inspect`, `stop`, `rm`: what is there, and what is to be there no more."""

from __future__ import annotations

import time
from _collections_abc import Callable

from keep_client.peer import ConnectionFailed, authority, one_line, printable
from keep_protocol.errors import KeepfleetError
from keep_protocol.keep import KeepInfo
from keepctl.access import CONNECTION, KEEP, KEEPS, OUTPUT, Access, connected
from keepctl.arguments import Choice, Command, Option, Parsed
from keepctl.describe import age_text, module_text, named_ending, newest_first, state_text, summary
from keepctl.display import echo, json_text, show_failure, show_table
from keepctl.references import resolve

_HEADER = ("ID", "NAME", "STATE", "AGE", "MODULE", "ADDRESS", "DETAIL")


def _row(keep: KeepInfo, now: float) -> tuple[str, ...]:
    where = authority(keep.address, keep.port) if keep.port else ""
    return (
        *(str(keep.kuuid), keep.name, state_text(keep), age_text(keep, now), module_text(keep)),
        *(where, keep.detail),
    )


def _pair(text: str) -> tuple[str, str]:
    from keepctl.job import parse_pair  # here: 2 ms, and most lists are whole

    return parse_pair(text)


@connected
def _ps(output: str, labels: tuple[tuple[str, str], ...], quiet: bool, access: Access) -> int:
    with access.client() as client:
        keeps = newest_first(client.keeps(dict(labels)))
    if output == "json":
        echo(json_text([keep.to_wire() for keep in keeps]))
    elif quiet:
        for keep in keeps:
            echo(str(keep.kuuid))
    else:
        now = time.time()
        show_table(_HEADER, [_row(keep, now) for keep in keeps])
    return 0


@connected
def _inspect(keep: str, output: str, access: Access) -> int:
    with access.client() as client:
        info = client.keep(resolve(client, keep))
    echo(json_text(info.to_wire()) if output == "json" else "\n".join(map(printable, summary(info))))
    return 0


@connected
def _stop(keeps: tuple[str, ...], output: str, access: Access) -> int:
    stopped: list[KeepInfo] = []
    with access.client() as client:

        def one(reference: str) -> None:
            stopped.append(client.stop(resolve(client, reference)))
            if output == "text":
                echo(one_line(named_ending(stopped[-1], len(keeps) > 1)))

        code = _each(keeps, one)
    if output == "json":
        echo(json_text([keep.to_wire() for keep in stopped]))
    return code


@connected
def _remove(keeps: tuple[str, ...], output: str, access: Access) -> int:
    removed: list[int] = []
    with access.client() as client:

        def one(reference: str) -> None:
            kuuid = resolve(client, reference)
            client.remove(kuuid)
            removed.append(kuuid)
            if output == "text":
                echo(f"removed {kuuid}")

        code = _each(keeps, one)
    if output == "json":
        echo(json_text(removed))
    return code


def _each(references: tuple[str, ...], work: Callable[[str], None]) -> int:
    """Does `work` for each; the exit code. A manager that does not answer ends it immediately."""
    code = 0
    for reference in references:
        try:
            work(reference)
        except KeepfleetError as error:
            code = show_failure(error)
            if isinstance(error, ConnectionFailed):
                break
    return code


PS = Command(
    "ps",
    _ps,
    "Lists the keeps.",
    """Lists the keeps, the newest first.

    \b
    keepctl ps --label app=web
    keepctl rm $(keepctl ps -q --label app=web)
    """,
    (
        *CONNECTION,
        OUTPUT,
        Option(("--label",), "labels", "Only keeps so labelled.", Parsed(_pair), "K=V", many=True),
        Option(("-q", "--quiet"), "quiet", "Only the IDs."),
    ),
)
INSPECT = Command(
    "inspect",
    _inspect,
    "Shows everything about a keep.",
    """Prints everything known about a keep: what it runs and was given, where it is, its limits, how its workload ended
    and why.

    \b
    keepctl inspect -o text web
    """,
    (*CONNECTION, OUTPUT.replace(value=Choice("json", "text"), default="json")),
    (KEEP,),
)
STOP = Command(
    "stop",
    _stop,
    "Ends what keeps run.",
    """Ends what keeps run; their outcomes stay to be seen. One that cannot be stopped does not keep the others.

    \b
    keepctl stop web
    """,
    (*CONNECTION, OUTPUT),
    (KEEPS,),
)
REMOVE = Command(
    "rm",
    _remove,
    "Stops and forgets keeps.",
    """Stops and forgets keeps. One that cannot be removed does not keep the others.

    \b
    keepctl rm web 4503599627370495
    """,
    (*CONNECTION, OUTPUT),
    (KEEPS,),
)
