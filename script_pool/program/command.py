"""QuickJS as a WASI command: booted once with the program's prelude, then joined with the glue that has its entry.

The command takes the script as its arguments: its name, its text, and then the script's own. MicroPython is such a
command, but for the functions of a host that it imports.
"""

from __future__ import annotations

import os
import re
import struct

import wasmtime

from script_pool.engine import guest as wheel
from script_pool.engine import micropython
from script_pool.engine.booted import (
    GUEST_STACK_BYTES,
    GUEST_STACK_TOP,
    STACK_MARK,
    Booted,
    find_random,
    find_stack_limit,
)
from script_pool.engine.instance import Guest, Template
from script_pool.engine.stores import MAX_MEMORY_BYTES, WasmEngine
from script_pool.program.merging import join, table_size

BUFFER_BYTES = 65_536
"""Of standard input read in one call, as much as a pipe holds."""
_IOVEC, _COUNT, _RESULT, _NUMBER, _KEPT, _BUFFER = 0, 8, 16, 24, 32, 64
_HOST = ("write", "read", "exit")
REJECTIONS, REJECTION_BYTES = 256, 16
"""Of promises that are rejected while nothing waits for them at that moment."""
_TRACKER = 44
"""From QuickJS's stack limit to the number of the function that it calls for them (host_promise_rejection_tracker)."""
_SHARED = 0xBEEF0 * 0x7A1
"""What is in the prelude's shared array."""
_FUNCTIONS = ("run", "watch", "threw", "reject", "end", "random")
_CALLED = (
    "qjs_alloc", "set_max_stack_size", "new_undefined", "new_function", "eval_code", "get_prop", "call_function",
)  # fmt: skip
_PLACEHOLDER = re.compile(r"\{\{([A-Z_]+)\}\}")
_BOOT_TICKS = 6_000
_HERE = os.path.dirname(os.path.abspath(__file__))


def make() -> bytes:
    """The command's module. Raises ImportError where the wheel's guest is not the one that is known."""
    code = wheel.read("_guest.wasm", wheel.GUEST_SHA256)
    image, facts = _boot(code)
    glue = _PLACEHOLDER.sub(lambda found: str(facts[found[1]]), _read("glue.wat").decode())
    return join(wheel.with_image(code, image), bytes(wasmtime.wat2wasm(glue)), listed=("rejected",))


def make_python() -> bytes:
    """MicroPython's module. Raises ImportError where the wheel's guest is not the one that is known."""
    code = wheel.read("micropython-wasi.wasm", micropython.GUEST_SHA256, *micropython.WHEEL)
    return join(code, bytes(wasmtime.wat2wasm(_read("python.wat").decode())))


def _read(name: str) -> bytes:
    with open(os.path.join(_HERE, name), "rb") as file:
        return file.read()


def _boot(code: bytes) -> tuple[bytes, dict[str, int]]:
    """The booted guest's memory, and the numbers that the glue has of it."""
    engine = WasmEngine()
    template = Template(engine, code, Booted(engine).imports(), _CALLED)
    with Guest(template, MAX_MEMORY_BYTES, _BOOT_TICKS) as guest:
        guest.call("set_max_stack_size", STACK_MARK)
        rejected, size = _BUFFER + BUFFER_BYTES, REJECTIONS * REJECTION_BYTES
        scratch = guest.call("qjs_alloc", rejected + size)
        guest.write(scratch, bytes(_BUFFER))
        guest.write(scratch + rejected, bytes(size))
        boot = _Boot(guest, scratch)
        host = [guest.call("new_function", *boot.put(name.encode())) for name in _HOST]
        functions = boot.functions(boot.call(boot.evaluate(_read("prelude.js")), host))
        before = guest.read(0, guest.size)
        boot.call(functions["random"], [])
        random = find_random(before, guest.read(0, guest.size))
        limit = find_stack_limit(before)
        guest.write(limit, struct.pack("<I", GUEST_STACK_TOP - GUEST_STACK_BYTES))
        guest.write(limit + _TRACKER, struct.pack("<I", table_size(code)))
        image, undefined = guest.read(0, guest.size), boot.undefined
    template.close()
    shared = _find_shared(before)
    places = {
        "REJECTED": rejected,
        "REJECTED_END": rejected + size,
        "IOVEC": _IOVEC,
        "COUNT": _COUNT,
        "RESULT": _RESULT,
        "NUMBER": _NUMBER,
        "KEPT": _KEPT,
        "BUFFER": _BUFFER,
    }
    facts = {name: scratch + at for name, at in places.items()}
    facts |= {name.upper(): handle for name, handle in functions.items()}
    return image, facts | {
        "UNDEFINED": undefined, "RANDOM": random, "BUFFER_SIZE": BUFFER_BYTES, "SHARED": shared,
    }  # fmt: skip


def _find_shared(memory: bytes) -> int:
    """Where the prelude's shared array has its one value: in the heap, since the stack may have a copy."""
    mark, at, found = struct.pack("<Q", _SHARED), GUEST_STACK_TOP - 1, []
    while (at := memory.find(mark, at + 1)) >= 0:
        if at % len(mark) == 0:
            found.append(at)
    if len(found) != 1:
        raise ImportError(f"cannot make JavaScript's program: its shared value is at {len(found)} places")
    return found[0]


class _Boot:
    """Calls into the guest that boots."""

    def __init__(self, guest: Guest, scratch: int) -> None:
        self._guest, self._scratch = guest, scratch
        self.undefined = guest.call("new_undefined")

    def put(self, data: bytes) -> tuple[int, int]:
        at = self._guest.call("qjs_alloc", len(data))
        self._guest.write(at, data)
        return at, len(data)

    def evaluate(self, source: bytes) -> int:
        at, size = self.put(source)
        self._succeed(self._guest.call("eval_code", at, size, self._scratch + _RESULT), "evaluate its prelude")
        return self._result()

    def call(self, function: int, handles: list[int]) -> int:
        given = self.put(struct.pack(f"<{len(handles)}I", *handles))[0] if handles else 0
        status = self._guest.call(
            "call_function", function, self.undefined, given, len(handles), self._scratch + _RESULT
        )
        self._succeed(status, "call its prelude")
        return self._result()

    def functions(self, of: int) -> dict[str, int]:
        found = {}
        for name in _FUNCTIONS:
            at, size = self.put(name.encode())
            self._succeed(self._guest.call("get_prop", of, at, size, self._scratch + _RESULT), f"find {name}")
            found[name] = self._result()
        return found

    def _result(self) -> int:
        return int.from_bytes(self._guest.read(self._scratch + _RESULT, 4), "little")

    def _succeed(self, status: int, what: str) -> None:
        if status:
            raise ImportError(f"cannot make JavaScript's program: the guest cannot {what}")
