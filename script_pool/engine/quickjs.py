"""Scripts in JavaScript: QuickJS in WebAssembly, a fresh instance for each run.

A run lays the script's image (compiling.py) over a fresh instance, defines the input sandbox's members as global
variables, lets the script go on, and reads back the global object's enumerable members: those of the input, as the
script left them, and the variables that it declared. Functions and undefined have no JSON and are left out, as
JSON.stringify does. A run of a session goes on in the memory that the session's last run left; its script is compiled
there.
"""

from __future__ import annotations

import hashlib
import os
import time

from script_pool.engine.artifacts import Artifacts
from script_pool.engine.booted import SEED_BLOCK_BYTES, Booted
from script_pool.engine.compiling import GATE, Compiler, compile_strict, hold_sloppy
from script_pool.engine.held import Held
from script_pool.engine.interface import HostCall, Limits, Result, Script, World
from script_pool.engine.isolate import Isolate
from script_pool.engine.prepared import Kind, Prepared
from script_pool.engine.stores import MAX_MEMORY_BYTES, OPEN_SECONDS, Instances, WasmEngine, ticks
from script_pool.engine.texts import Places, check_input, encoded
from script_pool.engine.typescript import TypeScript

_PLAIN = World()


class QuickJS:
    """The engine for `js` and `ts`. `warm` in the template process, `begin` in each fork; then `prepare` and `run`."""

    def __init__(self, cache: str | None = None) -> None:
        """cache: a directory of this user's alone, where compiled code is kept."""
        self._artifacts = Artifacts(cache)
        self._engine: WasmEngine | None = None
        self._seeds = b""
        self._instances = Instances(lambda size: Isolate(self._booted, size, ticks(OPEN_SECONDS)))

    def __repr__(self) -> str:
        return f"QuickJS({'warm' if self._engine else 'cold'})"

    def warm(self) -> None:
        """Compiles the guest and boots it, or loads both. Raises ImportError where the wheel is not there."""
        if self._engine is not None:
            return
        self._engine = WasmEngine()
        self._booted = Booted(self._engine)
        self._booted.warm(self._artifacts)
        self._compiler = Compiler(self._booted)
        self._typescript = TypeScript(self._engine, self._booted.imports())
        self._typescript.warm(self._artifacts)

    def begin(self) -> None:
        """Starts the clock that stops scripts, and draws random bytes of this process's own."""
        self.warm()
        self._seeds = b""
        assert self._engine is not None  # noqa: S101  # warm has made it
        self._engine.start_clock()

    def prepare(self, name: str, source: str, language: str, limits: Limits, functions: tuple[str, ...] = ()) -> Script:
        """Compiles. Raises Fault, as with SYNTAX_ERROR; ValueError for a language it has not."""
        if language not in ("js", "ts"):
            raise ValueError(f"cannot prepare {name}: {language!r} is not a language of this engine")
        text = encoded(source)
        places = Places()
        if language == "ts":
            stripped = self._typescript.strip(text, ticks(limits.wall_seconds))
            places, text = Places(0, stripped.map), stripped.text
        if text.startswith(b"#!"):
            text = b"//" + text[2:]
        made, imports = self._compiler.prepare(text, places, limits, functions)
        digest = hashlib.sha256(b"\0".join((text, *(name.encode() for name in functions)))).hexdigest()
        return Script(name, language, made.encode(), digest, imports, functions)

    def run(
        self, script: Script, input_text: bytes, limits: Limits, host: HostCall | None, world: World | None = None
    ) -> Result | Held:
        """Runs a prepared script once. Raises Fault."""
        started = time.perf_counter()
        check_input(input_text, limits)
        world = world or _PLAIN
        prepared = Prepared.decode(script.image)
        if prepared.kind is Kind.MODULE and not world.keep:
            image = self._compiler.link(script, world, limits)
            prepared = Prepared(Kind.MODULE, prepared.prefix, b"", prepared.map, image)
        held = Held(self, self._take(limits), script, limits, world)
        return held.go(lambda isolate: self._start(isolate, prepared, script, input_text, held), started)

    def resume(self, script: Script, parked: bytes, answers: bytes, limits: Limits, world: World) -> Result | Held:
        """Goes on with a parked run. Raises Fault."""
        started = time.perf_counter()
        held = Held(self, self._take(limits), script, limits, world)

        def go_on(isolate: Isolate) -> int:
            isolate.lay(parked)
            isolate.seed(self._seed())
            return isolate.answer(answers)

        return held.go(go_on, started)

    def settle(self) -> None:
        """Closes the instance that the last answer came from, and opens the next."""
        self._instances.settle()

    def used(self, isolate: Isolate) -> None:
        """It is closed once its answer was sent."""
        self._instances.used(isolate)

    def _take(self, limits: Limits) -> Isolate:
        """A fresh instance, perhaps one that is open already."""
        if not len(self._booted.image) <= limits.memory_bytes <= MAX_MEMORY_BYTES:
            raise ValueError(f"memory_bytes must be between {len(self._booted.image)} and {MAX_MEMORY_BYTES}")
        return self._instances.take(limits.memory_bytes)

    def _seed(self) -> bytes:
        """Eight random bytes that are not all zero: that would be xorshift's one fixed point."""
        if len(self._seeds) < 8:
            self._seeds = os.urandom(SEED_BLOCK_BYTES)
        seed, self._seeds = self._seeds[:8], self._seeds[8:]
        return seed if any(seed) else b"\1" * 8

    def set_clock(self, milliseconds: float | None) -> None:
        """The guest's clock begins at this, or is the host's."""
        if milliseconds is None:
            self._booted.clock = time.time_ns
        else:
            ahead = int(milliseconds * 1e6) - time.monotonic_ns()
            self._booted.clock = lambda: time.monotonic_ns() + ahead

    def _start(self, isolate: Isolate, prepared: Prepared, script: Script, text: bytes, held: Held) -> int:
        world = held.world
        if world.keep:
            self._enter_session(isolate, prepared, script, held)
        else:
            isolate.lay(prepared.image, prepared.at)
        isolate.seed(self._seed())
        return isolate.go(text, held.limits.console_bytes, world.zone)

    def _enter_session(self, isolate: Isolate, prepared: Prepared, script: Script, held: Held) -> None:
        """Lays the session's memory, and compiles the script there, with each `const` at its top a `var`: else a
        second run could not declare it again, and what declares it could not be seen by the next."""
        if held.world.session is not None:
            isolate.lay_session(held.world.session)
        if prepared.kind is Kind.MODULE:  # what it declares is its own, and can be declared again
            self._compiler.compile_module(isolate, prepared, script, held.world.modules)
            return
        changed = self._typescript.unfix(prepared.source, ticks(held.limits.wall_seconds))
        text, map = (prepared.source, prepared.map) if changed is None else (changed.text, changed.over(prepared.map))
        places = Places(len(GATE) if prepared.kind is Kind.STRICT else 0, map)
        held.places = lambda: places
        if prepared.kind is Kind.STRICT:
            compile_strict(isolate, text, places, script.functions)
        else:
            hold_sloppy(isolate, text, script.functions)
