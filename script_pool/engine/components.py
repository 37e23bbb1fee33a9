"""Fresh instances of a component: WASI with nothing granted, and functions of the host's that take and give strings.

A component has its own memories, which no one else sees: what crosses is strings. Of its memory nothing is kept
resident: writing 19 MiB again costs more than the faults of the 300 pages that a run touches.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Mapping
from ctypes import byref
from typing import Any

from script_pool.engine.binding import (
    COMPONENT_RECORD,
    COMPONENT_STRING,
    COMPONENT_U32,
    COMPONENT_U64,
    TRAP_INTERRUPT,
    TRAP_OUT_OF_BOUNDS,
    TRAP_STACK_OVERFLOW,
    TRAP_UNREACHABLE,
    ComponentCallback,
    ComponentFunction,
    ComponentInstance,
    ComponentValue,
    EngineError,
    RecordEntry,
    Trap,
    Vector,
    library,
    succeed,
)
from script_pool.engine.stores import MAX_MEMORY_BYTES, TABLE_KEEP_RESIDENT_BYTES, Store, WasmEngine

NEEDED = ("wasm_component_model", "wasm_multi_memory")
CLOCK = "wasi:clocks/wall-clock@0.2.9"
"""What stands in the component's imports; WASI's own is replaced, so that it is coarse and can be set."""
INSTANCES = 2
"""The one that runs or is the last, and the next one."""
MAX_TABLE_ELEMENTS, MAX_PARTS, MAX_TABLES, MAX_MEMORIES = 65_536, 64, 8, 1
"""Of one component: CPython's has some 40 instances of modules, tables of 14,000 functions, and one memory."""
_TRAPS = (
    ("wasm trap: interrupt", TRAP_INTERRUPT),
    ("call stack exhausted", TRAP_STACK_OVERFLOW),
    ("out of bounds memory access", TRAP_OUT_OF_BOUNDS),
    ("`unreachable` instruction executed", TRAP_UNREACHABLE),
)
"""How the engine words them: its interface to components has no codes."""
_CAUSE = re.compile(r"Caused by:\s*(.*)", re.DOTALL)

StringFunction = Callable[[str, str], str]
"""A function of the host's: two strings, gives one. What it raises ends the instance."""


class Exited(EngineError):
    """The component has ended itself."""


class ComponentEngine(WasmEngine):
    """One whose instances are whole components."""

    _pool: Mapping[str, int] = {
        "linear_memory_keep_resident": 0,
        "table_keep_resident": TABLE_KEEP_RESIDENT_BYTES,
        "max_memory_size": MAX_MEMORY_BYTES,
        "table_elements": MAX_TABLE_ELEMENTS,
        "total_memories": INSTANCES * MAX_MEMORIES,
        "total_tables": INSTANCES * MAX_TABLES,
        "total_core_instances": INSTANCES * MAX_PARTS,
        "total_stacks": 1,
    }

    def __init__(self) -> None:
        super().__init__(on=NEEDED)


