"""The app-loader's life as the keep's phases: opened, opened again, accepted, ended or stopped.

The process behind a run becomes the workload by exec: from ACCEPTED on its reports are a stranger's words.
Import rule: that of keep_loader.
"""

from __future__ import annotations

import re
import time

from keep_loader.child import spawn
from keep_loader.fdstore import COMPILED, DOOR_NAMES, IDENTITY, STDIN, DescriptorStore, is_plain_file, rewind
from keep_loader.handing import door_environment, runner_environment
from keep_loader.keep import Keep
from keep_loader.log import log, plain
from keep_loader.loop import Loop
from keep_loader.outcome import MAX_TEXT, event_of, plain_error
from keep_loader.restart import NO, recent, too_often, wanted
from keep_loader.run import Run
from keep_loader.running import Running
from keep_loader.settings import Settings
from keep_protocol.control import START_DESCRIPTORS, Report, ReportType
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import Outcome, OutcomeKind
from keep_protocol.states import Event, Phase, advance

MAX_RESPAWNS = 5
RESPAWN_SECONDS = 60.0
"""A door that dies more often than MAX_RESPAWNS in RESPAWN_SECONDS will go on dying; the unit's own limits agree."""
MAX_CERTIFICATE = 8 * 1024
"""Bytes of the door's certificate; a P-256 one with 16 names is 2 KiB."""
UNIT_END = "the end of its unit"
_FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}")


