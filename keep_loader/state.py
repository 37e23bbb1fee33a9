"""The keep, and what must outlive its loader: what is reported of it, what is not, the record of both, and descriptors
by name, which systemd keeps.

Every move goes through `Keep.move`, and is logged there once. Import rule: that of keep_loader.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from _collections_abc import Callable

from keep_loader.loop import log, plain
from keep_protocol import sockets as socket
from keep_protocol.constants import (
    COMPILED,
    IDENTITY,
    JOURNAL,
    LISTENER,
    MODULE,
    OUTPUT,
    RECORD,
    START_DESCRIPTORS,
    STDERR,
    STDOUT,
)
from keep_protocol.control import CONTROL_VERSION, Description
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepReport
from keep_protocol.outcome import Outcome
from keep_protocol.patterns import matches
from keep_protocol.record import GRANTED, KeepRecord, Private, read_record, write_record
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
ENDPOINT_NAMES = (*START_DESCRIPTORS, IDENTITY)
"""What the upload endpoint needs; opened again, it must show the same identity."""
MODULE_NAMES = (COMPILED, MODULE)
"""What running a workload again needs, with what it was given."""
OUTPUT_NAMES = (OUTPUT, JOURNAL)
"""What the output of every run needs."""
PIPE_NAMES = (STDOUT, STDERR)
"""Our ends of a running workload's pipes: what it had written when its loader was killed is still in them."""


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


def is_stored_name(name: str) -> bool:
    """Whether one of ours may have that name in systemd's store; what has another is not taken out of it."""
    known = (*ENDPOINT_NAMES, *MODULE_NAMES, *OUTPUT_NAMES, *PIPE_NAMES)
    return name in known or matches(GRANTED, name)


def close_all(descriptors: list[int]) -> None:
    """Closes and removes every descriptor in `descriptors`."""
    while descriptors:
        os.close(descriptors.pop())


def descriptors_in(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors that came with a message."""
    found: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            whole = len(data) - len(data) % 4
            found += memoryview(data[:whole]).cast("i").tolist()
    return found


def is_regular_file(descriptor: int) -> bool:
    """Whether `descriptor` is a regular file: a pipe or a device could block its reader."""
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def check_socket(descriptor: int, kind: int) -> None:
    """Raises KeepfleetError(BAD_REQUEST) unless `descriptor` is a Unix socket of that kind."""
    if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        with socket.socket(fileno=os.dup(descriptor)) as sock:
            if sock.family == socket.AF_UNIX and sock.type == kind:
                return
    name = {int(socket.SOCK_DGRAM): "SOCK_DGRAM", int(socket.SOCK_SEQPACKET): "SOCK_SEQPACKET"}[int(kind)]
    raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot take over what is no Unix socket of type {name}")


def listen_no_more(descriptor: int) -> None:
    """Frees the port for all who hold the listener: systemd closes its own when it comes to our message."""
    with socket.socket(fileno=os.dup(descriptor)) as sock:
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            if error.errno != errno.ENOTCONN:  # it listens no more
                log(f"cannot close the listener for all who hold it: {error.strerror}")


def rewind(descriptor: int | None) -> None:
    """Puts a file back to its beginning; what a pipe or a socket has given it does not give again. Raises OSError."""
    if descriptor is not None and is_regular_file(descriptor):
        os.lseek(descriptor, 0, os.SEEK_SET)


class DescriptorStore:
    """Owns descriptors by name, here and in systemd's store; both are emptied together."""

    def __init__(self, notifier: Notifier, stored: dict[str, int]) -> None:
        self._notifier = notifier
        self._held: dict[str, int] = {}
        for name, descriptor in stored.items():
            if is_stored_name(name):
                self._held[name] = descriptor
            else:
                os.close(descriptor)

    def __repr__(self) -> str:
        return f"DescriptorStore({', '.join(self._held) or 'empty'})"

    @property
    def names(self) -> frozenset[str]:
        """What is held."""
        return frozenset(self._held)

    @property
    def held(self) -> dict[str, int]:
        """Everything by name, still owned by the store."""
        return dict(self._held)

    def get(self, name: str) -> int | None:
        """The descriptor called `name`, still owned by the store."""
        return self._held.get(name)

    def select(self, names: tuple[str, ...]) -> dict[str, int]:
        """Those of `names` that are held, in that order, still owned by the store."""
        return {name: self._held[name] for name in names if name in self._held}

    def park(self, name: str, descriptor: int) -> None:
        """Takes `descriptor` over. Raises KeepfleetError(SYSTEMD), still owning it, when systemd cannot store it."""
        if name in self._held:
            self._drop(name)
        self._held[name] = descriptor
        try:
            self._notifier.store(name, descriptor)
        except OSError as error:
            raise KeepfleetError(
                ErrorKind.SYSTEMD, f"cannot park the keep's {name} with systemd: {error.strerror}"
            ) from error

    def drop(self, names: tuple[str, ...]) -> None:
        """Closes those of `names` that are held, here and at systemd's."""
        for name in names:
            if name in self._held:
                self._drop(name)

    def drop_all(self) -> None:
        """Closes everything, here and at systemd's: after this the port is free."""
        self.drop(tuple(self._held))

    def give_back(self) -> None:
        """The same of what came with a start that failed, and may come with the next one: who passed it has it still,
        and systemd until it comes to our message."""
        for name in tuple(self._held):
            self._drop(name, listens_on=True)

    def _drop(self, name: str, *, listens_on: bool = False) -> None:
        descriptor = self._held.pop(name)
        if name == LISTENER and not listens_on:
            listen_no_more(descriptor)
        os.close(descriptor)
        try:
            self._notifier.unstore(name)
        except OSError as error:
            log(f"cannot take the keep's {name} out of systemd's store: {error.strerror}")
