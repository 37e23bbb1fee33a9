"""What `keeps` needs of the outside, declared by the one who needs it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Protocol

from keep_manager.model import (
    Answer,
    Caller,
    LastEvent,
    Provision,
    Remains,
    StoredModule,
    UnitEnd,
    UnitState,
    UnixUser,
)
from keep_protocol.constants import CONTROL_REPLY_SECONDS
from keep_protocol.control import Command, StartMessage
from keep_protocol.errors import KeepfleetError
from keep_protocol.record import KeepRecord
from keep_protocol.spec import KeepSpec
from keep_protocol.sse import KeepEvent


class Units(Protocol):
    """Keeps as units of a service manager. Every method raises KeepfleetError alone."""

    def kuuids(self) -> set[int]:
        """The keeps whose unit has a runtime directory, which one that has failed has not; the service manager is not
        asked."""

    async def start(self, kuuid: int, seconds: float, spec: KeepSpec, *, start_follows: bool = False) -> None:
        """Makes the unit of the keep that `spec` describes and waits for its READY: CONFLICT if there is one,
        KEEP_FAILED with evidence otherwise. start_follows: whether its loader hears of its start next."""

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

    async def claim(self, kuuid: int, spec: KeepSpec) -> None:
        """Makes a spare the keep that `spec` describes: from then on its unit says so. NOT_FOUND if it has gone."""

    async def narrow(self, kuuid: int, spec: KeepSpec) -> None:
        """Takes from the unit of that keep, whose guest runs, the memory that compiling needed; again, too. NOT_FOUND
        if it has gone."""

    async def settings_mark(self, kuuid: int) -> str:
        """What changes when a new keep's unit would have other settings than that one's has."""

    async def end(self, kuuid: int) -> UnitEnd:
        """How the unit's main process ended last, as far as that is known."""


class Providers(Protocol):
    """Opens what a keep is given."""

    def opened(self, provision: Provision) -> AbstractAsyncContextManager[Mapping[str, int]]:
        """Descriptors by name, open while the block runs."""

    @property
    def journal_stores(self) -> bool:
        """Whether journald stores what it is given, as far as is known."""

    def journal(self) -> AbstractContextManager[int]:
        """A datagram socket to journald, open while the block runs."""


class Folders(Protocol):
    """The files of each keep that was started. All but `open_output` are for threads."""

    def open_output(self, kuuid: int) -> int | None:
        """The keep's ring, for reading, and the caller's; None where it was not started. KEEP_FAILED."""

    def record(self, kuuid: int) -> KeepRecord | None:
        """What the keep's loader wrote down last, None where there is none that can be read."""

    def records(self, kuuids: Iterable[int]) -> Mapping[int, KeepRecord]:
        """The same of many keeps; those that have none are left out."""

    def kuuids(self) -> set[int]:
        """The keeps that have files."""

    def remains(self, kuuids: Iterable[int], now: float) -> Mapping[int, Remains]:
        """What is left of keeps without a unit, of an earlier boot; the files of others are removed."""

    def settle(self, kuuids: Iterable[int]) -> None:
        """Has the disk hold what is known of these keeps, where they are still there."""

    def remove(self, kuuid: int) -> None:
        """Removes a keep's files, where there are any."""


class Modules(Protocol):
    """The modules on this host. For threads."""

    def take(self, wanted: str) -> StoredModule:
        """What `NAME:TAG`, `NAME:TAG@sha256:…` or `sha256:…` means now, and from then on is not collected: NOT_FOUND,
        BAD_REQUEST."""


class Artifacts(Protocol):
    """Compiled code of modules."""

    def held(self, spec: KeepSpec, patience: float | None = None) -> AbstractAsyncContextManager[int | None]:
        """A descriptor of the module compiled for a keep of that spec, read-only, open while the block runs;
        None where the keep is to compile it itself. It is waited for, and COMPILING raised where that takes longer
        than `patience` seconds; what the module is refused for, too."""


class LoaderSession(Protocol):
    """One connection to one keep's loader."""

    @property
    def user(self) -> UnixUser:
        """Who the keep is, as the kernel says of the other end."""

    async def ask(
        self, command: Command, seconds: float = CONTROL_REPLY_SECONDS, descriptors: Sequence[int] = ()
    ) -> Answer:
        """The answer to a command, with which `descriptors` travel; the loader's own error, or UNAVAILABLE: LoaderGone
        where it has ended."""

    async def hello(self, seconds: float = CONTROL_REPLY_SECONDS) -> Answer:
        """The keep, and from then on the newest protocol that both sides speak."""

    async def claim(self, spec: KeepSpec) -> Answer:
        """Has a spare be the keep that `spec` describes; again, too."""

    async def unstored(self) -> None:
        """Says that journald stores nothing of what the loader gives it."""

    async def start(self, message: StartMessage, port: int, files: Sequence[int], seconds: float) -> Answer:
        """Lets the keep begin with `files`, which `message` names in this order; the first listens on `port`."""


class EventLog(Protocol):
    """Where events of keeps are written down. Every method raises KeepfleetError alone."""

    async def write(self, event: KeepEvent, text: str) -> None:
        """Writes an event down, and sends it to those who follow; `text` is its line."""

    async def latest(self) -> Mapping[int, LastEvent]:
        """The latest event of each keep, as far back as that is read."""


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
