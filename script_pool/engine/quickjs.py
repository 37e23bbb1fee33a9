"""Scripts in JavaScript: QuickJS in WebAssembly, a fresh instance for each run.

What preparing a script changes in an instance's memory is its image. A strict script (one that begins with "use
strict", or awaits at its top) is evaluated then, behind an `await`: all of it is compiled and its global variables
declared, none of its own code has run. A sloppy one is checked, and held as source. A run lays the image over a fresh
instance, defines the input sandbox's members as global variables, lets the script go on, and reads back the global
object's enumerable members: those of the input, as the script left them, and the variables that it declared. Functions
and undefined have no JSON and are left out, as JSON.stringify does.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import struct
import time
from collections.abc import Callable
from itertools import accumulate
from typing import NoReturn

from script_pool.engine import guest as wheel
from script_pool.engine.artifacts import Artifacts
from script_pool.engine.binding import (
    TRAP_INTERRUPT,
    TRAP_STACK_OVERFLOW,
    TRAP_UNREACHABLE,
    EngineError,
    Trap,
)
from script_pool.engine.instance import MAX_MEMORY_BYTES, TICK_SECONDS, Guest, HostFunction, Template, WasmEngine
from script_pool.engine.interface import Fault, HostCall, Limits, Reason, Result, Script

GUEST_STACK_TOP = 0x100000
"""Where the guest's stack begins; it grows down to 0, and a store below that traps."""
GUEST_STACK_BYTES = 256 * 1024
"""At which QuickJS throws RangeError. Built for WASI it checks nothing, so the limit is written into its memory."""
STACK_MARK = 0xBEEF0
"""A stack size that stands nowhere else in memory: it shows where QuickJS keeps its limit."""
CLOCK_STEP_NANOSECONDS = 10_000_000
"""Of the guest's clock: too coarse to time another guest's work."""
SEED_BLOCK_BYTES = 4096
"""Random bytes are drawn in blocks: one system call in 512 runs."""
DELTA_CHUNK_BYTES = 64
"""How finely a script's image is compared with the booted one."""
DELTA_GAP_BYTES = 256
"""Changes nearer than this are one part: copying is cheaper than one more call."""
MAX_SOURCE_BYTES = 5 * 1024 * 1024
"""As the input."""
MAX_STACK_LINES = 32
"""Of an exception's stack, in the reply."""

_PROGRAM = r"(?:eval_script|<input>|<evalScript>)"
"""What the guest calls a script in its stacks."""
_GATE = b"await __gate;"
_CHECKED = b'throw "checked";'
_BEFORE_DIRECTIVE = re.compile(rb"\s+|//[^\n]*|/\*.*?\*/|;", re.DOTALL)
_DIRECTIVE = re.compile(rb"(\"[^\"\\\n]*\"|'[^'\\\n]*')[ \t\r]*(?:[;\n}]|$)")
_CONTROL = re.compile(rb"[\0-\x1f\x7f]")
_NOT_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*+"|[^][{}"]++', re.DOTALL)
_NAMES = ("check", "hold", "gate", "watch", "begin", "end", "report", "random")
_CALLED = (
    "qjs_alloc", "qjs_free", "qjs_last_len", "qjs_last_ptr", "new_string", "new_number", "new_undefined",
    "call_function", "get_prop", "get_string", "eval_code", "eval_async", "last_exception", "execute_pending_jobs",
    "promise_state", "promise_result", "set_max_stack_size",
)  # fmt: skip
_ARGUMENTS, _OUT, _SCRATCH_BYTES = 0, 16, 32
"""In the scratch memory of an instance."""
_REJECTED = 2


