"""The types of the wheel's own binding of wasmtime, in the words that our tables of functions use."""

from __future__ import annotations

import ctypes

PLAIN = {
    None: "void",
    ctypes.c_bool: "bool",
    ctypes.c_uint8: "byte",
    ctypes.c_uint32: "uint32",
    ctypes.c_int64: "int64",
    ctypes.c_size_t: "size",
    ctypes.c_void_p: "void*",
}


def word(kind: type | None, number: str) -> str:
    """A type in the words of FUNCTIONS; `number`: what a C int is called there."""
    if kind is ctypes.c_int:
        return number
    if kind in PLAIN:
        return PLAIN[kind]
    assert kind is not None
    if issubclass(kind, ctypes._CFuncPtr):  # type: ignore[attr-defined]
        return "function*"
    if issubclass(kind, ctypes._Pointer):
        return "text" if kind._type_ is ctypes.c_char else word(kind._type_, number) + "*"
    return kind.__name__.removeprefix("wasmtime_").removeprefix("wasm_").removesuffix("_t")
