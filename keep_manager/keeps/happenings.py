"""What has happened to a keep, judged by where it stands now and what was told of it before. Pure."""

from __future__ import annotations

from keep_manager.model import Told
from keep_protocol.constants import unit_name
from keep_protocol.keep import KeepInfo
from keep_protocol.sse import EventType, KeepEvent
from keep_protocol.states import Phase, State

_REACHED: dict[str, EventType] = {
    Phase.IDLE.value: EventType.CREATED,
    Phase.AWAITING.value: EventType.STARTED,
    Phase.RUNNING.value: EventType.RUNNING,
    Phase.RESTARTING.value: EventType.RESTARTING,
    Phase.ENDED.value: EventType.ENDED,
    Phase.FAILED.value: EventType.FAILED,
}
"""What has happened to a keep that is found in a phase; the other phases pass, and nobody is told of them."""
_ENDS = (EventType.RESTARTING, EventType.ENDED, EventType.FAILED)
MAX_SENTENCE = 1000
"""Characters of a line: what a keep says of itself is bounded by its loader, and a keep taken over has another."""
_LAST = 1 << 53
"""The place of an end; a loader counts its restarts in a JSON number, and would be at it for ages."""


def _place(happening: EventType, restarts: int) -> int:
    """Where on its way a keep is: created, started, running, restarting, running, restarting, …, and its end."""
    places = {EventType.CREATED: 0, EventType.STARTED: 1, EventType.RUNNING: 2, EventType.RESTARTING: 3}
    if happening not in places:
        return _LAST
    return places[happening] + (2 * restarts if happening in (EventType.RUNNING, EventType.RESTARTING) else 0)


def reached(keep: KeepInfo) -> EventType | None:
    """What the keep's phase says has happened; one whose loader says nothing and whose unit has failed has failed."""
    if not keep.phase and keep.state is State.ERROR:
        return EventType.FAILED
    return _REACHED.get(keep.phase)


def happenings(told: Told | None, keep: KeepInfo, now: float) -> list[KeepEvent]:
    """The events to tell, in order, of a keep of which `told` was the last, None for nothing yet.

    What passed between two looks is told all the same, with the times its outcome knows; of several runs the last.
    """
    happened = reached(keep)
    at = -1 if told is None else _place(told.type, told.restarts)
    if happened is None or at >= _place(happened, keep.restarts):
        return []
    outcome = keep.outcome if happened in _ENDS else None
    began, ended = (None, None) if outcome is None else (outcome.started_at, outcome.ended_at)
    way = [EventType.CREATED, EventType.STARTED, EventType.RUNNING]
    if happened in _ENDS and began is None:
        way = [EventType.CREATED]  # nobody knows whether it was started: it never ran
    passed = [step for step in way if at < _place(step, keep.restarts) < _place(happened, keep.restarts)]
    times = {EventType.RUNNING: began, happened: ended}
    return [KeepEvent(times.get(step) or now, step, keep, _by(step, keep)) for step in (*passed, happened)]


def _by(happened: EventType, keep: KeepInfo) -> str:
    if happened is EventType.CREATED:
        return keep.owner
    return keep.outcome.by if happened is EventType.ENDED and keep.outcome is not None else ""


def sentence(event: KeepEvent) -> str:
    """The event as a line of a log, as in `keep@7.service: ended: exited 3`; printable, whatever the keep says."""
    keep, happened = event.keep, event.type
    text = f"{unit_name(keep.kuuid)}: {happened.value}"
    if happened in (EventType.CREATED, EventType.REMOVED):
        text += f" by {event.by}" if event.by else ""
    elif happened is EventType.STARTED:
        text += f" on {keep.address} port {keep.port}"
    elif happened in _ENDS:
        text += f": {keep.detail}"
    return "".join(c if c.isprintable() else " " for c in text[:MAX_SENTENCE])
