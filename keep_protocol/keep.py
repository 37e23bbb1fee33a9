"""A keep as others see it: one frozen object, the same in keep-info, the manager's replies and the clients.

Import rule: the light part of keep_protocol.
"""

from __future__ import annotations

from enum import Enum

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.limits import DEFAULT_LIMITS, Limits, limits_from_wire
from keep_protocol.members import Members
from keep_protocol.record import Record
from keep_protocol.states import Phase, State

_PHASES = frozenset(["", *(phase.value for phase in Phase)])


class OutcomeKind(Enum):
    """How a workload ended."""

    EXITED = "exited"
    TRAPPED = "trapped"
    LIMITED = "limited"
    KILLED = "killed"
    STOPPED = "stopped"
    LOST = "lost"
    REFUSED = "refused"


class Outcome(Record):
    """How a workload ended, in words and with evidence.

    kind: which way; text: one sentence without a full stop ("exited 3", "trapped: out of bounds memory access");
    exit_code: the guest's, for EXITED; signal: the number, for KILLED; backtrace: the trap's frames, innermost
    first; wall_seconds, cpu_seconds and peak_bytes: of the process that ran it; output_bytes: what it wrote to
    standard output and error; dropped_lines: how many of the keep's lines the journal's limit kept out of it, over all
    its runs; started_at: seconds of the epoch; ended_at: that and wall_seconds, so that a clock that was set meanwhile
    contradicts neither; ended_monotonic: when that was in seconds since the host's boot (CLOCK_MONOTONIC), which nobody
    can set; by: who stopped it, "" when nobody did. None where nobody measured, or not yet.
    """

    __slots__ = (
        "backtrace",
        "by",
        "cpu_seconds",
        "dropped_lines",
        "ended_at",
        "ended_monotonic",
        "exit_code",
        "kind",
        "output_bytes",
        "peak_bytes",
        "signal",
        "started_at",
        "text",
        "wall_seconds",
    )
    kind: OutcomeKind
    text: str
    exit_code: int | None
    signal: int | None
    backtrace: tuple[str, ...]
    wall_seconds: float | None
    cpu_seconds: float | None
    peak_bytes: int | None
    output_bytes: int | None
    started_at: float | None
    ended_at: float | None
    by: str
    dropped_lines: int | None
    ended_monotonic: float | None

    def __init__(
        self,
        kind: OutcomeKind,
        text: str,
        exit_code: int | None = None,
        signal: int | None = None,
        backtrace: tuple[str, ...] = (),
        wall_seconds: float | None = None,
        cpu_seconds: float | None = None,
        peak_bytes: int | None = None,
        output_bytes: int | None = None,
        started_at: float | None = None,
        ended_at: float | None = None,
        by: str = "",
        dropped_lines: int | None = None,
        ended_monotonic: float | None = None,
    ) -> None:
        self._freeze(
            kind=kind,
            text=text,
            exit_code=exit_code,
            signal=signal,
            backtrace=backtrace,
            wall_seconds=wall_seconds,
            cpu_seconds=cpu_seconds,
            peak_bytes=peak_bytes,
            output_bytes=output_bytes,
            started_at=started_at,
            ended_at=ended_at,
            by=by,
            dropped_lines=dropped_lines,
            ended_monotonic=ended_monotonic,
        )

    def with_dropped(self, lines: int) -> Outcome:
        """The same outcome, now that it is known how many lines were dropped."""
        return Outcome(**{**self.fields(), "dropped_lines": lines})  # type: ignore[arg-type] # its own fields

    def to_wire(self) -> dict[str, object]:
        """The outcome as JSON members; `kind` as its word."""
        return {**self.fields(), "kind": self.kind.value, "backtrace": list(self.backtrace)}


