"""What the engine says of a core module, without compiling it: asked by `keepctl verify`, outside any keep."""

from __future__ import annotations

from _ctypes import CFuncPtr, Structure, _SimpleCData, byref, dlsym
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from app_loader.engine.binding import Int, Pointer, Size, library, open_program
from app_loader.engine.foreign import EngineError, succeed
from app_loader.engine.settings import Settings, make_engine

if TYPE_CHECKING:
    _Simple = _SimpleCData[Any]
else:
    _Simple = _SimpleCData


def why_invalid(module: memoryview) -> str:
    """Why a core module is not valid with the features that a keep's engine has, or ""."""
    try:
        with _address(module) as address:
            succeed(library.wasmtime_module_validate(make_engine(Settings()).pointer, address, len(module)))
    except EngineError as error:
        return " ".join(str(error).split()) or "it is not valid"
    return ""


class _Object(_Simple):
    """PyObject *"""

    _type_ = "O"


class _Buffer(Structure):
    """Py_buffer: its address, and what is not looked at."""

    _fields_ = (("buf", Pointer), ("__rest", Size * 15))


class _Get(CFuncPtr):
    """PyObject_GetBuffer. It is called with the interpreter's lock."""

    _flags_ = 1 | 4  # FUNCFLAG_CDECL, FUNCFLAG_PYTHONAPI
    _restype_ = Int


class _Release(CFuncPtr):
    """PyBuffer_Release, likewise."""

    _flags_ = 1 | 4
    _restype_ = None


@contextmanager
def _address(data: memoryview) -> Iterator[Pointer]:
    """Where bytes lie that may only be read. They are a file's, mapped: a copy of a module of 250 MB would be more than
    a process that verifies may have."""
    buffer, program = _Buffer(), open_program()
    get, release = _Get(dlsym(program, "PyObject_GetBuffer")), _Release(dlsym(program, "PyBuffer_Release"))
    get.argtypes, release.argtypes = [_Object, Pointer, Int], [Pointer]
    get(data, byref(buffer), 0)  # PyBUF_SIMPLE; it raises what fails
    try:
        yield buffer.buf
    finally:
        release(byref(buffer))
