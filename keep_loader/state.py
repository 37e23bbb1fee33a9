"""The keep: what its loader reports of it, what must also outlive the loader, and the record of both.

Every move goes through `Keep.move`, and is logged there once. Import rule: that of keep_loader.
"""

from __future__ import annotations

import os
import time
from _collections_abc import Callable

from keep_loader.log import log, plain
from keep_protocol.control import CONTROL_VERSION, RECORD, Description
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepReport
from keep_protocol.outcome import Outcome
from keep_protocol.record import KeepRecord, Private, read_record, write_record
from keep_protocol.sdnotify import Notifier
from keep_protocol.spec import KeepSpec
from keep_protocol.states import STATE_OF, Event, Phase, State, advance

MAX_DETAIL = 200
"""Characters of a sentence in `detail`; a status line is read on a terminal."""
_WORDS: dict[Phase, str] = {
    Phase.BOOTING: "starting",
    Phase.IDLE: "ready for a start",
    Phase.OPENING: "opening the upload endpoint",
    Phase.AWAITING: "awaiting workload",
    Phase.REOPENING: "opening the upload endpoint again",
    Phase.RUNNING: "running a workload",
    Phase.RESTARTING: "starting the workload again",
    Phase.ENDED: "ended",
    Phase.FAILED: "failed",
}
_WITH_ENDPOINT = (Phase.OPENING, Phase.AWAITING, Phase.REOPENING)
_SHOWN_DIGITS = 12
"""Of the fingerprint in one line; the whole of it is in keep-info."""


_OF_THIS_LOADER = ("isolation_failures", "isolation_notes")


class Keep:
    """One keep. `changed` is called after every change of it.

    spec: what its unit says that it is; report: what is reported of it; private: what is not.
    """

    def __init__(
        self,
        kuuid: int,
        spec: KeepSpec,
        isolation_failures: tuple[str, ...],
        record: RecordFile,
        changed: Callable[[], None],
        isolation_notes: tuple[str, ...] = (),
    ) -> None:
        self._record, self._changed = record, changed
        self.spec, self.private = spec, Private()
        self.report = KeepReport(
            kuuid=kuuid,
            state=STATE_OF[Phase.BOOTING],
            phase=Phase.BOOTING.value,
            detail=_WORDS[Phase.BOOTING],
            isolation_failures=isolation_failures,
            isolation_notes=isolation_notes,
            restart=spec.restart,
            uploaders=spec.uploaders,
            control_version=CONTROL_VERSION,
        )

    def __repr__(self) -> str:
        return f"Keep({self.report.kuuid}, {self.report.phase})"

    @property
    def phase(self) -> Phase:
        """Where exactly it is."""
        return Phase(self.report.phase)

    def restore(self, saved: KeepRecord) -> None:
        """Takes back what a loader before us had written: of a keep that was never started, what it was said to be."""
        if saved.private.description is not None:
            self._describe(saved.private.description)
        if saved.private.claimed is not None:
            self._claim(saved.private.claimed)
        if saved.phase not in (Phase.BOOTING, Phase.IDLE, Phase.OPENING):
            ours = ("state", "phase", "detail", "kuuid", "outcome", "control_version", *_OF_THIS_LOADER)
            self.report = saved.report.replace(**{name: getattr(self.report, name) for name in ours})
            self.private = saved.private

    def describe(self, description: Description) -> None:
        """What a manager of version 1 says that the keep is called, and who created it; saved."""
        self._describe(description)
        self._save()
        self._changed()

    def _describe(self, description: Description) -> None:
        self.private = self.private.replace(description=description)
        self.spec = self.spec.replace(name=description.name, labels=description.labels, owner=description.owner)

    def claim(self, spec: KeepSpec) -> None:
        """What a spare is from now on; saved. Raises KeepfleetError(CONFLICT) for a keep that is none, or is another's
        already."""
        if not self.spec.spare or (self.spec.owner and self.spec != spec):
            raise KeepfleetError(ErrorKind.CONFLICT, "cannot make the keep another one: it is no spare")
        self._claim(spec)
        self._save()
        self._changed()

    def _claim(self, spec: KeepSpec) -> None:
        self.spec, self.private = spec, self.private.replace(claimed=spec)
        self.report = self.report.replace(restart=spec.restart, uploaders=spec.uploaders)

    def change(self, **fields: object) -> None:
        """Changes members of the report that no move decides; saved with the next move."""
        self.report = self.report.replace(**fields)

    def look_again(self) -> None:
        """Something that the keep may be waiting for has happened, and nothing of it has changed."""
        self._changed()

    def change_private(self, **fields: object) -> None:
        """Changes members of what is not reported; saved with the next move."""
        self.private = self.private.replace(**fields)

    def record_in(self, descriptor: int) -> None:
        """Its record is written to `descriptor` from the next move on, which it takes over. Raises OSError."""
        self._record.move_to(descriptor)

    def leave_record(self) -> None:
        """It has ended: no loader after this one has to know it."""
        try:
            self._record.leave()
        except OSError as error:
            log(f"cannot take the keep's record out of systemd's store: {error.strerror}")

    def forget_record(self) -> None:
        """Nothing of its start is to be known again."""
        try:
            self._record.forget()
        except OSError as error:
            log(f"cannot take the keep's record out of systemd's store: {error.strerror}")

    def set_detail(self, why: str) -> None:
        """Changes the sentence in `detail`, empty for the phase's own words."""
        self.change(detail=plain(why, MAX_DETAIL) or _WORDS[self.phase])
        self._changed()

    def move(self, event: Event, why: str = "", outcome: Outcome | None = None) -> None:
        """Moves to the phase after `event`, writes the record and logs the move; an outcome that does not say so yet
        has ended now.

        Raises KeepfleetError(CONFLICT), changing nothing, for a move the table does not list.
        """
        before, phase = self.phase, advance(self.phase, event)
        if outcome is not None and outcome.ended_monotonic is None:
            outcome = outcome.replace(ended_monotonic=round(time.monotonic(), 3))
        why = plain(why, MAX_DETAIL)
        text = "" if outcome is None else outcome.text
        self.change(phase=phase.value, state=STATE_OF[phase], detail=why or text or _WORDS[phase], outcome=outcome)
        reason = why or plain(text, MAX_DETAIL)
        log(f"{before.value} -> {phase.value} ({event.value}){': ' if reason else ''}{reason}")
        self._save()
        self._changed()

    def _save(self) -> None:
        try:
            if self.phase is Phase.IDLE and not self.private.outlives_idle:
                self._record.forget()
            else:
                self._record.write(KeepRecord(self.report, self.private))
        except OSError as error:
            # The keep goes on; a crash of the loader now would find an older record, and say what it can.
            log(f"cannot write the keep's record: {error.strerror}")


