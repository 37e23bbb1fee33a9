"""A script's image: what compiling it changes in an instance's memory.

A strict script (one that begins with "use strict", or awaits at its top) is evaluated then, behind an `await`: all of
it is compiled and its global variables declared, none of its own code has run. A sloppy one is checked, and held as
source. A module is linked with those that it imports when it first runs, in each process, and its image is that of all.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping

from script_pool.engine.binding import Trap
from script_pool.engine.booted import Booted
from script_pool.engine.interface import Fault, Limits, Reason, Script, World
from script_pool.engine.isolate import Isolate
from script_pool.engine.prepared import Kind, Prepared
from script_pool.engine.stores import ticks
from script_pool.engine.texts import Places, is_strict

LINKED_BYTES = 64 * 1024 * 1024
"""Images of linked modules that one process keeps."""
GATE = b"await __gate;"
"""Before a strict script: what it waits at."""

_CHECKED = b'throw "checked";'
_MODULE_WORD = re.compile(rb"(?m)^[ \t]*(?:import|export)\b|[;}] *(?:import|export)\b")
_MISSING = re.compile(r"Could not find export '([^']+)' in module '([^']+)'")


class Compiler:
    """Compiles in instances of `booted`, which it asks for one module's source while it compiles another."""

    def __init__(self, booted: Booted) -> None:
        self._booted = booted
        self._linked: dict[tuple[str, ...], bytes] = {}

    def __repr__(self) -> str:
        return f"Compiler({len(self._linked)} linked)"

    def prepare(
        self, text: bytes, places: Places, limits: Limits, functions: tuple[str, ...]
    ) -> tuple[Prepared, tuple[str, ...]]:
        """The script, and the names of those that it imports. Raises Fault."""
        try:
            image = None if is_strict(text) else self._classic(text, places, limits, functions)
            if image is not None:
                return Prepared(Kind.SLOPPY, 0, text, places.map, image), ()
            own = Places(len(GATE), places.map)
            image = self._image_of(limits, lambda isolate: compile_strict(isolate, text, own, functions))
            return Prepared(Kind.STRICT, len(GATE), text, places.map, image), ()
        except Fault as fault:
            if fault.name != "SyntaxError" or not _MODULE_WORD.search(text):
                raise
        return Prepared(Kind.MODULE, len(GATE), text, places.map, b""), self._imports_of(text, places, limits)

    def _image_of(self, limits: Limits, compile_in: Callable[[Isolate], None]) -> bytes:
        """The image that `compile_in` leaves in a fresh instance. Raises Fault."""
        with Isolate(self._booted, limits.memory_bytes, ticks(limits.wall_seconds)) as isolate:
            try:
                compile_in(isolate)
                return isolate.changes()
            except Fault as fault:
                if fault.name == "RangeError" and "call stack" in fault.message:
                    raise Fault(Reason.NESTED_TOO_DEEPLY, "", "the source is nested too deeply") from None
                raise
            except Trap as trap:
                isolate.stopped(trap, limits)

    def _classic(self, text: bytes, places: Places, limits: Limits, functions: tuple[str, ...]) -> bytes | None:
        """The image of a sloppy script, which holds its source; None for one that awaits, which is compiled otherwise.

        The engine evaluates its own entry points in strict mode alone: a sloppy script goes through `eval`.
        """

        def check(isolate: Isolate) -> None:
            try:
                isolate.invoke("check", isolate.string(text))
            except Fault as fault:
                if (fault.name, fault.message) != ("Error", "checked"):
                    fault.reason = Reason.SYNTAX_ERROR if fault.reason is Reason.EXCEPTION else fault.reason
                    own = Places(len(_CHECKED), places.map)
                    fault.stack = tuple(own.line(line) for line in fault.stack)
                    raise

        try:
            self._image_of(limits, check)
        except Fault as fault:
            if fault.name == "SyntaxError" and b"await" in text:
                return None
            raise
        return self._image_of(limits, lambda isolate: hold_sloppy(isolate, text, functions))

    def _imports_of(self, text: bytes, places: Places, limits: Limits) -> tuple[str, ...]:
        """The names that a module imports. Raises Fault(SYNTAX_ERROR).

        It is linked with modules that export nothing, then what the engine missed, until it misses nothing.
        """
        exports = dict[str, list[str]]()

        def stub(name: str) -> bytes:
            wanted = exports.setdefault(name, [])
            return ";".join(
                ("", *(f"let v{at}; export {{ v{at} as {name} }}" for at, name in enumerate(wanted)), "")
            ).encode()

        def compile_in(isolate: Isolate) -> None:
            isolate.invoke("gate")
            isolate.evaluate("eval_module_async", GATE + text, Places(len(GATE), places.map), b"<main>")

        end = time.monotonic() + limits.wall_seconds
        self._booted.source = stub
        try:
            while True:
                try:
                    self._image_of(limits, compile_in)
                    return tuple(exports)
                except Fault as fault:
                    missing = _MISSING.search(fault.message)
                    if missing is None:
                        raise
                    # What is only passed on is missed in the module itself, of which it does not say whose it is.
                    of = [exports[missing[2]]] if missing[2] in exports else list(exports.values())
                    lacking = [names for names in of if missing[1] not in names]
                    if not lacking:
                        raise
                    for names in lacking:
                        names.append(missing[1])
                if time.monotonic() > end:
                    raise Fault(Reason.TIME_LIMIT, "", "its imports were not found in time")
        finally:
            self._booted.source = lambda name: None

    def link(self, script: Script, world: World, limits: Limits) -> bytes:
        """The image of a module and all that it imports. Raises Fault."""
        modules = world.modules
        key = (script.digest, *(f"{name} {modules[name].digest}" for name in sorted(modules)))
        known = self._linked.get(key)
        if known is not None:
            return known
        own = Prepared.decode(script.image)
        image = self._image_of(limits, lambda isolate: self.compile_module(isolate, own, script, modules))
        while self._linked and sum(map(len, self._linked.values())) + len(image) > LINKED_BYTES:
            del self._linked[next(iter(self._linked))]
        self._linked[key] = image
        return image

    def compile_module(self, isolate: Isolate, own: Prepared, script: Script, modules: Mapping[str, Script]) -> None:
        """Leaves a module, and those that it imports and the instance has not, in the instance, each at its gate."""
        sources = {name: Prepared.decode(module.image).source for name, module in modules.items()}

        def source(name: str) -> bytes | None:
            found = sources.get(name)
            return None if found is None else GATE + found

        self._booted.source = source
        try:
            isolate.offer(script.functions)
            isolate.invoke("gate")
            promise = isolate.evaluate("eval_module_async", GATE + own.source, own.places(), b"<main>")
            isolate.watch(promise, own.places(), keep=True)
        finally:
            self._booted.source = lambda name: None


def compile_strict(isolate: Isolate, text: bytes, places: Places, functions: tuple[str, ...]) -> None:
    """Leaves a strict script in the instance, waiting at its gate."""
    isolate.offer(functions)
    isolate.invoke("gate")
    isolate.watch(isolate.evaluate("eval_async", GATE + text, places), places)


def hold_sloppy(isolate: Isolate, text: bytes, functions: tuple[str, ...]) -> None:
    """Leaves a sloppy script in the instance, as source."""
    isolate.offer(functions)
    isolate.invoke("hold", isolate.string(text))