class QuickJS:
    """The engine for `js`. `warm` in the template process, `begin` in each fork; then `prepare` and `run`."""

    def __init__(self, cache: str | None = None) -> None:
        """cache: a directory of this user's alone, where compiled code is kept."""
        self._artifacts = Artifacts(cache)
        self._engine: WasmEngine | None = None
        self._seeds = b""
        self._functions: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"QuickJS({'warm' if self._functions else 'cold'})"

    def warm(self) -> None:
        """Compiles the guest and boots it, or loads both. Raises ImportError where the wheel is not there."""
        if self._functions:
            return
        code = wheel.read("_guest.wasm", wheel.GUEST_SHA256)
        with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "prelude.js"), "rb") as file:
            prelude = file.read()
        self._engine = WasmEngine()
        kept = self._artifacts.load("quickjs", code + prelude)
        if kept is None:
            kept = self._boot(code, prelude)
            self._artifacts.save("quickjs", code + prelude, *kept)
        facts, compiled = kept
        self._template = Template(self._engine, compiled, self._imports(), _CALLED, compiled=True)
        self._scratch, self._random, self._undefined = facts["scratch"], facts["random"], facts["undefined"]
        with Guest(self._template, MAX_MEMORY_BYTES, _ticks(60)) as guest:
            self._image = guest.read(0, guest.size)
        self._functions = {name: facts[name] for name in _NAMES}

    def begin(self) -> None:
        """Starts the clock that stops scripts, and draws random bytes of this process's own."""
        self.warm()
        self._seeds = b""
        assert self._engine is not None  # noqa: S101  # warm has made it
        self._engine.start_clock()

    def prepare(self, name: str, source: str, language: str, limits: Limits) -> Script:
        """Compiles. Raises Fault, as with SYNTAX_ERROR; ValueError for a language it has not."""
        if language != "js":
            raise ValueError(f"cannot prepare {name}: {language!r} is not a language of this engine")
        text = source.encode("utf-8", "surrogatepass")
        if len(text) > MAX_SOURCE_BYTES:
            raise Fault(Reason.SYNTAX_ERROR, "SyntaxError", f"the source has more than {MAX_SOURCE_BYTES} bytes")
        try:
            text.decode()
        except UnicodeDecodeError:
            raise Fault(Reason.SYNTAX_ERROR, "SyntaxError", "the source has a lone surrogate") from None
        if text.startswith(b"#!"):
            text = b"//" + text[2:]
        image = None if is_strict(text) else self._classic(text, limits)
        if image is None:
            image = self._image_of(limits, len(_GATE), lambda guest: self._compile(guest, _GATE + text))
        return Script(name, language, image, hashlib.sha256(text).hexdigest())

    def run(self, script: Script, input_text: bytes, limits: Limits, host: HostCall | None) -> Result:
        """Runs a prepared script once. Raises Fault."""
        started = time.perf_counter()
        check_input(input_text, limits)
        prefix = script.image[0] if script.image else 0
        with self._fresh(limits) as guest:
            try:
                self._lay(guest, script.image)
                guest.write(self._random, self._seed())
                kind, console, text = self._execute(guest, input_text, limits)
            except Trap as trap:
                self._stopped(trap, guest, limits)
        if kind == b"o":
            check_output(text, limits)
            return Result(text, console, time.perf_counter() - started)
        if kind == b"w":
            fault = Fault(Reason.EXCEPTION, "Error", "the script waits for a promise that nothing will resolve")
        else:
            reason = Reason.NOT_SERIALISABLE if kind == b"n" else Reason.EXCEPTION
            fault = _thrown(text, reason, prefix)
        fault.console = console
        raise fault

    # --- what a guest is made from ---------------------------------------------------------------------------------

    def _imports(self) -> dict[tuple[str, str], tuple[str, HostFunction]]:
        """The guest's thirteen imports. None reaches anything of the process but its clock and its random bytes."""

        def clock(guest: Guest, args: list[int]) -> int:
            now = time.time_ns() // CLOCK_STEP_NANOSECONDS * CLOCK_STEP_NANOSECONDS
            return _answer(guest, args[2], struct.pack("<Q", now))

        def random(guest: Guest, args: list[int]) -> int:
            size = args[1] & 0xFFFFFFFF
            return _answer(guest, args[0], os.urandom(size)) if size <= SEED_BLOCK_BYTES else _INVALID

        def none(_guest: Guest, _args: list[int]) -> int:
            return 0

        def sizes(guest: Guest, args: list[int]) -> int:
            return _answer(guest, args[0], bytes(4)) or _answer(guest, args[1], bytes(4))

        def refused(_guest: Guest, _args: list[int]) -> int:
            return -1

        wasi, env = "wasi_snapshot_preview1", "env"
        return {
            (wasi, "random_get"): ("ii:i", random),
            (wasi, "clock_time_get"): ("iIi:i", clock),
            (wasi, "environ_get"): ("ii:i", none),
            (wasi, "environ_sizes_get"): ("ii:i", sizes),
            (wasi, "fd_close"): ("i:i", lambda *_: _BAD_DESCRIPTOR),
            (wasi, "fd_fdstat_get"): ("ii:i", lambda *_: _BAD_DESCRIPTOR),
            (wasi, "fd_seek"): ("iIii:i", lambda *_: _BAD_DESCRIPTOR),
            (wasi, "fd_write"): ("iiii:i", lambda *_: _BAD_DESCRIPTOR),
            (wasi, "proc_exit"): ("i:", none),
            (env, "host_interrupt"): (":i", none),  # the epoch stops it
            (env, "host_call"): ("iiiii:i", refused),
            (env, "host_module_normalize"): ("iiiii:i", none),
            (env, "host_module_load"): ("iii:i", none),
        }

    def _boot(self, code: bytes, prelude: bytes) -> tuple[dict[str, int], bytes]:
        """The facts of a booted guest, offsets and handles, and the guest with that image, compiled."""
        assert self._engine is not None  # noqa: S101  # warm has made it
        first = Template(self._engine, code, self._imports(), _CALLED)
        facts: dict[str, int] = {}
        with Guest(first, MAX_MEMORY_BYTES, _ticks(60)) as guest:
            guest.call("set_max_stack_size", STACK_MARK)
            self._scratch = facts["scratch"] = guest.call("qjs_alloc", _SCRATCH_BYTES)
            facts["undefined"] = guest.call("new_undefined")
            module = self._evaluate(guest, "eval_code", prelude)
            for name in _NAMES:
                at = self._put(guest, name.encode())
                if guest.call("get_prop", module, at, len(name), self._scratch + _OUT):
                    raise ImportError(f"cannot run scripts: the prelude has no {name}")
                facts[name] = self._result(guest)
                guest.call("qjs_free", at, len(name))
            self._functions, self._undefined = {name: facts[name] for name in _NAMES}, facts["undefined"]
            before = guest.read(0, guest.size)
            self._call(guest, "random")
            facts["random"] = _find_random(before, guest.read(0, guest.size))
            guest.write(_find_stack_limit(before), struct.pack("<I", GUEST_STACK_TOP - GUEST_STACK_BYTES))
            image = guest.read(0, guest.size)
        first.close()
        booted = Template(self._engine, wheel.with_image(code, image), self._imports(), _CALLED)
        compiled = booted.serialize()
        booted.close()
        return facts, compiled

    def _fresh(self, limits: Limits) -> Guest:
        if not len(self._image) <= limits.memory_bytes <= MAX_MEMORY_BYTES:
            raise ValueError(f"memory_bytes must be between {len(self._image)} and {MAX_MEMORY_BYTES}")
        return Guest(self._template, limits.memory_bytes, _ticks(limits.wall_seconds))

    def _seed(self) -> bytes:
        """Eight random bytes that are not all zero: that would be xorshift's one fixed point."""
        if len(self._seeds) < 8:
            self._seeds = os.urandom(SEED_BLOCK_BYTES)
        seed, self._seeds = self._seeds[:8], self._seeds[8:]
        return seed if any(seed) else b"\1" * 8

    # --- calls into a guest ----------------------------------------------------------------------------------------

    def _put(self, guest: Guest, data: bytes) -> int:
        at = guest.call("qjs_alloc", len(data))
        if not at and data:
            raise Fault(Reason.MEMORY_LIMIT, "", "there is no memory for the input")
        try:
            guest.write(at, data)
        except ValueError as error:
            raise Fault(Reason.CRASHED, "", str(error)) from None
        return at

    def _result(self, guest: Guest) -> int:
        return int.from_bytes(guest.read(self._scratch + _OUT, 4), "little")

    def _exception(self, guest: Guest) -> bytes:
        """What the guest's last call has thrown, as the prelude reports it."""
        if guest.call("last_exception", self._scratch + _OUT):
            raise Fault(Reason.CRASHED, "", "the engine has lost an exception")
        thrown = self._result(guest)
        return self._text(guest, self._call(guest, "report", thrown), 1 << 20)

    def _evaluate(self, guest: Guest, how: str, source: bytes) -> int:
        """The value's handle. Raises Fault(SYNTAX_ERROR)."""
        at = self._put(guest, source)
        failed = guest.call(how, at, len(source), self._scratch + _OUT)
        if failed:
            raise _thrown(self._exception(guest), Reason.SYNTAX_ERROR, 0)
        found = self._result(guest)
        guest.call("qjs_free", at, len(source))
        return found

    def _call(self, guest: Guest, name: str, *args: int) -> int:
        """One of the prelude's functions; returns a handle. Raises Fault for what it throws."""
        scratch = self._scratch
        if args:
            guest.write(scratch + _ARGUMENTS, struct.pack(f"<{len(args)}I", *args))
        function = self._functions[name]
        failed = guest.call("call_function", function, self._undefined, scratch, len(args), scratch + _OUT)
        if failed:
            if name == "report":
                raise Fault(Reason.CRASHED, "", "the engine cannot report an exception")
            raise _thrown(self._exception(guest), Reason.EXCEPTION, 0)
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

    def _image_of(self, limits: Limits, prefix: int, compile_in: Callable[[Guest], None]) -> bytes:
        """The image that `compile_in` leaves in a fresh instance. Raises Fault."""
        with self._fresh(limits) as guest:
            try:
                compile_in(guest)
                return bytes((prefix,)) + self._delta(guest)
            except Fault as fault:
                if fault.name == "RangeError" and "call stack" in fault.message:
                    raise Fault(Reason.NESTED_TOO_DEEPLY, "", "the source is nested too deeply") from None
                fault.stack = tuple(_shift(line, prefix) for line in fault.stack)
                raise
            except Trap as trap:
                self._stopped(trap, guest, limits)

    def _classic(self, text: bytes, limits: Limits) -> bytes | None:
        """The image of a sloppy script, which holds its source; None for one that awaits, which is compiled otherwise.

        The engine evaluates its own entry points in strict mode alone: a sloppy script goes through `eval`.
        """

        def check(guest: Guest) -> None:
            try:
                self._call(guest, "check", self._string(guest, text))
            except Fault as fault:
                if (fault.name, fault.message) != ("Error", "checked"):
                    fault.reason = Reason.SYNTAX_ERROR if fault.reason is Reason.EXCEPTION else fault.reason
                    raise

        def hold(guest: Guest) -> None:
            self._call(guest, "hold", self._string(guest, text))

        try:
            self._image_of(limits, len(_CHECKED), check)
        except Fault as fault:
            if fault.name == "SyntaxError" and b"await" in text:
                return None
            raise
        return self._image_of(limits, 0, hold)

    def _string(self, guest: Guest, text: bytes) -> int:
        return guest.call("new_string", self._put(guest, text), len(text))

    def _compile(self, guest: Guest, program: bytes) -> None:
        """Leaves the script in the instance, waiting at its gate."""
        self._call(guest, "gate")
        promise = self._evaluate(guest, "eval_async", program)
        if guest.call("promise_state", promise, self._scratch + _OUT) or self._result(guest) == _REJECTED:
            guest.call("promise_result", promise, self._scratch + _OUT)
            report = self._call(guest, "report", self._result(guest))
            raise _thrown(self._text(guest, report, 1 << 20), Reason.SYNTAX_ERROR, 0)
        self._call(guest, "watch", promise)

    def _execute(self, guest: Guest, text: bytes, limits: Limits) -> tuple[bytes, tuple[str, ...], bytes]:
        """Runs what waits. Returns the kind of its end, its console, and its output or what it threw."""
        sandbox = self._string(guest, text)
        characters = struct.unpack("<q", struct.pack("<d", float(limits.console_bytes)))[0]
        self._call(guest, "begin", sandbox, guest.call("new_number", characters))
        while guest.call("execute_pending_jobs"):
            pass
        # A console's line takes six bytes a character at most, where each of them is escaped.
        most = limits.output_bytes + 6 * limits.console_bytes + 64
        whole = self._text(guest, self._call(guest, "end"), most)
        kind, _, rest = whole.partition(b"\n")
        console, _, output = rest.partition(b"\n")
        try:
            lines = json.loads(console)
        except ValueError:
            raise Fault(Reason.CRASHED, "", "the engine's console is not JSON") from None
        return kind, tuple(str(line) for line in lines), output

    def _stopped(self, trap: Trap, guest: Guest, limits: Limits) -> NoReturn:
        """Raises the Fault that a trap means."""
        if trap.code == TRAP_INTERRUPT:
            raise Fault(Reason.TIME_LIMIT, "", f"the script ran for more than {limits.wall_seconds:g} s") from trap
        if trap.code == TRAP_STACK_OVERFLOW:
            raise Fault(Reason.NESTED_TOO_DEEPLY, "", "the engine's stack is exhausted") from trap
        if trap.code == TRAP_UNREACHABLE and guest.size > limits.memory_bytes * 3 // 4:
            raise Fault(Reason.MEMORY_LIMIT, "", f"more than {limits.memory_bytes} bytes are needed") from trap
        raise Fault(Reason.CRASHED, "", str(trap).splitlines()[-1].strip()) from trap

    # --- images ----------------------------------------------------------------------------------------------------

    def _delta(self, guest: Guest) -> bytes:
        """What the instance's memory has that the booted one had not: its size, its parts' places, the parts."""
        memory, base, chunk = guest.read(0, guest.size), self._image, DELTA_CHUNK_BYTES
        base = base.ljust(len(memory), b"\0")
        parts: list[list[int]] = []
        for page in range(0, len(memory), wheel.PAGE // 16):
            if memory[page : page + wheel.PAGE // 16] == base[page : page + wheel.PAGE // 16]:
                continue
            for at in range(page, page + wheel.PAGE // 16, chunk):
                if memory[at : at + chunk] != base[at : at + chunk]:
                    if parts and at - parts[-1][1] <= DELTA_GAP_BYTES:
                        parts[-1][1] = at + chunk
                    else:
                        parts.append([at, at + chunk])
        head = struct.pack("<II", len(memory), len(parts))
        places = b"".join(struct.pack("<II", start, end - start) for start, end in parts)
        return head + places + b"".join(memory[start:end] for start, end in parts)

    def _lay(self, guest: Guest, image: bytes) -> None:
        """Writes an image over a fresh instance. Raises Fault(CRASHED) for one that does not fit it."""
        try:
            size, count = struct.unpack_from("<II", image, 1)
            places = struct.unpack_from(f"<{2 * count}I", image, 9)
            guest.grow(size)
            memory, base = guest.size, guest.address(0, size)
        except (struct.error, ValueError) as error:
            raise Fault(Reason.CRASHED, "", f"the script's image is damaged: {error}") from None
        except EngineError:
            raise Fault(Reason.MEMORY_LIMIT, "", f"the script itself needs {size} bytes") from None
        held = ctypes.cast(ctypes.c_char_p(image), ctypes.c_void_p).value or 0
        at = 9 + 8 * count
        for start, length in zip(places[::2], places[1::2], strict=True):
            if start + length > memory or at + length > len(image):
                raise Fault(Reason.CRASHED, "", "the script's image is damaged: a part lies outside")
            ctypes.memmove(base + start, held + at, length)
            at += length


_INVALID, _BAD_DESCRIPTOR = 28, 8
"""WASI's EINVAL and EBADF."""


def _answer(guest: Guest, at: int, data: bytes) -> int:
    """Writes a WASI function's result where the guest wants it."""
    try:
        guest.write(at & 0xFFFFFFFF, data)
    except ValueError:
        return _INVALID
    return 0


def _ticks(seconds: float) -> int:
    """Epochs until a limit: one more, since the first is under way."""
    return int(seconds / TICK_SECONDS) + 1


def is_strict(source: bytes) -> bool:
    """Whether a script begins with the directive "use strict"; comments and other directives may precede it."""
    at = 0
    while True:
        found = _BEFORE_DIRECTIVE.match(source, at) or _DIRECTIVE.match(source, at)
        if found is None:
            return False
        if found.lastindex and found[1][1:-1] == b"use strict":
            return True
        at = found.end()


def depth_of(text: bytes) -> int:
    """How deep JSON nests, or more where its strings are not closed."""
    brackets = _NOT_BRACKETS.sub(b"", text)
    steps = [0] * 256
    for byte in b"[{":
        steps[byte] = 1
    for byte in b"]}":
        steps[byte] = -1
    return max(accumulate(map(steps.__getitem__, brackets)), default=0)


def _nested(text: bytes, limit: int) -> bool:
    return text.count(b"[") + text.count(b"{") > limit and depth_of(text) > limit


def check_input(text: bytes, limits: Limits) -> None:
    """Raises Fault for an input sandbox that is not to be parsed."""
    if len(text) > limits.input_bytes:
        raise ValueError(f"the input has {len(text)} bytes; at most {limits.input_bytes} are allowed")
    if _nested(text, limits.depth):
        raise Fault(Reason.NESTED_TOO_DEEPLY, "", f"the input nests deeper than {limits.depth}")


def check_output(text: bytes, limits: Limits) -> None:
    """Raises Fault for an output that is not to be sent: too large or deep, or not what an intact engine writes."""
    if len(text) > limits.output_bytes:
        raise Fault(Reason.OUTPUT_TOO_LARGE, "", f"the output has {len(text)} bytes; at most {limits.output_bytes}")
    if _CONTROL.search(text):
        raise Fault(Reason.CRASHED, "", "the engine's output has control bytes")
    try:
        text.decode()
    except UnicodeDecodeError:
        raise Fault(Reason.CRASHED, "", "the engine's output is not UTF-8") from None
    if _nested(text, limits.depth):
        raise Fault(Reason.NESTED_TOO_DEEPLY, "", f"the output nests deeper than {limits.depth}")


def _thrown(report: bytes, reason: Reason, prefix: int) -> Fault:
    """The Fault of what the prelude reports: an empty line, then name, message and stack as JSON."""
    try:
        name, message, stack = (str(part) for part in json.loads(report))
    except ValueError:
        return Fault(Reason.CRASHED, "", "the engine's report of an exception is not JSON")
    if name == "InternalError" and message == "out of memory":
        reason = Reason.MEMORY_LIMIT
    stack = re.split(r"\n\s*at (?:eval|parse) \(native\)", stack)[0]  # below are the prelude's own lines
    lines = [_shift(line.strip(), prefix) for line in stack.splitlines()[:MAX_STACK_LINES]]
    return Fault(reason, name, message, tuple(line for line in lines if line))


def _shift(line: str, prefix: int) -> str:
    """A stack's line as of the script itself: what stands before it in its first line is taken off the column."""

    def own(found: re.Match[str]) -> str:
        row, column = int(found[1]), int(found[2])
        return f"script:{row}:{max(column - prefix, 1) if row == 1 else column}"

    return re.sub(rf"(?:{_PROGRAM}|script):(\d+):(\d+)", own, line)


def _find_stack_limit(memory: bytes) -> int:
    """Where QuickJS's runtime keeps its stack limit: behind the size that was set and the stack's top."""
    mark, at, found = struct.pack("<I", STACK_MARK), -1, []
    while (at := memory.find(mark, at + 1)) >= 0:
        _, top, limit = struct.unpack_from("<III", memory, at)
        if GUEST_STACK_TOP - 65_536 < top <= GUEST_STACK_TOP and limit == 0:
            found.append(at + 8)
    if len(found) != 1:
        raise ImportError(f"cannot run scripts: the guest's stack limit is at {len(found)} places")
    return found[0]


def _find_random(before: bytes, after: bytes) -> int:
    """Where the state of Math.random is: the one number that a call has moved as xorshift64 moves it."""
    found = []
    for at in range(0, len(before) - 7, 8):
        if before[at : at + 8] != after[at : at + 8]:
            state = int.from_bytes(before[at : at + 8], "little")
            state ^= state >> 12
            state ^= state << 25 & (1 << 64) - 1
            state ^= state >> 27
            if state == int.from_bytes(after[at : at + 8], "little"):
                found.append(at)
    if len(found) != 1:
        raise ImportError(f"cannot run scripts: the guest's random state is at {len(found)} places")
    return found[0]
