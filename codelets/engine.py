"""wasmtime as codelets use it: an engine that counts fuel, modules compiled while calls run, memories that stay.

There are two ways into the wheel's library. What compiles lets the interpreter's lock go, so that no thread waits for
it. What a hook runs keeps it: letting go costs more than the call, and two threads in one store are undefined.
Import rule: the standard library, keep_protocol, wasmtime; the only file of codelets that imports the last.
"""

from __future__ import annotations

import ctypes
import platform
import threading
from collections.abc import Callable, Sequence
from functools import cache
from importlib import metadata, resources
from typing import Any

from wasmtime import (
    Config,
    Func,
    FuncType,
    Global,
    GlobalType,
    Limits,
    Memory,
    MemoryType,
    Module,
    Store,
    Val,
    ValType,
    WasmtimeError,
    wat2wasm,
)
from wasmtime import Engine as _Engine
from wasmtime import _ffi as c

MAX_STACK_BYTES = 128 * 1024
"""Of WebAssembly, on the stack of whichever thread calls a hook: musl gives a thread that much."""
OUT_OF_FUEL = 11
"""WASMTIME_TRAP_CODE_OUT_OF_FUEL"""
STARTING_FUEL = ctypes.c_uint64(10_000_000)
"""What copying a module's data into its memory may take."""
MAX_MESSAGE = 1024
"""jbpf's: characters of an error."""

fast = ctypes.PyDLL(c.dll._name)
"""The library, with the interpreter's lock kept."""
CALL = fast.wasmtime_func_call_unchecked
"""Takes a context, a function, values, their number, where a trap goes: each as a value of ctypes. It has no argtypes:
to convert an argument takes as long as the call. Gives an error's address, or None."""
CALL.restype = ctypes.c_void_p
SET_FUEL = fast.wasmtime_context_set_fuel
"""Takes a context and a c_uint64, likewise."""
SET_FUEL.restype = ctypes.c_void_p
_GET_FUEL = fast.wasmtime_context_get_fuel
_GET_FUEL.restype = ctypes.c_void_p
_INSTANTIATE = fast.wasmtime_instance_new
_INSTANTIATE.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_size_t] + [ctypes.c_void_p] * 2
_INSTANTIATE.restype = ctypes.c_void_p
REPAIR_FUEL = ctypes.c_uint64(10**9)
"""For closing a hole in a hash map of 16 MiB, all of whose slots are taken; most take some hundreds."""
MAX_TABLE_ELEMENTS = 1000
"""What a codelet's table may begin with; it does not grow."""
MAX_INSTANCES, MAX_MEMORIES = 10_000, 1_000
"""Of a set: a new instance after each fault, which goes with the set; a set that may have any number of faults ends
there. Memories are those of 16 codelets, each with 32 maps and 10 channels."""
RAW_BYTES = ctypes.sizeof(c.wasmtime_val_raw_t)
_NO_FINALIZER = ctypes.cast(0, ctypes.CFUNCTYPE(None, ctypes.c_void_p))
_TYPES = {"i32": ValType.i32, "i64": ValType.i64, "f32": ValType.f32, "f64": ValType.f64}

Extern = Memory | Global | Func
"""What a module imports."""
HostFunction = Callable[[Any, Callable[[int], None]], None]
"""Takes wasmtime_val_raw_t *, its arguments, which its results replace. What it raises ends the call as a trap."""


class OutOfFuel(Exception):
    """A host function would take more than is left."""


class EngineFault(Exception):
    """What the engine refuses, in its own words."""


class Trap(Exception):
    """Why a call ended early. fuel: whether it was for want of it."""

    def __init__(self, message: str, fuel: bool = False) -> None:
        super().__init__(message)
        self.message, self.fuel = message[:MAX_MESSAGE], fuel


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("wasm trap: ") if lines else "unknown"


