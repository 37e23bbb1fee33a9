"""Compiled code for keeps that run modules of the store: from the cache, or made now, once for all who ask.

What asks gets a descriptor that was checked a moment ago; what it waits for it can follow. Compilations run each in a
unit of its own, few at a time, those that a client waits for first. Nothing here outlives the manager: a unit that one
left behind is ended by the next, and what it wrote is in a file without a name.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterable
from contextlib import ExitStack
from typing import Protocol

from keep_manager.compilation import Compilation, Progress, Stage, Turns, Wanted
from keep_manager.failpoints import Failpoint, reach
from keep_manager.model import exhaustion_explained
from keep_manager.tasks import Group
from keep_protocol.compiling import MAX_REPORT_BYTES, End, Job, read_report, refusal_of_end
from keep_protocol.errors import ErrorKind, KeepfleetError
from module_store.artifacts import Artifact, Artifacts
from module_store.engine import engine_of
from module_store.sealing import Key

LOG = logging.getLogger("keepfleet.compilation")
MAX_COMPILING = max(1, (os.cpu_count() or 1) // 2)
"""Compilations that run concurrently, each on one processor: the other half is for what runs already."""
MAX_WAITING = 256
"""Modules that wait for their turn; an operator's whole set after an upgrade of the engine."""
_REFUSED = 1
"""The exit status of a compiler that reports why it refuses the module (app_loader/compile/__main__.py)."""
CACHED_RESULTS = 1000
"""Refusals of modules for what they are: a declared keep tries again and again, and must not compile a bomb again."""
_PERMANENT = (ErrorKind.INVALID_MODULE, ErrorKind.TOO_COMPLEX)
_POINTS = {
    "created": Failpoint.COMPILE_AFTER_CREATE,
    "written": Failpoint.COMPILE_AFTER_WRITE,
    "renamed": Failpoint.COMPILE_AFTER_RENAME,
}
OpenModule = Callable[[str], int]
"""A descriptor of the module with this digest, verified, read-only. Raises KeepfleetError."""


class Units(Protocol):
    """Where compilations run: `keep_manager.systemd.compile_units.CompileUnits`."""

    async def run(
        self, name: str, job: Job, root: str, files: tuple[int, int, int], *, background: bool
    ) -> tuple[End, int] | None:
        """Runs one to its end; None where it ended with 0."""

    async def hurry(self, name: str) -> None:
        """Gives one that runs in the background a foreground's share."""

    async def clear(self) -> list[str]:
        """Ends all there are."""