class Component:
    """A compiled component and what it may call. `host`: its one import besides WASI; `clock`: nanoseconds since 1970;
    `names`: the functions that will be called."""

    def __init__(self, engine: WasmEngine, path: str, names: tuple[str, ...], step_nanoseconds: int) -> None:
        """path: of a file that `compile` has made, which is mapped. Raises EngineError."""
        self.engine = engine
        self.host: StringFunction = lambda operation, text: ""
        self.clock: Callable[[], int] = lambda: 0
        self._step = step_nanoseconds
        self.pointer = ctypes.c_void_p()
        succeed(library.wasmtime_component_deserialize_file(engine.pointer, path.encode(), byref(self.pointer)))
        self.exports = {name: self._export(name) for name in names}
        self.linker: int = library.wasmtime_component_linker_new(engine.pointer)
        library.wasmtime_component_linker_allow_shadowing(self.linker, True)
        succeed(library.wasmtime_component_linker_add_wasip2(self.linker))
        self._callbacks = [ComponentCallback(each) for each in (self._called, self._now, self._resolution)]
        root = library.wasmtime_component_linker_root(self.linker)
        clock = ctypes.c_void_p()
        succeed(library.wasmtime_component_linker_instance_add_instance(root, CLOCK.encode(), len(CLOCK), byref(clock)))
        for name, callback in (("now", self._callbacks[1]), ("resolution", self._callbacks[2])):
            _define(clock, name, callback)
        library.wasmtime_component_linker_instance_delete(clock)
        _define(ctypes.c_void_p(root), "host", self._callbacks[0])
        library.wasmtime_component_linker_instance_delete(root)

    @staticmethod
    def compile(engine: WasmEngine, component: bytes) -> bytes:
        """This machine's code. Raises EngineError."""
        pointer, vector = ctypes.c_void_p(), Vector()
        succeed(library.wasmtime_component_new(engine.pointer, component, len(component), byref(pointer)))
        try:
            succeed(library.wasmtime_component_serialize(pointer, byref(vector)))
        finally:
            library.wasmtime_component_delete(pointer)
        code = ctypes.string_at(vector.data, vector.size)
        library.wasm_byte_vec_delete(byref(vector))
        return code

    def _export(self, name: str) -> int:
        found = library.wasmtime_component_get_export_index(self.pointer, None, name.encode(), len(name))
        if not found:
            raise ImportError(f"cannot run scripts: the component exports no {name}")
        return int(found)

    def occupy(self) -> None:
        """Has its image mapped in as many places of the pool as are used: a locked process can map none any more. They
        are given no WASI, whose chance would begin in each fork as it has begun here. Raises EngineError."""
        opened = [Opened(self, MAX_MEMORY_BYTES, 1, granted=False) for _ in range(INSTANCES)]
        for each in opened:
            each.close()

    # --- what it calls ---------------------------------------------------------------------------------------------

    def _called(self, _data: int, _context: int, _type: int, given: object, _count: int, out: object, _n: int) -> int:
        try:
            operation, text = (
                ctypes.string_at(given[at].of.string.data, given[at].of.string.size).decode()  # type: ignore[index]
                for at in range(2)
            )
            answer = self.host(operation, text).encode()
        except Exception as error:  # noqa: BLE001 - what leaves a callback is lost; so it ends the run
            return int(library.wasmtime_error_new(f"the host has failed: {type(error).__name__}".encode()))
        out[0].kind = COMPONENT_STRING  # type: ignore[index]
        library.wasm_byte_vec_new(byref(out[0].of.string), len(answer), answer)  # type: ignore[index]
        return 0

    def _now(self, _data: int, _context: int, _type: int, _given: object, _count: int, out: object, _n: int) -> int:
        nanoseconds = max(0, self.clock() // self._step * self._step)
        _time(out[0], *divmod(nanoseconds, 1_000_000_000))  # type: ignore[index]
        return 0

    def _resolution(self, _d: int, _context: int, _type: int, _given: object, _count: int, out: object, _n: int) -> int:
        _time(out[0], 0, self._step)  # type: ignore[index]
        return 0


def _define(instance: ctypes.c_void_p, name: str, callback: Any) -> None:
    succeed(
        library.wasmtime_component_linker_instance_add_func(
            instance,
            name.encode(),
            len(name),
            ctypes.cast(callback, ctypes.c_void_p),
            None,
            None,
        )
    )


def _time(out: ComponentValue, seconds: int, nanoseconds: int) -> None:
    """WASI's datetime."""
    out.kind = COMPONENT_RECORD
    library.wasmtime_component_valrecord_new_uninit(byref(out.of.record), 2)
    entries = ctypes.cast(out.of.record.data, ctypes.POINTER(RecordEntry))
    for at, (name, kind) in enumerate(((b"seconds", COMPONENT_U64), (b"nanoseconds", COMPONENT_U32))):
        library.wasm_byte_vec_new(byref(entries[at].name), len(name), name)
        entries[at].val.kind = kind
    entries[0].val.of.u64, entries[1].val.of.u32 = seconds, nanoseconds


class Opened(Store):
    """One instance of a component."""

    def __init__(self, component: Component, memory_bytes: int, ticks: int, granted: bool = True) -> None:
        """`granted`: has WASI, with nothing in it. Raises EngineError."""
        limits = (memory_bytes, MAX_TABLE_ELEMENTS, MAX_PARTS, MAX_TABLES, MAX_MEMORIES)
        super().__init__(component.engine, ticks, limits)
        self._component = component
        self._instance = ComponentInstance()
        try:
            if granted:
                succeed(library.wasmtime_context_set_wasi(self._context, library.wasi_config_new()))
            succeed(
                library.wasmtime_component_linker_instantiate(
                    component.linker, self._context, component.pointer, byref(self._instance)
                )
            )
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"Opened({'open' if self._store else 'closed'})"

    def call(self, name: str, *args: bytes | int) -> bytes:
        """An exported function of strings and numbers that gives a string. Raises Trap, Exited and EngineError,
        ValueError for what is no UTF-8."""
        function = ComponentFunction()
        index = self._component.exports[name]
        if not library.wasmtime_component_instance_get_func(
            byref(self._instance), self._context, index, byref(function)
        ):
            raise ImportError(f"cannot run scripts: the component's {name} is no function")
        given, result = (ComponentValue * len(args))(), ComponentValue()
        for value, arg in zip(given, args, strict=True):
            if isinstance(arg, int):
                value.kind, value.of.u32 = COMPONENT_U32, arg
            else:  # the engine copies it, and aborts for what is no UTF-8
                arg.decode()
                value.kind = COMPONENT_STRING
                value.of.string.size = len(arg)
                value.of.string.data = ctypes.cast(ctypes.c_char_p(arg), ctypes.c_void_p)
        engine = self._component.engine
        engine.enter()
        try:
            error = library.wasmtime_component_func_call(
                byref(function), self._context, given, len(args), byref(result), 1
            )
        finally:
            engine.inside = False
        if error:
            _raise(error)
        text = ctypes.string_at(result.of.string.data, result.of.string.size)
        library.wasm_byte_vec_delete(byref(result.of.string))
        return text


def _raise(error: int) -> None:
    status = ctypes.c_int32()
    exited = library.wasmtime_error_exit_status(error, byref(status))
    try:
        succeed(error)
    except EngineError as found:
        message = str(found)
        cause = _CAUSE.search(message)
        if exited:
            raise Exited(f"it has ended itself with status {status.value}") from None
        code = next((code for words, code in _TRAPS if words in message), None)
        raise Trap(cause[1].strip() if cause else message, code) from None
