"""wasmtime's C interface, as much of it as a keep uses: bound by hand to the library inside its wheel.

The wheel's own package takes 50 ms of processor time and 3 MB to import, in the checker and the runner of every keep,
for some 760 functions of which these are a tenth. What is written here is compared with that package by a test
(tests/unit/app_loader/test_app_loader_binding.py), so that a wheel that changes one fails it.
Importing this loads the library, which opens files: it comes before a lock.
Import rule: `_ctypes`, not `ctypes`, which makes a closure as it is imported: with libffi as Debian builds it, that is
memory both writable and executable, which `profile: strict` has none of. So there is no callback here either.
"""

from __future__ import annotations

import os
import sys
from _ctypes import CFuncPtr, Structure, Union, _SimpleCData, dlopen, dlsym

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module `typing` would be 3.5 ms
    from collections.abc import Callable
    from typing import Any

    _Simple = _SimpleCData[Any]
else:
    _Simple = _SimpleCData


class Bool(_Simple):
    """bool"""

    _type_ = "?"


class Byte(_Simple):
    """uint8_t"""

    _type_ = "B"


class Text(_Simple):
    """const char *, ended by a NUL"""

    _type_ = "z"


class Int(_Simple):
    """int"""

    _type_ = "i"


class UInt32(_Simple):
    """uint32_t"""

    _type_ = "I"


class Int64(_Simple):
    """int64_t; long"""

    _type_ = "l"


class Size(_Simple):
    """size_t; uint64_t"""

    _type_ = "L"


class Float(_Simple):
    """float"""

    _type_ = "f"


class Double(_Simple):
    """double"""

    _type_ = "d"


class Pointer(_Simple):
    """Any pointer, as a number: whose memory it is, and for how long, each use says."""

    _type_ = "P"


class Vector(Structure):
    """wasm_byte_vec_t and the other wasm_*_vec_t."""

    _fields_ = (("size", Size), ("data", Pointer))


class Function(Structure):
    """wasmtime_func_t"""

    _fields_ = (("store_id", Size), ("__private", Pointer))


class Global(Structure):
    """wasmtime_global_t"""

    _fields_ = (("store_id", Size), ("__private1", UInt32), ("__private2", UInt32), ("__private3", UInt32))


class ExternOf(Union):
    """wasmtime_extern_union_t"""

    _fields_ = (("func", Function), ("global_", Global))


class Extern(Structure):
    """wasmtime_extern_t"""

    _fields_ = (("kind", Byte), ("of", ExternOf))


class Instance(Structure):
    """wasmtime_instance_t"""

    _fields_ = (("store_id", Size), ("__private", Size))


class Reference(Structure):
    """wasmtime_externref_t: the largest value, which is never looked at"""

    _fields_ = (("store_id", Size), ("__private1", UInt32), ("__private2", UInt32), ("__private3", Pointer))


class ValueOf(Union):
    """wasmtime_valunion_t"""

    _fields_ = (("i32", Int), ("i64", Int64), ("f32", Float), ("f64", Double), ("externref", Reference))


class Value(Structure):
    """wasmtime_val_t"""

    _fields_ = (("kind", Byte), ("of", ValueOf))


class ComponentTypeOf(Union):
    """wasmtime_component_valtype_union_t"""

    _fields_ = (("result", Pointer),)


class ComponentType(Structure):
    """wasmtime_component_valtype_t"""

    _fields_ = (("kind", Byte), ("of", ComponentTypeOf))


class ItemOf(Union):
    """wasmtime_component_item_union_t"""

    _fields_ = (("component_instance", Pointer), ("component_func", Pointer), ("type", ComponentType))


class Item(Structure):
    """wasmtime_component_item_t"""

    _fields_ = (("kind", Byte), ("of", ItemOf))


class ComponentInstance(Structure):
    """wasmtime_component_instance_t"""

    _fields_ = (("store_id", Size), ("__private", UInt32))


