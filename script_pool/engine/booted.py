"""The booted guest: QuickJS compiled with the memory that booting it left, where in that memory its state is, and the
imports that every instance has.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from script_pool.engine import guest as wheel
from script_pool.engine import library
from script_pool.engine.binding import EngineError
from script_pool.engine.glue import ARGUMENTS, OUT, SCRATCH_BYTES, with_runner
from script_pool.engine.instance import Guest, HostFunction, Template
from script_pool.engine.stores import JAVASCRIPT_INSTANCES, MAX_MEMORY_BYTES, WasmEngine, ticks

if TYPE_CHECKING:
    from script_pool.engine.artifacts import Artifacts

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
BOOT_SECONDS = 60.0

NAMES = (
    "check", "hold", "gate", "watch", "begin", "end", "report", "random", "offer", "answer", "connect",
)  # fmt: skip
"""The prelude's functions that the engine calls."""
CALLED = (
    "qjs_alloc", "qjs_free", "qjs_last_len", "qjs_last_ptr", "new_string", "new_number", "new_undefined",
    "call_function", "get_prop", "get_string", "eval_code", "eval_async", "eval_module", "eval_module_async",
    "last_exception", "execute_pending_jobs", "promise_state", "promise_result", "set_max_stack_size", "new_function",
)  # fmt: skip
_INVALID, _BAD_DESCRIPTOR, _HOST_CALL_ERROR = 28, 8, -1
"""WASI's EINVAL and EBADF; the guest's own word for a host function that failed."""
_LIBRARY_NAME = b"keepfleet"


class Booted:
    """What instances are made from. `source`: the text of a module by its name, or None; it is asked while one is
    compiled. `clock`: nanoseconds since 1970."""

    def __init__(self, engine: WasmEngine) -> None:
        self._engine = engine
        self.source: Callable[[str], bytes | None] = lambda name: None
        self.clock: Callable[[], int] = time.time_ns
        self._random: Callable[[int], bytes] = os.urandom
        self.functions: dict[str, int] = {}
        self.template: Template
        self.image = b""
        self.digest = b""

    def __repr__(self) -> str:
        return f"Booted({len(self.image)} bytes)"

    def warm(self, artifacts: Artifacts) -> None:
        """Compiles the guest and boots it, or loads both. Raises ImportError where the wheel is not there."""
        code = wheel.read("_guest.wasm", wheel.GUEST_SHA256)
        here = os.path.dirname(os.path.abspath(__file__))
        with open(os.path.join(here, "prelude.js"), "rb") as file:
            prelude = file.read()
        with open(os.path.join(here, "library.js"), "rb") as file:
            prelude = prelude.replace(b"//LIBRARY//\n", file.read())
        kept = artifacts.load("quickjs", code + prelude)
        if kept is None:
            kept = self._boot(code, prelude)
            artifacts.save("quickjs", code + prelude, *kept)
        facts, compiled = kept
        self.template = Template(self._engine, compiled, self.imports(), CALLED, compiled=True)
        self.template.occupy(JAVASCRIPT_INSTANCES)
        self.scratch, self.seed_at, self.undefined = facts["scratch"], facts["random"], facts["undefined"]
        with Guest(self.template, MAX_MEMORY_BYTES, ticks(BOOT_SECONDS)) as guest:
            self.image = guest.read(0, guest.size)
        self.digest = hashlib.sha256(self.image).digest()[:16]
        self.functions = {name: facts[name] for name in NAMES}

    def _boot(self, code: bytes, prelude: bytes) -> tuple[dict[str, int], bytes]:
        """The facts of a booted guest, offsets and handles, and the guest with that image, compiled.

        It boots the same everywhere, at one time and with the same chance, so that a session can be moved: what it
        keeps is the difference. Each instance's state of Math.random is written over.
        """
        self.clock, self._random = lambda: 0, bytes
        first = Template(self._engine, code, self.imports(), CALLED)
        facts: dict[str, int] = {}
        with Guest(first, MAX_MEMORY_BYTES, ticks(BOOT_SECONDS)) as guest:
            guest.call("set_max_stack_size", STACK_MARK)
            scratch = facts["scratch"] = guest.call("qjs_alloc", SCRATCH_BYTES)
            guest.write(scratch, bytes(SCRATCH_BYTES))
            facts["undefined"] = guest.call("new_undefined")
            source, name = put(guest, prelude), put(guest, _LIBRARY_NAME)
            if guest.call("eval_module", source, len(prelude), name, len(_LIBRARY_NAME), scratch + OUT):
                raise ImportError("cannot run scripts: the prelude has failed")
            functions = _property(guest, scratch, _word(guest, scratch + OUT), "default")
            for name_of in NAMES:
                facts[name_of] = _property(guest, scratch, functions, name_of)
            self._connect(guest, scratch, facts)
            before = guest.read(0, guest.size)
            guest.call("call_function", facts["random"], facts["undefined"], scratch, 0, scratch + OUT)
            random = find_random(before, guest.read(0, guest.size))
            guest.write(find_stack_limit(before), struct.pack("<I", GUEST_STACK_TOP - GUEST_STACK_BYTES))
            image = guest.read(0, guest.size)
        first.close()
        self.clock, self._random = time.time_ns, os.urandom
        whole = with_runner(wheel.with_image(code, image), scratch, facts["undefined"], facts["begin"], facts["end"])
        booted = Template(self._engine, whole, self.imports(), CALLED)
        compiled = booted.serialize()
        booted.close()
        return {**facts, "random": random}, compiled

    def _connect(self, guest: Guest, scratch: int, facts: dict[str, int]) -> None:
        """Gives the prelude the one function of the engine's that it calls."""
        function = guest.call("new_function", put(guest, _LIBRARY_NAME), len(_LIBRARY_NAME))
        guest.write(scratch + ARGUMENTS, struct.pack("<I", function))
        if guest.call("call_function", facts["connect"], facts["undefined"], scratch, 1, scratch + OUT):
            raise ImportError("cannot run scripts: the prelude takes no function of the engine's")

    def imports(self) -> dict[tuple[str, str], tuple[str, HostFunction]]:
        """The guest's thirteen imports. None reaches anything of the process but its clock, its random bytes, and what
        library.py computes from a string."""

        def clock(guest: Guest, args: list[int]) -> int:
            now = self.clock() // CLOCK_STEP_NANOSECONDS * CLOCK_STEP_NANOSECONDS
            return _answer(guest, args[2], struct.pack("<Q", now & (1 << 64) - 1))

        def random(guest: Guest, args: list[int]) -> int:
            size = args[1] & 0xFFFFFFFF
            return _answer(guest, args[0], self._random(size)) if size <= SEED_BLOCK_BYTES else _INVALID

        def none(_guest: Guest, _args: list[int]) -> int:
            return 0

        def sizes(guest: Guest, args: list[int]) -> int:
            return _answer(guest, args[0], bytes(4)) or _answer(guest, args[1], bytes(4))

        def refused(_guest: Guest, _args: list[int]) -> int:
            return _BAD_DESCRIPTOR

        wasi, env = "wasi_snapshot_preview1", "env"
        return {
            (wasi, "random_get"): ("ii:i", random),
            (wasi, "clock_time_get"): ("iIi:i", clock),
            (wasi, "environ_get"): ("ii:i", none),
            (wasi, "environ_sizes_get"): ("ii:i", sizes),
            (wasi, "fd_close"): ("i:i", refused),
            (wasi, "fd_fdstat_get"): ("ii:i", refused),
            (wasi, "fd_seek"): ("iIii:i", refused),
            (wasi, "fd_write"): ("iiii:i", refused),
            (wasi, "proc_exit"): ("i:", none),
            (env, "host_interrupt"): (":i", none),  # the epoch stops it
            (env, "host_call"): ("iiiii:i", _library_call),
            (env, "host_module_normalize"): ("iiiii:i", _normalize),
            (env, "host_module_load"): ("iii:i", self._load),
        }

    def _load(self, guest: Guest, args: list[int]) -> int:
        """The source of a module; 0 is that there is none."""
        try:
            name = guest.read(args[0] & 0xFFFFFFFF, args[1] & 0xFFFFFFFF).decode("utf-8", "replace")
            text = self.source(name)
            return 0 if text is None else _returned(guest, text, args[2] & 0xFFFFFFFF)
        except (EngineError, ValueError):
            return 0


