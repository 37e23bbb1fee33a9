"""A run of Python, whose host functions are plain calls: what it was given, its clock, and its calls.

A host function is waited for where the guest calls it, and the run's clock stands still meanwhile.
"""

from __future__ import annotations

import json
import time

from script_pool.engine.interface import HostCall, HostCallFailed, Limits, Script, World


class PlainRun:
    """One run. `world`: of which it has the clock alone."""

    def __init__(self, script: Script, limits: Limits, host: HostCall | None, world: World | None) -> None:
        self.script, self.limits, self._host = script, limits, host
        self._began, self._waited = time.perf_counter(), 0.0
        clock = None if world is None else world.clock
        self._ahead = 0 if clock is None else int(clock * 1e6) - time.time_ns()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.script.name!r}, {self.seconds():g} s)"

    def now(self) -> int:
        """Nanoseconds since 1970, as the guest sees them."""
        return time.time_ns() + self._ahead

    def seconds(self) -> float:
        """What it has run, waiting for host functions excluded."""
        return time.perf_counter() - self._began - self._waited

    def left(self) -> float:
        """The seconds that its limit leaves."""
        return max(0.0, self.limits.wall_seconds - self.seconds())

    def call_host(self, text: str | bytes) -> bytes:
        """Calls a host function, as `[name, arguments]` asks; its value as JSON. Raises HostCallFailed."""
        try:
            name, arguments = json.loads(text)
            if self._host is None or name not in self.script.functions:
                raise HostCallFailed(f"the script may not call {name}", refused=True)
            began = time.perf_counter()
            try:
                return self._host(name, json.dumps(arguments).encode())
            finally:
                self._waited += time.perf_counter() - began
        except (ValueError, TypeError, RecursionError):
            raise HostCallFailed("its arguments have no JSON") from None
