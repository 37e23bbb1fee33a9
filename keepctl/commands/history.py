"""`keepctl history`: the runs of declared jobs."""

from __future__ import annotations

from keep_client.peer import one_line
from keep_protocol.runs import Run, RunState, RunWhy
from keepctl.access import CONNECTION, OUTPUT, Access, connected
from keepctl.arguments import Argument, Command, Option
from keepctl.commands.declared import client_of
from keepctl.describe import moment_text, seconds_text, size_text
from keepctl.display import echo, json_text, show_table

_HEADER = ("RUN", "DUE", "BEGAN", "TOOK", "STATE", "CODE", "WROTE", "ID", "DETAIL")
_LINES = Option(("--lines",), "lines", "With the last lines of what each wrote.")
_WHY = {RunWhy.MISSED: "made up for", RunWhy.ASKED: "asked for"}
_NAME = Argument("name", "NAME")


def row_of(run: Run) -> tuple[str, ...]:
    """One run as a line of the table."""
    skipped = run.state is RunState.SKIPPED
    took = "" if run.began is None or run.ended is None else seconds_text(max(run.ended - run.began, 0.0))
    return (
        str(run.number),
        moment_text(run.scheduled),
        moment_text(None if skipped else run.began),
        took,
        run.state.value,
        "" if run.exit_code is None else str(run.exit_code),
        size_text(run.output_bytes),
        "" if run.kuuid is None else str(run.kuuid),
        "; ".join(text for text in (_WHY.get(run.why, ""), run.text) if text),
    )


@connected
def _history(name: str, lines: bool, output: str, access: Access) -> int:
    with client_of(access) as client:
        runs = client.runs(name)
    if output == "json":
        echo(json_text([run.to_wire() for run in runs]))
        return 0
    show_table(_HEADER, [row_of(run) for run in runs])
    for run in runs if lines else ():
        for line in run.lines:
            echo(one_line(f"{run.number}: {line}"))
    return 0


HISTORY = Command(
    "history",
    _history,
    "Lists the runs of a declared job.",
    """Lists the latest runs of a declared job, the oldest first: when each was due, began and how it ended, and why one
    was skipped. They are kept over restarts and reboots.

    \b
    keepctl history report
    keepctl history --lines report
    """,
    (*CONNECTION, OUTPUT, _LINES),
    (_NAME,),
)
