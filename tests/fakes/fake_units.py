"""Units without systemd: runtime directories and fake loaders below one directory, with systemd's answers."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence

from keep_manager.model import UnitEnd, UnitState
from keep_protocol.constants import unit_name
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.spec import KeepSpec
from tests.fakes.fake_loader import FakeLoader

NO_SPEC = KeepSpec()
READY, NEVER, FAIL = "ready", "never", "fail"


class FakeUnits:
    """A service manager. `behaviour` is what the next units' loaders do: say READY, never do, or fail.

    `away` is how many of the next stops cannot reach it; `masked` and `installed` are what its template is; `ends` are
    how units ended; a spec that is taken out of `said` is of a unit of the version before. `begun` is set when a unit
    begins to start, `gone` when one has been stopped; `mark` is what changes with the settings of new units;
    `narrowed` has what units may have once their guests run.
    """

    def __init__(self, runtime_root: str) -> None:
        self.behaviour = READY
        self.installed, self.masked = True, False
        self.said: dict[int, KeepSpec] = {}
        self.ends: dict[int, UnitEnd] = {}
        self.away = 0
        self.mark = "1"
        self.narrowed: dict[int, int] = {}
        self.loaders: dict[int, FakeLoader] = {}
        self.at_ready: Callable[[FakeLoader], None] = lambda _: None
        self.most_at_once = 0
        self.begun = asyncio.Event()
        self._change = asyncio.Event()
        self.gone = asyncio.Event()
        self._root = runtime_root
        self._states: dict[int, UnitState] = {}
        self._ended: dict[int, asyncio.Event] = {}
        os.makedirs(f"{runtime_root}/keepfleet", exist_ok=True)

    def __repr__(self) -> str:
        return f"FakeUnits({list(self._states.values())})"

    def kuuids(self) -> set[int]:
        """See Units."""
        return {int(name) for name in os.listdir(f"{self._root}/keepfleet")}

    async def start(self, kuuid: int, seconds: float, spec: KeepSpec = NO_SPEC, *, start_follows: bool = False) -> None:
        """See Units."""
        unit = unit_name(kuuid)
        if kuuid in self._states:
            raise KeepfleetError(ErrorKind.CONFLICT, f"cannot start {unit}: Unit {unit} was already loaded")
        if self.masked:
            why = "keep@.service is masked; unmask it: systemctl unmask keep@.service"
            raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot start {unit}: {why}")
        if not self.installed:
            raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot start {unit}: no ExecStart; run keepctl install")
        os.mkdir(f"{self._root}/keepfleet/{kuuid}")
        self.said[kuuid] = spec
        self._set(kuuid, "activating", "start")
        ended = self._ended[kuuid] = asyncio.Event()
        self.begun.set()
        self.most_at_once = max(self.most_at_once, sum(s.active == "activating" for s in self._states.values()))
        await asyncio.sleep(0)
        if self.behaviour == NEVER:
            await self._never_ready(kuuid, ended, seconds)
        if self.behaviour == FAIL:
            self.ends[kuuid] = UnitEnd("exit-code", 7, 0, time.monotonic())
            self._set(kuuid, "failed", "failed")
            raise KeepfleetError(ErrorKind.KEEP_FAILED, f"cannot start {unit}: its loader failed", ("exit code 7",))
        loader = FakeLoader(self._root, kuuid, spec)
        loader.exited = lambda status: self._exited(kuuid, status)
        loader.open()
        self.loaders[kuuid] = loader
        self._set(kuuid, "active", "running")
        self.at_ready(loader)
        self._changes()

    async def _never_ready(self, kuuid: int, ended: asyncio.Event, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await ended.wait()
                why = "it was removed meanwhile"
        except TimeoutError:
            why = "it was not ready in time"
        raise KeepfleetError(ErrorKind.KEEP_FAILED, f"cannot start {unit_name(kuuid)}: {why}")

    async def stop(self, kuuid: int) -> None:
        """See Units."""
        if self.away:
            self.away -= 1
            raise KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot stop {unit_name(kuuid)}: systemd has not answered")
        if kuuid not in self._states:
            raise KeepfleetError(ErrorKind.NOT_FOUND, f"cannot stop {unit_name(kuuid)}: it is not loaded")
        loader = self.loaders.pop(kuuid, None)
        if loader is not None:
            await loader.close()
        shutil.rmtree(f"{self._root}/keepfleet/{kuuid}", ignore_errors=True)
        self._states.pop(kuuid, None)
        self.said.pop(kuuid, None)
        self.ends.pop(kuuid, None)
        if kuuid in self._ended:
            self._ended.pop(kuuid).set()
        self.gone.set()
        self._changes()

    async def listed(self) -> list[UnitState]:
        """See Units."""
        return list(self._states.values())

    async def look(self, kuuid: int) -> UnitState | None:
        """See Units."""
        return self._states.get(kuuid)

    async def spec(self, kuuid: int) -> KeepSpec | None:
        """See Units."""
        return self.said.get(kuuid)

    async def specs(self, kuuids: Sequence[int]) -> Mapping[int, KeepSpec | None]:
        """See Units."""
        return {kuuid: self.said.get(kuuid) for kuuid in kuuids if kuuid in self._states}

    async def claim(self, kuuid: int, spec: KeepSpec) -> None:
        """See Units."""
        self._reach(kuuid, "claim")
        self.said[kuuid] = spec

    async def narrow(self, kuuid: int, spec: KeepSpec) -> None:
        """See Units."""
        self._reach(kuuid, "narrow")
        if self.away:
            self.away -= 1
            raise KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot narrow {unit_name(kuuid)}: systemd has not answered")
        self.narrowed[kuuid] = spec.limits.running_memory_bytes

    async def settings_mark(self, kuuid: int) -> str:
        """See Units."""
        self._reach(kuuid, "look at")
        return self.mark

    def _reach(self, kuuid: int, what: str) -> None:
        if kuuid not in self._states:
            raise KeepfleetError(ErrorKind.NOT_FOUND, f"cannot {what} {unit_name(kuuid)}: it is not loaded")

    async def end(self, kuuid: int) -> UnitEnd:
        """See Units."""
        state = self._states.get(kuuid)
        return self.ends.get(kuuid) or UnitEnd("" if state is None else "success")

    async def changed(self) -> None:
        """Waits until the next unit has got ready, has failed or has gone."""
        await self._change.wait()

    def _changes(self) -> None:
        self._change.set()
        self._change = asyncio.Event()

    async def crash(self, kuuid: int) -> None:
        """The unit's loader ends by itself and is not started again."""
        self.ends[kuuid] = UnitEnd("exit-code", 1, 0, time.monotonic())
        self._set(kuuid, "failed", "failed")
        await self.loaders.pop(kuuid).close()

    def _exited(self, kuuid: int, status: int) -> None:
        """The unit's loader has exited as its keep ended, and its unit with it."""
        self.loaders.pop(kuuid, None)
        if status == 0:
            self._set(kuuid, "active", "exited")
        else:
            self.ends[kuuid] = UnitEnd("exit-code", status, 0, time.monotonic())
            shutil.rmtree(f"{self._root}/keepfleet/{kuuid}", ignore_errors=True)
            self._set(kuuid, "failed", "failed")
        self._changes()

    async def vanish(self, kuuid: int) -> None:
        """The unit's loader has ended, and systemd has not noticed yet."""
        await self.loaders.pop(kuuid).close()

    def back(self, kuuid: int) -> None:
        """Another loader of the unit's is there."""
        loader = self.loaders[kuuid] = FakeLoader(self._root, kuuid, self.said.get(kuuid, NO_SPEC))
        loader.exited = lambda status: self._exited(kuuid, status)
        loader.open()

    async def close(self) -> None:
        """Ends every unit."""
        for kuuid in list(self._states):
            await self.stop(kuuid)

    def _set(self, kuuid: int, active: str, sub: str) -> None:
        self._states[kuuid] = UnitState(kuuid, "loaded", active, sub)