class KeepInfo(Record):
    """One keep. `to_wire` keeps the original's member names and adds ours beside them.

    phase: where exactly it is, one of states.Phase's words, or "" where its loader did not say; address and port: where
    the app-loader listens, "" and 0 before start-keep; detail: a sentence for people; fingerprint: `sha256:` and 64 hex
    digits of the DER certificate; certificate: its PEM; unit: the systemd unit; walls: what the loader's probe found
    missing, empty when every wall stands; name, labels and owner: what its creator called it, and who that was; limits:
    what it may use; restarts: how often its workload was started again.
    """

    __slots__ = (
        "address",
        "certificate",
        "detail",
        "fingerprint",
        "kuuid",
        "labels",
        "limits",
        "name",
        "outcome",
        "owner",
        "phase",
        "port",
        "restarts",
        "state",
        "unit",
        "walls",
    )
    kuuid: int
    state: State
    detail: str
    address: str
    port: int
    fingerprint: str
    certificate: str
    unit: str
    walls: tuple[str, ...]
    outcome: Outcome | None
    name: str
    labels: tuple[tuple[str, str], ...]
    owner: str
    limits: Limits
    restarts: int
    phase: str

    def __init__(
        self,
        kuuid: int,
        state: State,
        detail: str = "",
        address: str = "",
        port: int = 0,
        fingerprint: str = "",
        certificate: str = "",
        unit: str = "",
        walls: tuple[str, ...] = (),
        outcome: Outcome | None = None,
        name: str = "",
        labels: tuple[tuple[str, str], ...] = (),
        owner: str = "",
        limits: Limits = DEFAULT_LIMITS,
        restarts: int = 0,
        phase: str = "",
    ) -> None:
        self._freeze(
            kuuid=kuuid,
            state=state,
            detail=detail,
            address=address,
            port=port,
            fingerprint=fingerprint,
            certificate=certificate,
            unit=unit,
            walls=walls,
            outcome=outcome,
            name=name,
            labels=labels,
            owner=owner,
            limits=limits,
            restarts=restarts,
            phase=phase,
        )

    def to_wire(self) -> dict[str, object]:
        """The keep as the original's object (`state`, `kuuid`, `app_loader_bind_port`, `bindaddress`) and ours."""
        return {
            "state": int(self.state),
            "kuuid": self.kuuid,
            "app_loader_bind_port": self.port,
            "bindaddress": self.address,
            "phase": self.phase,
            "detail": self.detail,
            "fingerprint": self.fingerprint,
            "certificate": self.certificate,
            "unit": self.unit,
            "walls": list(self.walls),
            "outcome": None if self.outcome is None else self.outcome.to_wire(),
            "name": self.name,
            "labels": dict(self.labels),
            "owner": self.owner,
            "limits": self.limits.to_wire(),
            "restarts": self.restarts,
        }


def outcome_from_wire(value: dict[str, object]) -> Outcome:
    """The outcome another process sent. Raises KeepfleetError(BAD_REQUEST) on another shape."""
    members = Members(value, "the outcome")
    words = {kind.value: kind for kind in OutcomeKind}
    if members.text("kind") not in words:
        raise KeepfleetError(ErrorKind.BAD_REQUEST, "cannot read the outcome: 'kind' is none that is known")
    return Outcome(
        kind=words[members.text("kind")],
        text=members.text("text"),
        exit_code=members.maybe_number("exit_code"),
        signal=members.maybe_number("signal"),
        backtrace=members.lines("backtrace"),
        wall_seconds=members.maybe_seconds("wall_seconds"),
        cpu_seconds=members.maybe_seconds("cpu_seconds"),
        peak_bytes=members.maybe_number("peak_bytes"),
        output_bytes=members.maybe_number("output_bytes"),
        started_at=members.maybe_seconds("started_at"),
        ended_at=members.maybe_seconds("ended_at"),
        by=members.text("by"),
        dropped_lines=members.maybe_number("dropped_lines"),
        ended_monotonic=members.maybe_seconds("ended_monotonic"),
    )


def keep_from_wire(value: dict[str, object]) -> KeepInfo:
    """The keep another process described. Raises KeepfleetError(BAD_REQUEST) on another shape."""
    members = Members(value, "the keep")
    numbers = {int(state): state for state in State}
    if members.number("state") not in numbers:
        raise KeepfleetError(ErrorKind.BAD_REQUEST, "cannot read the keep: 'state' is none that is known")
    phase = members.text("phase")
    if phase not in _PHASES:
        raise KeepfleetError(ErrorKind.BAD_REQUEST, "cannot read the keep: 'phase' is none that is known")
    outcome = members.mapping("outcome")
    return KeepInfo(
        kuuid=members.number("kuuid"),
        state=numbers[members.number("state")],
        detail=members.text("detail"),
        address=members.text("bindaddress"),
        port=members.number("app_loader_bind_port"),
        fingerprint=members.text("fingerprint"),
        certificate=members.text("certificate"),
        unit=members.text("unit"),
        walls=members.lines("walls"),
        outcome=None if outcome is None else outcome_from_wire(outcome),
        name=members.text("name"),
        labels=members.labels("labels"),
        owner=members.text("owner"),
        limits=limits_from_wire(members.mapping("limits") or {}),
        restarts=members.number("restarts"),
        phase=phase,
    )
