"""A run of JavaScript in its instance, to its end, over the calls of host functions that it waits for.

What it does in the guest is its isolate's (isolate.py); what follows from that is here: a result, a fault, or waiting.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from script_pool.engine.binding import Trap
from script_pool.engine.interface import Fault, Limits, Reason, Result, Script, World
from script_pool.engine.isolate import Isolate
from script_pool.engine.prepared import Prepared
from script_pool.engine.stores import ticks
from script_pool.engine.texts import Places, check_output, nests_deeper, thrown

if TYPE_CHECKING:
    from script_pool.engine.quickjs import QuickJS


def places_of(script: Script, world: World) -> Places:
    """Where the lines of a script, and of those that it imports, were."""
    modules = {name: Prepared.decode(module.image).places() for name, module in world.modules.items()}
    own = Prepared.decode(script.image)
    return Places(own.prefix, own.map, modules)


class Held:
    """A run in its instance: what Suspended asks for, and how it goes on. Its clock runs while the guest does."""

    def __init__(self, engine: QuickJS, isolate: Isolate, script: Script, limits: Limits, world: World) -> None:
        self._engine, self._isolate, self._script = engine, isolate, script
        self.limits, self.world = limits, world
        self.places: Callable[[], Places] = lambda: places_of(script, world)
        self.calls, self.seconds = b"[]", 0.0

    def __repr__(self) -> str:
        return f"Held({self._script.name!r}, {self.seconds:g} s)"

    def go(self, step: Callable[[Isolate], int], started: float) -> Result | Held:
        """Takes a step, and what follows from it. Raises Fault."""
        engine, isolate, limits = self._engine, self._isolate, self.limits
        engine.set_clock(self.world.clock)
        isolate.extend(ticks(max(0.0, limits.wall_seconds - self.seconds)))
        try:
            try:
                kind, console, text = isolate.end(step(isolate), limits)
            except Trap as trap:
                isolate.stopped(trap, limits)
            self.seconds += time.perf_counter() - started
            if kind == b"c":
                if nests_deeper(text, limits.depth):
                    raise Fault(Reason.NESTED_TOO_DEEPLY, "", f"a call's arguments nest deeper than {limits.depth}")
                self.calls = text
                return self
            result = self._result(kind, console, text)
        except BaseException as error:
            engine.used(isolate)
            full = isolate.size > limits.memory_bytes * 3 // 4
            if isinstance(error, Fault) and full and (error.name, error.message) == ("Error", "null"):
                # What is thrown where there is no memory for an error.
                raise Fault(Reason.MEMORY_LIMIT, "", f"more than {limits.memory_bytes} bytes are needed") from None
            raise
        engine.used(isolate)
        return result

    def _result(self, kind: bytes, console: tuple[str, ...], text: bytes) -> Result:
        if kind == b"o":
            check_output(text, self.limits)
            session = self._isolate.session() if self.world.keep else None
            return Result(text, console, self.seconds, session)
        if kind == b"w":
            fault = Fault(Reason.EXCEPTION, "Error", "the script waits for a promise that nothing will resolve")
        else:
            fault = thrown(text, Reason.NOT_SERIALISABLE if kind == b"n" else Reason.EXCEPTION, self.places())
        fault.console = console
        raise fault

    def answer(self, answers: bytes) -> Result | Held:
        """Goes on. Raises Fault."""
        return self.go(lambda isolate: isolate.answer(answers), time.perf_counter())

    def park(self) -> bytes:
        """The run as bytes; its instance is let go."""
        try:
            return self._isolate.changes()
        finally:
            self.close()

    def close(self) -> None:
        """Lets the instance go."""
        self._engine.used(self._isolate)
