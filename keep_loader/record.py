"""The keep's record: where what must be known again is kept, and what a loader that finds it then does.

Import rule: that of keep_loader.
"""

from __future__ import annotations

import os

from keep_loader.fdstore import COMPILED, DOOR_NAMES
from keep_loader.restart import wanted
from keep_loader.saved import MAX_RECORD, Saved, bad_record, decode_saved, encode_saved
from keep_protocol.fields import Record
from keep_protocol.keep import Outcome, OutcomeKind
from keep_protocol.sdnotify import Notifier
from keep_protocol.states import Event, Phase

RECORD = "record"
"""The record's name in systemd's descriptor store."""


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
            raise bad_record(str(error.strerror)) from error
        whole = [slot for slot in slots if slot is not None]
        if not whole:
            raise bad_record("none of its slots is whole")
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
        """Closes the record, here and at systemd's: there is nothing to remember. Raises OSError."""
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

    event: Event
    why: str = ""
    outcome: Outcome | None = None


def resume_from(saved: Saved | None, stored: frozenset[str], now: float) -> Resumption:
    """What follows from the record and the names of the descriptors systemd kept for us, at `now` seconds of the
    epoch. Pure.

    A start that was not yet answered is forgotten; a door is opened again with all it had; a workload is run again
    where its policy says so, else it is lost; an end stays an end.
    """
    if saved is None or saved.phase in (Phase.BOOTING, Phase.IDLE, Phase.OPENING):
        return Resumption(Event.READY)
    if saved.phase is Phase.ENDED:
        return Resumption(Event.RESTORE, saved.detail, saved.outcome)
    if saved.phase is Phase.FAILED:
        return Resumption(Event.FAIL, saved.detail, saved.outcome)
    if saved.phase in (Phase.RUNNING, Phase.RESTARTING):
        return _run_again(saved, stored, now)
    missing = [name for name in (*DOOR_NAMES, *saved.granted) if name not in stored]
    if missing:
        why = f"cannot open the keep's door again: systemd did not keep its {' and '.join(missing)}"
        return Resumption(Event.FAIL, why, Outcome(OutcomeKind.LOST, why, ended_at=now))
    return Resumption(Event.RESUME)


def _run_again(saved: Saved, stored: frozenset[str], now: float) -> Resumption:
    outcome = saved.outcome
    if outcome is None:  # it was running
        why = "the loader was killed while the workload ran"
        ended_at = max(now, saved.started_at or now)  # the clock may have been set back since
        outcome = Outcome(OutcomeKind.LOST, why, started_at=saved.started_at, ended_at=ended_at)
        if not wanted(saved.policy, outcome):
            return Resumption(Event.FAIL, why, outcome)
    missing = [name for name in (COMPILED, *saved.granted) if name not in stored]
    if missing:
        why = f"cannot run the workload again: systemd did not keep its {' and '.join(missing)}"
        return Resumption(Event.FAIL, why, outcome)
    return Resumption(Event.RERUN, outcome=outcome)
