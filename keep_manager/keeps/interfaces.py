"""What `keeps` needs of the outside, declared by the one who needs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from keep_manager.model import Answer, Caller, LastEvent, Provision, UnitEnd, UnitState
from keep_protocol.constants import CONTROL_REPLY_SECONDS
from keep_protocol.control import Command, StartMessage
from keep_protocol.errors import KeepfleetError
from keep_protocol.spec import KeepSpec
from keep_protocol.sse import KeepEvent


class Units(Protocol):
    """Keeps as units of a service manager. Every method raises KeepfleetError alone."""

    def kuuids(self) -> set[int]:
        """The keeps whose unit has a runtime directory, found without asking the service manager."""

    async def start(self, kuuid: int, seconds: float, spec: KeepSpec) -> None:
        """Makes the unit of the keep that `spec` describes and waits for its READY: CONFLICT if there is one,
        KEEP_FAILED with evidence otherwise."""

    async def stop(self, kuuid: int) -> None:
        """Ends and forgets the unit, in whatever state it is: NOT_FOUND if there is none."""

    async def listed(self) -> Sequence[UnitState]:
        """Every keep's unit."""

    async def look(self, kuuid: int) -> UnitState | None:
        """One keep's unit, or None."""

    async def spec(self, kuuid: int) -> KeepSpec | None:
        """What the unit says the keep is; None where it says nothing that can be read."""

    async def specs(self, kuuids: Sequence[int]) -> Mapping[int, KeepSpec | None]:
        """The same of many units; those that have gone are left out."""

    async def end(self, kuuid: int) -> UnitEnd:
        """How the unit's main process ended last, as far as that is known."""


class Providers(Protocol):
    """Opens what a keep is given."""

    def opened(self, provision: Provision) -> AbstractAsyncContextManager[Mapping[str, int]]:
        """Descriptors by name, open while the block runs."""


class LoaderSession(Protocol):
    """One connection to one keep's loader."""

    async def ask(self, command: Command, seconds: float = CONTROL_REPLY_SECONDS) -> Answer:
        """The answer to a command; the loader's own error, or UNAVAILABLE: LoaderGone where it has ended."""

    async def hello(self) -> Answer:
        """The keep, and from then on the newest protocol that both sides speak."""

    async def start(self, message: StartMessage, port: int, files: Sequence[int], seconds: float) -> Answer:
        """Lets the keep begin with `files`, which `message` names in this order; the first listens on `port`."""


class EventLog(Protocol):
    """Where events of keeps are written down. Every method raises KeepfleetError alone."""

    @property
    def counts(self) -> bool:
        """Whether it can be known how many lines the journal dropped."""

    async def write(self, event: KeepEvent, text: str) -> None:
        """Writes an event down, and sends it to those who follow; `text` is its line."""

    async def latest(self) -> Mapping[int, LastEvent]:
        """The latest event of each keep, as far back as that is read."""

    async def taken(self, kuuid: int, since: float, at_most: int) -> int:
        """How many lines of a keep the journal has taken since that second of the host's uptime, up to `at_most`."""

    async def dropped(self, kuuid: int) -> int:
        """How many lines of a keep the journal says it has dropped so far."""


class EventRecorder(Protocol):
    """Records what happens to keeps."""

    def appeared(self, kuuid: int) -> None:
        """There is a new keep."""

    def removing(self, kuuid: int, by: str) -> AbstractAsyncContextManager[None]:
        """A keep's unit is being ended while the block runs, as `by` asked for; after it that is recorded."""

    async def counted(self, kuuid: int) -> None:
        """Waits until it is known how many lines of a keep that has ended were dropped, or that it never will be."""


class Loaders(Protocol):
    """Every keep's loader."""

    async def ask(self, kuuid: int, command: Command, seconds: float = CONTROL_REPLY_SECONDS) -> Answer:
        """The answer to one command on a connection of its own."""

    async def ask_all(self, kuuids: Sequence[int], command: Command) -> Mapping[int, Answer | KeepfleetError]:
        """The answer of each of many loaders, or why there is none."""

    def session(self, kuuid: int) -> AbstractAsyncContextManager[LoaderSession]:
        """A connection for several commands."""


class Quotas(Protocol):
    """What one caller may have in all. Every method raises KeepfleetError(TOO_MANY or FORBIDDEN) alone."""

    def admit_creation(self, caller: Caller, spec: KeepSpec, replaced: int | None = None) -> None:
        """Raises when the caller may not have that keep with those it has, of which `replaced` does not count."""

    def check_start(self, caller: Caller, kuuid: int, address: str, port: int | None) -> tuple[int, int]:
        """The ports the caller may start that keep on, from the lowest to the highest; raises when it may not now."""

    def admit_start(self, caller: Caller, kuuid: int, address: str, port: int | None) -> tuple[int, int]:
        """The same, and counts the start."""
