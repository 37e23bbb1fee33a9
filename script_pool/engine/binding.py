"""wasmtime's C interface, as much of it as scripts use: bound by hand to the library inside its wheel.

The wheel's own classes cost more per call than an instance does, and its package 50 ms of processor time to import.
What is written here is compared with that package by a test (tests/unit/script_pool/test_engine_binding.py), so that a
wheel that changes one fails it. Callbacks are closures of `ctypes`, made before a process locks itself.
Import rule: the standard library alone.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from typing import Any


class Vector(ctypes.Structure):
    """wasm_byte_vec_t and the other wasm_*_vec_t."""

    _fields_ = (("size", ctypes.c_size_t), ("data", ctypes.c_void_p))


class Function(ctypes.Structure):
    """wasmtime_func_t"""

    _fields_ = (("store_id", ctypes.c_uint64), ("__private", ctypes.c_void_p))


class Memory(ctypes.Structure):
    """wasmtime_memory_t; its first two are wasmtime_memory_anon_0, padded"""

    _fields_ = (
        ("store_id", ctypes.c_uint64),
        ("__private1", ctypes.c_uint32),
        ("__padding", ctypes.c_uint32),
        ("__private2", ctypes.c_uint32),
    )


class Global(ctypes.Structure):
    """wasmtime_global_t"""

    _fields_ = (
        ("store_id", ctypes.c_uint64),
        ("__private1", ctypes.c_uint32),
        ("__private2", ctypes.c_uint32),
        ("__private3", ctypes.c_uint32),
    )


class ExternOf(ctypes.Union):
    """wasmtime_extern_union_t"""

    _fields_ = (("func", Function), ("global_", Global), ("memory", Memory))


class Extern(ctypes.Structure):
    """wasmtime_extern_t"""

    _fields_ = (("kind", ctypes.c_uint8), ("of", ExternOf))


class Instance(ctypes.Structure):
    """wasmtime_instance_t"""

    _fields_ = (("store_id", ctypes.c_uint64), ("__private", ctypes.c_size_t))


class Reference(ctypes.Structure):
    """wasmtime_externref_t: the largest value, which is never looked at"""

    _fields_ = (
        ("store_id", ctypes.c_uint64),
        ("__private1", ctypes.c_uint32),
        ("__private2", ctypes.c_uint32),
        ("__private3", ctypes.c_void_p),
    )


class ValueOf(ctypes.Union):
    """wasmtime_valunion_t"""

    _fields_ = (("i32", ctypes.c_int32), ("i64", ctypes.c_int64), ("externref", Reference))


class Value(ctypes.Structure):
    """wasmtime_val_t"""

    _fields_ = (("kind", ctypes.c_uint8), ("of", ValueOf))


class Raw(ctypes.Union):
    """wasmtime_val_raw_t: an argument or result of a call whose types are known"""

    _fields_ = (("i32", ctypes.c_int32), ("i64", ctypes.c_int64), ("__largest", ctypes.c_uint8 * 16))


class ComponentValueOf(ctypes.Union):
    """wasmtime_component_valunion_t: what is used of it; the largest is never looked at"""

    _fields_ = (
        ("u32", ctypes.c_uint32), ("u64", ctypes.c_uint64), ("string", Vector), ("record", Vector),
        ("__largest", ctypes.c_uint64 * 3),
    )  # fmt: skip


class ComponentValue(ctypes.Structure):
    """wasmtime_component_val_t"""

    _fields_ = (("kind", ctypes.c_uint8), ("of", ComponentValueOf))


class RecordEntry(ctypes.Structure):
    """wasmtime_component_valrecord_entry_t"""

    _fields_ = (("name", Vector), ("val", ComponentValue))


class ComponentFunctionOf(ctypes.Structure):
    """wasmtime_component_func_anon_0"""

    _fields_ = (("store_id", ctypes.c_uint64), ("__private1", ctypes.c_uint32))


class ComponentFunction(ctypes.Structure):
    """wasmtime_component_func_t"""

    _fields_ = (("_anon_1", ComponentFunctionOf), ("__private2", ctypes.c_uint32), ("__private3", ctypes.c_void_p))


class ComponentInstance(ctypes.Structure):
    """wasmtime_component_instance_t"""

    _fields_ = (("store_id", ctypes.c_uint64), ("__private", ctypes.c_uint32))


COMPONENT_U32, COMPONENT_U64, COMPONENT_STRING, COMPONENT_RECORD = 6, 8, 12, 14
"""WASMTIME_COMPONENT_U32, _U64, _STRING, _RECORD"""
ComponentCallback = ctypes.CFUNCTYPE(
    ctypes.c_size_t,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.POINTER(ComponentValue),
    ctypes.c_size_t,
    ctypes.POINTER(ComponentValue),
    ctypes.c_size_t,
)
"""wasmtime_component_func_callback_t: data, context, type, arguments and their number, results and theirs; returns an
error."""
Callback = ctypes.CFUNCTYPE(
    ctypes.c_size_t,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.POINTER(Value),
    ctypes.c_size_t,
    ctypes.POINTER(Value),
    ctypes.c_size_t,
)
"""wasmtime_func_callback_t: environment, caller, arguments and their number, results and theirs; returns a trap."""

I32, I64 = 0, 1
"""WASMTIME_I32, _I64; WASM_I32, _I64 of a type"""
TRAP_STACK_OVERFLOW, TRAP_OUT_OF_BOUNDS, TRAP_UNREACHABLE, TRAP_INTERRUPT = 0, 1, 9, 10
"""wasmtime_trap_code_t"""

_WORDS: dict[str, Any] = {
    "void": None,
    "bool": ctypes.c_bool,
    "byte": ctypes.c_uint8,
    "uint32": ctypes.c_uint32,
    "uint64": ctypes.c_uint64,
    "int32": ctypes.c_int32,
    "int64": ctypes.c_int64,
    "size": ctypes.c_size_t,
    "text": ctypes.c_char_p,
}
"""Words of FUNCTIONS that are no pointer; `text` is a pointer to char that the library only reads."""

_SWITCHES = (
    "epoch_interruption",
    "memory_init_cow",
    "parallel_compilation",
    "gc_support",
    "wasm_threads",
    "wasm_memory64",
    "wasm_gc",
    "wasm_function_references",
    "wasm_exceptions",
    "wasm_stack_switching",
    "wasm_component_model",
    "wasm_multi_memory",
    "wasm_relaxed_simd",
    "concurrency_support",
)
_POOL_SIZES = ("linear_memory_keep_resident", "table_keep_resident", "max_memory_size", "table_elements")
_POOL_COUNTS = ("total_memories", "total_tables", "total_core_instances", "total_stacks")

FUNCTIONS = {
    **{f"wasmtime_config_{name}_set": "void config* bool" for name in _SWITCHES},
    **{
        f"wasmtime_pooling_allocation_config_{name}_set": "void pooling_allocation_config* size" for name in _POOL_SIZES
    },
    **{
        f"wasmtime_pooling_allocation_config_{name}_set": "void pooling_allocation_config* uint32"
        for name in _POOL_COUNTS
    },
    "wasmtime_pooling_allocation_config_new": "pooling_allocation_config*",
    "wasmtime_pooling_allocation_config_delete": "void pooling_allocation_config*",
    "wasmtime_pooling_allocation_strategy_set": "void config* pooling_allocation_config*",
    "wasm_config_new": "config*",
    "wasmtime_config_max_wasm_stack_set": "void config* size",
    "wasmtime_config_async_stack_size_set": "void config* size",
    "wasm_engine_new_with_config": "engine* config*",
    "wasm_engine_delete": "void engine*",
    "wasmtime_engine_increment_epoch": "void engine*",
    "wasmtime_error_message": "void error* byte_vec*",
    "wasmtime_error_delete": "void error*",
    "wasm_byte_vec_delete": "void byte_vec*",
    "wasmtime_trap_new": "trap* text size",
    "wasm_trap_message": "void trap* byte_vec*",
    "wasmtime_trap_code": "bool trap* byte*",
    "wasm_trap_delete": "void trap*",
    "wasm_valtype_new": "valtype* byte",
    "wasm_valtype_vec_new": "void valtype_vec* size valtype**",
    "wasm_functype_new": "functype* valtype_vec* valtype_vec*",
    "wasm_functype_delete": "void functype*",
    "wasmtime_module_new": "error* engine* byte* size module**",
    "wasmtime_module_serialize": "error* module* byte_vec*",
    "wasmtime_module_deserialize": "error* engine* byte* size module**",
    "wasmtime_module_deserialize_file": "error* engine* text module**",
    "wasmtime_module_delete": "void module*",
    "wasmtime_linker_new": "linker* engine*",
    "wasmtime_linker_define_func": "error* linker* text size text size functype* function* void* function*",
    "wasmtime_linker_instantiate_pre": "error* linker* module* instance_pre**",
    "wasmtime_linker_delete": "void linker*",
    "wasmtime_instance_pre_instantiate": "error* instance_pre* context* instance* trap**",
    "wasmtime_instance_pre_delete": "void instance_pre*",
    "wasmtime_store_new": "store* engine* void* function*",
    "wasmtime_store_context": "context* store*",
    "wasmtime_store_limiter": "void store* int64 int64 int64 int64 int64",
    "wasmtime_store_delete": "void store*",
    "wasmtime_context_set_epoch_deadline": "void context* uint64",
    "wasmtime_instance_export_get": "bool context* instance* text size extern*",
    "wasmtime_func_call_unchecked": "error* context* func* val_raw* size trap**",
    "wasmtime_global_get": "void context* global* val*",
    "wasmtime_error_new": "error* text",
    "wasmtime_error_exit_status": "bool error* int32*",
    "wasm_byte_vec_new": "void byte_vec* size byte*",
    "wasi_config_new": "wasi_config*",
    "wasmtime_context_set_wasi": "error* context* wasi_config*",
    "wasmtime_component_new": "error* engine* byte* size component**",
    "wasmtime_component_serialize": "error* component* byte_vec*",
    "wasmtime_component_deserialize_file": "error* engine* text component**",
    "wasmtime_component_delete": "void component*",
    "wasmtime_component_get_export_index": "component_export_index* component* component_export_index* text size",
    "wasmtime_component_linker_new": "component_linker* engine*",
    "wasmtime_component_linker_allow_shadowing": "void component_linker* bool",
    "wasmtime_component_linker_add_wasip2": "error* component_linker*",
    "wasmtime_component_linker_root": "component_linker_instance* component_linker*",
    "wasmtime_component_linker_instance_add_instance": (
        "error* component_linker_instance* text size component_linker_instance**"
    ),
    "wasmtime_component_linker_instance_add_func": (
        "error* component_linker_instance* text size function* void* function*"
    ),
    "wasmtime_component_linker_instance_delete": "void component_linker_instance*",
    "wasmtime_component_linker_instantiate": "error* component_linker* context* component* component_instance*",
    "wasmtime_component_instance_get_func": (
        "bool component_instance* context* component_export_index* component_func*"
    ),
    "wasmtime_component_func_call": ("error* component_func* context* component_val* size component_val* size"),
    "wasmtime_component_valrecord_new_uninit": "void component_valrecord* size",
    "wasmtime_memory_data": "byte* context* memory*",
    "wasmtime_memory_data_size": "size context* memory*",
    "wasmtime_memory_grow": "error* context* memory* uint64 uint64*",
}
"""Each function's C types: what it returns, then what it takes; without `wasm_`, `wasmtime_` and `_t`."""


