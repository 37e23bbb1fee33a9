"""What has happened to a keep, by the phase it is in and its latest event. Pure."""

from __future__ import annotations

from keep_manager.model import LastEvent
from keep_protocol.constants import unit_name
from keep_protocol.keep import KeepInfo
from keep_protocol.kinds import Kind
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
"""What has happened to a keep that is found in a phase; the other phases pass without an event."""
_ENDS = (EventType.RESTARTING, EventType.ENDED, EventType.FAILED)
MAX_SENTENCE = 1000
"""Characters of a line: what a keep says of itself is bounded by its loader, and a keep taken over has another."""
_LAST = 1 << 53
"""The place of an end; a loader counts its restarts in a JSON number, and would be at it for ages."""


def _place(type_: EventType, restarts: int) -> int:
    """Where on its way a keep is: created, started, running, restarting, running, restarting, …, and its end."""
    places = {EventType.CREATED: 0, EventType.STARTED: 1, EventType.RUNNING: 2, EventType.RESTARTING: 3}
    if type_ not in places:
        return _LAST
    return places[type_] + (2 * restarts if type_ in (EventType.RUNNING, EventType.RESTARTING) else 0)


def reached(keep: KeepInfo) -> EventType | None:
    """What the keep's phase says has happened; one whose loader says nothing and whose unit has failed has failed."""
    if not keep.phase and keep.state is State.ERROR:
        return EventType.FAILED
    return _REACHED.get(keep.phase)


def events_of(latest: LastEvent | None, keep: KeepInfo, now: float) -> list[KeepEvent]:
    """The events to record, in order, of a keep of which `latest` was the last, None for none yet.

    What passed between two looks is recorded all the same, with the times its outcome knows; of several runs the last.
    """
    happened = reached(keep)
    at = -1 if latest is None else _place(latest.type, latest.restarts)
    if happened is None or at >= _place(happened, keep.restarts):
        return []
    outcome = keep.outcome if happened in _ENDS else None
    began, ended = (None, None) if outcome is None else (outcome.started_at, outcome.ended_at)
    way = [EventType.CREATED, EventType.STARTED, EventType.RUNNING]
    if happened in _ENDS and began is None:
        way = [EventType.CREATED]  # it never ran, and nothing says whether it was started
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
    elif happened is EventType.STARTED and keep.port:  # a keep of a stored module listens nowhere
        text += f" on {keep.address} port {keep.port}"
    elif happened in _ENDS:
        text += f": {keep.detail}"
    return "".join(c if c.isprintable() else " " for c in text[:MAX_SENTENCE])


def is_upload(latest: LastEvent | None, event: KeepEvent) -> bool:
    """Whether `event`, which follows `latest`, is the one by which a keep has accepted its workload."""
    before = (None, EventType.CREATED, EventType.STARTED)
    running = event.type is EventType.RUNNING and (None if latest is None else latest.type) in before
    return running and event.keep.kind is Kind.UPLOAD


def audit(keep: KeepInfo) -> str:
    """The line of the security log about an upload: which keep, from whom, and what; printable, whatever it says."""
    by, module = keep.uploaded_by, keep.module
    who = "a client its loader does not name" if by is None else f"{by.name} (serial {by.serial}, {by.fingerprint})"
    what = "a module its loader does not name" if module is None else f"module {module.digest} of {module.bytes} bytes"
    text = f"{unit_name(keep.kuuid)} of {keep.owner or 'no owner'}: {what} was uploaded by {who}"
    return "".join(c if c.isprintable() else " " for c in text[:MAX_SENTENCE])
