"""The configurations of the engine: the checker compiles with one and the runner loads with the same.

Off is every proposal the advisories of 2026 hit and few programs need: threads, 64-bit memories, garbage-collected
types, typed references, stack switching; components and several memories, where a core module is to run. On stays what
compilers emit: SIMD, bulk memory, reference types, many values, tail calls and exceptions (which Winch lacks).

Exceptions are off in the strict profile: they are the younger part of the engine, and need its garbage collector's heap
for their references, which the store's memory limit bounds.
"""

from __future__ import annotations

import os

from app_loader.engine.binding import CRANELIFT, WINCH, library
from app_loader.engine.foreign import Owned, succeed
from app_loader.limits import ASYNC_STACK_SPARE_BYTES
from keep_protocol.fields import Record
from keep_protocol.limits import DEFAULT_LIMITS, Limits, check_limit
from keep_protocol.spec import Compiler, Profile, check_engine
from keep_protocol.workload import Workload

OFF = (
    "parallel_compilation",  # one thread: memory is bounded that way, TasksMax cannot break it, and it can be forked
    "wasm_threads",
    "wasm_memory64",
    "wasm_gc",
    "wasm_function_references",
    "wasm_stack_switching",
    "wasm_component_model_map",
    "wasm_component_model_implements",
    "wasm_component_model_async",
    "wasm_wide_arithmetic",
    "wasm_custom_page_sizes",
    "wasm_relaxed_simd",
)
"""The switches that are off in every engine."""
EXCEPTIONS = ("wasm_exceptions", "gc_support")
"""What is on or off together: a reference to an exception lies in the collector's heap."""
PULLEY = b"pulley64"
"""wasmtime's interpreter, as a machine that is compiled for: what it runs is data and not code."""


class Engine(Owned):
    """What compiles and loads."""

    __slots__ = ()

    def __init__(self, config: int) -> None:
        """Takes over the configuration."""
        super().__init__(library.wasm_engine_new_with_config(config), library.wasm_engine_delete)


class Settings(Record):
    """What one engine differs in from another; a compiled file fits those with the same alone.

    stack_bytes: for WebAssembly; components: whether it is for them; images: whether a memory's first contents are
    mapped copy-on-write from the compiled file. Where that file cannot be mapped as code, wasmtime would make a memfd
    of them, which the unit's system call filter and the lock refuse.
    """

    stack_bytes: int = DEFAULT_LIMITS.stack_bytes
    components: bool = False
    images: bool = False
    profile: Profile = Profile.STANDARD
    compiler: Compiler = Compiler.OPTIMIZING

    def _check(self) -> None:
        """Raises KeepfleetError(BAD_REQUEST) for what no keep may have: wasmtime would abort."""
        check_limit("stack_bytes", self.stack_bytes)
        check_engine(self.profile, self.compiler)


def settings_for(compiled: int | str, limits: Limits, workload: Workload, *, components: bool = False) -> Settings:
    """The settings for a workload whose compiled file this is, or will lie in this directory."""
    strict = workload.profile is Profile.STRICT
    images = strict or not os.statvfs(compiled).f_flag & os.ST_NOEXEC
    return Settings(limits.stack_bytes, components, images, workload.profile, workload.compiler)


_engines: dict[Settings, Engine] = {}


def make_engine(settings: Settings) -> Engine:
    """The engine with these settings, one a process: a fork shares its parent's."""
    if settings not in _engines:
        _engines[settings] = _made(settings)
    return _engines[settings]


def _made(settings: Settings) -> Engine:
    config = library.wasm_config_new()
    library.wasmtime_config_max_wasm_stack_set(config, settings.stack_bytes)
    library.wasmtime_config_async_stack_size_set(config, settings.stack_bytes + ASYNC_STACK_SPARE_BYTES)
    library.wasmtime_config_strategy_set(config, WINCH if settings.compiler is Compiler.FAST else CRANELIFT)
    if settings.profile is Profile.STRICT:
        succeed(library.wasmtime_config_target_set(config, PULLEY))
    library.wasmtime_config_wasm_component_model_set(config, settings.components)
    library.wasmtime_config_wasm_multi_memory_set(config, settings.components)  # what it puts between two of them is so
    library.wasmtime_config_memory_init_cow_set(config, settings.images)
    exceptions = settings.profile is not Profile.STRICT and settings.compiler is not Compiler.FAST
    for name in EXCEPTIONS:
        getattr(library, f"wasmtime_config_{name}_set")(config, exceptions)
    for name in OFF:
        getattr(library, f"wasmtime_config_{name}_set")(config, False)
    return Engine(config)
