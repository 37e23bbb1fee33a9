"""The compiled code of stored modules, as starts of keeps use it: `keeps.interfaces.Artifacts`.

Starts that go on concurrently share one check of one file, each with a descriptor of its own. Where compiled code
cannot be kept on this host a keep compiles its module itself, under its own limits, as it does with an upload: that is
slower, and no less safe. What a module is refused for is refused here, before there is a keep.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from keep_manager.compilation import Progress, Wanted
from keep_manager.compilations import Compilations
from keep_manager.model import exhaustion_explained
from keep_manager.tasks import Group
from keep_protocol.compiling import Job
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.spec import KeepSpec
from module_store.artifacts import Artifact, Artifacts, another

LOG = logging.getLogger("keepfleet.compilation")
_IN_THE_KEEP = (ErrorKind.NO_SPACE, ErrorKind.CONFIGURATION, ErrorKind.FORBIDDEN)
"""What has to do with this host's disk or installation, and not with the module: the keep compiles it then. Where it is
the store after all that cannot be read, the start ends with that a moment later."""
PAUSE_SECONDS = 300.0
"""How long a module that could not be kept is left to its keeps: each try costs a whole compilation, and a disk that is
full stays so for a while."""
SHARED_SECONDS = 10.0
"""How long after its check compiled code is given to starts that begin meanwhile; longer than a creation takes."""


def wanted_by(spec: KeepSpec) -> Wanted:
    """The module of a keep, as it is to be compiled: within what the keep's own compiler could use."""
    limits = spec.limits
    job = Job(spec.profile, spec.compiler, limits.compile_seconds, limits.compile_memory_bytes)
    return Wanted(spec.digest, job)


class _Use:
    """One module's code, for all starts that go on now. found: None where each keep is to compile it."""

    def __init__(self) -> None:
        self.found: asyncio.Future[Artifact | None] = asyncio.get_running_loop().create_future()
        self.progress: Progress | None = None
        self.users, self.until = 0, float("inf")

    def report(self, progress: Progress) -> None:
        """How far it is."""
        self.progress = progress

    def close(self) -> None:
        """It is not used any more."""
        if self.found.done() and not self.found.cancelled() and self.found.exception() is None:
            artifact = self.found.result()
            if artifact is not None:
                os.close(artifact.descriptor)


class Compiled:
    """What `compilations` has of the modules of keeps."""

    def __init__(
        self, tasks: Group, compilations: Compilations, cache: Artifacts, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tasks, self._compilations, self._cache, self._clock = tasks, compilations, cache, clock
        self._uses: dict[Wanted, _Use] = {}
        self._left_to_keeps: dict[Wanted, float] = {}  # until when

    def __repr__(self) -> str:
        return f"Compiled({self._compilations!r}, {len(self._uses)} in use)"

    @asynccontextmanager
    async def held(self, spec: KeepSpec, patience: float | None = None) -> AsyncIterator[int | None]:
        """See keeps.interfaces.Artifacts."""
        wanted = wanted_by(spec)
        use = self._uses.get(wanted)
        if use is None or use.until < self._clock():
            use = self._uses[wanted] = _Use()
            self._tasks.start(self._find(wanted, use), name=f"compiled code of {wanted.digest[:19]}")
        use.users += 1
        try:
            artifact = await self._until_found(use, patience)
            if artifact is None:
                yield None
                return
            own = another(artifact)
            try:
                yield own.descriptor
            finally:
                os.close(own.descriptor)
        finally:
            use.users -= 1
            self._end(wanted, use)

    async def _until_found(self, use: _Use, patience: float | None) -> Artifact | None:
        done, _ = await asyncio.wait({use.found}, timeout=patience)
        if not done:
            text = "looking for what was compiled before" if use.progress is None else use.progress.text
            raise KeepfleetError(ErrorKind.COMPILING, f"cannot run the module yet: {text}; ask again", (text,))
        try:
            return use.found.result()
        except KeepfleetError as error:  # a new one for each who waits: each raise adds to it
            raise KeepfleetError(error.kind, error.message, error.evidence) from error

    async def _find(self, wanted: Wanted, use: _Use) -> None:
        """The task of one use, which ends a use that is not waited for any more."""
        found: Artifact | None = None
        try:
            if self._left_to_keeps.get(wanted, 0.0) <= self._clock():
                with exhaustion_explained("look for compiled code"):
                    found = await self._compilations.get(wanted, use.report)
        except KeepfleetError as error:
            if error.kind not in _IN_THE_KEEP:
                use.found.set_exception(error)
                use.found.exception()  # there may be no one who waits
                self._end(wanted, use)
                return
            LOG.warning("keeps compile %s themselves for the next minutes: %s", wanted.digest, error.message)
            self._leave_to_keeps(wanted)
        except asyncio.CancelledError:
            use.found.cancel()
            raise
        use.found.set_result(found)
        use.until = self._clock() + SHARED_SECONDS
        self._end(wanted, use)

    def _leave_to_keeps(self, wanted: Wanted) -> None:
        now = self._clock()
        self._left_to_keeps = {each: until for each, until in self._left_to_keeps.items() if until > now}
        self._left_to_keeps[wanted] = now + PAUSE_SECONDS

    def _end(self, wanted: Wanted, use: _Use) -> None:
        """Closes a use without users. While it is not found yet it stays: who was asked to come again does."""
        if use.users or not use.found.done():
            return
        if self._uses.get(wanted) is use:
            del self._uses[wanted]
        use.close()

    def unfit(self, spec: KeepSpec) -> None:
        """The engine of a keep of that spec did not take what was compiled for it, though it is what was compiled: it
        is compiled once more, in the background. What a keep says costs no more than that, be it true or not."""
        if spec.digest:
            self._tasks.start(self._again(wanted_by(spec)), name=f"discarding compiled code of {spec.digest[:19]}")

    async def _again(self, wanted: Wanted) -> None:
        try:
            if await self._compilations.discard(wanted, f"the engine of a keep did not take it, for {wanted.digest}"):
                self._uses.pop(wanted, None)  # who has it open goes on; no other gets it
                await self._compilations.prepare([wanted])
        except KeepfleetError as error:
            LOG.warning("cannot discard what was compiled of %s: %s", wanted.digest, error.message)

    async def prepare(self, specs: Iterable[KeepSpec]) -> None:
        """Compiles in the background for the engine of new keeps what keeps of those specs run, and what was compiled
        for another engine before: after an upgrade, before the first start needs it."""
        wanted = {(spec.digest, spec.profile, spec.compiler): wanted_by(spec) for spec in specs if spec.digest}
        try:
            known = await asyncio.to_thread(self._cache.keys)
        except KeepfleetError as error:
            LOG.warning("cannot see what was compiled before: %s", error.message)
            known = []
        for key in known:
            job = Job(key.profile, key.compiler)
            wanted.setdefault((key.digest, key.profile, key.compiler), Wanted(key.digest, job))
        await self._compilations.prepare(wanted.values())


class NotKept:
    """No compiled code is kept: each keep compiles its module itself."""

    def __repr__(self) -> str:
        return "NotKept()"

    @asynccontextmanager
    async def held(self, spec: KeepSpec, patience: float | None = None) -> AsyncIterator[int | None]:
        """See keeps.interfaces.Artifacts."""
        yield None

    def unfit(self, spec: KeepSpec) -> None:
        """There is nothing to discard."""

    async def prepare(self, specs: Iterable[KeepSpec]) -> None:
        """There is nothing to prepare."""
