"""The checker: a throw-away process that validates and compiles one upload inside hard limits, then ends.

It gets the module's file, a file for the compiled result and a socket; it locks itself before it reads the first byte
a stranger sent. Its verdict is one JSON object: `{}` for a module that can run, or `{"error": {…}}`.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource

import wasmtime
from wasmtime import _ffi as ffi

from app_loader.engine import check_imports, find_entry, make_engine, make_linker
from app_loader.limits import (
    CHECKER_CPU_SECONDS,
    CHECKER_DATA_BYTES,
    MAX_EVIDENCE_LINE,
    MAX_EVIDENCE_LINES,
)
from app_loader.lock import lock
from app_loader.verdict import GO, MODULE_FD, RESULT_FD, VERDICT_FD, too_complex
from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError

MAGIC = b"\0asm"
CORE_VERSION = b"\x01\x00\x00\x00"
COMPONENT_LAYER = b"\x01\x00"
"""Bytes six and seven of a component: its layer; a core module has zero there."""
_HEAD = 8


def check_head(head: bytes) -> None:
    """Returns when `head`, a file's first eight bytes, begins a core module. Pure.

    Raises KeepfleetError(INVALID_MODULE) that says what it is instead. wasmtime itself would take text for a module.
    """
    if head.startswith(MAGIC) and head[4:] == CORE_VERSION:
        return
    if not head:
        what = "it is empty"
    elif head.startswith(MAGIC) and len(head) == _HEAD and head[6:] == COMPONENT_LAYER:
        what = "it is a component, and this keep runs core modules; compile for wasm32-wasip1"
    elif head.startswith(MAGIC) and len(head) == _HEAD:
        what = f"its version {head[4:].hex()} is not 1"
    elif MAGIC.startswith(head[:4]):
        what = "it ends within its first eight bytes"
    elif head.startswith(b"\x7fELF"):
        what = "it is a native program (ELF), not WebAssembly"
    elif head.lstrip().startswith((b"(", b";;")):
        what = "it is WebAssembly text; convert it first: wat2wasm FILE.wat"
    else:
        what = f"it does not begin as a WebAssembly file does, but with {head.hex(' ')}"
    raise KeepfleetError(ErrorKind.INVALID_MODULE, f"cannot take the module: {what}")


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CHECKER_CPU_SECONDS, CHECKER_CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_DATA, (CHECKER_DATA_BYTES, CHECKER_DATA_BYTES))


def _reason(error: wasmtime.WasmtimeError) -> KeepfleetError:
    lines = [line[:MAX_EVIDENCE_LINE] for line in str(error).splitlines() if line.strip()][:MAX_EVIDENCE_LINES]
    shown = ": ".join(line.strip() for line in lines if line.strip() != "Caused by:")[: 2 * MAX_EVIDENCE_LINE]
    return KeepfleetError(ErrorKind.INVALID_MODULE, f"cannot take the module: {shown}", tuple(lines))


def _compile(engine: wasmtime.Engine, module: int) -> wasmtime.Module:
    """Compiles from a mapping of the file: the package's own calls would copy a large module twice."""
    size = os.fstat(module).st_size
    with mmap.mmap(module, size) as mapped:
        view = (ctypes.c_uint8 * size).from_buffer(mapped)
        try:
            invalid = ffi.wasmtime_module_validate(engine.ptr(), view, size)
            if invalid:
                raise wasmtime.WasmtimeError._from_ptr(invalid)
            pointer = ctypes.POINTER(ffi.wasmtime_module_t)()
            failed = ffi.wasmtime_module_new(engine.ptr(), view, size, ctypes.byref(pointer))
            if failed:
                raise wasmtime.WasmtimeError._from_ptr(failed)
            return wasmtime.Module._from_ptr(pointer)
        finally:
            del view  # or the mapping could not be closed


def _store(module: wasmtime.Module, result: int) -> None:
    """Writes the compiled module straight from wasmtime's buffer."""
    vector = ffi.wasm_byte_vec_t()
    failed = ffi.wasmtime_module_serialize(module.ptr(), ctypes.byref(vector))
    if failed:
        raise wasmtime.WasmtimeError._from_ptr(failed)
    try:
        address = ctypes.addressof(vector.data.contents)
        view = memoryview((ctypes.c_uint8 * vector.size).from_address(address))
        while view:
            view = view[os.write(result, view) :]
    except OSError as error:
        kind = ErrorKind.NO_SPACE if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ErrorKind.INTERNAL
        raise KeepfleetError(kind, f"cannot store the compiled module: {error.strerror}") from error
    finally:
        ffi.wasm_byte_vec_delete(ctypes.byref(vector))


def examine(module: int, result: int) -> KeepfleetError | None:
    """Checks and compiles the file `module` into the file `result`; the refusal, or None when it can run."""
    try:
        check_head(os.pread(module, _HEAD, 0))
        engine = make_engine()
        compiled = _compile(engine, module)
        check_imports(engine, make_linker(engine), compiled)
        find_entry(compiled)
        _store(compiled, result)
    except wasmtime.WasmtimeError as error:
        return _reason(error)
    except MemoryError:
        return too_complex(f"takes over {CHECKER_DATA_BYTES >> 20} MiB of memory")
    except KeepfleetError as error:
        return error
    return None


def check() -> int:
    """The process: limits, lock, wait for the whole module, verdict, end. Returns the exit code."""
    _limit()
    lock(executable_memory=True)
    if os.read(VERDICT_FD, len(GO)) != GO:
        return 0  # the door has lost interest
    refusal = examine(MODULE_FD, RESULT_FD)
    os.write(VERDICT_FD, strict_json.dumps({} if refusal is None else {"error": refusal.to_wire()}))
    os._exit(0)  # giving a gigabyte back piece by piece would take time
