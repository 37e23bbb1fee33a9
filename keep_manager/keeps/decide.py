"""What follows from what is known about keeps, and what has happened to them. Pure: data in, data out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from keep_manager.keeps.policy import kind_of
from keep_manager.model import KEEPS_OUTPUT, NAMED_STARTS, LastEvent, LoaderGone, UnitEnd, UnitState
from keep_protocol.api import ListKeeps
from keep_protocol.constants import KUUID_BITS, SLICE_GROUPS, unit_name
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.identity import ANY_CERTIFICATE
from keep_protocol.keep import KeepInfo, KeepReport, Outcome, OutcomeKind
from keep_protocol.outcome import RUN_AGAIN
from keep_protocol.record import KeepRecord
from keep_protocol.spec import KeepSpec
from keep_protocol.sse import EventType, KeepEvent
from keep_protocol.states import STATE_OF, Phase, State

LOCALHOST = "127.0.0.1"
ENDED = (State.COMPLETE, State.ERROR)
KEEPS_IN_GROUP = 32
"""A thousand keeps are 32 slices of so many."""
NOT_STARTED = (Phase.BOOTING, Phase.IDLE, Phase.OPENING)
"""The phases in which a keep's workload has not been asked for."""
OVER = (Phase.ENDED, Phase.FAILED)
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


def is_keep(unit: UnitState) -> bool:
    """Whether the unit stands for a keep. An inactive one without a job only lingers until systemd collects it."""
    return unit.load == "loaded" and (unit.active != "inactive" or unit.job == "start")


def answers(unit: UnitState) -> bool:
    """Whether a loader can be expected behind the unit."""
    return unit.active in ("active", "reloading") and unit.sub != "exited"


def at_rest(unit: UnitState) -> bool:
    """Whether the unit has no process, and will have none: its keep has ended, or was given up."""
    return unit.active == "failed" or (unit.active == "active" and unit.sub == "exited")


def between_loaders(unit: UnitState, error: KeepfleetError | None) -> bool:
    """Whether the unit's loader has just ended and systemd is about to start another, or to give the unit up.

    A unit is "active" still until systemd has noticed, and "deactivating" without a job until it has tidied up.
    """
    if unit.active == "deactivating":
        return unit.job != "stop"
    return unit.sub == "auto-restart" or (answers(unit) and isinstance(error, LoaderGone))


def silent(
    unit: UnitState, end: UnitEnd, error: KeepfleetError | None, spec: KeepSpec, last: KeepReport | None
) -> KeepReport:
    """The report in the stead of a loader that did not answer, or could not be expected to; `last` is its latest.

    A keep whose next loader is about to come stays in the state it was in, as that will be its state again. One whose
    loader is slow stays as it was: on a busy host that may not run for seconds, and one that hangs is ended by systemd.
    """
    base = last or KeepReport(State.UNDEFINED, unit.kuuid, restart=spec.restart, uploaders=spec.uploaders)
    why = f", {end.result}" if end.result and end.result != "success" else ""
    where = f"the unit is {unit.active} ({unit.sub}{why})"
    if between_loaders(unit, error):
        return _between(base, end, where)
    if unit.active in ("activating", "inactive"):
        state = State.UNDEFINED if last is None else base.state
        return base.replace(state=state, phase="", detail=f"starting: {where}")
    if unit.active == "deactivating":
        return base.replace(phase="", detail=f"stopping: {where}")
    said = where if error is None or not answers(unit) else f"{error.message}; {where}"
    if error is not None and error.kind is ErrorKind.UNAVAILABLE and answers(unit):
        return last or base.replace(detail=said)
    return base.replace(state=State.ERROR, phase="", detail=said)


def recorded(record: KeepRecord | None, why: str, now: float) -> KeepReport | None:
    """The report of a keep that has no loader any more, by the record that this left; None where that does not say that
    the keep was started.

    why: what ended it, in words, where it was not its workload; now: in seconds since boot.
    """
    if record is None or record.phase in NOT_STARTED:
        return None
    report = record.report
    outcome = report.outcome
    if record.phase in OVER:
        if outcome is not None and outcome.ended_monotonic is not None:
            outcome = outcome.replace(ended_monotonic=min(outcome.ended_monotonic, now))  # or it would be kept for ever
        return report.replace(state=STATE_OF[record.phase], outcome=outcome)
    lost = Outcome(OutcomeKind.LOST, f"lost: {why}", started_at=record.private.started_at)
    return report.replace(state=State.ERROR, phase=Phase.FAILED.value, detail=lost.text, outcome=lost)


