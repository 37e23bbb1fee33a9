"""The one configuration of the engine: the checker compiles with it and the runner loads with it.

Off is every proposal the advisories of 2026 hit and few programs need: threads, 64-bit memories, garbage collection,
typed references, exceptions, stack switching, several memories; and components, where a core module is to run. On stays
what compilers emit: SIMD, bulk memory, reference types, many values, tail calls.
"""

from __future__ import annotations

from app_loader.engine.binding import CRANELIFT, library
from app_loader.engine.foreign import Owned
from app_loader.limits import ASYNC_STACK_SPARE_BYTES
from keep_protocol.limits import DEFAULT_LIMITS, check_limit

OFF = (
    "parallel_compilation",  # one thread: memory is bounded that way, TasksMax cannot break it, and it can be forked
    "wasm_threads",
    "wasm_memory64",
    "wasm_gc",
    "wasm_function_references",
    "wasm_exceptions",
    "wasm_stack_switching",
    "wasm_multi_memory",
    "wasm_component_model_map",
    "wasm_component_model_implements",
    "wasm_component_model_async",
    "wasm_wide_arithmetic",
    "wasm_custom_page_sizes",
    "wasm_relaxed_simd",
    "gc_support",
    # Copy-on-write images of a memory need memfd_create, which the unit's system call filter and the lock refuse.
    "memory_init_cow",
)
"""The switches that are off."""


class Engine(Owned):
    """What compiles and loads: see `make_engine`."""

    __slots__ = ()

    def __init__(self, config: int) -> None:
        """Takes over the configuration."""
        super().__init__(library.wasm_engine_new_with_config(config), library.wasm_engine_delete)


def make_engine(stack_bytes: int = DEFAULT_LIMITS.stack_bytes, *, components: bool = False) -> Engine:
    """A fresh engine, for core modules or for components, that gives WebAssembly `stack_bytes` of stack.

    Raises KeepfleetError(BAD_REQUEST) for a stack no keep may have: wasmtime would abort.
    """
    stack = check_limit("stack_bytes", stack_bytes)
    config = library.wasm_config_new()
    library.wasmtime_config_max_wasm_stack_set(config, stack)
    library.wasmtime_config_async_stack_size_set(config, stack + ASYNC_STACK_SPARE_BYTES)
    library.wasmtime_config_strategy_set(config, CRANELIFT)
    library.wasmtime_config_wasm_component_model_set(config, components)
    for name in OFF:
        getattr(library, f"wasmtime_config_{name}_set")(config, False)
    return Engine(config)
