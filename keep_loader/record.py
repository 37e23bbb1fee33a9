"""The keep's record on disk: what a loader that was killed must know again, and what it then does.

Import rule: that of keep_loader.
"""

from __future__ import annotations

import os

from keep_loader.fdstore import STORED_NAMES
from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import Outcome, OutcomeKind, outcome_from_wire
from keep_protocol.record import Record
from keep_protocol.states import Event, Phase

SCHEMA = 1
"""A record of another number is never guessed at."""
MAX_RECORD = 128 * 1024
"""Bytes of a record; one with a certificate and a backtrace is 8 KiB."""


class Saved(Record):
    """What the record holds: the phase, where the door listens, the identity it shows, and how it ended."""

    __slots__ = ("address", "certificate", "detail", "fingerprint", "names", "outcome", "phase", "port")
    phase: Phase
    address: str
    port: int
    names: str
    fingerprint: str
    certificate: str
    detail: str
    outcome: Outcome | None

    def __init__(
        self,
        phase: Phase,
        address: str = "",
        port: int = 0,
        names: str = "",
        fingerprint: str = "",
        certificate: str = "",
        detail: str = "",
        outcome: Outcome | None = None,
    ) -> None:
        self._freeze(
            phase=phase,
            address=address,
            port=port,
            names=names,
            fingerprint=fingerprint,
            certificate=certificate,
            detail=detail,
            outcome=outcome,
        )


def encode_saved(saved: Saved) -> bytes:
    """The record as JSON."""
    outcome = None if saved.outcome is None else saved.outcome.to_wire()
    return strict_json.dumps({**saved.fields(), "schema": SCHEMA, "phase": saved.phase.value, "outcome": outcome})


def _bad(why: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read the keep's record: {why}")


def decode_saved(data: bytes) -> Saved:
    """The record in `data`. Raises KeepfleetError for anything but a whole record of this schema."""
    value = strict_json.loads_object(data, MAX_RECORD, "the keep's record")
    if value.get("schema") != SCHEMA:
        raise _bad(f"its schema is not {SCHEMA}")
    phases = {phase.value: phase for phase in Phase}
    phase, port, outcome = value.get("phase"), value.get("port"), value.get("outcome")
    if not isinstance(phase, str) or phase not in phases:
        raise _bad("its phase is none that is known")
    if not isinstance(port, int) or isinstance(port, bool) or not 0 <= port <= 65535:
        raise _bad("its port is none")
    if outcome is not None and not isinstance(outcome, dict):
        raise _bad("its outcome must be an object")
    texts: dict[str, str] = {}
    for name in ("address", "names", "fingerprint", "certificate", "detail"):
        text = value.get(name)
        if not isinstance(text, str):
            raise _bad(f"its {name} must be a string")
        texts[name] = text
    return Saved(phases[phase], port=port, outcome=None if outcome is None else outcome_from_wire(outcome), **texts)


def write_record(path: str, saved: Saved) -> None:
    """Replaces the record at `path` whole: a reader sees the old one or the new one. Raises OSError.

    Not synced: the directory is a tmpfs, and a keep does not outlive the machine's power.
    """
    new = path + ".new"
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:
        file.write(encode_saved(saved))
    os.replace(new, path)


def read_record(path: str) -> Saved | None:
    """The record at `path`, None where there is none. Raises KeepfleetError when it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            return decode_saved(file.read(MAX_RECORD + 1))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _bad(str(error.strerror)) from error


class Resumption(Record):
    """How a starting loader goes on: the event to move by, and for an end what to show."""

    __slots__ = ("event", "outcome", "why")
    event: Event
    why: str
    outcome: Outcome | None

    def __init__(self, event: Event, why: str = "", outcome: Outcome | None = None) -> None:
        self._freeze(event=event, why=why, outcome=outcome)


def resume_from(saved: Saved | None, stored: frozenset[str]) -> Resumption:
    """What follows from the record and the names of the descriptors systemd kept for us. Pure.

    A start that was not yet answered is forgotten; a door is opened again with all it had; a workload is lost; an end
    stays an end.
    """
    if saved is None or saved.phase in (Phase.BOOTING, Phase.IDLE, Phase.OPENING):
        return Resumption(Event.READY)
    if saved.phase is Phase.ENDED:
        return Resumption(Event.RESTORE, saved.detail, saved.outcome)
    if saved.phase is Phase.FAILED:
        return Resumption(Event.FAIL, saved.detail, saved.outcome)
    if saved.phase is Phase.RUNNING:
        why = "the loader was killed while the workload ran"
        return Resumption(Event.FAIL, why, Outcome(OutcomeKind.LOST, why))
    missing = [name for name in STORED_NAMES if name not in stored]
    if missing:
        why = f"cannot open the keep's door again: systemd did not keep its {' and '.join(missing)}"
        return Resumption(Event.FAIL, why, Outcome(OutcomeKind.LOST, why))
    return Resumption(Event.RESUME)
