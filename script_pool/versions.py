"""What a script's name stands for from one request on, also while its code is being prepared."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from script_pool.engine.interface import Script
from script_pool.hostcalls import Allowance

MAX_MODULES = 256
"""That one script imports, and those import."""


class Version:
    """What a name stands for from one request on: a script, code that is being prepared, or nothing.

    Until it is settled the one before it counts, should this prove to be none.
    """

    def __init__(
        self,
        number: int,
        name: str,
        language: str = "",
        before: Version | None = None,
        functions: Mapping[str, Allowance] | None = None,
    ) -> None:
        self.number, self.name, self.language, self.functions = number, name, language, functions or {}
        self.script: Script | None = None
        self.settled = self.dropped = False
        self._before, self._waiting = before, list[Callable[[], None]]()

    def __repr__(self) -> str:
        return f"Version({self.number}, {self.name!r}, {'settled' if self.settled else 'being prepared'})"

    def become(self, script: Script | None) -> Version | None:
        """It is `script`, or nothing; returns what was before it, which no name stands for now."""
        before, self._before = self._before, None
        self._settle(self.number, script)
        return before

    def fall_back(self) -> None:
        """It is what was before it, once that is settled."""
        before, self._before = self._before, None
        if before is None:
            self._settle(self.number, None)
        else:
            before.when_settled(lambda: self._settle_as(before))

    def _settle_as(self, other: Version) -> None:
        self.functions = other.functions
        self._settle(other.number, other.script)

    def when_settled(self, call: Callable[[], None]) -> None:
        """Calls `call` once it is certain what this is, perhaps immediately."""
        if self.settled:
            call()
        else:
            self._waiting.append(call)

    def _settle(self, number: int, script: Script | None) -> None:
        self.number, self.script, self.settled = number, script, True
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call()


def bind(names: Mapping[str, Version], script: Script, bound: dict[str, Version]) -> Version | str | None:
    """Binds what `script` imports, and what that does, to what the names stand for now, once; a Version that is still
    to be settled, the reason why it cannot be, or None where all of them are there."""
    wanted, seen = [(script.name, name) for name in script.imports], set[str]()
    while wanted:
        by, name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        version = bound.get(name) or names.get(name)
        if version is None or len(seen) > MAX_MODULES:
            return f"{by} imports {name}" if version is None else f"more than {MAX_MODULES} scripts are imported"
        bound[name] = version
        if not version.settled:
            return version
        if version.script is None:
            return f"{by} imports {name}"
        wanted += [(name, other) for other in version.script.imports]
    return None
