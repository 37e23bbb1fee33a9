"""How much each caller may have: its living keeps, their memory, its starts in a minute, its open streams, and where
its keeps may listen. Operators have quotas too, if generous ones: a script that runs away is no attacker.

Keeps and memory are counted in the view of all keeps, so that nothing is counted that is not there. Starts and streams
are of this process: a new manager begins to count from zero.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from keep_manager.callers import Callers, quotas_for
from keep_manager.model import Caller
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.spec import KeepSpec
from keep_protocol.states import State

MINUTE = 60.0
_ENDED = (State.COMPLETE, State.ERROR)


class QuotaKeeper:
    """Admits what each caller may still have; `keeps` are all that there are now."""

    def __init__(
        self, callers: Callers, keeps: Callable[[], Iterable[KeepInfo]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._callers, self._keeps, self._clock = callers, keeps, clock
        self._starts: dict[str, deque[float]] = {}
        self._followers: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"QuotaKeeper({len(self._callers)} entries, {self._followers.total()} followers)"

    @property
    def callers(self) -> Callers:
        """What the configuration in force says of callers."""
        return self._callers

    def apply(self, callers: Callers) -> None:
        """Counts by these entries from now on; what is there already stays."""
        self._callers = callers

    def admit_creation(self, caller: Caller, spec: KeepSpec, replaced: int | None = None) -> None:
        """Returns where one more keep of this spec fits, or one in the place of the keep `replaced`. Raises
        KeepfleetError(TOO_MANY) naming the quota."""
        quotas = quotas_for(self._callers, caller.name)
        own = [keep for keep in self._keeps() if keep.owner == caller.name and keep.kuuid != replaced]
        living = [keep for keep in own if keep.state not in _ENDED]
        if len(living) >= quotas.keeps:
            raise _over(caller, f"create a keep: {len(living)} of its keeps are living", "keeps", quotas.keeps)
        memory = sum(keep.limits.memory_bytes for keep in living) + spec.limits.memory_bytes
        if memory > quotas.memory_bytes:
            raise _over(
                caller, f"create a keep: its keeps would have {memory} bytes", "memory_bytes", quotas.memory_bytes
            )

    def check_start(self, caller: Caller, kuuid: int, address: str, port: int | None) -> tuple[int, int]:
        """The lowest and the highest port where the caller may start the keep `kuuid`, 0 for one still to be made, on
        that address, "" for one that does not listen, and at `port` where it names one.

        Raises KeepfleetError: TOO_MANY, or FORBIDDEN for an address or a port that its keeps may not listen on.
        """
        quotas = quotas_for(self._callers, caller.name)
        if address and quotas.addresses and address not in quotas.addresses:
            raise _forbidden(caller, kuuid, f"address {address}", ", ".join(quotas.addresses))
        if port is not None and not quotas.first_port <= port <= quotas.last_port:
            raise _forbidden(caller, kuuid, f"port {port}", f"ports {quotas.first_port} to {quotas.last_port}")
        starts = self._starts_of(caller)
        if len(starts) >= quotas.starts_per_minute:
            what = f"start {_keep(kuuid)}: {len(starts)} starts in a minute"
            raise _over(caller, what, "starts_per_minute", quotas.starts_per_minute)
        return quotas.first_port, quotas.last_port

    def admit_start(self, caller: Caller, kuuid: int, address: str, port: int | None) -> tuple[int, int]:
        """The same, and counts the start."""
        allowed = self.check_start(caller, kuuid, address, port)
        self._starts_of(caller).append(self._clock())
        return allowed

    def admit_load(self, caller: Caller, application: str) -> None:
        """Counts a load of a codelet set, which has the application verify and compile modules, as a start. Raises
        KeepfleetError(TOO_MANY)."""
        quotas, starts = quotas_for(self._callers, caller.name), self._starts_of(caller)
        if len(starts) >= quotas.starts_per_minute:
            what = f"load a codelet set into {application}: {len(starts)} starts and loads in a minute"
            raise _over(caller, what, "starts_per_minute", quotas.starts_per_minute)
        starts.append(self._clock())

    def storage(self, caller: Caller) -> tuple[int, int]:
        """How many modules the caller may have added to the store, and of how many bytes together. The store counts
        them, under its own lock."""
        quotas = quotas_for(self._callers, caller.name)
        return quotas.store_objects, quotas.store_bytes

    def secrets(self, caller: Caller) -> int:
        """How many secrets the manager keeps for the caller. Who keeps them counts them, under its own lock."""
        return quotas_for(self._callers, caller.name).secrets

    def _starts_of(self, caller: Caller) -> deque[float]:
        """When the caller's starts of the last minute were."""
        oldest = self._clock() - MINUTE
        if len(self._starts) > len(self._callers) + 1000:
            self._starts = {name: times for name, times in self._starts.items() if times and times[-1] > oldest}
        starts = self._starts.setdefault(caller.name, deque())
        while starts and starts[0] <= oldest:
            starts.popleft()
        return starts

    @contextmanager
    def following(self, caller: Caller) -> Iterator[None]:
        """One of the caller's places for streams, while the block runs. Raises KeepfleetError(TOO_MANY)."""
        quotas = quotas_for(self._callers, caller.name)
        if self._followers[caller.name] >= quotas.followers:
            raise _over(
                caller, f"follow: {self._followers[caller.name]} streams are open", "followers", quotas.followers
            )
        self._followers[caller.name] += 1
        try:
            yield
        finally:
            self._followers[caller.name] -= 1
            if not self._followers[caller.name]:
                del self._followers[caller.name]


def _over(caller: Caller, what: str, name: str, quota: int) -> KeepfleetError:
    return KeepfleetError(
        ErrorKind.TOO_MANY,
        f"cannot {what}, and the quota {name} of {caller.who} is {quota}; end some, or have the manager's "
        "configuration raise it, under callers",
    )


def _keep(kuuid: int) -> str:
    return f"keep {kuuid}" if kuuid else "a new keep"


def _forbidden(caller: Caller, kuuid: int, what: str, allowed: str) -> KeepfleetError:
    return KeepfleetError(
        ErrorKind.FORBIDDEN,
        f"cannot start {_keep(kuuid)} on {what}: the quotas of {caller.who} allow {allowed}; "
        "the manager's configuration sets them, under callers",
    )
