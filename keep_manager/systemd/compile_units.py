"""Compilations as systemd units: one transient unit each, with the module, the file for the result, and the report."""

from __future__ import annotations

import re

from keep_manager.failpoints import Failpoint, reach
from keep_manager.systemd.oneshots import Oneshots
from keep_manager.systemd.properties import Property
from keep_protocol.compiling import VARIABLE, End, Job
from keep_protocol.spec import Profile

PATTERN = "keep-compile@*.service"
NAME = re.compile(r"[0-9a-f]{16}")
"""Of one compilation; with more digits its user's name would be longer than names of users may be."""
FOREGROUND, BACKGROUND = 100, 1
"""CPUWeight= and IOWeight= where a client waits for it, and where none does."""
_USEC = 1_000_000


def unit_of(name: str) -> str:
    """The unit of the compilation `name`. Raises ValueError for what is no such name."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no compilation")
    return f"keep-compile@{name}.service"


def compile_properties(name: str, job: Job, root: str, *, background: bool) -> tuple[Property, ...]:
    """The transient properties of a compilation's unit, whose files are the first three that go with the call. Pure."""
    strict: tuple[Property, ...] = (("MemoryDenyWriteExecute", "b", True),) if job.profile is Profile.STRICT else ()
    return (
        ("Description", "s", f"Compilation {name}"),
        ("RootDirectory", "s", root),
        ("Environment", "as", [f"{VARIABLE}={job.to_text()}"]),
        ("StandardInputFileDescriptor", "h", 0),
        ("StandardOutputFileDescriptor", "h", 1),
        ("StandardErrorFileDescriptor", "h", 2),
        ("MemoryMax", "t", job.unit_memory_bytes),
        ("TimeoutStartUSec", "t", job.wall_seconds * _USEC),
        *_weights(background=background),
        *strict,
    )


def _weights(*, background: bool) -> tuple[Property, ...]:
    weight = BACKGROUND if background else FOREGROUND
    return (("CPUWeight", "t", weight), ("IOWeight", "t", weight))


class CompileUnits(Oneshots):
    """The compilations of one systemd instance, on the bus at `address`."""

    async def run(
        self, name: str, job: Job, root: str, files: tuple[int, int, int], *, background: bool
    ) -> tuple[End, int] | None:
        """Runs one compilation to its end, with the module, the file for the result, and that for the report.

        None where it ended with 0, else how. Raises KeepfleetError, see `run_unit`.
        """
        properties = compile_properties(name, job, root, background=background)
        return await self.run_unit(
            unit_of(name), properties, files, job.wall_seconds, lambda: reach(Failpoint.COMPILE_AFTER_CALL)
        )

    async def hurry(self, name: str) -> None:
        """A caller waits now for one that ran in the background. Raises KeepfleetError, NOT_FOUND too."""
        await self.set_properties(unit_of(name), _weights(background=False))

    async def clear(self) -> list[str]:
        """Ends every compilation there is, of a manager that has gone; their units. Raises KeepfleetError."""
        return await self.clear_units(PATTERN)
