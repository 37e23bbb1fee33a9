"""Spares: units of keeps whose loader is ready, made before anyone asks for a keep. A creation then waits for neither
systemd nor an interpreter.

A spare has no owner: it is in no list, counts for nobody, and holds nothing of anybody's. It becomes a keep in one call
to systemd, from which on its unit says what it is, and never becomes a spare again. A manager ends those that the one
before left, as they may be of another version; and at the moment it would hand out one, those with other settings than
a new unit would have.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from keep_manager.failpoints import Failpoint, reach
from keep_manager.keeps.interfaces import Units
from keep_manager.keeps.policy import Policy
from keep_protocol.constants import unit_name
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.kinds import Kind
from keep_protocol.limits import DEFAULT_LIMITS
from keep_protocol.spec import KeepSpec, Profile

LOG = logging.getLogger("keepfleet.keeps")
RETRY_SECONDS = 10.0
"""Between two tries to make a spare when one has failed: what is wrong with it is wrong with creations, too, which say
so; nothing is lost while there is none."""


@dataclass(frozen=True)
class Spare:
    """One spare. mark: `Units.settings_mark` of its unit when it was made."""

    kuuid: int
    mark: str


def is_spare(spec: KeepSpec | None) -> bool:
    """Whether a unit with that spec is of a spare that is nobody's yet."""
    return spec is not None and spec.spare and not spec.owner


def fits(spec: KeepSpec) -> bool:
    """Whether a spare can become the keep that `spec` describes: systemd sets every limit on a unit that runs, but not
    how many lines the journal takes of it, nor what a profile needs, nor a credential; and its loader has forked what
    takes uploads."""
    lines = spec.limits.log_lines_per_second
    return (
        spec.kind is not Kind.SCRIPTS
        and spec.profile is Profile.STANDARD
        and not spec.credentials
        and lines == DEFAULT_LIMITS.log_lines_per_second
    )


class Spares:
    """The spares of one manager, `policy.spare_keeps` of them."""

    def __init__(self, units: Units, policy: Policy) -> None:
        self._units, self._policy = units, policy
        self._ready: deque[Spare] = deque()
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"Spares({len(self._ready)} of {self._policy.spare_keeps})"

    def __len__(self) -> int:
        return len(self._ready)

    def apply(self, policy: Policy) -> None:
        """Keeps as many as this policy says from now on."""
        self._policy = policy
        self._changed.set()

    def take(self, spec: KeepSpec) -> Spare | None:
        """A spare for the keep that `spec` describes, which is the caller's from now on; None where there is none."""
        if not self._ready or not fits(spec):
            return None
        self._changed.set()
        return self._ready.popleft()

    async def claim(self, spare: Spare, spec: KeepSpec) -> None:
        """Has the spare's unit say that it is the keep that `spec` describes.

        Raises KeepfleetError where it cannot: the caller must end the unit, and make another.
        """
        if await self._units.settings_mark(spare.kuuid) != spare.mark:
            raise KeepfleetError(ErrorKind.CONFLICT, "its unit has other settings than a new one would have")
        reach(Failpoint.CLAIM_BEFORE_CALL)
        await self._units.claim(spare.kuuid, spec)
        reach(Failpoint.CLAIM_AFTER_CALL)

    async def run(self, draw: Callable[[], int], quiet: Callable[[], Awaitable[None]]) -> None:
        """Makes spares for ever, one at a time, each when `quiet` says that no creation is under way or was a moment
        ago; `draw` gives each its ID."""
        while True:
            self._changed.clear()
            try:
                while len(self._ready) > self._policy.spare_keeps:
                    await self.end(self._ready.pop().kuuid)
                while len(self._ready) < self._policy.spare_keeps:
                    await quiet()
                    self._ready.append(await self._make(draw()))
            except KeepfleetError as error:
                LOG.warning("cannot make a spare keep, trying again: %s", error.message)
                with suppress(TimeoutError):
                    async with asyncio.timeout(RETRY_SECONDS):
                        await self._changed.wait()
                continue
            await self._changed.wait()

    async def _make(self, kuuid: int) -> Spare:
        try:
            spec = KeepSpec(spare=True, created_at=time.time())
            await self._units.start(kuuid, self._policy.start_timeout_seconds, spec)
            return Spare(kuuid, await self._units.settings_mark(kuuid))
        except KeepfleetError as error:
            if error.kind is not ErrorKind.CONFLICT:  # which is another's unit
                await self.end(kuuid)
            raise

    async def end(self, kuuid: int) -> None:
        """Ends a spare's unit. What cannot be ended now is by the next manager."""
        try:
            await self._units.stop(kuuid)
        except KeepfleetError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                LOG.warning("cannot end the spare keep %s: %s", unit_name(kuuid), error.message)
