"""The keep itself: its phase and what others see of it. Every move goes through `Keep.move`, and is logged there once.

Import rule: that of keep_loader.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from keep_loader.log import log, plain
from keep_loader.record import RecordFile
from keep_loader.restart import NO
from keep_loader.saved import Saved
from keep_loader.status import detail_of, place_of, status_text
from keep_protocol.constants import unit_name
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo, Outcome
from keep_protocol.limits import Limits
from keep_protocol.states import STATE_OF, Event, Phase, State, advance

MAX_DETAIL = 200
"""Characters of a sentence in `detail`; a status line is read on a terminal."""


class Keep:
    """One keep's phase, door, identity and outcome; `changed` is called after every change of any of them.

    name, labels and owner: what its creator called it, and who that was; limits: what it may use; granted: the names
    of what its workload gets, in order; policy: when that is started again; restarts, reruns and started_at: see Saved.
    """

    def __init__(
        self,
        kuuid: int,
        limits: Limits,
        isolation_failures: tuple[str, ...],
        record: RecordFile,
        changed: Callable[[], None],
    ) -> None:
        self._kuuid, self._record, self._changed = kuuid, record, changed
        self._why = ""
        self.phase = Phase.BOOTING
        self.isolation_failures, self.limits = isolation_failures, limits
        self.name, self.labels, self.owner = "", tuple[tuple[str, str], ...](), ""
        self.address, self.port, self.names = "", 0, ""
        self.granted, self.policy = tuple[str, ...](), NO
        self.restarts, self.reruns = 0, tuple[float, ...]()
        self.started_at: float | None = None
        self.fingerprint = self.certificate = ""
        self.outcome: Outcome | None = None

    def __repr__(self) -> str:
        return f"Keep({self._kuuid}, {self.phase.value})"

    @property
    def state(self) -> State:
        """The original protocol's number for the phase."""
        return STATE_OF[self.phase]

    @property
    def info(self) -> KeepInfo:
        """The keep as keep-info answers."""
        return KeepInfo(
            kuuid=self._kuuid,
            state=self.state,
            detail=detail_of(self.phase, self._why, self.outcome),
            address=self.address,
            port=self.port,
            fingerprint=self.fingerprint,
            certificate=self.certificate,
            unit=unit_name(self._kuuid),
            isolation_failures=self.isolation_failures,
            outcome=self.outcome,
            name=self.name,
            labels=self.labels,
            owner=self.owner,
            limits=self.limits,
            restarts=self.restarts,
            phase=self.phase.value,
        )

    @property
    def status(self) -> str:
        """The keep in one line, for `systemctl status`."""
        return status_text(self.phase, self.info)

    @property
    def place(self) -> str:
        """Where the door is, as in `127.0.0.1:3031`."""
        return place_of(self.address, self.port)

    def restore(self, saved: Saved) -> None:
        """Takes back what a loader before us had written: of a keep that was never started, what it is called."""
        self.name, self.labels, self.owner = saved.name, saved.labels, saved.owner
        if saved.phase not in (Phase.BOOTING, Phase.IDLE, Phase.OPENING):
            self.address, self.port, self.names = saved.address, saved.port, saved.names
            self.fingerprint, self.certificate = saved.fingerprint, saved.certificate
            self.granted, self.policy = saved.granted, saved.policy
            self.restarts, self.reruns, self.started_at = saved.restarts, saved.reruns, saved.started_at

    def describe(self, name: str, labels: tuple[tuple[str, str], ...], owner: str) -> None:
        """What the keep is called, and who created it; remembered."""
        self.name, self.labels, self.owner = name, labels, owner
        self._remember()
        self._changed()

    def set_door(self, address: str, port: int, names: str) -> None:
        """Where the door is to be, and the names it is certified for; empty and 0 for no door."""
        self.address, self.port, self.names = address, port, names
        self.fingerprint = self.certificate = ""

    def set_workload(self, granted: tuple[str, ...], policy: str) -> None:
        """What the workload that is to come is granted, and when it is started again."""
        self.granted, self.policy = granted, policy

    def set_dropped(self, lines: int) -> None:
        """How many of its lines the journal did not take; remembered with the outcome of a keep that has ended.

        Raises KeepfleetError(CONFLICT), changing nothing, where there is none.
        """
        if self.outcome is None or self.phase not in (Phase.ENDED, Phase.FAILED):
            raise KeepfleetError(
                ErrorKind.CONFLICT, f"cannot count the lines of a keep that is {self.phase.value}: it has not ended"
            )
        self.outcome = self.outcome.with_dropped(lines)
        self._remember()
        self._changed()

    def say_again(self) -> None:
        """Logs where the keep stands: the journal tells of lines it dropped with the next one it takes."""
        log(self.status)

    def tell(self, why: str) -> None:
        """Changes the sentence in `detail`, empty for the phase's own words."""
        self._why = plain(why, MAX_DETAIL)
        self._changed()

    def move(self, event: Event, why: str = "", outcome: Outcome | None = None) -> None:
        """Moves to the phase after `event`, writes the record and logs the move; an outcome that does not say so yet
        has ended now.

        Raises KeepfleetError(CONFLICT), changing nothing, for a move the table does not list.
        """
        before, self.phase = self.phase, advance(self.phase, event)
        self._why = plain(why, MAX_DETAIL)
        if outcome is not None and outcome.ended_monotonic is None:
            now: object = round(time.monotonic(), 3)
            outcome = Outcome(**{**outcome.fields(), "ended_monotonic": now})
        self.outcome = outcome
        reason = self._why or ("" if outcome is None else plain(outcome.text, MAX_DETAIL))
        log(f"{before.value} -> {self.phase.value} ({event.value}){': ' if reason else ''}{reason}")
        self._remember()
        self._changed()

    def _remember(self) -> None:
        saved = Saved(
            phase=self.phase,
            address=self.address,
            port=self.port,
            names=self.names,
            fingerprint=self.fingerprint,
            certificate=self.certificate,
            detail=self._why,
            outcome=self.outcome,
            name=self.name,
            labels=self.labels,
            owner=self.owner,
            granted=self.granted,
            policy=self.policy,
            restarts=self.restarts,
            reruns=self.reruns,
            started_at=self.started_at,
        )
        try:
            if self.phase is Phase.IDLE and not (self.name or self.labels or self.owner):
                self._record.forget()
            else:
                self._record.write(saved)
        except OSError as error:
            # The keep goes on; a crash of the loader now would find an older record, and say what it can.
            log(f"cannot write the keep's record: {error.strerror}")
