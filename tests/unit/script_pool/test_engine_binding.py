"""The scripts' binding of the engine's library against the wheel's own: each function's types, layout and number."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
from wasmtime import _bindings as bindings
from wasmtime import _ffi as ffi

from script_pool.engine import binding
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
    binding.Memory: bindings.wasmtime_memory_t,
    binding.Raw: bindings.wasmtime_val_raw_t,
    binding.ComponentValueOf: bindings.wasmtime_component_valunion_t,
    binding.ComponentValue: bindings.wasmtime_component_val_t,
    binding.RecordEntry: bindings.wasmtime_component_valrecord_entry_t,
    binding.ComponentFunctionOf: bindings.wasmtime_component_func_anon_0,
    binding.ComponentFunction: bindings.wasmtime_component_func_t,
    binding.ComponentInstance: bindings.wasmtime_component_instance_t,
}


@pytest.mark.parametrize("name", binding.FUNCTIONS)
def test_a_functions_types_are_the_wheels(name: str) -> None:
    theirs = getattr(bindings, f"_{name}")
    ours = binding.FUNCTIONS[name].replace("uint64", "size")  # the same type to ctypes
    assert ours == " ".join(word(kind, "int32") for kind in (theirs.restype, *theirs.argtypes))
    assert getattr(binding.library, name).argtypes is not None


@pytest.mark.parametrize("ours", STRUCTURES)
def test_a_structures_size_is_the_wheels(ours: Any) -> None:
    theirs: Any = STRUCTURES[ours]
    assert (ctypes.sizeof(ours), ctypes.alignment(ours)) == (ctypes.sizeof(theirs), ctypes.alignment(theirs))
    for name, *_ in ours._fields_:
        if hasattr(theirs, name):
            assert getattr(ours, name).offset == getattr(theirs, name).offset, name


def test_the_traps_are_the_wheels() -> None:
    codes = {code.name.removeprefix("WASMTIME_TRAP_CODE_"): code.value for code in bindings.wasmtime_trap_code_enum}
    assert codes["STACK_OVERFLOW"] == binding.TRAP_STACK_OVERFLOW
    assert codes["UNREACHABLE_CODE_REACHED"] == binding.TRAP_UNREACHABLE
    assert codes["INTERRUPT"] == binding.TRAP_INTERRUPT


def test_the_kinds_of_a_components_values_are_the_wheels() -> None:
    for kind in ("U32", "U64", "STRING", "RECORD"):
        assert getattr(binding, f"COMPONENT_{kind}") == getattr(ffi, f"WASMTIME_COMPONENT_{kind}").value


def test_a_function_that_is_not_in_the_table_is_not_there() -> None:
    with pytest.raises(AttributeError, match="wasmtime_guestprofiler_new is not in FUNCTIONS"):
        binding.library.wasmtime_guestprofiler_new  # noqa: B018
