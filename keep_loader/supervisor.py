"""The app-loader's life as the keep's phases: opened, opened again, accepted, run, ended or stopped.

The process behind a run becomes the workload by exec: from ACCEPTED on its reports are a stranger's words.
Import rule: that of keep_loader.
"""

from __future__ import annotations

import os
import re
import time

from keep_isolation import landlock
from keep_loader.descriptors import (
    DIRECTORY,
    ENDPOINT_NAMES,
    IDENTITY,
    MODULE_NAMES,
    STDIN,
    DescriptorStore,
    is_regular_file,
    rewind,
)
from keep_loader.log import log, plain
from keep_loader.loop import Loop
from keep_loader.outcome import MAX_TEXT, event_of, plain_error
from keep_loader.process import Run, spawn
from keep_loader.restart import recent, too_often, wanted
from keep_loader.running import Running
from keep_loader.settings import SECRETS_DIRECTORY, Settings
from keep_loader.start import Start
from keep_loader.state import Keep
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.outcome import Outcome, OutcomeKind
from keep_protocol.reports import Report, ReportType
from keep_protocol.spec import RestartPolicy
from keep_protocol.states import Event, Phase, advance

TYPE_CHECKING = False
if TYPE_CHECKING:  # as in loader
    from keep_loader.loader import LockFiles

MAX_RESPAWNS = 5
RESPAWN_SECONDS = 60.0
"""An upload endpoint that dies more often than MAX_RESPAWNS in RESPAWN_SECONDS will go on dying; the unit's own limits
agree."""
MAX_CERTIFICATE = 8 * 1024
"""Bytes of the keep's certificate; a P-256 one with 16 names is 2 KiB."""
MAX_NAME = 255
"""Characters of a name that an upload came with."""
UNIT_END = "the end of its unit"
_FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}")
_NOT_STARTED: dict[str, object] = {"address": "", "port": 0, "fingerprint": "", "certificate": "", "workload": None}


