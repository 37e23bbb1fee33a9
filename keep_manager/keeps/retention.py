"""Removes keeps that ended long enough ago; remembers nothing between one look and the next.

A keep that has not ended when it is looked at cannot be due before a whole retention later, so one look in that time
misses nothing, and a manager that starts anew begins with a look. In between it sleeps until the first one is due.
Time is the host's since its boot, which keeps do not outlive: a clock that is set removes nothing early and keeps
nothing for ever.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from keep_manager.keeps.listing import Page
from keep_manager.model import Caller
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.identity import Role
from keep_protocol.keep import KeepInfo
from keep_protocol.spec import ANONYMOUS
from keep_protocol.states import State

LOG = logging.getLogger("keepfleet.keeps")
LOOKS_PER_RETENTION = 60
"""A look asks every loader; keeps that end one after another are due together, a sixtieth of the retention late."""
ENDED = (State.COMPLETE, State.ERROR)


class Keeps(Protocol):
    """What retention needs of the keeps. Every method raises KeepfleetError alone."""

    async def list(self) -> Page:
        """Every keep."""

    async def remove(self, kuuid: int, caller: Caller) -> None:
        """Ends a keep."""


def expired(keeps: Iterable[KeepInfo], now: float, seconds: float) -> tuple[list[int], float]:
    """The keeps that ended `seconds` before `now`, both since boot, and when another look is worth it. Pure."""
    due: list[int] = []
    wait = seconds
    for keep in keeps:
        if keep.state not in ENDED or keep.outcome is None or keep.outcome.ended_monotonic is None:
            continue
        left = keep.outcome.ended_monotonic + seconds - now
        if left <= 0:
            due.append(keep.kuuid)
        else:
            wait = min(wait, left)
    return due, max(wait, seconds / LOOKS_PER_RETENTION)


async def retain(keeps: Keeps, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
    """Removes keeps when they are due, until it is cancelled. What cannot be removed now is tried at the next look."""
    remover = Caller(ANONYMOUS, Role.OPERATOR, "", f"the manager, as it ended {seconds:g} s ago")
    while True:
        wait = seconds / LOOKS_PER_RETENTION
        try:
            due, wait = expired((await keeps.list()).keeps, clock(), seconds)
            for kuuid in due:
                await _remove(keeps, kuuid, remover)
        except KeepfleetError as error:
            LOG.warning("cannot look for keeps that ended long ago: %s", error.message)
        await asyncio.sleep(wait)


async def _remove(keeps: Keeps, kuuid: int, remover: Caller) -> None:
    try:
        await keeps.remove(kuuid, remover)
    except KeepfleetError as error:
        if error.kind is not ErrorKind.NOT_FOUND:
            LOG.warning("cannot remove keep %d, which ended long ago: %s", kuuid, error.message)
