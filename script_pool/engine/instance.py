"""Fresh instances of a guest, each in a store of its own: bounded access to its memory, and the imports it calls.

What the guest returns is a number from a stranger: each offset is bounded before memory is read.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import byref

from script_pool.engine.binding import (
    I32,
    I64,
    Callback,
    Extern,
    Function,
    Instance,
    Raw,
    Vector,
    library,
    succeed,
)
from script_pool.engine.guest import PAGE
from script_pool.engine.stores import MAX_MEMORY_BYTES, TABLE_ELEMENTS, Store, WasmEngine

HostFunction = Callable[["Guest", list[int]], int]
"""An import: the instance that calls, and its arguments; returns its one result."""


class GuestExit(Exception):
    """What an import raises to end the guest that has called it."""


class Template:
    """A compiled guest with its imports: what instances are made from."""

    def __init__(
        self,
        engine: WasmEngine,
        code: bytes | str,
        imports: dict[tuple[str, str], tuple[str, HostFunction]],
        names: tuple[str, ...],
        *,
        compiled: bool = False,
    ) -> None:
        """code: a module, or one that is compiled, as bytes or as the path of a file, which is mapped. names: the
        functions that will be called; each import's types are letters, `i` for i32 and `I` for i64, with the result
        after a colon. Raises EngineError."""
        self.engine, self.names = engine, names
        self._module = ctypes.c_void_p()
        if isinstance(code, str):
            succeed(library.wasmtime_module_deserialize_file(engine.pointer, code.encode(), byref(self._module)))
        else:
            load = library.wasmtime_module_deserialize if compiled else library.wasmtime_module_new
            succeed(load(engine.pointer, code, len(code), byref(self._module)))
        self._linker = library.wasmtime_linker_new(engine.pointer)
        self.current: Guest | None = None
        self._callbacks = [self._define(*key, *value) for key, value in imports.items()]
        self._pre = ctypes.c_void_p()
        succeed(library.wasmtime_linker_instantiate_pre(self._linker, self._module, byref(self._pre)))
        library.wasmtime_linker_delete(self._linker)

    def occupy(self, instances: int) -> None:
        """Has as many places in the pool for this guest alone, with its image mapped: a locked process can map none
        any more. Raises EngineError."""
        opened = [Guest(self, MAX_MEMORY_BYTES, 1) for _ in range(instances)]
        for guest in opened:
            guest.close()

    def serialize(self) -> bytes:
        """The module as this machine's code."""
        vector = Vector()
        succeed(library.wasmtime_module_serialize(self._module, byref(vector)))
        code = ctypes.string_at(vector.data, vector.size)
        library.wasm_byte_vec_delete(byref(vector))
        return code

    def _define(self, module: str, name: str, types: str, function: HostFunction) -> object:
        parameters, _, results = types.partition(":")

        def called(_env: int, _caller: int, args: object, count: int, out: object, _results: int) -> int:
            guest = self.current
            given = [args[at].of.i64 if args[at].kind == I64 else args[at].of.i32 for at in range(count)]  # type: ignore[index]
            try:
                result = function(guest, given) if guest is not None else 0
            except GuestExit:
                return int(library.wasmtime_trap_new(b"exit", 4))
            if results:
                out[0].kind, out[0].of.i32 = I32, result  # type: ignore[index]
            return 0

        callback = Callback(called)
        kind = library.wasm_functype_new(byref(_types(parameters)), byref(_types(results)))
        succeed(
            library.wasmtime_linker_define_func(
                self._linker, module.encode(), len(module), name.encode(), len(name), kind,
                ctypes.cast(callback, ctypes.c_void_p), None, None,
            )
        )  # fmt: skip
        library.wasm_functype_delete(kind)
        return callback

    def close(self) -> None:
        library.wasmtime_instance_pre_delete(self._pre)
        library.wasmtime_module_delete(self._module)


def _types(letters: str) -> Vector:
    kinds = [library.wasm_valtype_new(I64 if letter == "I" else I32) for letter in letters]
    vector = Vector()
    library.wasm_valtype_vec_new(byref(vector), len(kinds), (ctypes.c_void_p * len(kinds))(*kinds))
    return vector


class Guest(Store):
    """One instance; a context manager."""

    __slots__ = ("_args", "_base", "_functions", "_instance", "_known", "_memory", "_template", "_trap")

    def __init__(self, template: Template, memory_bytes: int, ticks: int) -> None:
        """Stopped `ticks` epochs from now. Raises EngineError."""
        super().__init__(template.engine, ticks, (memory_bytes, TABLE_ELEMENTS, 1, 1, 1))
        self._template = template
        self._trap, self._args = ctypes.c_void_p(), (Raw * 6)()
        self._functions: dict[str, Function] = {}
        self._base = self._known = 0
        try:
            self._instance = Instance()
            succeed(
                library.wasmtime_instance_pre_instantiate(
                    template._pre, self._context, byref(self._instance), byref(self._trap)
                ),
                self._trap,
            )
            self._memory = self._export("memory").of.memory
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Guest({self.size if self._store else 'closed'})"

    def _export(self, name: str) -> Extern:
        found = Extern()
        encoded = name.encode()
        if not library.wasmtime_instance_export_get(
            self._context, byref(self._instance), encoded, len(encoded), byref(found)
        ):
            raise ImportError(f"cannot run scripts: the guest exports no {name}")
        return found

    def call(self, name: str, *args: int) -> int:
        """An exported function of i32, and at most one result. Raises Trap."""
        function = self._functions.get(name)
        if function is None:
            function = self._functions[name] = self._export(name).of.func
        raw = self._args
        for at, value in enumerate(args):
            raw[at].i64 = value
        template = self._template
        before, template.current = template.current, self
        template.engine.enter()
        try:
            error = library.wasmtime_func_call_unchecked(self._context, byref(function), raw, 6, byref(self._trap))
            if error or self._trap.value:
                succeed(error, self._trap)
        finally:
            template.current = before
            template.engine.inside = before is not None
        return int(raw[0].i32) & 0xFFFFFFFF

    @property
    def size(self) -> int:
        return int(library.wasmtime_memory_data_size(self._context, byref(self._memory)))

    def address(self, at: int, size: int) -> int:
        """Where `size` bytes of the guest's memory are. Raises ValueError outside of it.

        A memory of the pool grows where it is, and never shrinks: its end is asked for again where it was before.
        """
        if at < 0 or size < 0 or at + size > self._known:
            self._known = self.size
            self._base = library.wasmtime_memory_data(self._context, byref(self._memory))
            if at < 0 or size < 0 or at + size > self._known:
                raise ValueError(f"offset {at} with {size} bytes is outside the guest's memory")
        return self._base + at

    def read(self, at: int, size: int) -> bytes:
        return ctypes.string_at(self.address(at, size), size)

    def write(self, at: int, data: bytes) -> None:
        ctypes.memmove(self.address(at, len(data)), data, len(data))

    def grow(self, size: int) -> None:
        """Makes the memory at least `size` bytes. Raises EngineError where the store's limit is below."""
        missing = size - self.size
        if missing > 0:
            before = ctypes.c_uint64()
            succeed(
                library.wasmtime_memory_grow(self._context, byref(self._memory), -(-missing // PAGE), byref(before))
            )