class ComponentFunctionHead(Structure):
    """The anonymous beginning of wasmtime_component_func_t"""

    _fields_ = (("store_id", Size), ("__private1", UInt32))


class ComponentFunction(Structure):
    """wasmtime_component_func_t"""

    _fields_ = (("_anon_1", ComponentFunctionHead), ("__private2", UInt32), ("__private3", Pointer))


class ComponentResult(Structure):
    """wasmtime_component_valresult_t"""

    _fields_ = (("is_ok", Bool), ("val", Pointer))


class ComponentValueOf(Union):
    """wasmtime_component_valunion_t"""

    _fields_ = (("result", ComponentResult), ("__largest", Size * 3))


class ComponentValue(Structure):
    """wasmtime_component_val_t"""

    _fields_ = (("kind", Byte), ("of", ComponentValueOf))


EXTERN_FUNCTION, EXTERN_GLOBAL = 0, 1
"""WASMTIME_EXTERN_FUNC, _GLOBAL"""
EXTERN_TYPE_FUNCTION = 0
"""WASM_EXTERN_FUNC: in an export's type"""
I32, I64, F32, F64 = range(4)
"""WASMTIME_I32 … WASMTIME_F64: kinds of a value; WASM_I32 … the same of a type"""
ITEM_INSTANCE, ITEM_FUNCTION = 1, 3
"""WASMTIME_COMPONENT_ITEM_COMPONENT_INSTANCE, _COMPONENT_FUNC"""
COMPONENT_RESULT = 19
"""WASMTIME_COMPONENT_RESULT, and _VALTYPE_RESULT in a type"""
CRANELIFT, WINCH = 1, 2
"""WASMTIME_STRATEGY_CRANELIFT; the C header has no name for Winch, which is the library's third"""
EXTERN_FUNCTION, EXTERN_GLOBAL = 0, 1
"""WASMTIME_EXTERN_FUNC, _GLOBAL; the first is WASM_EXTERN_FUNC, too, in an export's type."""
I32, I64, F32, F64 = range(4)
"""WASMTIME_I32 … WASMTIME_F64 in a value; WASM_I32 … WASM_F64 in a type."""
TYPE_NAMES = {I32: "i32", I64: "i64", F32: "f32", F64: "f64", 128: "externref", 129: "funcref"}
"""Kinds in a type. Asked for a vector's, the library aborts."""
ITEM_INSTANCE, ITEM_FUNCTION = 1, 3
"""WASMTIME_COMPONENT_ITEM_COMPONENT_INSTANCE, _COMPONENT_FUNC"""
COMPONENT_RESULT = 19
"""WASMTIME_COMPONENT_RESULT, and _VALTYPE_RESULT in a type"""
CRANELIFT, WINCH = 1, 2
"""WASMTIME_STRATEGY_CRANELIFT, _WINCH"""

_WORDS: dict[str, type | None] = {
    "void": None,
    "bool": Bool,
    "byte": Byte,
    "int": Int,
    "uint32": UInt32,
    "int64": Int64,
    "size": Size,
    "text": Text,
}
"""Words of FUNCTIONS that are no pointer; `text` is a pointer to char that the library only reads."""

SWITCHES = (
    "parallel_compilation",
    "memory_init_cow",
    "gc_support",
    "wasm_threads",
    "wasm_memory64",
    "wasm_gc",
    "wasm_function_references",
    "wasm_exceptions",
    "wasm_stack_switching",
    "wasm_multi_memory",
    "wasm_wide_arithmetic",
    "wasm_custom_page_sizes",
    "wasm_relaxed_simd",
    "wasm_component_model",
    "wasm_component_model_map",
    "wasm_component_model_implements",
    "wasm_component_model_async",
)
"""What is switched on or off for an engine, each by `wasmtime_config_…_set`."""

