"""A small application with hooks, a store in a directory, and codelets as text."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any, ClassVar

import wasmtime

from codelets import Runtime
from module_store.store import Store

PACKET = "<IIII"
"""Four numbers of 4 bytes: size, port, and two that codelets write."""


def wasm(text: str) -> bytes:
    """A module's bytes."""
    return bytes(wasmtime.wat2wasm(text))


def codelet(body: str, imports: str = "", rest: str = "", parameters: str = "(param $context i32)") -> bytes:
    """A module whose entry point runs `body`, which leaves an i64."""
    entry = f'(func (export "codelet_main") {parameters} (result i64) {body})'
    return wasm(f'(module (import "env" "memory" (memory 1)) {imports} {rest} {entry})')


def function(module: str, name: str, kind: str) -> str:
    """An import, called $ and what follows the dot of its name."""
    return f'(import "{module}" "{name}" (func ${name.rpartition(".")[2]} {kind}))'


COUNTER = codelet(
    """
    (drop (call $lookup (i32.const 0) (i32.const 8)))
    (i64.store (i32.const 8) (i64.add (i64.const 1) (i64.load (i32.const 8))))
    (drop (call $update (i32.const 0) (i32.const 8)))
    (i64.load (i32.const 8))""",
    function("map:array:4:8:1", "count.lookup", "(param i32 i32) (result i32)")
    + function("map:array:4:8:1", "count.update", "(param i32 i32) (result i32)"),
)
"""Counts its calls in the map `count`, and gives the count."""


class Application:
    """A store below `directory`, and a runtime over it with the hooks `seen` (read-only), `changed` (writable),
    `choose` (control, -1 by default) and `data` (writable, with 64 bytes of data)."""

    made: ClassVar[list[Application]] = []
    """Those that are open; conftest.py closes them after each test of codelets."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.made.append(self)
        self.store = Store.create(str(directory / "store"))
        self.runtime = Runtime(str(directory / "store"), **options)
        self.seen = self.runtime.hook("seen", PACKET)
        self.changed = self.runtime.hook("changed", PACKET, writable=True)
        self.choose = self.runtime.control_hook("choose", PACKET, default=-1)
        self.data = self.runtime.hook("data", 4, data_bytes=64, writable=True)

    def close(self) -> None:
        if self in self.made:
            self.made.remove(self)
            self.runtime.close()
            self.store.close()

    def add(self, name: str, module: bytes) -> str:
        """Puts a module into the store; its reference."""
        self.store.add(io.BytesIO(module), reference=f"{name}:1")
        return f"{name}:1"

    def load(self, name: str, module: bytes, hook: str = "choose", more: str = "") -> str:
        """Loads a set of one codelet, both of the same name; more: lines of its descriptor."""
        self.add(name, module)
        return self.runtime.load(one(name, hook, more))


def one(name: str, hook: str, more: str = "", path: str = "") -> str:
    """The descriptor of a set of one codelet."""
    lines = [f"codeletset_id: {name}", "codelet_descriptor:", f"- codelet_name: {name}"]
    lines += [f"  codelet_path: {path or f'{name}:1'}", f"  hook_name: {hook}"]
    return "\n".join([*lines, *(f"  {line}" for line in more.splitlines())])


def packet(size: int = 0, port: int = 0) -> bytearray:
    """A context."""
    return bytearray(struct.pack(PACKET, size, port, 0, 0))
