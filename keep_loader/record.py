"""The keep's record: what a loader that was killed must know again, and what it then does.

Import rule: that of keep_loader.
"""

from __future__ import annotations

import os

from keep_loader.fdstore import STORED_NAMES
from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import Outcome, OutcomeKind, outcome_from_wire
from keep_protocol.record import Record
from keep_protocol.sdnotify import Notifier
from keep_protocol.states import Event, Phase

SCHEMA = 1
"""A record of another number is never guessed at."""
MAX_RECORD = 128 * 1024
"""Bytes of a record; one with a certificate and a backtrace is 8 KiB."""
RECORD = "record"
"""The record's name in systemd's descriptor store."""


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


class RecordFile:
    """Owns the record: a file without a name, parked in systemd's store from its first writing on.

    A file with a name would go with the runtime directory, which systemd removes when the loader is killed.
    Two slots are written in turn, each with its number before and after it: a loader killed half-way through a
    writing leaves the slot before it whole.
    """

    def __init__(self, directory: str, notifier: Notifier, descriptor: int | None) -> None:
        self._directory, self._notifier, self._descriptor = directory, notifier, descriptor
        self._number = 0

    def __repr__(self) -> str:
        return f"RecordFile(written {self._number} times)"

    def read(self) -> Saved | None:
        """What was written last, None where nothing ever was. Raises KeepfleetError when nothing of it is whole."""
        if self._descriptor is None:
            return None
        try:
            slots = [_slot(os.pread(self._descriptor, MAX_RECORD, place)) for place in (0, MAX_RECORD)]
        except OSError as error:
            raise _bad(str(error.strerror)) from error
        whole = [slot for slot in slots if slot is not None]
        if not whole:
            raise _bad("none of its slots is whole")
        self._number, data = max(whole)
        return decode_saved(data)

    def write(self, saved: Saved) -> None:
        """Writes `saved` beside what was written last. Raises OSError."""
        new = self._descriptor is None
        if self._descriptor is None:
            self._descriptor = os.open(self._directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        self._number += 1
        number = str(self._number).encode()
        data = number + b"\n" + encode_saved(saved) + b"\n" + number + b"\n"
        # A slot is cut off where its text ends by its last number; what an older one left behind it is not read.
        os.pwrite(self._descriptor, data, MAX_RECORD * (self._number % 2))
        if new:
            self._notifier.store(RECORD, self._descriptor)

    def forget(self) -> None:
        """Closes the record, here and at systemd's: a keep that is idle has nothing to remember. Raises OSError."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            self._notifier.unstore(RECORD)


def _slot(data: bytes) -> tuple[int, bytes] | None:
    """The number and the record in one slot, None unless it is whole: the same number stands before and after it."""
    parts = data.split(b"\n", 3)
    if len(parts) < 4 or parts[0] != parts[2] or not parts[0].isdigit() or len(parts[0]) > 18:
        return None
    return int(parts[0]), parts[1]


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
