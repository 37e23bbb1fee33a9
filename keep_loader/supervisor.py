"""What becomes of a keep: its start, what follows the end of a loader before us or of the workload, its stop, and its
end.

Imported with the first start. Import rule: that of keep_loader.
"""

from __future__ import annotations

import os
import time

from keep_loader.forks import MAX_NAME, Forks, cannot_open
from keep_loader.loop import Loop, log, plain
from keep_loader.outcome import MAX_TEXT, event_of, recent, too_often, wanted
from keep_loader.process import Prepared
from keep_loader.settings import Settings
from keep_loader.start import Start, open_credential
from keep_loader.state import ENDPOINT_NAMES, MODULE_NAMES, OUTPUT_NAMES, PIPE_NAMES, DescriptorStore, Keep, rewind
from keep_loader.streams import Streams
from keep_protocol.constants import COMPILED, MODULE, RECORD, STDIN, WORKLOAD_DESCRIPTOR
from keep_protocol.errors import KeepfleetError
from keep_protocol.keep import Module
from keep_protocol.outcome import Outcome, OutcomeKind
from keep_protocol.spec import RestartPolicy
from keep_protocol.states import Event, Phase, advance

TYPE_CHECKING = False
if TYPE_CHECKING:  # as in loader
    from keep_loader.loader import LockFiles

UNIT_END = "the end of its unit"
_NOT_STARTED: dict[str, object] = {
    "address": "",
    "port": 0,
    "fingerprint": "",
    "certificate": "",
    "module": None,
    "workload": None,
}