FUNCTIONS = {
    **{f"wasmtime_config_{name}_set": "void config* bool" for name in SWITCHES},
    "wasm_config_new": "config*",
    "wasmtime_config_strategy_set": "void config* byte",
    "wasmtime_config_target_set": "error* config* text",
    "wasmtime_config_max_wasm_stack_set": "void config* size",
    "wasmtime_config_async_stack_size_set": "void config* size",
    "wasm_engine_new_with_config": "engine* config*",
    "wasm_engine_delete": "void engine*",
    "wasmtime_error_message": "void error* byte_vec*",
    "wasmtime_error_exit_status": "bool error* int*",
    "wasmtime_error_delete": "void error*",
    "wasm_byte_vec_delete": "void byte_vec*",
    "wasm_trap_message": "void trap* byte_vec*",
    "wasm_trap_trace": "void trap* frame_vec*",
    "wasm_trap_delete": "void trap*",
    "wasm_frame_func_index": "uint32 frame*",
    "wasm_frame_module_offset": "size frame*",
    "wasmtime_frame_func_name": "byte_vec* frame*",
    "wasm_frame_vec_delete": "void frame_vec*",
    "wasmtime_module_validate": "error* engine* byte* size",
    "wasmtime_module_new": "error* engine* byte* size module**",
    "wasmtime_module_serialize": "error* module* byte_vec*",
    "wasmtime_module_deserialize": "error* engine* byte* size module**",
    "wasmtime_module_deserialize_file": "error* engine* text module**",
    "wasmtime_module_exports": "void module* exporttype_vec*",
    "wasmtime_module_delete": "void module*",
    "wasm_exporttype_name": "byte_vec* exporttype*",
    "wasm_exporttype_type": "externtype* exporttype*",
    "wasm_exporttype_vec_delete": "void exporttype_vec*",
    "wasm_externtype_kind": "byte externtype*",
    "wasm_externtype_as_functype_const": "functype* externtype*",
    "wasm_functype_params": "valtype_vec* functype*",
    "wasm_functype_results": "valtype_vec* functype*",
    "wasm_valtype_kind": "byte valtype*",
    "wasi_config_new": "wasi_config*",
    "wasi_config_set_argv": "bool wasi_config* size text*",
    "wasi_config_set_env": "bool wasi_config* size text* text*",
    "wasi_config_inherit_stdin": "void wasi_config*",
    "wasi_config_inherit_stdout": "void wasi_config*",
    "wasi_config_inherit_stderr": "void wasi_config*",
    "wasi_config_preopen_dir": "bool wasi_config* text text bool",
    "wasi_config_delete": "void wasi_config*",
    "wasmtime_store_new": "store* engine* void* function*",
    "wasmtime_store_context": "context* store*",
    "wasmtime_store_limiter": "void store* int64 int64 int64 int64 int64",
    "wasmtime_store_delete": "void store*",
    "wasmtime_context_set_wasi": "error* context* wasi_config*",
    "wasmtime_linker_new": "linker* engine*",
    "wasmtime_linker_allow_shadowing": "void linker* bool",
    "wasmtime_linker_define_wasi": "error* linker*",
    "wasmtime_linker_define": "error* linker* context* text size text size extern*",
    "wasmtime_linker_get": "bool linker* context* text size text size extern*",
    "wasmtime_linker_instantiate": "error* linker* context* module* instance* trap**",
    "wasmtime_linker_instantiate_pre": "error* linker* module* instance_pre**",
    "wasmtime_linker_delete": "void linker*",
    "wasmtime_instance_pre_delete": "void instance_pre*",
    "wasmtime_instance_export_get": "bool context* instance* text size extern*",
    "wasmtime_func_call": "error* context* func* val* size val* size trap**",
    "wasmtime_global_get": "void context* global* val*",
    "wasmtime_component_new": "error* engine* byte* size component**",
    "wasmtime_component_serialize": "error* component* byte_vec*",
    "wasmtime_component_deserialize": "error* engine* byte* size component**",
    "wasmtime_component_deserialize_file": "error* engine* text component**",
    "wasmtime_component_type": "component_type* component*",
    "wasmtime_component_delete": "void component*",
    "wasmtime_component_type_import_count": "size component_type* engine*",
    "wasmtime_component_type_import_nth": "bool component_type* engine* size text* size* component_extern**",
    "wasmtime_component_type_export_count": "size component_type* engine*",
    "wasmtime_component_type_export_nth": "bool component_type* engine* size text* size* component_extern**",
    "wasmtime_component_type_export_get": "bool component_type* engine* text size component_extern**",
    "wasmtime_component_type_delete": "void component_type*",
    "wasmtime_component_extern_type": "void component_extern* component_item*",
    "wasmtime_component_extern_delete": "void component_extern*",
    "wasmtime_component_item_delete": "void component_item*",
    "wasmtime_component_instance_type_export_get": "bool component_instance_type* engine* text size component_extern**",
    "wasmtime_component_func_type_param_count": "size component_func_type*",
    "wasmtime_component_func_type_result": "bool component_func_type* component_valtype*",
    "wasmtime_component_valtype_delete": "void component_valtype*",
    "wasmtime_component_linker_new": "component_linker* engine*",
    "wasmtime_component_linker_add_wasip2": "error* component_linker*",
    "wasmtime_component_linker_instantiate": "error* component_linker* context* component* component_instance*",
    "wasmtime_component_linker_delete": "void component_linker*",
    "wasmtime_component_instance_get_export_index": (
        "component_export_index* component_instance* context* component_export_index* text size"
    ),
    "wasmtime_component_export_index_delete": "void component_export_index*",
    "wasmtime_component_instance_get_func": "bool component_instance* context* component_export_index* component_func*",
    "wasmtime_component_func_call": "error* component_func* context* component_val* size component_val* size",
    "wasmtime_component_val_delete": "void component_val*",
}
"""Each function's C types: what it returns, then what it takes; without `wasm_`, `wasmtime_` and `_t`."""