def status_text(report: KeepReport) -> str:
    """One line for `systemctl status`, as in `started: awaiting workload on 127.0.0.1:3031, sha256:ab12…`."""
    text = f"{report.state.name.lower()}: {report.detail}"
    phase = Phase(report.phase)
    if phase in _WITH_ENDPOINT:
        host = f"[{report.address}]" if ":" in report.address else report.address
        text += f" on {host}:{report.port}"
        if report.fingerprint:
            text += f", {report.fingerprint[: len('sha256:') + _SHOWN_DIGITS]}…"
    elif phase is Phase.RUNNING and report.restarts:
        text += f" (started again {'once' if report.restarts == 1 else f'{report.restarts} times'})"
    elif report.outcome is not None and report.state in (State.COMPLETE, State.ERROR):
        text += _usage(report.outcome)
    if report.isolation_failures:
        count = len(report.isolation_failures)
        text += f"; refuses workloads, {count} isolation failure{'' if count == 1 else 's'}: "
        text += "; ".join(report.isolation_failures)
    return text


def _usage(outcome: Outcome) -> str:
    parts: list[str] = []
    if outcome.wall_seconds is not None:
        parts.append(f"{outcome.wall_seconds:.3g} s")
    if outcome.peak_bytes is not None:
        parts.append(f"{outcome.peak_bytes / 1e6:.0f} MB")
    if outcome.lost_bytes:
        parts.append(f"{outcome.lost_bytes} bytes of output lost")
    return f" ({', '.join(parts)})" if parts else ""


class RecordFile:
    """Owns the record: a file without a name, parked in systemd's store from its first writing on, and from the keep's
    start on the one that came with that, in the manager's folder.

    A file with a name of its own would go with the runtime directory, which systemd removes when the loader is killed.
    """

    def __init__(self, directory: str, notifier: Notifier, descriptor: int | None) -> None:
        self._directory, self._notifier, self._descriptor = directory, notifier, descriptor
        self._number, self._parked = 0, descriptor is not None

    def __repr__(self) -> str:
        return f"RecordFile(written {self._number} times)"

    def read(self) -> KeepRecord | None:
        """What was written last, None where nothing ever was. Raises KeepfleetError when nothing of it is whole."""
        if self._descriptor is None:
            return None
        record, self._number = read_record(self._descriptor)
        return record

    def write(self, record: KeepRecord) -> None:
        """Writes `record`, and leaves what was written last. Raises OSError."""
        if self._descriptor is None:
            self._descriptor = os.open(self._directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        self._number += 1
        write_record(self._descriptor, record, self._number)
        if not self._parked:
            self._notifier.store(RECORD, self._descriptor)
            self._parked = True

    def move_to(self, descriptor: int) -> None:
        """Goes on in another file, which it takes over, and parks once there is something in it: a loader that is
        killed before that is followed by one that finds no record, and not an empty one. Raises OSError."""
        self.forget()
        self._descriptor = descriptor

    def forget(self) -> None:
        """Closes the record, here and at systemd's: there is nothing to remember. Raises OSError."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor, parked, self._parked = None, self._parked, False
            if parked:
                self._notifier.unstore(RECORD)

    def leave(self) -> None:
        """Takes it out of systemd's store; it stays open here. Raises OSError."""
        if self._parked:
            self._notifier.unstore(RECORD)
