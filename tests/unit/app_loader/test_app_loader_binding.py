"""The binding of the engine's library against the wheel's own: each function's types, each layout and each number."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from typing import Any

import pytest
from wasmtime import _bindings as bindings
from wasmtime import _ffi as ffi

from app_loader.engine import binding
from tests.wheel_types import word

STRUCTURES = {
    binding.Vector: ffi.wasm_byte_vec_t,
    binding.Function: ffi.wasmtime_func_t,
    binding.Global: ffi.wasmtime_global_t,
    binding.ExternOf: ffi.wasmtime_extern_union_t,
    binding.Extern: ffi.wasmtime_extern_t,
    binding.Instance: ffi.wasmtime_instance_t,
    binding.Reference: ffi.wasmtime_externref_t,
    binding.ValueOf: ffi.wasmtime_valunion_t,
    binding.Value: ffi.wasmtime_val_t,
    binding.ComponentTypeOf: ffi.wasmtime_component_valtype_union_t,
    binding.ComponentType: ffi.wasmtime_component_valtype_t,
    binding.ItemOf: ffi.wasmtime_component_item_union_t,
    binding.Item: ffi.wasmtime_component_item_t,
    binding.ComponentInstance: ffi.wasmtime_component_instance_t,
    binding.ComponentFunctionHead: ffi.wasmtime_component_func_anon_0,
    binding.ComponentFunction: ffi.wasmtime_component_func_t,
    binding.ComponentResult: ffi.wasmtime_component_valresult_t,
    binding.ComponentValueOf: ffi.wasmtime_component_valunion_t,
    binding.ComponentValue: ffi.wasmtime_component_val_t,
}


@pytest.mark.parametrize("name", binding.FUNCTIONS)
def test_a_functions_types_are_the_wheels(name: str) -> None:
    theirs = getattr(bindings, f"_{name}")
    assert binding.FUNCTIONS[name] == " ".join(word(kind, "int") for kind in (theirs.restype, *theirs.argtypes))
    assert getattr(binding.library, name).argtypes is not None


@pytest.mark.parametrize("ours", STRUCTURES)
def test_a_structures_layout_is_the_wheels(ours: Any) -> None:
    theirs: Any = STRUCTURES[ours]
    assert (ctypes.sizeof(ours), ctypes.alignment(ours)) == (ctypes.sizeof(theirs), ctypes.alignment(theirs))
    names = [field[0] for field in ours._fields_]
    for name in names:
        if name != "__largest":
            mine, other = getattr(ours, name), getattr(theirs, name)
            assert (mine.offset, mine.size) == (other.offset, other.size), name
    if issubclass(ours, ctypes.Structure):
        assert names == [field[0] for field in theirs._fields_]


def test_every_structure_is_compared() -> None:
    defined = {kind for kind in vars(binding).values() if isinstance(kind, type) and hasattr(kind, "_fields_")}
    assert defined - {ctypes.Structure, ctypes.Union} == set(STRUCTURES)


def test_the_vectors_of_other_things_are_like_those_of_bytes() -> None:
    for theirs in (ffi.wasm_frame_vec_t, ffi.wasm_importtype_vec_t, ffi.wasm_exporttype_vec_t, ffi.wasm_valtype_vec_t):
        assert [name for name, *_ in theirs._fields_] == ["size", "data"]
        assert ctypes.sizeof(theirs) == ctypes.sizeof(binding.Vector)


def test_the_numbers_are_the_wheels() -> None:
    assert ffi.WASMTIME_EXTERN_FUNC.value == binding.EXTERN_FUNCTION
    assert (ffi.WASMTIME_I32.value, ffi.WASMTIME_I64.value) == (binding.I32, binding.I64)
    assert (ffi.WASMTIME_F32.value, ffi.WASMTIME_F64.value) == (binding.F32, binding.F64)
    types = (ffi.WASM_I32, ffi.WASM_I64, ffi.WASM_F32, ffi.WASM_F64, ffi.WASM_ANYREF, ffi.WASM_FUNCREF)
    assert list(binding.TYPE_NAMES) == [kind.value for kind in types]
    assert ffi.WASMTIME_COMPONENT_ITEM_COMPONENT_INSTANCE.value == binding.ITEM_INSTANCE
    assert ffi.WASMTIME_COMPONENT_ITEM_COMPONENT_FUNC.value == binding.ITEM_FUNCTION
    assert (
        binding.COMPONENT_RESULT == ffi.WASMTIME_COMPONENT_RESULT.value == ffi.WASMTIME_COMPONENT_VALTYPE_RESULT.value
    )
    strategies = [strategy.name.rpartition("_")[2] for strategy in bindings.wasmtime_strategy_enum]
    assert (strategies[binding.CRANELIFT], strategies[binding.WINCH]) == ("CRANELIFT", "WINCH")


def test_the_engine_is_loaded_without_the_package_and_without_what_makes_closures() -> None:
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; from app_loader.check import components; "
        "from app_loader.run import context, guest; print({'wasmtime', 'ctypes', 'typing'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, check=True)
    lays_out = b"{'ctypes'}" if sys.version_info >= (3, 14) else b"set()"  # what lays out structures, from 3.14 on
    assert ended.stdout.strip() == lays_out


def test_a_function_that_is_not_in_the_table_is_not_there() -> None:
    with pytest.raises(AttributeError, match="wasmtime_guestprofiler_new is not in FUNCTIONS"):
        binding.library.wasmtime_guestprofiler_new  # noqa: B018
