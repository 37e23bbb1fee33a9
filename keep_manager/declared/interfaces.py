"""What the parts of this package need of the keeps, and of each other."""

from __future__ import annotations

from typing import Protocol

from keep_manager.declared.decision import Standing
from keep_manager.keeps import logs
from keep_manager.model import Caller
from keep_protocol.api import NewKeep
from keep_protocol.identity import Role
from keep_protocol.keep import KeepInfo
from keep_protocol.spec import Declaration


class Keeps(logs.Keeps, Protocol):
    """What is needed of the keeps. Every method raises KeepfleetError alone."""

    async def create(
        self, request: NewKeep, caller: Caller, key: str = "", declared: Declaration | None = None
    ) -> KeepInfo:
        """A new keep, started."""

    async def remove(self, kuuid: int, caller: Caller) -> None:
        """Ends a keep."""


class JobsOf(Protocol):
    """What the reconciler needs of the declared jobs, whose keeps come and go by their schedules."""

    def changed(self, name: str) -> None:
        """The specification of that name is another than before, or has gone."""

    def wake(self) -> None:
        """A keep is another than before."""

    def standing(self, name: str) -> Standing:
        """How a job is."""

    async def forget(self, name: str) -> None:
        """It is declared no more. Raises KeepfleetError."""


def manager_as(who: str) -> Caller:
    """The manager, for the reason in `who`."""
    return Caller(who, Role.OPERATOR, "", who)
