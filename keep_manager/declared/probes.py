"""Listens to keeps that are to show by a line of their output that they are ready.

What was heard is this process's alone: the ring that keeps the output is read from its beginning by the next manager.
A keep's workload does not wait for this reader.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from keep_manager.declared.decision import Seen
from keep_manager.keeps.logs import Chosen, Keeps, follow
from keep_manager.keeps.readers import Readers
from keep_manager.tasks import Group
from keep_protocol.constants import unit_name
from keep_protocol.errors import KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.sse import LogLine

LOG = logging.getLogger("keepfleet.declared")
CLOCK = 0
"""When lines came does not matter here."""


class _HeardError(Exception):
    """The line has come."""


class Probes:
    """The keeps that are listened to, and those that have shown that they are ready."""

    def __init__(self, tasks: Group, keeps: Keeps, output: Readers, wake: Callable[[str], None]) -> None:
        self._tasks, self._keeps, self._output, self._wake = tasks, keeps, output, wake
        self._listening: dict[tuple[int, str], asyncio.Task[None]] = {}
        self._heard: set[tuple[int, str]] = set()

    def __repr__(self) -> str:
        return f"Probes({len(self._listening)} listened to)"

    def heard(self, kuuid: int, text: str) -> bool:
        """Whether the keep has written a line with that in it, as far as is known."""
        return (kuuid, text) in self._heard

    def listen(self, wanted: Iterable[tuple[Seen, str]]) -> None:
        """Listens to these keeps for these texts, and to no others any more."""
        names = {(keep.kuuid, text): keep.name for keep, text in wanted}
        asked = names.keys()
        for one in self._listening.keys() - asked:
            self._listening.pop(one).cancel()
        self._heard &= asked
        for one in asked - self._listening.keys() - self._heard:
            self._listening[one] = self._tasks.start(self._listen(names[one], *one), name=f"probe {one[0]}")

    def close(self) -> None:
        """Listens no more."""
        self.listen(())

    async def _listen(self, name: str, kuuid: int, text: str) -> None:
        async def look(said: tuple[LogLine, ...] | KeepInfo) -> None:
            if not isinstance(said, KeepInfo) and any(text in line.text for line in said):
                raise _HeardError

        try:
            async with self._output.reading(kuuid, follows=True) as reading:
                await follow(self._keeps, kuuid, reading, Chosen(), CLOCK, look)
        except _HeardError:
            self._heard.add((kuuid, text))
            LOG.info("%s: has said that it is ready", unit_name(kuuid))
            self._wake(name)
        except KeepfleetError as error:  # it is not ready by that, and says so
            LOG.warning("%s: cannot be listened to: %s", unit_name(kuuid), error.message)
