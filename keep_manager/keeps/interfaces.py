"""What `keeps` needs of the outside, declared by the one who needs it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Protocol

from keep_manager.model import Allowance, Caller, Told, UnitState
from keep_protocol.api_workload import WorkloadRequest
from keep_protocol.constants import CONTROL_REPLY_SECONDS
from keep_protocol.control import Command
from keep_protocol.keep import KeepInfo
from keep_protocol.limits import DEFAULT_LIMITS, Limits
from keep_protocol.sse import KeepEvent


class Units(Protocol):
    """Keeps as units of a service manager. Every method raises KeepfleetError alone."""

    def kuuids(self) -> set[int]:
        """The keeps whose unit has a runtime directory, found without asking the service manager."""

    async def start(self, kuuid: int, seconds: float, limits: Limits = DEFAULT_LIMITS) -> None:
        """Makes the unit with `limits` and waits for its READY: CONFLICT if there is one, KEEP_FAILED with evidence
        otherwise."""

    async def stop(self, kuuid: int) -> None:
        """Ends and forgets the unit, in whatever state it is: NOT_FOUND if there is none."""

    async def listed(self) -> Sequence[UnitState]:
        """Every keep's unit."""

    async def look(self, kuuid: int) -> UnitState | None:
        """One keep's unit, or None."""

    async def reason(self, kuuid: int) -> str:
        """Why the unit ended or fails, in a word, or ""."""


class Grants(Protocol):
    """Opens what a guest is granted."""

    def __call__(
        self, request: WorkloadRequest, allowed: Allowance, caller: Caller, /
    ) -> AbstractContextManager[tuple[int, ...]]:
        """Descriptors, open while the block runs: of the workload's description, then of each grant in order."""


class LoaderSession(Protocol):
    """One connection to one keep's loader."""

    async def ask(
        self, command: Command, seconds: float = CONTROL_REPLY_SECONDS, descriptors: Sequence[int] = ()
    ) -> KeepInfo:
        """The answer to a command; the loader's own error, or UNAVAILABLE: LoaderGone where it has ended."""


class Ledger(Protocol):
    """Where what happens to keeps is written down. Every method raises KeepfleetError alone."""

    @property
    def counts(self) -> bool:
        """Whether it can be known how many lines the journal dropped."""

    async def write(self, event: KeepEvent, text: str) -> None:
        """Writes an event down; `text` is its line."""

    async def told(self) -> dict[int, Told]:
        """What was written last of each keep, as far as that is remembered."""

    async def taken(self, kuuid: int, since: float, at_most: int) -> int:
        """How many lines of a keep the journal has taken since that second of the host's uptime, up to `at_most`."""

    async def dropped(self, kuuid: int) -> int:
        """How many lines of a keep the journal says it has dropped so far."""


class Witness(Protocol):
    """Who tells what happens to keeps."""

    def appeared(self, info: KeepInfo) -> None:
        """There is a new keep."""

    def removing(self, kuuid: int, by: str) -> AbstractAsyncContextManager[None]:
        """A keep's unit is being ended while the block runs, as `by` asked for; after it that is told."""

    async def counted(self, kuuid: int) -> None:
        """Waits until it is known how many lines of a keep that has ended were dropped, or that it never will be."""


class Loaders(Protocol):
    """Every keep's loader."""

    async def ask(self, kuuid: int, command: Command, seconds: float = CONTROL_REPLY_SECONDS) -> KeepInfo:
        """The answer to one command on a connection of its own."""

    def session(self, kuuid: int) -> AbstractAsyncContextManager[LoaderSession]:
        """A connection for several commands."""
