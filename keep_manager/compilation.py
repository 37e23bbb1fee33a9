"""One compilation of a module, for all who wait for it, and the order in which compilations have their turns."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from enum import Enum
from typing import Any

from keep_protocol.compiling import Job
from keep_protocol.fields import Record
from module_store.artifacts import Artifact, another
from module_store.sealing import Key

PROGRESS_SECONDS = 1.0
"""Between two reports to those who wait."""


class Stage(Enum):
    """How far a compilation is."""

    QUEUED = "queued"
    COMPILING = "compiling"


class Progress(Record):
    """What those who wait hear; seconds: since this stage began."""

    stage: Stage
    seconds: float

    @property
    def text(self) -> str:
        """The same for a person."""
        doing = "compiling the module" if self.stage is Stage.COMPILING else "waiting for other compilations"
        return f"{doing}, {self.seconds:.0f} s"


class Wanted(Record):
    """A module as it is to be compiled."""

    digest: str
    job: Job = Job()


class Compilation:
    """One compilation, for all who wait for it. note: what the module's owner should know, once it is done."""

    def __init__(self, name: str, key: Key, wanted: Wanted, *, background: bool) -> None:
        self.name, self.key, self.wanted = name, key, wanted
        self.background, self.note = background, ""
        self.done: asyncio.Future[Artifact] = asyncio.get_running_loop().create_future()
        self._begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._since = asyncio.get_running_loop().time()
        self._waiters = 0

    def __repr__(self) -> str:
        return f"Compilation({self.name}, {self.wanted.digest[:19]}, {self.progress.stage.value})"

    def begin(self) -> None:
        """It has got its turn."""
        self._begun.set_result(None)
        self._since = asyncio.get_running_loop().time()

    def end(self, result: Artifact | BaseException) -> None:
        """It is done, or refused; for those who wait now."""
        if isinstance(result, BaseException):
            self.done.set_exception(result)
            self.done.exception()  # there may be no one who waits
        else:
            self.done.set_result(result)
        self._close_unused()

    @property
    def progress(self) -> Progress:
        """How far it is now."""
        stage = Stage.COMPILING if self._begun.done() else Stage.QUEUED
        return Progress(stage, asyncio.get_running_loop().time() - self._since)

    async def follow(self) -> AsyncIterator[Progress]:
        """How far it is, immediately, when it begins, and every PROGRESS_SECONDS until it is done."""
        while not self.done.done():
            yield self.progress
            awaited: set[asyncio.Future[Any]] = {self.done} if self._begun.done() else {self.done, self._begun}
            await asyncio.wait(awaited, timeout=PROGRESS_SECONDS, return_when=asyncio.FIRST_COMPLETED)

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """A caller waits, for whom the result is kept open meanwhile."""
        self._waiters += 1
        try:
            yield
        finally:
            self._waiters -= 1
            self._close_unused()

    def take(self) -> Artifact:
        """The result, with a descriptor of the caller's own. Raises what it was refused with."""
        return another(self.done.result())

    def _close_unused(self) -> None:
        if not self._waiters and self.done.done() and self.done.exception() is None:
            os.close(self.done.result().descriptor)


class Turns:
    """Who may compile now: so many that a client waits for, and besides them one that none does."""

    def __init__(self, most: int) -> None:
        self._free = {False: most, True: 1}
        self._queue: list[tuple[Compilation, asyncio.Future[bool]]] = []

    def __repr__(self) -> str:
        return f"Turns({self._free}, {len(self._queue)} wait)"

    @asynccontextmanager
    async def turn(self, compilation: Compilation) -> AsyncIterator[None]:
        """Waits for a turn, and has it as long as the block."""
        entry = (compilation, asyncio.get_running_loop().create_future())
        self._queue.append(entry)
        self.look()
        try:
            place = await entry[1]
        except asyncio.CancelledError:
            if entry in self._queue:
                self._queue.remove(entry)
            elif not entry[1].cancelled():
                self._free[entry[1].result()] += 1
                self.look()
            raise
        try:
            yield
        finally:
            self._free[place] += 1
            self.look()

    def look(self) -> None:
        """Gives turns to those who can have one, first come, first served."""
        for entry in list(self._queue):
            compilation, turn = entry
            if self._free[compilation.background] and not turn.done():
                self._free[compilation.background] -= 1
                self._queue.remove(entry)
                turn.set_result(compilation.background)
