"""A keep's end, whichever way it comes: what was written is kept first, then the record says how it ended, and only
then is given up what would be needed to go on. Or it is no end: then systemd is asked for another run.

Imported with the first start. Import rule: that of keep_loader.
"""

from __future__ import annotations

import time
from _collections_abc import Callable

from keep_loader.descriptors import OUTPUT_NAMES, PIPE_NAMES, DescriptorStore
from keep_loader.log import log, plain
from keep_loader.outcome import MAX_TEXT, event_of
from keep_loader.restart import too_often, wanted
from keep_loader.state import Keep
from keep_loader.streams import Streams
from keep_protocol.errors import KeepfleetError
from keep_protocol.outcome import Outcome, OutcomeKind
from keep_protocol.states import Event

UNIT_END = "the end of its unit"


class Ending:
    """Ends the keep, once.

    under_way: the workload has ended, or what would be one, and its output is seen to.
    """

    def __init__(self, keep: Keep, store: DescriptorStore, streams: Streams, leaving: Callable[[], bool]) -> None:
        """leaving: whether the unit ends."""
        self._keep, self._store, self._streams, self._leaving = keep, store, streams, leaving
        self._stopped_meanwhile: str | None = None
        self.under_way = False

    def __repr__(self) -> str:
        return f"Ending({'under way' if self.under_way else 'not yet'})"

    def again(self, event: Event, why: str, outcome: Outcome | None) -> None:
        """Ends the keep that a loader before us did not, or whose end it did not see to its own."""
        measured = outcome is not None and outcome.output_bytes is not None
        if not measured and not set(OUTPUT_NAMES) - self._store.names:
            try:
                self._streams.record().take_up()
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
            self._streams.finish(lambda: self._restart(outcome))

    def _restart(self, outcome: Outcome) -> None:
        """Its output is seen to: asks for another run, unless someone has stopped it meanwhile."""
        self.under_way = False
        if self._stopped_meanwhile is not None and not self._leaving():
            self.stopped(self._stopped_meanwhile)
            return
        self._store.drop(PIPE_NAMES)
        measured = self._streams.measured(outcome)
        self._keep.move(Event.RESTART, f"starting the workload again: {outcome.text}", measured)

    def hurry(self, by: str) -> None:
        """The workload has ended: its output is not waited for any more, nor is it run again."""
        self._stopped_meanwhile = self._stopped_meanwhile or by
        self._streams.hurry()

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
        self._streams.close_input()
        self._store.drop(tuple(self._store.names - {*OUTPUT_NAMES, *PIPE_NAMES}))
        self._streams.finish(lambda: self._concluded(event, why, outcome), stopped=stopped)
        if self._leaving():
            self.hurry(UNIT_END)

    def _concluded(self, event: Event, why: str, outcome: Outcome | None) -> None:
        """The record is written first, and what would be needed to go on given up after it: a loader that is killed in
        between finds the end."""
        self.under_way = False
        measured = None if outcome is None else self._streams.measured(outcome)
        self._keep.change(journal_gone=False)
        self._keep.move(event, why, measured)
        self._streams.end()
        self._store.drop_all()
        self._keep.leave_record()
