"""One run of the app-loader: its process, its reports, its deadlines, and what is to be said of its end.

Import rule: that of keep_loader.
"""

from __future__ import annotations

import signal
from collections.abc import Callable

from keep_loader.child import Child, Exit
from keep_loader.loop import READABLE, Action, Loop
from keep_loader.reports import ReportReader
from keep_protocol.constants import APPLOADER_START_SECONDS
from keep_protocol.control import Report
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import Outcome

TERM_SECONDS = 2.0
"""From TERM to KILL; the unit's TimeoutStopSec is 5 s."""
LINGER_SECONDS = 5.0
"""A workload that has reported its end has nothing left to do but exit."""
MAX_RUNNING_REPORTS = 16
"""Reports read of a running workload; an honest one sends two."""
_START, _END, _LINGER = "app-loader start", "app-loader end", "workload linger"


class Run:
    """Owns one app-loader from its spawn until `finish`, which must follow the call of `exited`.

    told: the outcome its workload reported; stopped_by: who asked for its end; limited: the limit it was ended for;
    failure: why its door was given up; final: another door could not do better.
    """

    def __init__(
        self, loop: Loop, child: Child, take: Callable[[Report, list[int]], None], exited: Callable[[], None]
    ) -> None:
        self._loop, self._child, self._exited = loop, child, exited
        self._reader = ReportReader(loop, child, take, self._reports_lost)
        self._look: Action | None = None
        self.told: Outcome | None = None
        self.stopped_by: str | None = None
        self.limited: str | None = None
        self.failure: KeepfleetError | None = None
        self.final = False
        loop.watch(child.pidfd, READABLE, self._ended)
        loop.after(_START, APPLOADER_START_SECONDS, self._too_slow)

    def __repr__(self) -> str:
        return f"Run({self._child})"

    @property
    def pid(self) -> int:
        """The process, until `finish`."""
        return self._child.pid

    @property
    def ending(self) -> bool:
        """Whether its end has been asked for: nothing that it says counts any more."""
        return self.stopped_by is not None or self.failure is not None or self.limited is not None

    def opened(self) -> None:
        """Its door is open: the deadline for that is met."""
        self._loop.cancel(_START)

    def accepted(self, look: Action) -> None:
        """It is the workload, or becoming it: from here on it may say little, and `look` is called before a signal."""
        self._look = look
        self._loop.cancel(_START)
        self._reader.limit(MAX_RUNNING_REPORTS)

    def tell(self, outcome: Outcome) -> None:
        """Its workload has reported its end: it is heard no more, and must exit."""
        self.told = outcome
        self._reader.limit(0)
        self._loop.after(_LINGER, LINGER_SECONDS, self._kill)

    def stop(self, by: str) -> None:
        """Ends it, by TERM and then by KILL; asked twice, the first who asked is named."""
        if self.stopped_by is None:
            self.stopped_by = by
            self._signal(signal.SIGTERM)
            self._loop.after(_END, TERM_SECONDS, self._kill)

    def limit(self, why: str) -> None:
        """Ends a workload at once that is over a limit; `why` says which. One that is ending anyway is let end."""
        if not self.ending and self.told is None:
            self.limited = why
            self._kill()

    def abandon(self, error: KeepfleetError, *, final: bool = False) -> None:
        """Ends a door that cannot serve."""
        self.failure, self.final = error, final
        self._kill()

    def finish(self) -> Exit:
        """Collects the ended process and closes everything."""
        self._reader.close()
        self._loop.forget(self._child.pidfd)
        for name in (_START, _END, _LINGER):
            self._loop.cancel(name)
        return self._child.reap()

    def _ended(self, _events: int) -> None:
        self._reader.drain()
        self._exited()

    def _kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self._look is not None:
            self._look()
        self._child.send_signal(number)

    def _too_slow(self) -> None:
        why = f"the app-loader did not listen within {APPLOADER_START_SECONDS:g} s"
        self.abandon(KeepfleetError(ErrorKind.TOO_SLOW, f"cannot open the keep's door: {why}"))

    def _reports_lost(self) -> None:
        if self._look is None:
            self._kill()  # a door that can no longer report is of no use