def why_lost(end: UnitEnd) -> str:
    """What ended a keep's loader while its workload had not ended, in words."""
    if end.result in ("", "success"):
        return "its loader was ended"
    return f"its loader failed and was not started again ({end.result})"


def before_boot(record: KeepRecord | None, kuuid: int, now: float) -> KeepReport:
    """The report of a keep that was started in an earlier boot of the host."""
    why = "the host was restarted"
    report = recorded(record, why, now)
    if report is None:
        lost = Outcome(OutcomeKind.LOST, f"lost: {why}")
        return KeepReport(State.ERROR, kuuid, phase=Phase.FAILED.value, detail=lost.text, outcome=lost)
    return report


def refuse_output(report: KeepReport | None, kuuid: int) -> None:
    """Raises KeepfleetError(CONFLICT) for a keep whose loader keeps no output."""
    if report is not None and report.control_version < KEEPS_OUTPUT:
        raise KeepfleetError(
            ErrorKind.CONFLICT,
            f"cannot read the output of keep {kuuid}: it was made by a version before, which leaves it to the journal; "
            f"run: journalctl -u {unit_name(kuuid)}",
        )


def _between(base: KeepReport, end: UnitEnd, where: str) -> KeepReport:
    """The keep while it has no loader for a moment: its workload is run again, or its loader has failed."""
    count = f", started again {end.restarts} times" if end.restarts > 1 else ""
    if end.status == RUN_AGAIN or base.phase == Phase.RESTARTING.value:
        how = f"the workload {base.outcome.text}; " if base.outcome is not None else ""
        return base.replace(
            state=STATE_OF[Phase.RESTARTING], phase=Phase.RESTARTING.value, detail=f"restarting: {how}{where}{count}"
        )
    return base.replace(phase="", detail=f"restarting: its loader has just ended; {where}{count}")


def starting(kuuid: int, spec: KeepSpec) -> KeepReport:
    """The report of a keep whose unit is being made."""
    return KeepReport(
        State.UNDEFINED,
        kuuid,
        detail="starting: its unit is being made",
        restart=spec.restart,
        uploaders=spec.uploaders,
    )


def adopted(spec: KeepSpec | None, claims: KeepSpec) -> KeepSpec:
    """What a keep is: what its unit says; of a unit of the version before, which says nothing, its loader's claims."""
    return claims if spec is None else spec


def candidate_ports(address: str, port: int | None, first: int, last: int) -> Iterator[int]:
    """The ports to try in order: where none was asked for, all in first … last; on 127.0.0.1 the one asked for,
    every one after it in first … last, and then from first on; elsewhere exactly the one asked for."""
    if port is None:
        yield from range(first, last + 1)
        return
    yield port
    if address == LOCALHOST:
        yield from range(max(port + 1, first), last + 1)
        yield from range(first, min(port, last + 1))


