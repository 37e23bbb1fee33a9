"""Pulls without systemd: the real program, as a process of the test's, in place of a unit.

It does what `PullUnits` does; `tests/system/test_pulls.py` has the same on systemd.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

from keep_protocol.compiling import End

PROGRAM = Path(__file__).resolve().parents[2] / "module_pull/__main__.py"


class LocalPullUnits:
    """started: the names of all pulls so far; program: what is run in place of the real one."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.processes: list[asyncio.subprocess.Process] = []
        self.program: tuple[str, ...] = ("-I", "-S", str(PROGRAM))

    def __repr__(self) -> str:
        return f"LocalPullUnits({len(self.started)} started)"

    async def run(
        self, name: str, root: str, files: tuple[int, int, int], queued: Callable[[], object]
    ) -> tuple[End, int] | None:
        """See `PullUnits`."""
        self.started.append(name)
        asked, module, report = files
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *self.program),
            env={"LANG": "C.UTF-8"},
            stdin=asked,
            stdout=module,
            stderr=report,
        )
        self.processes.append(process)
        try:
            queued()
            code = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if code == 0:
            return None
        return (End.KILLED, -code) if code < 0 else (End.EXITED, code)

    async def clear(self) -> list[str]:
        """See `PullUnits`."""
        return []