class _Callable(CFuncPtr):
    """A C function. It is called without the interpreter's lock, so that `end_after` can count meanwhile."""

    _flags_ = 1  # FUNCFLAG_CDECL
    _restype_ = None


def bind(handle: int, name: str, words: str) -> Callable[..., Any]:
    """The function of a loaded library, its types in the words of FUNCTIONS."""
    function = _Callable(dlsym(handle, name))
    types = [_WORDS.get(word, Pointer) for word in words.split()]
    function.restype, function.argtypes = types[0], types[1:]  # type: ignore[assignment]
    return function


def open_program() -> int:
    """The program itself, with its C library, for `bind`; no file is opened."""
    return dlopen(None, 0)  # type: ignore[arg-type]  # as ctypes.CDLL(None) does


def find_library() -> str:
    """The path of the wheel's library: where our packages are installed, or elsewhere on `sys.path`.

    Raises ImportError where there is none for this machine.
    """
    installed = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    below = os.path.join("wasmtime", f"linux-{os.uname().machine}", "_libwasmtime.so")
    for directory in (installed, *sys.path):
        path = os.path.join(directory, below)
        if os.path.exists(path):
            return path
    raise ImportError(f"cannot load the engine: there is no {below} in {installed}; install keepfleet again")


class Library:
    """The loaded library: its functions, by name, each bound when it is first asked for."""

    def __init__(self) -> None:
        """Raises ImportError when it is not there or cannot be loaded."""
        path = find_library()
        try:
            self._handle = dlopen(path, 0)
        except OSError as error:
            raise ImportError(f"cannot load the engine: {error}") from error

    def __repr__(self) -> str:
        return f"Library({self._handle:#x})"

    def __getattr__(self, name: str) -> Callable[..., Any]:
        try:
            function = bind(self._handle, name, FUNCTIONS[name])
        except KeyError:
            raise AttributeError(f"{name} is not in FUNCTIONS") from None
        setattr(self, name, function)
        return function


library = Library()