def find_library() -> str:
    """The path of the wheel's library. Raises ImportError where there is none for this machine."""
    below = os.path.join("wasmtime", f"linux-{os.uname().machine}", "_libwasmtime.so")
    for directory in sys.path:
        path = os.path.join(directory, below)
        if os.path.exists(path):
            return path
    raise ImportError(f"cannot load the engine: there is no {below} on sys.path; install keepfleet again")


class Library:
    """The loaded library: its functions, by name, each bound when it is first asked for."""

    def __init__(self) -> None:
        """Raises ImportError when it is not there or cannot be loaded."""
        try:
            self._library = ctypes.CDLL(find_library())
        except OSError as error:
            raise ImportError(f"cannot load the engine: {error}") from error

    def __repr__(self) -> str:
        return f"Library({self._library._name})"

    def __getattr__(self, name: str) -> Callable[..., Any]:
        words = FUNCTIONS.get(name)
        if words is None:
            raise AttributeError(f"{name} is not in FUNCTIONS")
        function: Any = self._library[name]
        types = [_WORDS.get(word, ctypes.c_void_p) for word in words.split()]
        function.restype, function.argtypes = types[0], types[1:]
        setattr(self, name, function)
        return function  # type: ignore[no-any-return]


library = Library()


class EngineError(Exception):
    """What the engine cannot do, in its own words."""


class Trap(EngineError):
    """A guest has done what WebAssembly forbids, or was stopped. code: one of TRAP_…, or None."""

    def __init__(self, message: str, code: int | None) -> None:
        super().__init__(message)
        self.code = code


def _take(vector: Vector) -> str:
    """The text in a vector that is ours, which is freed."""
    text = ctypes.string_at(vector.data, vector.size).decode("utf-8", "replace").rstrip("\0")
    library.wasm_byte_vec_delete(ctypes.byref(vector))
    return text


def succeed(error: int | None, trap: ctypes.c_void_p | None = None) -> None:
    """Raises EngineError for the error, or Trap for the trap, that a function has given; both are read and freed."""
    if error:
        message = Vector()
        library.wasmtime_error_message(error, ctypes.byref(message))
        library.wasmtime_error_delete(error)
        raise EngineError(_take(message))
    if trap is not None and trap.value:
        message, code = Vector(), ctypes.c_uint8()
        library.wasm_trap_message(trap, ctypes.byref(message))
        known = library.wasmtime_trap_code(trap, ctypes.byref(code))
        library.wasm_trap_delete(trap)
        raise Trap(_take(message), code.value if known else None)