def end_of(error: int | None, trap: int | None) -> Trap:
    """Why a call ended that gave this error or trap, which is freed."""
    if error:
        found = WasmtimeError._from_ptr(ctypes.cast(error, ctypes.POINTER(c.wasmtime_error_t)))
        return Trap(_last_line(str(found)))
    pointer = ctypes.cast(ctypes.c_void_p(trap), ctypes.POINTER(c.wasm_trap_t))
    code, message = ctypes.c_uint8(), c.wasm_byte_vec_t()
    known = c.wasmtime_trap_code(pointer, ctypes.byref(code))
    c.wasm_trap_message(pointer, ctypes.byref(message))
    text = ctypes.string_at(message.data, message.size).decode("utf-8", "replace").rstrip("\0")
    c.wasm_byte_vec_delete(ctypes.byref(message))
    c.wasm_trap_delete(pointer)
    return Trap(_last_line(text), bool(known) and code.value == OUT_OF_FUEL)


class Engine:
    """What compiles and runs codelets. Threads may share it."""

    def __init__(self) -> None:
        config = Config()
        config.consume_fuel = True
        config.wasm_multi_memory = True  # storage.wat has two; the verifier refuses more than one to a codelet
        config.wasm_threads = False
        config.wasm_memory64 = False
        config.max_wasm_stack = MAX_STACK_BYTES
        self.wasmtime = _Engine(config)
        source = resources.files("codelets").joinpath("storage.wat").read_text("utf-8")
        self.storage_wasm = bytes(wat2wasm(source))
        self.storage = self.compile(self.storage_wasm)

    def __repr__(self) -> str:
        return f"Engine({self.name})"

    @property
    def name(self) -> str:
        """What compiled code is for: it fits the same alone."""
        return f"codelets-1 wasmtime-{_version()} {platform.machine()}"

    def compile(self, wasm: bytes) -> Module:
        """Raises EngineFault for a module that is not valid."""
        try:
            return Module(self.wasmtime, wasm)
        except WasmtimeError as error:
            raise EngineFault(str(error).strip().splitlines()[0]) from None

    def load(self, compiled: bytes) -> Module:
        """What `Module.serialize` gave of this engine, and of no other. Raises EngineFault where it does not fit."""
        try:
            return Module.deserialize(self.wasmtime, compiled)
        except WasmtimeError as error:
            raise EngineFault(str(error).strip().splitlines()[0]) from None


@cache
def _version() -> str:
    return metadata.version("wasmtime")


@cache
def shared_engine() -> Engine:
    """The engine of this process: what it compiles for itself takes 20 ms, and runtimes have nothing else in it."""
    return Engine()


@cache
def _constant_type() -> GlobalType:
    return GlobalType(ValType.i32(), False)


@cache
def _bytes_type(size: int) -> type[ctypes.Array[ctypes.c_uint8]]:
    """The type of so many bytes; each one that is made lies in a cycle until garbage is collected."""
    return ctypes.c_uint8 * size