def _library_call(guest: Guest, args: list[int]) -> int:
    """host(operation, text): the result of library.answer. What fails in here fails in the guest."""
    try:
        if args[3] != 2:
            return _HOST_CALL_ERROR
        operation, text = (
            get_text(guest, int.from_bytes(guest.read((args[4] & 0xFFFFFFFF) + 4 * at, 4), "little")) for at in range(2)
        )
        result = library.answer(operation, text).encode("utf-8", "replace")
        return guest.call("new_string", put(guest, result), len(result))
    except (EngineError, ValueError, MemoryError):
        return _HOST_CALL_ERROR


def get_text(guest: Guest, handle: int) -> str:
    """A string's characters. Raises ValueError and EngineError."""
    if guest.call("get_string", handle):
        raise ValueError("it is no string")
    size = guest.call("qjs_last_len")
    return guest.read(guest.call("qjs_last_ptr"), size).decode("utf-8", "surrogatepass")


def _normalize(guest: Guest, args: list[int]) -> int:
    """A script's name is that of its module; `./name` is the same."""
    try:
        name = guest.read(args[2] & 0xFFFFFFFF, args[3] & 0xFFFFFFFF)
        return _returned(guest, name.removeprefix(b"./"), args[4] & 0xFFFFFFFF)
    except (EngineError, ValueError):
        return 0


def _returned(guest: Guest, data: bytes, size_at: int) -> int:
    at = put(guest, data)
    guest.write(size_at, struct.pack("<I", len(data)))
    return at


def put(guest: Guest, data: bytes) -> int:
    """Data in memory that the guest has allocated. Raises MemoryError and ValueError."""
    at = guest.call("qjs_alloc", len(data))
    if not at and data:
        raise MemoryError
    guest.write(at, data)
    return at


def _word(guest: Guest, at: int) -> int:
    return int.from_bytes(guest.read(at, 4), "little")


def _property(guest: Guest, scratch: int, of: int, name: str) -> int:
    if guest.call("get_prop", of, put(guest, name.encode()), len(name), scratch + OUT):
        raise ImportError(f"cannot run scripts: the prelude has no {name}")
    return _word(guest, scratch + OUT)


def _answer(guest: Guest, at: int, data: bytes) -> int:
    """Writes a WASI function's result where the guest wants it."""
    try:
        guest.write(at & 0xFFFFFFFF, data)
    except ValueError:
        return _INVALID
    return 0


def find_stack_limit(memory: bytes) -> int:
    """Where QuickJS's runtime keeps its stack limit: behind the size that was set and the stack's top."""
    mark, at, found = struct.pack("<I", STACK_MARK), -1, []
    while (at := memory.find(mark, at + 1)) >= 0:
        _, top, limit = struct.unpack_from("<III", memory, at)
        if GUEST_STACK_TOP - 65_536 < top <= GUEST_STACK_TOP and limit == 0:
            found.append(at + 8)
    if len(found) != 1:
        raise ImportError(f"cannot run scripts: the guest's stack limit is at {len(found)} places")
    return found[0]


def find_random(before: bytes, after: bytes) -> int:
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
