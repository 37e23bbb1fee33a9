"""The root of new keeps, looked at before each of them and made again where the host has changed; and what is left of
roots that no keep has any more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from keep_protocol.errors import KeepfleetError
from keep_root.tree import Tree
from keep_root.trees import Trees

LOG = logging.getLogger("keepfleet.roots")
MAX_NAMED = 5
"""Files named in the log of a root that is damaged; one that was deleted has a thousand."""
SETTLE_SECONDS = 5.0
"""Keeps often go together; what they leave is looked for once."""


class Roots:
    """Which tree a keep's unit gets as its root, and when a tree goes. Only one build runs at a time."""

    def __init__(self, trees: Trees) -> None:
        self._trees = trees
        self._given: Tree | None = None
        self._gone = asyncio.Event()

    def __repr__(self) -> str:
        return f"Roots({self._trees!r})"

    async def path(self) -> str:
        """What RootDirectory= of a new keep's unit is. Raises KeepfleetError, and then no unit may be made."""
        tree = self._trees.ready
        if tree is None:
            tree = await asyncio.to_thread(self._trees.current)
        if tree != self._given:
            LOG.info("new keeps get the root %s", tree.path)
            self._given = tree
        return tree.path

    def keep_has_gone(self) -> None:
        """There may be a root less in use."""
        self._gone.set()

    async def tend(self, used: Callable[[], Awaitable[set[str]]]) -> None:
        """Looks at every file of the present root, once; then removes, whenever keeps have gone, the roots that `used`,
        those of all units, does not have. For ever."""
        try:
            damage = await asyncio.to_thread(self._trees.repaired)
        except KeepfleetError as error:
            LOG.error("no keep can be made: %s", error.message)
        else:
            for line in damage[:MAX_NAMED]:
                LOG.warning("the keeps' root was damaged, and is made again: %s", line)
        while True:
            await self._remove_unused(used)
            await self._gone.wait()
            await asyncio.sleep(SETTLE_SECONDS)
            self._gone.clear()

    async def _remove_unused(self, used: Callable[[], Awaitable[set[str]]]) -> None:
        try:
            if not await asyncio.to_thread(self._trees.unused, frozenset()):
                return
            for name in await asyncio.to_thread(self._trees.remove_unused, await used()):
                LOG.info("removed %s, which no keep has any more", name)
        except KeepfleetError as error:
            LOG.warning("%s", error.message)