class World:
    """The store of one set: its memories, instances and functions. One call at a time, by whichever thread.

    It is freed with the last that refers to it: a call that runs, or a loaded set. Nothing that it keeps refers to it.
    """

    def __init__(self, engine: Engine, most_bytes: int) -> None:
        self._store = Store(engine.wasmtime)
        self._store.set_limits(
            most_bytes, MAX_TABLE_ELEMENTS, MAX_INSTANCES, tables=MAX_INSTANCES, memories=MAX_MEMORIES
        )
        self.context = ctypes.cast(self._store._context(), ctypes.c_void_p)
        self._kept: list[object] = []  # closures that the store calls; they do not refer to this
        self._constants: dict[int, Global] = {}
        self._pending: list[BaseException] = []
        self.lock = threading.RLock()  # a signal's handler may call a hook in the middle of a call
        """Of what several steps of Python do with its memories: between two of them another thread may run."""
        self.repairing = ctypes.c_uint64()
        """The thread that makes it whole again after a fault of a call in C, which other threads wait for; or 0."""

    def __repr__(self) -> str:
        return "World()"

    def raise_pending(self) -> None:
        """Raises what a host function raised that must reach the caller, such as KeyboardInterrupt."""
        if self._pending:
            raise self._pending.pop()

    def memory(self, pages: int) -> tuple[Memory, int, memoryview]:
        """A memory of a fixed size, its address, and a view of it, which holds while this world is there. Raises
        EngineFault."""
        try:
            made = Memory(self._store, MemoryType(Limits(pages, pages)))
        except WasmtimeError as error:
            raise EngineFault(_last_line(str(error))) from None
        address = ctypes.addressof(made.data_ptr(self._store).contents)
        array = _bytes_type(made.data_len(self._store)).from_address(address)
        return made, address, memoryview(array).cast("B")

    def constant(self, value: int) -> Global:
        """An immutable i32."""
        if value not in self._constants:
            self._constants[value] = Global(self._store, _constant_type(), Val.i32(value))
        return self._constants[value]

    def function(self, parameters: Sequence[str], results: Sequence[str], host: HostFunction) -> Func:
        """A function of the host. It runs on the fuel of who calls it: `host` takes its arguments, and `use`, which it
        calls with what it takes. Both may raise what ends the call."""
        pending = self._pending  # and not self: it is freed when nothing uses it, and waits for no garbage collection
        context, left = self.context, ctypes.c_uint64()
        left_at = ctypes.byref(left)

        def use(fuel: int) -> None:
            _GET_FUEL(context, left_at)
            if left.value < fuel:
                raise OutOfFuel("what its helpers take is more than is left of its fuel")
            left.value -= fuel
            SET_FUEL(context, left)

        def callback(environment: int, caller: object, values: object, count: int) -> int:
            try:
                host(values, use)
            except BaseException as error:  # noqa: BLE001  # it must not cross the engine: it ends the codelet's call
                if not isinstance(error, Exception):
                    pending[:] = [error]
                message = f"{type(error).__name__}: {error}".encode()[:MAX_MESSAGE]
                trap = c.wasmtime_trap_new(ctypes.create_string_buffer(message), len(message))
                return ctypes.cast(trap, ctypes.c_void_p).value or 0
            return 0

        closure = c.wasmtime_func_unchecked_callback_t(callback)
        self._kept.append(closure)
        kind = FuncType([_TYPES[name]() for name in parameters], [_TYPES[name]() for name in results])
        made = c.wasmtime_func_t()
        c.wasmtime_func_new_unchecked(
            self._store._context(), kind.ptr(), closure, None, _NO_FINALIZER, ctypes.byref(made)
        )
        return Func._from_raw(made)

    def instantiate(
        self, module: Module, imports: Sequence[Memory | Global | Func], names: Sequence[str]
    ) -> list[Func]:
        """The functions `names` of a new instance; the interpreter's lock is kept meanwhile. Raises Trap."""
        SET_FUEL(self.context, STARTING_FUEL)
        externs = (c.wasmtime_extern_t * max(1, len(imports)))(*(each._as_extern() for each in imports))
        instance, trap = c.wasmtime_instance_t(), ctypes.c_void_p()
        pointers = ctypes.byref(instance), ctypes.byref(trap)
        compiled = ctypes.cast(module.ptr(), ctypes.c_void_p)
        error = _INSTANTIATE(self.context, compiled, externs, len(imports), *pointers)
        if error or trap.value:
            raise end_of(error, trap.value)
        return [self._export(instance, name) for name in names]

    def run(self, function: Func) -> None:
        """Calls a function of ours without parameters. Raises Trap."""
        SET_FUEL(self.context, REPAIR_FUEL)
        values, trap = (ctypes.c_uint8 * RAW_BYTES)(), ctypes.c_void_p()
        error = CALL(self.context, ctypes.byref(function._func), values, ctypes.c_size_t(0), ctypes.byref(trap))
        if error or trap:
            raise end_of(error, trap.value)

    def _export(self, instance: Any, name: str) -> Func:
        found, text = c.wasmtime_extern_t(), name.encode()
        there = c.wasmtime_instance_export_get(
            self._store._context(), ctypes.byref(instance), ctypes.create_string_buffer(text), len(text), found
        )
        if not there or int(found.kind) != c.WASMTIME_EXTERN_FUNC.value:
            raise EngineFault(f"it has no function {name}")
        return Func._from_raw(found.of.func)


def raw_function(function: Func) -> Any:
    """Its wasmtime_func_t, which CALL takes a reference to."""
    return function._func