class Supervisor:
    """Starts the keep, goes on with it, and stops it. Owns its forks, its streams, and what ends it."""

    def __init__(
        self,
        keep: Keep,
        loop: Loop,
        store: DescriptorStore,
        settings: Settings,
        lock_files: LockFiles,
        prepared: Prepared | None = None,
    ) -> None:
        self._keep, self._store, self._settings = keep, store, settings
        self.streams = Streams(keep, loop, store, settings)
        self.ending = Ending(keep, store, self.streams)
        self._forks = Forks(keep, loop, store, settings, self.ending, lock_files, prepared)

    def __repr__(self) -> str:
        return f"Supervisor({self._forks})"

    @property
    def busy(self) -> bool:
        """Whether a process is there, or output that is not seen to."""
        return self._forks.any or self.ending.under_way

    def open(self, start: Start, descriptors: list[int]) -> None:
        """Opens the upload endpoint, or runs the module, with what START brought, which it takes out of the list.

        The keep is AWAITING some time after this, or IDLE again with the reason in `ending.start_error`; one that runs
        its module is RUNNING, or has FAILED with the reason there. Raises KeepfleetError(CONFLICT), taking nothing,
        unless the keep is IDLE.
        """
        keep, awaits = self._keep, bool(self._settings.entries.endpoint)
        advance(keep.phase, Event.START if awaits else Event.RUN)
        keep.change(
            **{**_NOT_STARTED, "address": start.address, "port": start.port, "workload": start.workload},
            uploaders=start.uploaders,
            restart=start.restart,
        )
        keep.change_private(names=start.names, granted=start.granted, user=os.getuid())
        self.ending.start_error = None
        try:
            for name in start.descriptors:
                self._own(name, descriptors.pop(0))
            for name, credential in start.credentials:
                self._own(name, open_credential(credential, self._settings.directory))
            if awaits:
                keep.move(Event.START)
                self.streams.record()
                self._forks.open_endpoint(warm=start.warm)
                if any(name != WORKLOAD_DESCRIPTOR for name in start.granted):
                    self._forks.drop_prepared()  # a runner that could not open what is granted
            else:
                self._forks.drop_prepared()  # as it could not open the module
                self._run_stored()
        except (KeepfleetError, OSError) as error:
            self._cannot_start(error if isinstance(error, KeepfleetError) else cannot_open(str(error)))

    def _own(self, name: str, descriptor: int) -> None:
        """Takes over one of a start's descriptors: what a loader after this one needs, systemd keeps."""
        if name == RECORD:
            self._keep.record_in(descriptor)
        elif not self.streams.own(name, descriptor):
            self._store.park(name, descriptor)

    def _run_stored(self) -> None:
        """Runs the module that has come with the start: checked in the keep, unless it has come compiled, too. A loader
        that is killed from the move on is followed by one that finds a workload. Raises KeepfleetError, OSError."""
        keep, spec = self._keep, self._settings.spec
        module, compiled = self._store.get(MODULE), self._store.get(COMPILED)
        size = 0 if module is None else os.fstat(module).st_size
        keep.change(module=Module(spec.digest, spec.module, size))
        keep.move(Event.RUN, "" if compiled is not None else "checking the module")
        self.streams.record()
        log(f"runs {spec.digest}, {size} bytes{f', asked for as {plain(spec.module, MAX_NAME)}' * bool(spec.module)}")
        self._forks.lock_files()
        self._forks.run(self._store.select((*MODULE_NAMES, *keep.private.granted)))
        if keep.report.restart is RestartPolicy.NO:
            self._store.drop((*MODULE_NAMES, *keep.private.granted))

    def _cannot_start(self, error: KeepfleetError) -> None:
        if self._keep.phase is Phase.RUNNING:
            self.ending.start_error = error
            self.ending.fail(error.message)
        elif self._forks.endpoint is None:
            self.ending.start_failed(error)
        else:
            self._forks.endpoint.abandon(error)

    def resume(self) -> None:
        """Opens the upload endpoint again with the descriptors systemd kept over a crash of the loader."""
        self._keep.move(Event.RESUME, "opening the upload endpoint again after a crash of the loader")
        self._store.drop(MODULE_NAMES)  # of a workload whose acceptance was not yet written down
        try:
            self.streams.record()
            self._forks.lock_files()
        except (KeepfleetError, OSError) as error:
            self.ending.fail(f"cannot open the upload endpoint again: {error}")
            return
        self._forks.open_endpoint_again()

    def run_again(self, before: Outcome) -> None:
        """Runs the workload again, which has ended as `before`, with what systemd kept of it."""
        keep, now = self._keep, time.monotonic()
        reruns = keep.private.reruns
        why = too_often(reruns, now)
        if why is not None:
            self.ending.again(Event.FAIL, f"{why}: {before.text}", before)
            return
        try:
            self.streams.record().take_up()
        except (KeepfleetError, OSError) as error:
            self.ending.fail(f"cannot run the workload again: {error}")
            return
        self._store.drop(ENDPOINT_NAMES)
        keep.change(restarts=keep.report.restarts + 1)
        keep.change_private(reruns=(*recent(reruns, now), now))
        keep.move(Event.RERUN, f"running the workload again: {before.text}")
        try:
            self._forks.lock_files()
            rewind(self._store.get(STDIN))
            self._forks.run(self._store.select((*MODULE_NAMES, *keep.private.granted)))
        except (OSError, KeepfleetError) as error:
            self.ending.fail(f"cannot run the workload again: {error}")

    def stop(self, by: str) -> None:
        """Ends the endpoint or the workload; the keep is ENDED when its process has gone.

        Raises KeepfleetError(CONFLICT), changing nothing, in a phase that cannot be stopped.
        """
        advance(self._keep.phase, Event.STOP)
        if self.ending.under_way:
            self.ending.hurry(by)
        elif self._forks.running is None and (self._forks.endpoint is None or self._keep.phase is Phase.RESTARTING):
            self.ending.stopped(by)  # it was about to run again
        else:
            self._forks.stop(by)

    def leave(self) -> None:
        """Ends what is there because the unit ends."""
        if self.ending.under_way:
            self.ending.hurry(UNIT_END)
        else:
            self._forks.stop(UNIT_END)


