"""Compilations without systemd: the real compiler, as a process of the test's, in place of a unit.

It does what `CompileUnits` does, and passes the same tests: `tests/system/test_compilation.py` runs those on systemd.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from keep_protocol.compiling import VARIABLE, End, Job

COMPILER = Path(__file__).resolve().parents[2] / "app_loader/compile/__main__.py"


class LocalCompileUnits:
    """started: the names of all compilations so far; hurried: those that were given a foreground's share.

    `hold()` has them wait before they begin, until `let_go()`.
    """

    def __init__(self) -> None:
        self.started: list[str] = []
        self.hurried: list[str] = []
        self.background: list[bool] = []
        self.most = self._running = 0
        self._held = asyncio.Event()
        self._held.set()
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"LocalCompileUnits({len(self.started)} started)"

    def hold(self) -> None:
        self._held.clear()

    def let_go(self) -> None:
        self._held.set()

    async def until_started(self, count: int) -> None:
        """Returns when so many have been started."""
        while len(self.started) < count:
            self._changed.clear()
            await self._changed.wait()

    async def until_hurried(self) -> None:
        """Returns when one has been."""
        while not self.hurried:
            self._changed.clear()
            await self._changed.wait()

    async def run(
        self, name: str, job: Job, root: str, files: tuple[int, int, int], *, background: bool
    ) -> tuple[End, int] | None:
        """See `CompileUnits`."""
        self.started.append(name)
        self.background.append(background)
        self._running += 1
        self.most = max(self.most, self._running)
        self._changed.set()
        try:
            await self._held.wait()
            module, result, report = files
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", str(COMPILER)),
                env={VARIABLE: job.to_text(), "LANG": "C.UTF-8"},
                stdin=module,
                stdout=result,
                stderr=report,
            )
            code = await process.wait()
        finally:
            self._running -= 1
        if code == 0:
            return None
        return (End.KILLED, -code) if code < 0 else (End.EXITED, code)

    async def hurry(self, name: str) -> None:
        """See `CompileUnits`."""
        self.hurried.append(name)
        self._changed.set()

    async def clear(self) -> list[str]:
        """See `CompileUnits`."""
        return []
