"""`keepctl top`: what keeps use, beside what they may."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence

import click

from keep_client.manager import ManagerClient
from keep_protocol.keep import KeepInfo
from keep_protocol.states import State
from keepctl import usage
from keepctl.commands.access import Access, connected, output_option
from keepctl.display import json_line, json_text, show_table
from keepctl.usage import NOTHING, Usage
from keepctl.values import seconds_text, size_text

_HEADER = ("ID", "NAME", "STATE", "CPU", "CPU TIME", "CPU LIMIT", "MEMORY", "GUEST MAY", "TASKS", "RESTARTS")
_CLEAR = "\x1b[H\x1b[2J"


def _used(keep: KeepInfo, measured: Mapping[str, Usage]) -> Usage:
    """What systemd counts now; of an ended workload, what its outcome says it used."""
    if keep.outcome is not None:
        return Usage(keep.outcome.peak_bytes, keep.outcome.cpu_seconds, None)
    return measured.get(keep.unit, NOTHING)


def row(keep: KeepInfo, used: Usage, before: Usage = NOTHING, seconds: float = 0.0) -> tuple[str, ...]:
    """A keep's line; `before` is what it had used `seconds` ago. Pure."""
    percent = ""
    if seconds > 0 and used.cpu_seconds is not None and before.cpu_seconds is not None:
        percent = f"{max(0.0, used.cpu_seconds - before.cpu_seconds) / seconds * 100:.0f} %"
    return (
        str(keep.kuuid),
        keep.name,
        f"{int(keep.state)} {keep.state.name.lower()}",
        percent,
        seconds_text(used.cpu_seconds),
        f"{keep.limits.cpu_percent} %",
        size_text(used.memory_bytes),
        size_text(keep.limits.memory_bytes),
        str(used.tasks) if used.tasks is not None else "",
        str(keep.restarts),
    )


def _shown(client: ManagerClient, everything: bool) -> list[KeepInfo]:
    return [keep for keep in client.keeps() if everything or keep.state in (State.LISTENING, State.STARTED)]


def _wire(keeps: Sequence[KeepInfo], measured: Mapping[str, Usage]) -> list[dict[str, object]]:
    return [
        {"kuuid": keep.kuuid, "name": keep.name, "state": int(keep.state), "restarts": keep.restarts}
        | vars(_used(keep, measured))
        | {"limits": keep.limits.to_wire()}
        for keep in keeps
    ]


def _watch(client: ManagerClient, everything: bool, seconds: float, pause: Callable[[float], None], json: bool) -> None:
    before: Mapping[str, Usage] = {}
    then = 0.0
    while True:
        keeps = _shown(client, everything)
        measured, now = usage.measure(keep.unit for keep in keeps), time.monotonic()
        if json:
            click.echo(json_line(_wire(keeps, measured)))
        else:
            click.echo(_CLEAR if sys.stdout.isatty() else "", nl=False)
            elapsed = now - then if then else 0.0
            rows = [row(keep, _used(keep, measured), before.get(keep.unit, NOTHING), elapsed) for keep in keeps]
            show_table(_HEADER, rows)
        before, then = measured, now
        pause(seconds)


@click.command("top", short_help="Shows what keeps use.")
@connected
@output_option
@click.option("-a", "--all", "everything", is_flag=True, help="Also keeps that have ended, with what they used.")
@click.option("-w", "--watch", is_flag=True, help="Again and again, with the processors used meanwhile, until Ctrl-C.")
@click.option(
    "--interval", type=click.FloatRange(0.1, 3600), default=2.0, show_default=True, help="Seconds between, with -w."
)
def top(output: str, everything: bool, watch: bool, interval: float, access: Access) -> None:
    """Shows what running keeps use: processor time, memory and tasks of their units, as this host's systemd counts
    them. Of keeps on another host only the limits are known here.

    \b
    keepctl top --watch
    """
    client = access.client()
    if watch:
        _watch(client, everything, interval, time.sleep, output == "json")
    keeps = _shown(client, everything)
    measured = usage.measure(keep.unit for keep in keeps)
    if output == "json":
        click.echo(json_text(_wire(keeps, measured)))
    else:
        show_table(_HEADER, [row(keep, _used(keep, measured)) for keep in keeps])
