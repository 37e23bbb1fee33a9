"""Pulls as systemd units: one transient unit each, with the request, a pipe for the module, and the report."""

from __future__ import annotations

import re
from collections.abc import Callable

from keep_manager.systemd.oneshots import Oneshots
from keep_manager.systemd.properties import Property
from keep_protocol.compiling import End

PATTERN = "keep-pull@*.service"
NAME = re.compile(r"[0-9a-f]{16}")
"""As compilations have them, for the same reason."""
MAX_SECONDS = 20 * 3600.0
"""TimeoutStartSec= of the unit and a little more: the longest module at the slowest rate takes 18 hours."""


def unit_of(name: str) -> str:
    """The unit of the pull `name`. Raises ValueError for what is no such name."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no pull")
    return f"keep-pull@{name}.service"


def pull_properties(name: str, root: str) -> tuple[Property, ...]:
    """The transient properties of a pull's unit, whose files are the first three that go with the call. Pure."""
    return (
        ("Description", "s", f"Pull {name}"),
        ("RootDirectory", "s", root),
        ("StandardInputFileDescriptor", "h", 0),
        ("StandardOutputFileDescriptor", "h", 1),
        ("StandardErrorFileDescriptor", "h", 2),
    )


class PullUnits:
    """The pulls of the systemd instance that `units` is connected to."""

    def __init__(self, units: Oneshots) -> None:
        self._units = units

    def __repr__(self) -> str:
        return f"PullUnits({self._units!r})"

    async def run(
        self, name: str, root: str, files: tuple[int, int, int], queued: Callable[[], object]
    ) -> tuple[End, int] | None:
        """Runs one pull to its end; None where it ended with 0, else how. Cancelled, it is ended. Raises
        KeepfleetError, see `run_unit`."""
        return await self._units.run_unit(unit_of(name), pull_properties(name, root), files, MAX_SECONDS, queued)

    async def clear(self) -> list[str]:
        """Ends every pull there is, of a manager that has gone; their units. Raises KeepfleetError."""
        return await self._units.clear_units(PATTERN)