class Ending:
    """Ends the keep, once, whichever way the end comes: what was written is kept first, then the record says how it
    ended, and only then is given up what would be needed to go on. Or it is no end: then systemd is asked for another
    run.

    streams: what flows into and out of the keep; under_way: the workload has ended, or what would be one, and its
    output is seen to; leaving: whether the unit ends; start_error: why the last start could not be made.
    """

    def __init__(self, keep: Keep, store: DescriptorStore, streams: Streams) -> None:
        self._keep, self._store, self.streams = keep, store, streams
        self._stopped_meanwhile: str | None = None
        self.under_way = self.leaving = False
        self.start_error: KeepfleetError | None = None

    def __repr__(self) -> str:
        return f"Ending({'under way' if self.under_way else 'not yet'})"

    def again(self, event: Event, why: str, outcome: Outcome | None) -> None:
        """Ends the keep that a loader before us did not, or whose end it did not see to its own."""
        measured = outcome is not None and outcome.output_bytes is not None
        if not measured and not set(OUTPUT_NAMES) - self._store.names:
            try:
                self.streams.record().take_up()
            except (KeepfleetError, OSError) as error:
                log(f"cannot read the rest of the workload's output: {error}")
        self.conclude(event, why, outcome)

    def of_workload(self, outcome: Outcome, stopped_by: str | None) -> None:
        """Ends the keep, or asks for another run; not once it was stopped, though the workload had ended by itself."""
        keep = self._keep
        if stopped_by is not None or not wanted(keep.report.restart, outcome):
            self.conclude(event_of(outcome), "", outcome, stopped=stopped_by is not None)
            return
        why = too_often(keep.private.reruns, time.monotonic())
        if why is not None:
            self.conclude(Event.FAIL, f"{why}: {outcome.text}", outcome)
        else:
            self.under_way = True
            self.streams.finish(lambda: self._restart(outcome))

    def _restart(self, outcome: Outcome) -> None:
        """Its output is seen to: asks for another run, unless someone has stopped it meanwhile."""
        self.under_way = False
        if self._stopped_meanwhile is not None and not self.leaving:
            self.stopped(self._stopped_meanwhile)
            return
        self._store.drop(PIPE_NAMES)
        measured = self.streams.measured(outcome)
        self._keep.move(Event.RESTART, f"starting the workload again: {outcome.text}", measured)

    def asked_by(self, by: str | None) -> str | None:
        """Who asked for a process's end: `by`, or else systemd where the unit ends."""
        return by or (UNIT_END if self.leaving else None)

    def hurry(self, by: str) -> None:
        """The workload has ended: its output is not waited for any more, nor is it run again."""
        self._stopped_meanwhile = self._stopped_meanwhile or by
        self.streams.hurry()

    def stopped(self, by: str) -> None:
        """Ends what runs nothing, because someone asked for it."""
        stopped = Outcome(OutcomeKind.STOPPED, f"stopped by {by}", ended_at=round(time.time(), 3), by=by)
        self.conclude(Event.STOP, "", stopped, stopped=True)

    def fail(self, why: str) -> None:
        """Ends what cannot go on."""
        lost = Outcome(OutcomeKind.LOST, plain(why, MAX_TEXT), ended_at=round(time.time(), 3))
        self.conclude(Event.FAIL, "", lost)

    def conclude(self, event: Event, why: str = "", outcome: Outcome | None = None, *, stopped: bool = False) -> None:
        """Ends the keep by `event`, once what was written is kept; its port is free immediately."""
        if self.under_way:
            return
        self.under_way = True
        self.streams.close_input()
        self._store.drop(tuple(self._store.names - {*OUTPUT_NAMES, *PIPE_NAMES}))
        self.streams.finish(lambda: self._concluded(event, why, outcome), stopped=stopped)
        if self.leaving:
            self.hurry(UNIT_END)

    def _concluded(self, event: Event, why: str, outcome: Outcome | None) -> None:
        """The record is written first, and what would be needed to go on given up after it: a loader that is killed in
        between finds the end."""
        self.under_way = False
        measured = None if outcome is None else self.streams.measured(outcome)
        self._keep.change(journal_gone=False)
        self._keep.move(event, why, measured)
        self.streams.end()
        self._store.drop_all()
        self._keep.leave_record()

    def start_failed(self, error: KeepfleetError) -> None:
        """Leaves nothing of the start: another one may follow."""
        keep = self._keep
        self.start_error = error
        log(plain(str(error), MAX_TEXT))
        self.streams.end()
        self.streams.close_input()
        self._store.give_back()
        keep.change(**_NOT_STARTED, uploaders=keep.spec.uploaders, restart=keep.spec.restart)
        keep.change_private(names=(), granted=(), user=None)
        keep.forget_record()
        if keep.phase is Phase.IDLE:
            keep.look_again()
        else:
            keep.move(Event.START_FAILED)
