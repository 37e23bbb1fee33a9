"""How each declared keep is, as the latest round found it, and those who wait to hear of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from keep_manager.declared.decision import Standing
from keep_protocol.declared import DeclaredState

LOG = logging.getLogger("keepfleet.declared")


class Standings:
    """How declared keeps are, by name."""

    def __init__(self) -> None:
        self._found: dict[str, Standing] = {}
        self._said: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"Standings({len(self._found)})"

    def get(self, name: str) -> Standing:
        """How one is; starting where no round has looked at it yet."""
        return self._found.get(name, Standing(DeclaredState.STARTING))

    def put(self, standings: Mapping[str, Standing]) -> None:
        """These are so now; what is new of it is logged once."""
        for name, standing in standings.items():
            before = self._found.get(name)
            self._found[name] = standing
            if before is None or (before.state, before.text) != (standing.state, standing.text):
                why = f": {standing.text}" if standing.text else ""
                level = logging.WARNING if standing.state is DeclaredState.UNMET else logging.INFO
                LOG.log(level, "declared keep %s is %s%s", name, standing.state.value, why)
        self.speak()

    def forget(self, name: str) -> None:
        """What is known of it was of something that is wanted no more."""
        self._found.pop(name, None)

    async def said(self) -> None:
        """Returns when it was next said how a declared keep is."""
        if self._said is None:
            self._said = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._said)

    def speak(self) -> None:
        """How a declared keep is may be another than before: those hear it who wait for that."""
        if self._said is not None:
            self._said.set_result(None)
            self._said = None