def groups_for(keeps: int) -> int:
    """Over how many slices keeps are spread when there are so many and one more comes.

    A slice stays loaded when its last keep has gone, and PID 1 looks at all of them, and at every unit in a new one's
    slice, at each start: as many slices as keeps in each is the least for it.
    """
    return min(keeps // KEEPS_IN_GROUP + 1, SLICE_GROUPS)


def in_group(drawn: int, group: int) -> int:
    """The ID drawn, moved to one whose keep lives in the slice of that number (constants.slice_name)."""
    return drawn - drawn % SLICE_GROUPS + group


def check_kuuid_free(kuuid: int, taken: set[int]) -> bool:
    """Whether `kuuid`, just drawn, may become a keep's ID."""
    return 0 < kuuid < 1 << KUUID_BITS and kuuid not in taken


def refuse_start(info: KeepReport | KeepInfo) -> None:
    """Raises KeepfleetError unless a keep that answered `info` may be started now."""
    if info.isolation_failures:
        raise KeepfleetError(
            ErrorKind.ISOLATION_FAILURE,
            f"cannot start keep {info.kuuid}: its isolation check failed; its workload would not be contained",
            info.isolation_failures,
        )
    if info.state is not State.LISTENING:
        raise KeepfleetError(
            ErrorKind.CONFLICT, f"cannot start keep {info.kuuid}: it is {info.state.name.lower()}: {info.detail}"
        )


def refuse_giving(report: KeepReport, uploaders: tuple[str, ...]) -> None:
    """Raises KeepfleetError where a loader of the version before would let others than `uploaders` send the workload,
    and with it have what this start gives."""
    if report.control_version < NAMED_STARTS and ANY_CERTIFICATE not in uploaders:
        raise KeepfleetError(
            ErrorKind.CONFLICT,
            f"cannot start keep {report.kuuid} with a workload's options: its loader is of the version before, which "
            "lets every certificate upload; create another keep",
        )


def refuse_streaming(report: KeepReport) -> None:
    """Raises KeepfleetError where the keep's loader takes no standard input that is streamed."""
    if report.control_version < KEEPS_OUTPUT:
        raise KeepfleetError(
            ErrorKind.CONFLICT,
            f"cannot start keep {report.kuuid} with a standard input that is streamed: its loader is of a version "
            "before; create another keep",
        )


def refuse_stop(info: KeepInfo, error: KeepfleetError) -> None:
    """Raises what a stop that met `error` is refused with; returns where it may work in a moment, as `info` shows."""
    if error.kind not in (ErrorKind.CONFLICT, ErrorKind.UNAVAILABLE):
        raise error
    if error.kind is ErrorKind.CONFLICT and info.state is State.LISTENING:
        raise KeepfleetError(
            ErrorKind.CONFLICT, f"cannot stop keep {info.kuuid}: nothing runs in it, it is listening: {info.detail}"
        ) from error


def name_taken(name: str, holder: int) -> KeepfleetError:
    """The error for a name that another living keep of the owner has."""
    return KeepfleetError(
        ErrorKind.CONFLICT,
        f"cannot make a keep with the name {name!r}: your keep {holder} has it; remove that one, or replace it",
    )


class Page(Record):
    """Some keeps by ID; next: the ID to ask for more `after`, None when these are the last."""

    keeps: tuple[KeepInfo, ...]
    next: int | None = None


def page(keeps: Iterable[KeepInfo], request: ListKeeps) -> Page:
    """Those of `keeps` that were asked for, by ID."""
    labels = set(request.labels)
    found = sorted(
        (keep for keep in keeps if keep.kuuid > request.after and labels <= set(keep.labels)),
        key=lambda keep: keep.kuuid,
    )
    if request.limit and len(found) > request.limit:
        return Page(tuple(found[: request.limit]), found[request.limit - 1].kuuid)
    return Page(tuple(found))


def by_creation(keeps: Iterable[KeepInfo]) -> list[KeepInfo]:
    """The keeps in the order in which they were made; those of which nothing says when come first."""
    return sorted(keeps, key=lambda keep: (keep.created_at or 0.0, keep.kuuid))


class Census(Record):
    """How many keeps there are, how many of them are started, and which are in state 15 and why."""

    keeps: int
    started: int
    troubled: tuple[str, ...]

    def __str__(self) -> str:
        trouble = f", {len(self.troubled)} in error" if self.troubled else ""
        return f"{self.keeps} keep{'' if self.keeps == 1 else 's'}, {self.started} started{trouble}"


def census(keeps: Sequence[KeepInfo]) -> Census:
    """Counts `keeps`."""
    return Census(
        keeps=len(keeps),
        started=sum(keep.state is State.STARTED for keep in keeps),
        troubled=tuple(f"{keep.unit}: {keep.detail}" for keep in keeps if keep.state is State.ERROR),
    )


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
    None is later than what comes after it: what was noticed late counts as of when it was noticed, unless the clock was
    set back since.
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
    earliest = latest.at if latest is not None and latest.at <= now else 0.0
    after, found = now, list[KeepEvent]()
    for step in (happened, *reversed(passed)):
        after = min(times.get(step) or after, after)
        found.append(KeepEvent(max(after, earliest), step, keep, _by(step, keep)))
    return found[::-1]


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
    return running and kind_of(event.keep.kind).uploaded


def audit(keep: KeepInfo) -> str:
    """The line of the security log about an upload: which keep, from whom, and what; printable, whatever it says."""
    by, module = keep.uploaded_by, keep.module
    who = "a client its loader does not name" if by is None else f"{by.name} (serial {by.serial}, {by.fingerprint})"
    what = "a module its loader does not name" if module is None else f"module {module.digest} of {module.bytes} bytes"
    text = f"{unit_name(keep.kuuid)} of {keep.owner or 'no owner'}: {what} was uploaded by {who}"
    return "".join(c if c.isprintable() else " " for c in text[:MAX_SENTENCE])