class Supervisor:
    """Owns the run of the app-loader, if there is one, and moves the keep by what it reports and how it ends."""

    def __init__(self, keep: Keep, loop: Loop, store: DescriptorStore, settings: Settings) -> None:
        self._keep, self._loop, self._store, self._settings = keep, loop, store, settings
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

    def open(self, descriptors: list[int]) -> None:
        """Opens the door with START_DESCRIPTORS and what the workload is granted, which it takes out of the list.

        The keep is AWAITING some time after this, or IDLE again with the reason in `start_error`.
        Raises KeepfleetError(CONFLICT), taking nothing, unless the keep is IDLE.
        """
        self._keep.move(Event.START)
        self.start_error = None
        try:
            for name in (*START_DESCRIPTORS, *self._keep.granted):
                self._store.park(name, descriptors.pop(0))
            self._spawn()
        except KeepfleetError as error:
            self._start_failed(error)

    def resume(self) -> None:
        """Opens the door again with the descriptors systemd kept over a crash of the loader."""
        self._keep.move(Event.RESUME, "opening the door again after a crash of the loader")
        self._store.drop((COMPILED,))  # of a workload whose acceptance was not yet written down
        self._spawn_again()

    def run_again(self, before: Outcome) -> None:
        """Runs the workload again, which has ended as `before`, with what systemd kept of it."""
        keep, now = self._keep, time.monotonic()
        why = too_often(keep.reruns, now)
        if why is not None:
            self._give_up(why, before)
            return
        self._store.drop(DOOR_NAMES)
        keep.restarts, keep.reruns = keep.restarts + 1, (*recent(keep.reruns, now), now)
        keep.move(Event.RERUN, f"running the workload again: {before.text}")
        handed = [self._store.get(name) for name in (COMPILED, *keep.granted)]
        try:
            rewind(self._store.get(STDIN))
            child = spawn((*self._settings.command, "run"), runner_environment(self._settings), handed)
        except OSError as error:
            self._fail(f"cannot run the workload again: {error.strerror}")
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

    def leave(self) -> None:
        """Ends what is there because the unit ends."""
        if self._run is not None:
            self._run.stop(UNIT_END)

    def _spawn(self) -> None:
        keep, settings = self._keep, self._settings
        environment = door_environment(settings, keep, IDENTITY in self._store.names)
        handed = [self._store.get(name) for name in (*DOOR_NAMES, *keep.granted)]
        try:
            child = spawn(settings.command, environment, handed)
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
            self._accept(run, descriptors)
        elif phase is Phase.AWAITING and kind in (ReportType.RECEIVING, ReportType.AWAITING):
            self._keep.tell(report.text or ("receiving a workload" if kind is ReportType.RECEIVING else ""))

    def _accept(self, run: Run, descriptors: list[int]) -> None:
        """The workload is whole: keeps what running it again takes, and lets go of the door."""
        keep = self._keep
        if keep.policy != NO:
            if not (len(descriptors) == 1 and is_plain_file(descriptors[0])):
                why = "the app-loader did not hand its module over, to be started again"
                run.abandon(KeepfleetError(ErrorKind.KEEP_FAILED, f"cannot run the workload: {why}"), final=True)
                return
            try:
                self._store.park(COMPILED, descriptors.pop())
            except KeepfleetError as error:
                run.abandon(error, final=True)
                return
        self._running = Running(keep, self._loop, run, fresh=False)
        keep.move(Event.ACCEPT)
        self._store.drop(DOOR_NAMES if keep.policy != NO else (*DOOR_NAMES, *keep.granted))

    def _listening(self, run: Run, report: Report, descriptors: list[int]) -> None:
        """The door is open: takes its identity, or on a later opening makes sure that it is the same."""
        keep, first = self._keep, self._keep.phase is Phase.OPENING
        if not _FINGERPRINT.fullmatch(report.fingerprint) or not 0 < len(report.certificate) <= MAX_CERTIFICATE:
            run.abandon(_door_error("the app-loader showed no certificate"))
            return
        if not first and report.fingerprint != keep.fingerprint:
            run.abandon(_door_error("it would show another certificate than the one clients know"), final=True)
            return
        if first and not (len(descriptors) == 1 and is_plain_file(descriptors[0])):
            run.abandon(_door_error("the app-loader handed no identity over"))
            return
        if first:
            keep.fingerprint, keep.certificate = report.fingerprint, report.certificate
            try:
                self._store.park(IDENTITY, descriptors.pop())
            except KeepfleetError as error:
                run.abandon(error)
                return
        run.opened()
        keep.move(Event.ENDPOINT_READY)

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
            self._workload_ended(outcome)
        elif self._keep.phase is Phase.OPENING:
            self._start_failed(run.failure or _door_error(died))
        elif stopped_by is not None:
            self._store.drop_all()
            text = f"stopped by {stopped_by}"
            stopped = Outcome(OutcomeKind.STOPPED, text, ended_at=round(time.time(), 3), by=stopped_by)
            self._keep.move(Event.STOP, outcome=stopped)
        else:
            self._door_lost(died if run.failure is None else run.failure.message, run.final)

    def _workload_ended(self, outcome: Outcome) -> None:
        keep = self._keep
        if not wanted(keep.policy, outcome):
            self._store.drop_all()
            keep.move(event_of(outcome), outcome=outcome)
            return
        why = too_often(keep.reruns, time.monotonic())
        if why is not None:
            self._give_up(why, outcome)
        else:
            keep.move(Event.RESTART, f"starting the workload again: {outcome.text}", outcome)

    def _give_up(self, why: str, outcome: Outcome) -> None:
        self._store.drop_all()
        self._keep.move(Event.FAIL, f"{why}: {outcome.text}", outcome)

    def _start_failed(self, error: KeepfleetError) -> None:
        self.start_error = error
        log(plain(str(error), MAX_TEXT))
        self._store.drop_all()
        self._keep.set_door("", 0, "")
        self._keep.set_workload((), NO)
        self._keep.move(Event.START_FAILED)

    def _door_lost(self, why: str, final: bool) -> None:
        now = time.monotonic()
        self._reopened = [moment for moment in self._reopened if now - moment < RESPAWN_SECONDS]
        if final:
            self._fail(why)
        elif len(self._reopened) >= MAX_RESPAWNS:
            self._fail(f"gave the door up after opening it again {MAX_RESPAWNS} times: {why}")
        else:
            self._reopened.append(now)
            self._keep.move(Event.ENDPOINT_LOST, f"opening the door again: {why}")
            self._spawn_again()

    def _fail(self, why: str) -> None:
        self._store.drop_all()
        lost = Outcome(OutcomeKind.LOST, plain(why, MAX_TEXT), ended_at=round(time.time(), 3))
        self._keep.move(Event.FAIL, outcome=lost)


def _door_error(why: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.KEEP_FAILED, f"cannot open the keep's door: {why}")
