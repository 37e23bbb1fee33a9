"""What a loader that was killed must know again, as JSON. Pure.

Import rule: that of keep_loader.
"""

from __future__ import annotations

from keep_loader.fdstore import is_granted_name
from keep_loader.restart import NO, POLICIES
from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.keep import Outcome, outcome_from_wire
from keep_protocol.states import Phase

SCHEMA = 2
"""A record of another number is never guessed at."""
MAX_RECORD = 256 * 1024
"""Bytes of a record: twice the longest answer to keep-info, which holds most of it; one with a certificate and a
backtrace is 8 KiB."""
_MAX_SECONDS = 1e12
"""JSON has numbers no clock shows, and `1e999` reads as infinity."""
_TEXTS = ("address", "certificate", "detail", "fingerprint", "name", "names", "owner")


class Saved(Record):
    """What the record holds: the phase, where the door listens, the identity it shows, what the keep was called and by
    whom, what its workload is granted and when it is started again, and how it ended last.

    started_at: when its workload was, in seconds of the epoch; restarts: how often it was started again; reruns: when
    it was lately, on the monotonic clock.
    """

    phase: Phase
    address: str = ""
    port: int = 0
    names: str = ""
    fingerprint: str = ""
    certificate: str = ""
    detail: str = ""
    outcome: Outcome | None = None
    name: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    owner: str = ""
    granted: tuple[str, ...] = ()
    policy: str = NO
    restarts: int = 0
    reruns: tuple[float, ...] = ()
    started_at: float | None = None


def encode_saved(saved: Saved) -> bytes:
    """The record as JSON."""
    return strict_json.dumps(
        {
            **saved.fields(),
            "schema": SCHEMA,
            "phase": saved.phase.value,
            "outcome": None if saved.outcome is None else saved.outcome.to_wire(),
            "labels": dict(saved.labels),
            "granted": list(saved.granted),
            "reruns": list(saved.reruns),
        }
    )


def bad_record(why: str) -> KeepfleetError:
    """The error of a record that cannot be read."""
    return KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read the keep's record: {why}")


def decode_saved(data: bytes) -> Saved:
    """The record in `data`. Raises KeepfleetError for anything but a whole record of this schema."""
    value = strict_json.loads_object(data, MAX_RECORD, "the keep's record")
    if value.get("schema") != SCHEMA:
        raise bad_record(f"its schema is not {SCHEMA}")
    phases = {phase.value: phase for phase in Phase}
    phase, port, outcome = value.get("phase"), value.get("port"), value.get("outcome")
    labels, granted, policy = value.get("labels"), value.get("granted"), value.get("policy")
    if not isinstance(phase, str) or phase not in phases:
        raise bad_record("its phase is none that is known")
    if not isinstance(port, int) or isinstance(port, bool) or not 0 <= port <= 65535:
        raise bad_record("its port is none")
    if outcome is not None and not isinstance(outcome, dict):
        raise bad_record("its outcome must be an object")
    if not isinstance(labels, dict) or not all(isinstance(text, str) for text in labels.values()):
        raise bad_record("its labels must be an object of strings")
    if not isinstance(granted, list) or not all(isinstance(name, str) and is_granted_name(name) for name in granted):
        raise bad_record("what its workload is granted must be a list of names")
    if not isinstance(policy, str) or policy not in POLICIES:
        raise bad_record("its restart policy is none that is known")
    restarts, reruns, started_at = value.get("restarts"), value.get("reruns"), value.get("started_at")
    if not isinstance(restarts, int) or isinstance(restarts, bool) or restarts < 0:
        raise bad_record("the number of its restarts is none")
    if not isinstance(reruns, list) or not all(_is_moment(moment) for moment in reruns):
        raise bad_record("its restarts must be a list of moments")
    if started_at is not None and not _is_moment(started_at):
        raise bad_record("its start is no moment")
    texts: dict[str, str] = {}
    for name in _TEXTS:
        text = value.get(name)
        if not isinstance(text, str):
            raise bad_record(f"its {name} must be a string")
        texts[name] = text
    return Saved(
        phases[phase],
        port=port,
        outcome=None if outcome is None else outcome_from_wire(outcome),
        labels=tuple((str(key), str(text)) for key, text in labels.items()),
        granted=tuple(granted),
        policy=policy,
        restarts=restarts,
        reruns=tuple(map(float, reruns)),
        started_at=None if started_at is None else float(str(started_at)),
        **texts,
    )


def _is_moment(value: object) -> bool:
    """Whether `value` is a number of seconds that a clock shows."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < _MAX_SECONDS
