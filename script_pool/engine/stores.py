"""An engine with its pool of memories, the clock that stops its guests, and what each instance lives in.

A store lives for one run: nothing of it is left for the next.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from script_pool.engine.binding import library

TICK_SECONDS = 0.01
"""How often the epoch advances: a run is stopped within one more than its limit."""
WASM_STACK_BYTES = 4 * 1024 * 1024
"""QuickJS throws RangeError at GUEST_STACK_BYTES of its own stack, which takes less than this of the processor's."""
ASYNC_STACK_BYTES = 6 * 1024 * 1024
"""Never used, but wasmtime aborts the process where it is not above the other."""
KEEP_RESIDENT_BYTES = 3 * 1024 * 1024
"""Above the booted image: resetting a memory by copying takes no page fault, mapping it again takes forty."""
TABLE_KEEP_RESIDENT_BYTES = 1024 * 1024
MAX_MEMORY_BYTES = 256 * 1024 * 1024
"""The most that a run's limit may be: what each slot of the pool reserves."""
POOL_INSTANCES = 12
"""Of all guests together; see Template.occupy."""
JAVASCRIPT_INSTANCES = 4
"""The one that runs, the next one, the last one, and what compiles."""
TABLE_ELEMENTS = 16_384
"""The guests' tables have about 900 and 1,600."""
OPEN_SECONDS = 60.0
"""To the end of an instance that is open for a run, which sets its own."""

OFF = (
    "parallel_compilation",  # no thread before a fork
    "wasm_threads",
    "wasm_memory64",
    "wasm_gc",
    "wasm_function_references",
    "wasm_exceptions",
    "gc_support",
    "wasm_stack_switching",
    "wasm_component_model",
    "wasm_multi_memory",
    "wasm_relaxed_simd",
    "concurrency_support",
)
"""What the guests do not use is off: each was in an advisory."""


def ticks(seconds: float) -> int:
    """Epochs until a limit: one more, since the first is under way."""
    return int(seconds / TICK_SECONDS) + 1


class WasmEngine:
    """The engine, one a process: a fork shares its parent's. `start_clock` begins to count epochs."""

    _pool: Mapping[str, int] = {
        "linear_memory_keep_resident": KEEP_RESIDENT_BYTES,
        "table_keep_resident": TABLE_KEEP_RESIDENT_BYTES,
        "max_memory_size": MAX_MEMORY_BYTES,
        "table_elements": TABLE_ELEMENTS,
        "total_memories": POOL_INSTANCES,
        "total_tables": POOL_INSTANCES,
        "total_core_instances": POOL_INSTANCES,
        "total_stacks": 1,
    }
    """How memories are made: out of a pool, each reset and used again."""

    def __init__(self, on: tuple[str, ...] = ()) -> None:
        """on: proposals that are off otherwise."""
        config = library.wasm_config_new()
        library.wasmtime_config_max_wasm_stack_set(config, WASM_STACK_BYTES)
        library.wasmtime_config_async_stack_size_set(config, ASYNC_STACK_BYTES)
        library.wasmtime_config_epoch_interruption_set(config, True)
        library.wasmtime_config_memory_init_cow_set(config, True)
        for name in OFF:
            getattr(library, f"wasmtime_config_{name}_set")(config, name in on)
        pool = library.wasmtime_pooling_allocation_config_new()
        for name, value in self._pool.items():
            getattr(library, f"wasmtime_pooling_allocation_config_{name}_set")(pool, value)
        library.wasmtime_pooling_allocation_strategy_set(config, pool)
        library.wasmtime_pooling_allocation_config_delete(pool)
        self.pointer: int = library.wasm_engine_new_with_config(config)
        if not self.pointer:
            raise ImportError("cannot start the engine: its configuration was refused")
        self.inside = False
        """Whether a guest runs."""
        self._asleep, self._entered = False, threading.Event()
        self._clock: threading.Thread | None = None

    def start_clock(self) -> None:
        """Starts the thread that advances the epoch while a guest runs; once a process."""
        if self._clock is None:
            self._clock = threading.Thread(target=self._tick, name="epochs", daemon=True)
            self._clock.start()

    def _tick(self) -> None:
        advance, pause = library.wasmtime_engine_increment_epoch, threading.Event().wait
        idle = 0
        while True:
            pause(TICK_SECONDS)
            advance(self.pointer)
            idle = 0 if self.inside else idle + 1
            if idle * TICK_SECONDS >= 1:  # an idle process sleeps
                self._entered.clear()
                self._asleep = True
                if not self.inside:  # who enters from now on sees that this is asleep
                    self._entered.wait()
                self._asleep, idle = False, 0

    def enter(self) -> None:
        """To be called before a guest is."""
        self.inside = True
        if self._asleep:
            self._entered.set()


class Store:
    """What one instance lives in: memory and tables of its own, within limits, and a time at which it is stopped. It is
    closed after its run, whatever happened."""

    __slots__ = ("_context", "_store")

    def __init__(self, engine: WasmEngine, ticks: int, limits: tuple[int, int, int, int, int]) -> None:
        """Stopped `ticks` epochs from now. limits: bytes of a memory, elements of a table, and how many instances,
        tables and memories."""
        self._store: int = library.wasmtime_store_new(engine.pointer, None, None)
        self._context: int = library.wasmtime_store_context(self._store)
        library.wasmtime_store_limiter(self._store, *limits)
        self.extend(ticks)

    def close(self) -> None:
        if self._store:
            library.wasmtime_store_delete(self._store)
            self._store = 0

    def extend(self, ticks: int) -> None:
        """Sets the end to `ticks` epochs from now."""
        library.wasmtime_context_set_epoch_deadline(self._context, ticks)


S = TypeVar("S", bound=Store)


class Instances(Generic[S]):
    """The instances of one guest that follow each other: the last one is closed, and the next one opened, while the
    answer is on its way. `open`: opens one with so many bytes of memory."""

    def __init__(self, open: Callable[[int], S]) -> None:
        self._open = open
        self._used: S | None = None
        self._next: S | None = None
        self._bytes = 0

    def __repr__(self) -> str:
        return f"Instances({'one' if self._next else 'none'} open for the next run)"

    def take(self, memory_bytes: int) -> S:
        """A fresh one, perhaps one that is open already."""
        self._close_used()
        found, self._next = self._next, None
        if found is not None and self._bytes == memory_bytes:
            return found
        if found is not None:
            found.close()
        self._bytes = memory_bytes
        return self._open(memory_bytes)

    def used(self, instance: S) -> None:
        """It has run, and is closed once its answer was sent."""
        self._close_used()
        self._used = instance

    def settle(self) -> None:
        """Closes the instance that the last answer came from, and opens the next."""
        self._close_used()
        if self._next is None and self._bytes:
            self._next = self._open(self._bytes)

    def _close_used(self) -> None:
        if self._used is not None:
            self._used.close()
            self._used = None
