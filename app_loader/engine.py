"""The one wasmtime configuration: the checker compiles with it and the runner loads with it.

Off is every proposal the advisories of 2026 hit and few programs need: threads, 64-bit memories, garbage collection,
typed references, exceptions, stack switching, several memories, components. On stays what compilers emit: SIMD, bulk
memory, reference types, many values, tail calls.
"""

from __future__ import annotations

import wasmtime

from app_loader.limits import MAX_EVIDENCE_LINE, MAX_EVIDENCE_LINES
from keep_protocol.errors import ErrorKind, KeepfleetError

WASI_MODULES = ("wasi_snapshot_preview1", "wasi_unstable")
"""The import modules a workload may name."""
COMMAND, DEFAULT = "_start", ""
"""What is called: a command's start function, else the export without a name, as the original did."""
INITIALIZE = "_initialize"
"""A reactor's own preparation (WASI application ABI), called before its default export."""


class GuestExit(Exception):
    """The guest has called proc_exit with `code`; wasmtime itself would lose codes above 125."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit {code}")
        self.code = code


def make_engine() -> wasmtime.Engine:
    """A fresh engine. Compilation uses one thread: its memory is bounded that way, and TasksMax cannot break it."""
    config = wasmtime.Config()
    config.strategy = "cranelift"
    config.parallel_compilation = False
    config.wasm_threads = False
    config.wasm_memory64 = False
    config.wasm_gc = False
    config.wasm_function_references = False
    config.wasm_exceptions = False
    config.wasm_stack_switching = False
    config.wasm_multi_memory = False
    config.wasm_component_model = False
    config.wasm_wide_arithmetic = False
    config.wasm_custom_page_sizes = False
    config.wasm_relaxed_simd = False
    config.gc_support = False
    # Copy-on-write images of a memory need memfd_create, which the unit's system call filter and the lock refuse.
    config.memory_init_cow = False
    return wasmtime.Engine(config)


def _leave(code: int) -> None:
    raise GuestExit(code & 0xFFFFFFFF)


def make_linker(engine: wasmtime.Engine) -> wasmtime.Linker:
    """A linker with everything a workload may import: WASI preview 1, and `proc_exit` as GuestExit."""
    linker = wasmtime.Linker(engine)
    linker.allow_shadowing = True
    linker.define_wasi()
    leave = wasmtime.FuncType([wasmtime.ValType.i32()], [])
    for module in WASI_MODULES:
        linker.define_func(module, "proc_exit", leave, _leave)
    return linker


def _shown(name: str | None) -> str:
    return ascii(name or "")[:MAX_EVIDENCE_LINE]


def _refused(message: str, lines: list[str]) -> KeepfleetError:
    return KeepfleetError(ErrorKind.INVALID_MODULE, message, tuple(lines[:MAX_EVIDENCE_LINES]))


def check_imports(engine: wasmtime.Engine, linker: wasmtime.Linker, module: wasmtime.Module) -> None:
    """Returns when everything the module imports is there. Raises KeepfleetError(INVALID_MODULE) naming what is not."""
    try:
        linker.instantiate_pre(module)
    except wasmtime.WasmtimeError as error:
        store, missing = wasmtime.Store(engine), []
        for wanted in module.imports:
            try:
                linker.get(store, wanted.module, wanted.name or "")
            except wasmtime.WasmtimeError:
                missing.append(f"{_shown(wanted.module)} {_shown(wanted.name)}")
        if missing:
            named = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
            message = f"cannot take the module: it imports what a keep does not have: {named}"
            raise _refused(message, missing) from error
        reason = str(error).splitlines() or ["an import has another type"]
        raise _refused(f"cannot take the module: {reason[0][:MAX_EVIDENCE_LINE]}", reason) from error


def find_entry(module: wasmtime.Module) -> str:
    """COMMAND or DEFAULT, whichever the module exports. Raises KeepfleetError(INVALID_MODULE) when it has neither."""
    functions = {export.name: export.type for export in module.exports if isinstance(export.type, wasmtime.FuncType)}
    for name in (COMMAND, DEFAULT):
        kind = functions.get(name)
        if kind is None:
            continue
        if kind.params or (name == COMMAND and kind.results):
            raise _refused(f"cannot take the module: its export {name!r} takes parameters or returns values", [])
        return name
    raise _refused(
        "cannot take the module: it exports nothing to run: neither _start nor a function with an empty name",
        [f"exports {_shown(name)}" for name in list(functions)[:MAX_EVIDENCE_LINES]],
    )
