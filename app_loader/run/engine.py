"""The one wasmtime configuration: the checker compiles with it and the runner loads with it.

Off is every proposal the advisories of 2026 hit and few programs need: threads, 64-bit memories, garbage collection,
typed references, exceptions, stack switching, several memories; and components, where a core module is to run. On stays
what compilers emit: SIMD, bulk memory, reference types, many values, tail calls.
"""

from __future__ import annotations

from functools import cache

import wasmtime
from wasmtime import _ffi as ffi

from app_loader.limits import ASYNC_STACK_SPARE_BYTES
from keep_protocol.limits import DEFAULT_LIMITS, check_limit

WASI_MODULE = "wasi_snapshot_preview1"
"""The one import module of core modules."""


class GuestExit(Exception):
    """The guest has called proc_exit with `code`; wasmtime itself would lose codes above 125."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit {code}")
        self.code = code


@cache
def make_engine(stack_bytes: int = DEFAULT_LIMITS.stack_bytes, *, components: bool = False) -> wasmtime.Engine:
    """The engine, for core modules or for components, that gives WebAssembly `stack_bytes` of stack; one a process.

    Compilation uses one thread: its memory is bounded that way, and TasksMax cannot break it.
    Raises KeepfleetError(BAD_REQUEST) for a stack no keep may have: wasmtime would abort.
    """
    config = wasmtime.Config()
    config.max_wasm_stack = check_limit("stack_bytes", stack_bytes)
    ffi.wasmtime_config_async_stack_size_set(config.ptr(), stack_bytes + ASYNC_STACK_SPARE_BYTES)
    config.strategy = "cranelift"
    config.parallel_compilation = False
    config.wasm_threads = False
    config.wasm_memory64 = False
    config.wasm_gc = False
    config.wasm_function_references = False
    config.wasm_exceptions = False
    config.wasm_stack_switching = False
    config.wasm_multi_memory = False
    config.wasm_component_model = components
    config.wasm_component_model_map = False
    config.wasm_component_model_implements = False
    ffi.wasmtime_config_wasm_component_model_async_set(config.ptr(), False)
    config.wasm_wide_arithmetic = False
    config.wasm_custom_page_sizes = False
    config.wasm_relaxed_simd = False
    config.gc_support = False
    # Copy-on-write images of a memory need memfd_create, which the unit's system call filter and the lock refuse.
    config.memory_init_cow = False
    return wasmtime.Engine(config)


def _leave(code: int) -> None:
    raise GuestExit(code & 0xFFFFFFFF)


@cache
def make_linker(engine: wasmtime.Engine) -> wasmtime.Linker:
    """The engine's linker, with everything a workload may import: WASI preview 1, and `proc_exit` as GuestExit."""
    linker = wasmtime.Linker(engine)
    linker.allow_shadowing = True
    linker.define_wasi()
    linker.define_func(WASI_MODULE, "proc_exit", wasmtime.FuncType([wasmtime.ValType.i32()], []), _leave)
    return linker