class Supervisor:
    """Owns the run of the app-loader, if there is one, and moves the keep by what it reports and how it ends."""

    def __init__(
        self, keep: Keep, loop: Loop, store: DescriptorStore, settings: Settings, lock_files: LockFiles
    ) -> None:
        self._keep, self._loop, self._store, self._settings = keep, loop, store, settings
        self._lock_files_to = lock_files
        self._run: Run | None = None
        self._reopened: list[float] = []
        self._running: Running | None = None
        self.leaving = False
        self.start_error: KeepfleetError | None = None

    def __repr__(self) -> str:
        return f"Supervisor({self._run or 'no app-loader'})"

    @property
    def busy(self) -> bool:
        """Whether a process is there."""
        return self._run is not None

    def open(self, start: Start, descriptors: list[int]) -> None:
        """Opens the upload endpoint with what START brought, which it takes out of the list.

        The keep is AWAITING some time after this, or IDLE again with the reason in `start_error`.
        Raises KeepfleetError(CONFLICT), taking nothing, unless the keep is IDLE.
        """
        keep = self._keep
        advance(keep.phase, Event.START)
        keep.change(
            **{**_NOT_STARTED, "address": start.address, "port": start.port, "workload": start.workload},
            uploaders=start.uploaders,
            restart=start.restart,
        )
        keep.change_private(names=start.names, granted=start.granted)
        keep.move(Event.START)
        self.start_error = None
        try:
            for name in start.descriptors:
                self._store.park(name, descriptors.pop(0))
            self._spawn()
        except KeepfleetError as error:
            self._start_failed(error)

    def resume(self) -> None:
        """Opens the upload endpoint again with the descriptors systemd kept over a crash of the loader."""
        self._keep.move(Event.RESUME, "opening the upload endpoint again after a crash of the loader")
        self._store.drop(MODULE_NAMES)  # of a workload whose acceptance was not yet written down
        try:
            self._lock_files()
        except (KeepfleetError, OSError) as error:
            self._fail(f"cannot open the upload endpoint again: {error}")
            return
        self._spawn_again()

    def run_again(self, before: Outcome) -> None:
        """Runs the workload again, which has ended as `before`, with what systemd kept of it."""
        keep, now = self._keep, time.monotonic()
        reruns = keep.private.reruns
        why = too_often(reruns, now)
        if why is not None:
            self._give_up(why, before)
            return
        self._store.drop(ENDPOINT_NAMES)
        keep.change(restarts=keep.report.restarts + 1)
        keep.change_private(reruns=(*recent(reruns, now), now))
        keep.move(Event.RERUN, f"running the workload again: {before.text}")
        passed = self._store.select((*MODULE_NAMES, *keep.private.granted))
        try:
            self._lock_files()
            rewind(self._store.get(STDIN))
            child = spawn((*self._settings.command, "run"), self._settings.runner_environment(), passed)
        except (KeepfleetError, OSError) as error:
            self._fail(f"cannot run the workload again: {error}")
            return
        self._run = Run(self._loop, child, self._take, self._exited)
        self._running = Running(keep, self._loop, self._run, fresh=True)

    def stop(self, by: str) -> None:
        """Ends the app-loader or the workload; the keep is ENDED when its process has gone.

        Raises KeepfleetError(CONFLICT), changing nothing, in a phase that cannot be stopped.
        """
        advance(self._keep.phase, Event.STOP)
        if self._run is not None:
            self._run.stop(by)
        else:  # it was about to run again
            self._stopped(by)

    def leave(self) -> None:
        """Ends what is there because the unit ends."""
        if self._run is not None:
            self._run.stop(UNIT_END)

    def _spawn(self) -> None:
        keep, settings = self._keep, self._settings
        passed = self._store.select((*ENDPOINT_NAMES, *keep.private.granted))
        try:
            child = spawn(settings.command, settings.endpoint_environment(keep.report, keep.private.names), passed)
        except OSError as error:
            raise KeepfleetError(ErrorKind.KEEP_FAILED, f"cannot start the app-loader: {error.strerror}") from error
        self._run = Run(self._loop, child, self._take, self._exited)

    def _spawn_again(self) -> None:
        try:
            self._spawn()
        except KeepfleetError as error:
            self._fail(error.message)

    def _take(self, report: Report, descriptors: list[int]) -> None:
        """Obeys one report where its phase knows it; any other is ignored."""
        run, phase, kind = self._run, self._keep.phase, report.type
        if run is None or run.ending:
            return
        if self._running is not None:
            self._running.take(report)
        elif kind is ReportType.FAILED:
            unknown = KeepfleetError(ErrorKind.KEEP_FAILED, "cannot serve: the app-loader did not say why")
            run.abandon(plain_error(report.error or unknown))
        elif phase in (Phase.OPENING, Phase.REOPENING) and kind is ReportType.LISTENING:
            self._listening(run, report, descriptors)
        elif phase is Phase.AWAITING and kind is ReportType.ACCEPTED:
            self._accept(run, report, descriptors)
        elif phase is Phase.AWAITING and kind in (ReportType.RECEIVING, ReportType.AWAITING):
            self._keep.set_detail(report.text or ("receiving a workload" if kind is ReportType.RECEIVING else ""))

    def _accept(self, run: Run, report: Report, descriptors: list[int]) -> None:
        """The workload is whole: keeps what running it again takes, and lets go of the upload endpoint."""
        keep = self._keep
        again = keep.report.restart is not RestartPolicy.NO
        if again:
            if not _brings(report, descriptors, MODULE_NAMES):
                why = "the app-loader did not pass its module on, to be run again"
                run.abandon(KeepfleetError(ErrorKind.KEEP_FAILED, f"cannot run the workload: {why}"), final=True)
                return
            try:
                for name in MODULE_NAMES:
                    self._store.park(name, descriptors.pop(0))
            except KeepfleetError as error:
                run.abandon(error, final=True)
                return
        self._note_upload(report)
        self._running = Running(keep, self._loop, run, fresh=False)
        keep.move(Event.ACCEPT)
        self._store.drop(ENDPOINT_NAMES if again else (*ENDPOINT_NAMES, *keep.private.granted))

    def _note_upload(self, report: Report) -> None:
        """Who sent what, in the report and as one line of the log."""
        by, module = report.upload, report.module
        if by is not None:
            by = by.replace(name=plain(by.name, MAX_NAME), serial=plain(by.serial, MAX_NAME))
        if module is not None:
            module = module.replace(name=plain(module.name, MAX_NAME))
        self._keep.change(uploaded_by=by, module=module)
        sender = "a client that was not named" if by is None else f"{by.name or 'anonymous'}, certificate {by.serial}"
        what = "a module" if module is None else f"{module.digest}, {module.bytes} bytes"
        log(f"upload accepted of {sender}: {what}")

    def _listening(self, run: Run, report: Report, descriptors: list[int]) -> None:
        """The upload endpoint is open: takes its identity, or on a later opening makes sure that it is the same."""
        keep, first = self._keep, self._keep.phase is Phase.OPENING
        if not _FINGERPRINT.fullmatch(report.fingerprint) or not 0 < len(report.certificate) <= MAX_CERTIFICATE:
            run.abandon(_cannot_open("the app-loader showed no certificate"))
            return
        if not first and report.fingerprint != keep.report.fingerprint:
            run.abandon(_cannot_open("it would show another certificate than the one clients know"), final=True)
            return
        if first and not _brings(report, descriptors, (IDENTITY,)):
            run.abandon(_cannot_open("the app-loader did not pass its identity on"))
            return
        if first:
            keep.change(fingerprint=report.fingerprint, certificate=report.certificate)
            try:
                self._store.park(IDENTITY, descriptors.pop())
            except KeepfleetError as error:
                run.abandon(error)
                return
        if first:
            try:
                self._lock_files()
            except (KeepfleetError, OSError) as error:
                run.abandon(_cannot_open(str(error)))
                return
        run.opened()
        keep.move(Event.ENDPOINT_READY)

    def _lock_files(self) -> None:
        """Gives up all files but what the workload is granted and the keep needs; permanently, so not before a start
        has come to its end: another one could bring other grants. Raises KeepfleetError(ISOLATION_FAILURE), OSError.
        """
        workload, secrets = self._keep.report.workload, f"{self._settings.directory}/{SECRETS_DIRECTORY}"
        writable: set[str] = set()
        if workload is not None:
            if workload.secrets and not os.path.isdir(secrets):
                os.mkdir(secrets, 0o700)
            writable = {f"{DIRECTORY}-{at}" for at, shown in enumerate(workload.directories) if shown.writable}
        # Those that systemd kept over a crash are of mounts that went with the loader before us: no path leads there.
        granted = [
            (descriptor, landlock.WRITE if name in writable else landlock.READ)
            for name, descriptor in self._store.held.items()
        ]
        self._lock_files_to(granted, (self._settings.directory,), (secrets,))

    def _exited(self) -> None:
        """The process has ended, and its last reports have been read."""
        if self._run is None:
            return
        run, self._run = self._run, None
        end = run.finish()
        stopped_by = run.stopped_by or (UNIT_END if self.leaving else None)
        died = f"the app-loader {end.words}"
        if self._running is not None:
            outcome = self._running.ended(end, stopped_by)
            self._running = None
            self._workload_ended(outcome, stopped_by)
        elif self._keep.phase is Phase.OPENING:
            self._start_failed(run.failure or _cannot_open(died))
        elif stopped_by is not None:
            self._stopped(stopped_by)
        else:
            self._endpoint_lost(died if run.failure is None else run.failure.message, run.final)

    def _workload_ended(self, outcome: Outcome, stopped_by: str | None) -> None:
        """Ends the keep, or asks for another run; not once it was stopped, though the workload had ended by itself."""
        keep = self._keep
        if stopped_by is not None or not wanted(keep.report.restart, outcome):
            self._store.drop_all()
            keep.move(event_of(outcome), outcome=outcome)
            return
        why = too_often(keep.private.reruns, time.monotonic())
        if why is not None:
            self._give_up(why, outcome)
        else:
            keep.move(Event.RESTART, f"starting the workload again: {outcome.text}", outcome)

    def _stopped(self, by: str) -> None:
        self._store.drop_all()
        stopped = Outcome(OutcomeKind.STOPPED, f"stopped by {by}", ended_at=round(time.time(), 3), by=by)
        self._keep.move(Event.STOP, outcome=stopped)

    def _give_up(self, why: str, outcome: Outcome) -> None:
        self._store.drop_all()
        self._keep.move(Event.FAIL, f"{why}: {outcome.text}", outcome)

    def _start_failed(self, error: KeepfleetError) -> None:
        """Leaves nothing of the start: another one may follow."""
        keep = self._keep
        self.start_error = error
        log(plain(str(error), MAX_TEXT))
        self._store.drop_all()
        keep.change(**_NOT_STARTED, uploaders=keep.spec.uploaders, restart=keep.spec.restart)
        keep.change_private(names=(), granted=())
        keep.move(Event.START_FAILED)

    def _endpoint_lost(self, why: str, final: bool) -> None:
        now = time.monotonic()
        self._reopened = [moment for moment in self._reopened if now - moment < RESPAWN_SECONDS]
        if final:
            self._fail(why)
        elif len(self._reopened) >= MAX_RESPAWNS:
            self._fail(f"gave the upload endpoint up after opening it again {MAX_RESPAWNS} times: {why}")
        else:
            self._reopened.append(now)
            self._keep.move(Event.ENDPOINT_LOST, f"opening the upload endpoint again: {why}")
            self._spawn_again()

    def _fail(self, why: str) -> None:
        self._store.drop_all()
        lost = Outcome(OutcomeKind.LOST, plain(why, MAX_TEXT), ended_at=round(time.time(), 3))
        self._keep.move(Event.FAIL, outcome=lost)


def _cannot_open(why: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.KEEP_FAILED, f"cannot open the keep's upload endpoint: {why}")


def _brings(report: Report, descriptors: list[int], names: tuple[str, ...]) -> bool:
    """Whether the report brings exactly these descriptors, all of them regular files."""
    return report.descriptors == names and len(descriptors) == len(names) and all(map(is_regular_file, descriptors))