class Compilations:
    """The compiled code of one manager's keeps. `root` gives the root that new keeps get; `engine` says which engine
    that has, which compiles."""

    def __init__(
        self,
        tasks: Group,
        artifacts: Artifacts,
        open_module: OpenModule,
        units: Units,
        root: Callable[[], Awaitable[str]],
        engine: Callable[[str], str] = engine_of,
    ) -> None:
        self._tasks, self._artifacts, self._open_module, self._units = tasks, artifacts, open_module, units
        self._root, self._engine = root, engine
        self._under_way: dict[str, Compilation] = {}
        self._refused: dict[str, KeepfleetError] = {}
        self._discarded: dict[str, None] = {}  # the names of their keys, the oldest first
        self._turns = Turns(MAX_COMPILING)

    def __repr__(self) -> str:
        return f"Compilations({self._artifacts!r}, {len(self._under_way)} under way)"

    async def open(self) -> None:
        """Ends what a manager that has gone left running. Raises KeepfleetError."""
        for unit in await self._units.clear():
            LOG.info("ended %s, which is not waited for any more", unit)

    async def key_of(self, wanted: Wanted) -> Key:
        """What the artifact is kept by. Raises KeepfleetError where there is no root or no engine."""
        engine = await asyncio.to_thread(self._engine, await self._root())
        job = wanted.job
        return Key(wanted.digest, engine, job.profile, job.compiler, self._artifacts.maps_code)

    async def get(self, wanted: Wanted, report: Callable[[Progress], None] = lambda _: None) -> Artifact:
        """The artifact for a module, whose descriptor the caller closes; `report` is called while it is waited for.

        Raises KeepfleetError: what the module is refused for, NOT_FOUND where the store has none, TOO_MANY, NO_SPACE.
        """
        key = await self.key_of(wanted)
        found = await asyncio.to_thread(self._artifacts.open, key)
        if found is not None:
            return found
        compilation = self._join(key, wanted, background=False)
        with compilation.awaited():
            if compilation.background:
                await self._hurry(compilation)
            async for progress in compilation.follow():
                report(progress)
            return compilation.take()

    async def prepare(self, wanted: Iterable[Wanted]) -> None:
        """Compiles in the background what is not compiled for the engine of new keeps, one after the other: after an
        upgrade, before the first start needs it. What fails is logged, and again at its start."""
        for each in wanted:
            try:
                key = await self.key_of(each)
                if not self._artifacts.has(key):
                    compilation = self._join(key, each, background=True)
                    with compilation.awaited():
                        await asyncio.wait({compilation.done})
                        compilation.done.result()
            except KeepfleetError as error:
                gone = error.kind is ErrorKind.NOT_FOUND  # which can be started no more
                LOG.log(logging.DEBUG if gone else logging.WARNING, "cannot prepare %s: %s", each.digest, error.message)

    async def missing(self, wanted: Iterable[Wanted]) -> list[Wanted]:
        """Which of these are not compiled for the engine of new keeps. Raises KeepfleetError."""
        return [each for each in wanted if not self._artifacts.has(await self.key_of(each))]

    async def discard(self, wanted: Wanted, why: str) -> bool:
        """Drops the artifact for a module that an engine did not take, so that it is compiled again: once, since one
        that does not fit then either will not the next time. Whether it did. Raises KeepfleetError."""
        key = await self.key_of(wanted)
        if key.name in self._discarded:
            return False
        self._discarded[key.name] = None
        while len(self._discarded) > CACHED_RESULTS:
            del self._discarded[next(iter(self._discarded))]
        await asyncio.to_thread(self._artifacts.discard, key, why)
        return True

    def _join(self, key: Key, wanted: Wanted, *, background: bool) -> Compilation:
        """The compilation for `key`, begun now unless it is under way. Raises KeepfleetError: TOO_MANY, and what the
        module was refused for before, with this engine and these limits."""
        name = hashlib.sha256(f"{key.name} {wanted.job.to_text()}".encode()).hexdigest()[:16]
        refused = self._refused.get(name)
        if refused is not None:
            raise KeepfleetError(refused.kind, refused.message, refused.evidence)  # a new one: each raise adds to it
        there = self._under_way.get(name)
        if there is not None:
            return there
        if len(self._under_way) >= MAX_WAITING:
            raise KeepfleetError(
                ErrorKind.TOO_MANY, f"cannot compile {wanted.digest}: {MAX_WAITING} others wait; try again later"
            )
        compilation = self._under_way[name] = Compilation(name, key, wanted, background=background)
        self._tasks.start(self._run(compilation), name=repr(compilation))
        return compilation

    async def _hurry(self, compilation: Compilation) -> None:
        compilation.background = False
        self._turns.look()
        if compilation.progress.stage is Stage.COMPILING:
            try:
                await self._units.hurry(compilation.name)
            except KeepfleetError as error:  # it has ended meanwhile, or goes on slowly
                LOG.debug("%s", error.message)

    async def _run(self, compilation: Compilation) -> None:
        """The compilation's task. What it is refused for is its waiters' error, and no fault of the manager's."""
        result: Artifact | BaseException = _STOPPING
        try:
            async with self._turns.turn(compilation):
                compilation.begin()
                with exhaustion_explained("compile the module"):
                    result = await self._compile(compilation)
        except KeepfleetError as error:
            result = error
            if error.kind in _PERMANENT:
                self._refused[compilation.name] = error
                while len(self._refused) > CACHED_RESULTS:
                    del self._refused[next(iter(self._refused))]
        finally:
            del self._under_way[compilation.name]
            compilation.end(result)

    async def _compile(self, compilation: Compilation) -> Artifact:
        wanted, began = compilation.wanted, asyncio.get_running_loop().time()
        root = await self._root()
        with ExitStack() as held:
            module = await asyncio.to_thread(self._open_module, wanted.digest)
            held.callback(os.close, module)
            result = await asyncio.to_thread(held.enter_context, self._artifacts.scratch())
            report = _report_file()
            held.callback(os.close, report)
            reach(Failpoint.COMPILE_BEFORE_CALL)
            files = (module, result, report)
            end = await self._units.run(compilation.name, wanted.job, root, files, background=compilation.background)
            reach(Failpoint.COMPILE_AFTER_END)
            compilation.note = _note(end, os.pread(report, MAX_REPORT_BYTES, 0).rstrip(b"\0"), wanted.job)
            artifact = await asyncio.to_thread(self._artifacts.put, compilation.key, result, _step)
        seconds = asyncio.get_running_loop().time() - began
        LOG.info("compiled %s in %.1f s, %d bytes", wanted.digest, seconds, artifact.size)
        return artifact


_STOPPING = KeepfleetError(ErrorKind.UNAVAILABLE, "cannot compile the module: the manager is stopping")


def _step(name: str) -> None:
    reach(_POINTS[name])


def _report_file() -> int:
    """A file in memory that holds MAX_REPORT_BYTES and cannot grow, by whichever process."""
    file = os.memfd_create("report", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(file, MAX_REPORT_BYTES)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return file


def _note(end: tuple[End, int] | None, said: bytes, job: Job) -> str:
    """What the owner of a compiled module should know. Raises KeepfleetError for a compilation that failed: what it
    reported, where it ended as one that refuses, else what its end means."""
    found = read_report(said)
    if end is None and isinstance(found, str):
        return found
    if isinstance(found, KeepfleetError) and end in (None, (End.EXITED, _REFUSED)):
        raise found
    raise refusal_of_end(*(end or (End.EXITED, 0)), job, said)
