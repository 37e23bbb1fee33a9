"""A keep in lines for people. Pure."""

from __future__ import annotations

import datetime

from keep_client.endpoint import authority
from keep_client.text import one_line
from keep_protocol.keep import KeepInfo, Outcome
from keep_protocol.limits import Limits
from keep_protocol.sse import EventType, KeepEvent
from keepctl.endings import ending
from keepctl.values import seconds_text, size_text


def moment_text(at: float | None) -> str:
    """A time of day with its date, in the zone of who reads it; "" for None, and seconds where no calendar has it."""
    if at is None:
        return ""
    try:
        return f"{datetime.datetime.fromtimestamp(at, datetime.UTC).astimezone():%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError):
        return f"@{at:.0f}"


def event_text(event: KeepEvent) -> str:
    """One line: when, what, to which keep, and how it is now or who asked for it."""
    keep = event.keep
    named = f" {keep.name}" if keep.name else ""
    by = f" (by {event.by})" if event.by and event.type is not EventType.ENDED else ""
    now = "" if event.type is EventType.REMOVED else f" {ending(keep)}"
    return one_line(f"{moment_text(event.at)} {event.type.value} {keep.kuuid}{named}{now}{by}")


def _limits(limits: Limits) -> str:
    return (
        f"memory {size_text(limits.memory_bytes)}, time {seconds_text(limits.wall_seconds)}, "
        f"processor time {seconds_text(limits.cpu_seconds)}, processors {limits.cpu_percent / 100:g}, "
        f"stack {size_text(limits.stack_bytes)}, tables {limits.table_elements}, tasks {limits.tasks}, "
        f"io weight {limits.io_weight}, {limits.log_lines_per_second} lines a second"
    )


def _outcome(outcome: Outcome) -> list[tuple[str, str]]:
    used = (
        ("ran", seconds_text(outcome.wall_seconds)),
        ("processor", seconds_text(outcome.cpu_seconds)),
        ("peak", size_text(outcome.peak_bytes)),
        ("output", size_text(outcome.output_bytes)),
        ("lines dropped", str(outcome.dropped_lines or "")),
    )
    return [
        ("outcome", outcome.text),
        *(("", f"  {frame}") for frame in outcome.backtrace),
        ("used", ", ".join(f"{name} {value}" for name, value in used if value)),
        ("from", moment_text(outcome.started_at)),
        ("to", moment_text(outcome.ended_at)),
        ("by", outcome.by),
    ]


def summary(keep: KeepInfo) -> list[str]:
    """Everything a person wants to know, one fact a line; what is empty is left out."""
    facts = [
        ("keep", f"{keep.kuuid} {keep.name}".strip()),
        ("state", f"{int(keep.state)} {keep.state.name.lower()}: {keep.detail}"),
        *(_outcome(keep.outcome) if keep.outcome is not None else ()),
        ("address", authority(keep.address, keep.port) if keep.port else ""),
        ("fingerprint", keep.fingerprint),
        ("unit", keep.unit),
        ("owner", keep.owner),
        ("labels", ", ".join(f"{name}={value}" for name, value in keep.labels)),
        ("limits", _limits(keep.limits)),
        ("restarts", str(keep.restarts) if keep.restarts else ""),
        ("isolation failures", ", ".join(keep.isolation_failures)),
    ]
    return [f"{name:<12} {value}" for name, value in facts if value]
