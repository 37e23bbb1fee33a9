"""Creations that a client may safely ask for twice: the same key from the same caller names the same keep.

What is kept here, in this process and for minutes, makes a retry wait for the request it repeats. Which keep a key
made stands in its unit: a new manager knows it from there, for as long as the keep lives.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo

KEPT_SECONDS = 600.0
"""A client that has not retried in ten minutes has given up."""
MAX_KEPT = 20_000
"""A host makes at most about 20 keeps a second, 12,000 in that time; the oldest are forgotten above it."""


def another_request() -> KeepfleetError:
    """The error for a key that was used for another request."""
    return KeepfleetError(
        ErrorKind.CONFLICT, "cannot make a keep: its idempotency key came with another request before"
    )


@dataclass
class _Creation:
    """One key's creation. request: the digest of what was asked for, which may be megabytes; done: the keep as it was
    made, or None when it was not."""

    request: str
    until: float
    done: asyncio.Future[KeepInfo | None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class IdempotencyCache:
    """The creations of the last minutes that came with a key."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._creations: dict[str, _Creation] = {}

    def __repr__(self) -> str:
        return f"IdempotencyCache({len(self._creations)} keys)"

    async def once(self, key: str, request: str, make: Callable[[], Awaitable[KeepInfo]]) -> KeepInfo:
        """The keep that `make` made for this key, which has the caller in it, now or before; a second request, with the
        same digest `request`, waits for the first.

        A creation that failed, or whose client went away, is forgotten: the next request makes its own. Raises
        KeepfleetError(CONFLICT) for a key that came with another request, and what `make` raises.
        """
        while True:
            self._forget()
            known = self._creations.get(key)
            if known is None:
                return await self._make(key, request, make)
            if known.request != request:
                raise another_request()
            made = await asyncio.shield(known.done)
            if made is not None:
                return made

    async def _make(self, key: str, request: str, make: Callable[[], Awaitable[KeepInfo]]) -> KeepInfo:
        creation = self._creations[key] = _Creation(request, self._clock() + KEPT_SECONDS)
        made: KeepInfo | None = None
        try:
            made = await make()
            return made
        finally:
            if made is None and self._creations.get(key) is creation:
                del self._creations[key]
            creation.done.set_result(made)

    def _forget(self) -> None:
        """Drops what is too old, oldest first, as they were put in; never what is still under way."""
        now = self._clock()
        for name, creation in list(self._creations.items()):
            if creation.until > now and len(self._creations) <= MAX_KEPT:
                return
            if creation.done.done():
                del self._creations[name]
