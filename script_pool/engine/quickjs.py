"""Scripts in JavaScript: QuickJS in WebAssembly, a fresh instance for each run.

What preparing a script changes in an instance's memory is its image. A strict script (one that begins with "use
strict", or awaits at its top) is evaluated then, behind an `await`: all of it is compiled and its global variables
declared, none of its own code has run. A sloppy one is checked, and held as source. A run lays the image over a fresh
instance, defines the input sandbox's members as global variables, lets the script go on, and reads back the global
object's enumerable members: those of the input, as the script left them, and the variables that it declared. Functions
and undefined have no JSON and are left out, as JSON.stringify does.

A module is linked with those that it imports when it first runs, in each process, and its image is that of all. A run
of a session goes on in the memory that the session's last run left; its script is compiled there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import time
from collections.abc import Callable, Mapping
from typing import NoReturn

from script_pool.engine import images
from script_pool.engine.artifacts import Artifacts
from script_pool.engine.binding import TRAP_INTERRUPT, TRAP_STACK_OVERFLOW, TRAP_UNREACHABLE, Trap
from script_pool.engine.booted import SEED_BLOCK_BYTES, Booted, put
from script_pool.engine.glue import (
    ARGUMENTS,
    BEGIN_FAILED,
    END_FAILED,
    FINISH,
    GO,
    INPUT,
    INPUT_BYTES,
    OUT,
    SIZE,
)
from script_pool.engine.held import Held, places_of
from script_pool.engine.instance import MAX_MEMORY_BYTES, Guest, WasmEngine, ticks
from script_pool.engine.interface import Fault, HostCall, Limits, Reason, Result, Script, World
from script_pool.engine.prepared import Kind, Prepared
from script_pool.engine.texts import Places, check_input, is_strict, thrown
from script_pool.engine.typescript import TypeScript

MAX_SOURCE_BYTES = 5 * 1024 * 1024
"""As the input."""
MAX_REPORT_BYTES = 1 << 20
"""Of an exception."""
MAX_CALLS_BYTES = 8 * 1024 * 1024
"""Of the calls of host functions that a run makes before it waits."""
MAX_MODULES = 256
"""That one script imports, and those import."""
LINKED_BYTES = 64 * 1024 * 1024
"""Images of linked modules that one process keeps."""

_GATE = b"await __gate;"
_CHECKED = b'throw "checked";'
_MODULE_WORD = re.compile(rb"(?m)^[ \t]*(?:import|export)\b|[;}] *(?:import|export)\b")
_MISSING = re.compile(r"Could not find export '([^']+)' in module '([^']+)'")
_REJECTED = 2
_PLAIN = World()


class QuickJS:
    """The engine for `js` and `ts`. `warm` in the template process, `begin` in each fork; then `prepare` and `run`."""

    def __init__(self, cache: str | None = None) -> None:
        """cache: a directory of this user's alone, where compiled code is kept."""
        self._artifacts = Artifacts(cache)
        self._engine: WasmEngine | None = None
        self._seeds = b""
        self._linked: dict[tuple[str, ...], bytes] = {}
        self._spent: Guest | None = None
        self._next: Guest | None = None
        self._next_bytes = 0

    def __repr__(self) -> str:
        return f"QuickJS({'warm' if self._engine else 'cold'})"

    def warm(self) -> None:
        """Compiles the guest and boots it, or loads both. Raises ImportError where the wheel is not there."""
        if self._engine is not None:
            return
        self._engine = WasmEngine()
        self._booted = Booted(self._engine)
        self._booted.warm(self._artifacts)
        self._functions, self._scratch = self._booted.functions, self._booted.scratch
        self._undefined = self._booted.undefined
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
        text = source.encode("utf-8", "surrogatepass")
        if len(text) > MAX_SOURCE_BYTES:
            raise Fault(Reason.SYNTAX_ERROR, "SyntaxError", f"the source has more than {MAX_SOURCE_BYTES} bytes")
        try:
            text.decode()
        except UnicodeDecodeError:
            raise Fault(Reason.SYNTAX_ERROR, "SyntaxError", "the source has a lone surrogate") from None
        places = Places()
        if language == "ts":
            stripped = self._typescript.strip(text, ticks(limits.wall_seconds))
            places, text = Places(0, stripped.map), stripped.text
        if text.startswith(b"#!"):
            text = b"//" + text[2:]
        made, imports = self._prepare(text, places, limits, functions)
        digest = hashlib.sha256(b"\0".join((text, *(name.encode() for name in functions)))).hexdigest()
        return Script(name, language, made.encode(), digest, imports, functions)

    def _prepare(
        self, text: bytes, places: Places, limits: Limits, functions: tuple[str, ...]
    ) -> tuple[Prepared, tuple[str, ...]]:
        try:
            image = None if is_strict(text) else self._classic(text, places, limits, functions)
            if image is not None:
                return Prepared(Kind.SLOPPY, 0, text, places.map, image), ()
            own = Places(len(_GATE), places.map)
            image = self._image_of(limits, own, lambda guest: self._compile(guest, text, own, functions))
            return Prepared(Kind.STRICT, len(_GATE), text, places.map, image), ()
        except Fault as fault:
            if fault.name != "SyntaxError" or not _MODULE_WORD.search(text):
                raise
        return Prepared(Kind.MODULE, len(_GATE), text, places.map, b""), self._imports_of(text, places, limits)

    def run(
        self, script: Script, input_text: bytes, limits: Limits, host: HostCall | None, world: World | None = None
    ) -> Result | Held:
        """Runs a prepared script once. Raises Fault."""
        started = time.perf_counter()
        check_input(input_text, limits)
        world = world or _PLAIN
        prepared = Prepared.decode(script.image)
        if prepared.kind is Kind.MODULE and not world.keep:
            prepared = Prepared(Kind.MODULE, prepared.prefix, b"", prepared.map, self._link(script, world, limits))
        held = Held(self, self._take(limits), script, limits, world, lambda: places_of(script, world))
        return held.go(lambda guest: self._start(guest, prepared, script, input_text, held), started)

    def resume(self, script: Script, parked: bytes, answers: bytes, limits: Limits, world: World) -> Result | Held:
        """Goes on with a parked run. Raises Fault."""
        started = time.perf_counter()
        held = Held(self, self._take(limits), script, limits, world, lambda: places_of(script, world))

        def go_on(guest: Guest) -> int:
            images.lay(guest, parked)
            guest.write(self._booted.seed_at, self._seed())
            return self.answer_in(guest, answers)

        return held.go(go_on, started)

    def settle(self) -> None:
        """Closes the instance that the last answer came from, and opens the next."""
        if self._spent is not None:
            self._spent.close()
            self._spent = None
        if self._next is None and self._next_bytes:
            self._next = Guest(self._booted.template, self._next_bytes, ticks(60))

    # --- instances -------------------------------------------------------------------------------------------------

    def _take(self, limits: Limits) -> Guest:
        """A fresh instance, perhaps one that is open already."""
        if not len(self._booted.image) <= limits.memory_bytes <= MAX_MEMORY_BYTES:
            raise ValueError(f"memory_bytes must be between {len(self._booted.image)} and {MAX_MEMORY_BYTES}")
        self.settle()
        found, self._next = self._next, None
        if found is not None and self._next_bytes == limits.memory_bytes:
            return found
        if found is not None:
            found.close()
        self._next_bytes = limits.memory_bytes
        return Guest(self._booted.template, limits.memory_bytes, ticks(limits.wall_seconds))

    def spend(self, guest: Guest) -> None:
        """It is closed once its answer was sent."""
        if self._spent is not None:
            self._spent.close()
        self._spent = guest

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

    # --- calls into a guest ----------------------------------------------------------------------------------------

    def _put(self, guest: Guest, data: bytes) -> int:
        try:
            return put(guest, data)
        except MemoryError:
            raise Fault(Reason.MEMORY_LIMIT, "", "there is no memory for the input") from None
        except ValueError as error:
            raise Fault(Reason.CRASHED, "", str(error)) from None

    def _given(self, guest: Guest, data: bytes) -> int:
        """The same for what is read once: where it is short, in memory that is there for it."""
        if len(data) > INPUT_BYTES:
            return self._put(guest, data)
        at = self._scratch + INPUT
        guest.write(at, data)
        return at

    def _result(self, guest: Guest) -> int:
        return int.from_bytes(guest.read(self._scratch + OUT, 4), "little")

    def _exception(self, guest: Guest) -> bytes:
        """What the guest's last call has thrown, as the prelude reports it."""
        if guest.call("last_exception", self._scratch + OUT):
            raise Fault(Reason.CRASHED, "", "the engine has lost an exception")
        return self._text(guest, self._call(guest, "report", self._result(guest)), MAX_REPORT_BYTES)

    def _evaluate(self, guest: Guest, how: str, source: bytes, places: Places, name: bytes = b"") -> int:
        """The value's handle. Raises Fault(SYNTAX_ERROR)."""
        at = self._put(guest, source)
        named = (self._put(guest, name), len(name)) if name else ()
        if guest.call(how, at, len(source), *named, self._scratch + OUT):
            raise thrown(self._exception(guest), Reason.SYNTAX_ERROR, places)
        found = self._result(guest)
        guest.call("qjs_free", at, len(source))
        return found

    def _call(self, guest: Guest, name: str, *args: int) -> int:
        """One of the prelude's functions; returns a handle. Raises Fault for what it throws."""
        scratch = self._scratch
        if args:
            guest.write(scratch + ARGUMENTS, struct.pack(f"<{len(args)}I", *args))
        if guest.call("call_function", self._functions[name], self._undefined, scratch, len(args), scratch + OUT):
            if name == "report":
                raise Fault(Reason.CRASHED, "", "the engine cannot report an exception")
            raise thrown(self._exception(guest), Reason.EXCEPTION, Places())
        return self._result(guest)

    def _text(self, guest: Guest, handle: int, most: int) -> bytes:
        """A string's bytes. Raises Fault(OUTPUT_TOO_LARGE) above `most`."""
        if guest.call("get_string", handle):
            raise Fault(Reason.MEMORY_LIMIT, "", "there is no memory for the output")
        size = guest.call("qjs_last_len")
        if size > most:
            raise Fault(Reason.OUTPUT_TOO_LARGE, "", f"the output has {size} bytes; at most {most} are allowed")
        try:
            return guest.read(guest.call("qjs_last_ptr"), size)
        except ValueError as error:
            raise Fault(Reason.CRASHED, "", str(error)) from None

    def _string(self, guest: Guest, text: bytes) -> int:
        return guest.call("new_string", self._put(guest, text), len(text))

    # --- preparing -------------------------------------------------------------------------------------------------

    def _image_of(self, limits: Limits, places: Places, compile_in: Callable[[Guest], None]) -> bytes:
        """The image that `compile_in` leaves in a fresh instance. Raises Fault."""
        with Guest(self._booted.template, limits.memory_bytes, ticks(limits.wall_seconds)) as guest:
            try:
                compile_in(guest)
                return images.changes(guest, self._booted.image)
            except Fault as fault:
                if fault.name == "RangeError" and "call stack" in fault.message:
                    raise Fault(Reason.NESTED_TOO_DEEPLY, "", "the source is nested too deeply") from None
                raise
            except Trap as trap:
                self.stopped(trap, guest, limits)

    def _classic(self, text: bytes, places: Places, limits: Limits, functions: tuple[str, ...]) -> bytes | None:
        """The image of a sloppy script, which holds its source; None for one that awaits, which is compiled otherwise.

        The engine evaluates its own entry points in strict mode alone: a sloppy script goes through `eval`.
        """

        def check(guest: Guest) -> None:
            try:
                self._call(guest, "check", self._string(guest, text))
            except Fault as fault:
                if (fault.name, fault.message) != ("Error", "checked"):
                    fault.reason = Reason.SYNTAX_ERROR if fault.reason is Reason.EXCEPTION else fault.reason
                    own = Places(len(_CHECKED), places.map)
                    fault.stack = tuple(own.line(line) for line in fault.stack)
                    raise

        def hold(guest: Guest) -> None:
            self._offer(guest, functions)
            self._call(guest, "hold", self._string(guest, text))

        try:
            self._image_of(limits, places, check)
        except Fault as fault:
            if fault.name == "SyntaxError" and b"await" in text:
                return None
            raise
        return self._image_of(limits, places, hold)

    def _offer(self, guest: Guest, functions: tuple[str, ...]) -> None:
        self._call(guest, "offer", self._string(guest, json.dumps(functions).encode()))

    def _compile(self, guest: Guest, text: bytes, places: Places, functions: tuple[str, ...]) -> None:
        """Leaves the script in the instance, waiting at its gate."""
        self._offer(guest, functions)
        self._call(guest, "gate")
        self._watch(guest, self._evaluate(guest, "eval_async", _GATE + text, places), places)

    def _watch(self, guest: Guest, promise: int, places: Places, keep: bool = False) -> None:
        if guest.call("promise_state", promise, self._scratch + OUT) or self._result(guest) == _REJECTED:
            guest.call("promise_result", promise, self._scratch + OUT)
            report = self._call(guest, "report", self._result(guest))
            raise thrown(self._text(guest, report, MAX_REPORT_BYTES), Reason.SYNTAX_ERROR, places)
        self._call(guest, "watch", promise, *((promise,) if keep else ()))

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

        def compile_in(guest: Guest) -> None:
            self._call(guest, "gate")
            self._evaluate(guest, "eval_module_async", _GATE + text, Places(len(_GATE), places.map), b"<main>")

        end = time.monotonic() + limits.wall_seconds
        self._booted.source = stub
        try:
            while True:
                try:
                    self._image_of(limits, places, compile_in)
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

    def _link(self, script: Script, world: World, limits: Limits) -> bytes:
        """The image of a module and all that it imports. Raises Fault."""
        modules = world.modules
        key = (script.digest, *(f"{name} {modules[name].digest}" for name in sorted(modules)))
        known = self._linked.get(key)
        if known is not None:
            return known
        own = Prepared.decode(script.image)
        image = self._image_of(limits, own.places(), lambda guest: self._compile_module(guest, own, script, modules))
        while self._linked and sum(map(len, self._linked.values())) + len(image) > LINKED_BYTES:
            del self._linked[next(iter(self._linked))]
        self._linked[key] = image
        return image

    def _compile_module(self, guest: Guest, own: Prepared, script: Script, modules: Mapping[str, Script]) -> None:
        """Leaves a module, and those that it imports and the instance has not, in the instance, each at its gate."""
        sources = {name: Prepared.decode(module.image).source for name, module in modules.items()}

        def source(name: str) -> bytes | None:
            found = sources.get(name)
            return None if found is None else _GATE + found

        self._booted.source = source
        try:
            self._offer(guest, script.functions)
            self._call(guest, "gate")
            promise = self._evaluate(guest, "eval_module_async", _GATE + own.source, own.places(), b"<main>")
            self._watch(guest, promise, own.places(), keep=True)
        finally:
            self._booted.source = lambda name: None

    # --- running ---------------------------------------------------------------------------------------------------

    def _start(self, guest: Guest, prepared: Prepared, script: Script, text: bytes, held: Held) -> int:
        world = held.world
        if world.keep:
            self._enter_session(guest, prepared, script, held)
        else:
            images.lay(guest, prepared.image, prepared.at)
        guest.write(self._booted.seed_at, self._seed())
        characters = struct.unpack("<q", struct.pack("<d", float(held.limits.console_bytes)))[0]
        if world.zone:
            guest.write(self._scratch + ARGUMENTS + 8, self._string(guest, world.zone).to_bytes(4, "little"))
        return guest.call(GO, self._given(guest, text), len(text), characters, 3 if world.zone else 2)

    def _enter_session(self, guest: Guest, prepared: Prepared, script: Script, held: Held) -> None:
        """Lays the session's memory, and compiles the script there, with each `const` at its top a `var`: else a
        second run could not declare it again, and what declares it could not be seen by the next."""
        if held.world.session is not None:
            if not held.world.session.startswith(self._booted.digest):
                raise Fault(Reason.CRASHED, "", "the session is of another version of the engine")
            images.lay(guest, held.world.session, len(self._booted.digest))
        if prepared.kind is Kind.MODULE:  # what it declares is its own, and can be declared again
            self._compile_module(guest, prepared, script, held.world.modules)
            return
        changed = self._typescript.unfix(prepared.source, ticks(held.limits.wall_seconds))
        text, map = (prepared.source, prepared.map) if changed is None else (changed.text, changed.over(prepared.map))
        places = Places(len(_GATE) if prepared.kind is Kind.STRICT else 0, map)
        held.places = lambda: places
        if prepared.kind is Kind.STRICT:
            self._compile(guest, text, places, script.functions)
        else:
            self._offer(guest, script.functions)
            self._call(guest, "hold", self._string(guest, text))

    def end(self, guest: Guest, status: int, limits: Limits) -> tuple[bytes, tuple[str, ...], bytes]:
        """The kind of its end, its console, and its output or what it threw; `status`: of the call that ended it.
        Raises Fault."""
        if status in (BEGIN_FAILED, END_FAILED):
            raise thrown(self._exception(guest), Reason.EXCEPTION, Places())
        if status:
            raise Fault(Reason.MEMORY_LIMIT, "", "there is no memory for the output")
        size, at = struct.unpack("<II", guest.read(self._scratch + SIZE, 8))
        # A console's line takes six bytes a character at most, where each of them is escaped.
        if size > max(limits.output_bytes + 6 * limits.console_bytes + 64, MAX_CALLS_BYTES):
            raise Fault(Reason.OUTPUT_TOO_LARGE, "", f"the output has {size} bytes; {limits.output_bytes} are allowed")
        try:
            whole = guest.read(at, size)
        except ValueError as error:
            raise Fault(Reason.CRASHED, "", str(error)) from None
        kind, _, rest = whole.partition(b"\n")
        console, _, output = rest.partition(b"\n")
        if console == b"[]":
            return kind, (), output
        try:
            lines = json.loads(console)
        except ValueError:
            raise Fault(Reason.CRASHED, "", "the engine's console is not JSON") from None
        return kind, tuple(str(line) for line in lines), output

    def answer_in(self, guest: Guest, answers: bytes) -> int:
        """Settles calls of host functions, and goes on; the status of the call that ended it."""
        at = self._given(guest, answers)
        self._call(guest, "answer", guest.call("new_string", at, len(answers)))
        return guest.call(FINISH)

    def changes(self, guest: Guest) -> bytes:
        """The instance's memory, as what a parked run or a session keeps."""
        return images.changes(guest, self._booted.image)

    def session_of(self, guest: Guest) -> bytes:
        """The instance's memory, and which engine's it is."""
        return self._booted.digest + self.changes(guest)

    def stopped(self, trap: Trap, guest: Guest, limits: Limits) -> NoReturn:
        """Raises the Fault that a trap means."""
        if trap.code == TRAP_INTERRUPT:
            raise Fault(Reason.TIME_LIMIT, "", f"the script ran for more than {limits.wall_seconds:g} s") from trap
        if trap.code == TRAP_STACK_OVERFLOW:
            raise Fault(Reason.NESTED_TOO_DEEPLY, "", "the engine's stack is exhausted") from trap
        if trap.code == TRAP_UNREACHABLE and guest.size > limits.memory_bytes * 3 // 4:
            raise Fault(Reason.MEMORY_LIMIT, "", f"more than {limits.memory_bytes} bytes are needed") from trap
        raise Fault(Reason.CRASHED, "", str(trap).splitlines()[-1].strip()) from trap
