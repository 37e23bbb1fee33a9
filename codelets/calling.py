"""A hook as the application calls it, and a codelet's call as a hook runs it.

A hook with no codelets is one loop over an empty tuple. A call of a codelet is made ready when it is loaded: a view of
the part of its memory where its context lies, the slots of its arguments, and two calls of the engine that keep the
interpreter's lock. The tuple of a hook's codelets is replaced as a whole, so that each call sees one or the other.

Import rule: the standard library, codelets.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from itertools import count
from time import perf_counter_ns
from typing import Any, Protocol

from codelets.engine import CALL, RAW_BYTES, SET_FUEL, Trap, World, end_of
from codelets.interface import HookType

SAMPLED = 16
"""Of so many calls one is timed, where no threshold asks for each: reading the clock twice is a third of a call."""
BUCKETS = 48
"""Of a histogram of times: bucket n counts calls of less than 2ⁿ ns, the last all that are longer."""

Run = Callable[..., "int | None"]
"""Runs one codelet once: takes the context, and the data where its hook has a region; gives its result, or None."""


class Owner(Protocol):
    """What a call reports to."""

    def faulted(self, end: Trap) -> None:
        """A call has ended early: the codelet's instance may hold anything, and is to be replaced."""

    def overran(self, nanoseconds: int) -> None:
        """A call has taken longer than its threshold."""

    def reentered(self) -> None:
        """A helper of the set's has called a hook that the set is on; that call was refused."""


class Hook:
    """A place in an application where codelets run: `hook(context)`.

    context: a buffer of exactly the context's size, `bytearray` or a flat memoryview; or, where the hook was declared
    with a `ctypes.Structure`, one of that class. Raises ValueError or TypeError for others. A hook with a data region
    takes a second buffer, which may be shorter than the region. Threads may call it; loading never stops a call.
    """

    __slots__ = ("_count", "_default", "_runs", "_typed", "type")

    def __init__(self, kind: HookType, default: int = 0, *, typed: bool = False) -> None:
        self.type, self._default, self._typed = kind, default, typed
        self._runs: tuple[Run, ...] = ()
        self._count = count()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.type.name}, {len(self._runs)} codelets)"

    @property
    def calls(self) -> int:
        """How often it was called with codelets loaded."""
        return counted(self._count)

    def replace(self, runs: tuple[Run, ...]) -> None:
        """What runs from the next call on."""
        self._runs = runs

    def __call__(self, context: Any, *data: Any) -> Any:
        runs = self._runs
        if runs:
            next(self._count)
            if self._typed:
                context = memoryview(context).cast("B")
            for run in runs:
                run(context, *data)


class ControlHook(Hook):
    """A hook whose value is that of its last codelet; a default with none, and where the last has a fault."""

    __slots__ = ()

    def __call__(self, context: Any, *data: Any) -> int:
        runs = self._runs
        if not runs:
            return self._default
        next(self._count)
        if self._typed:
            context = memoryview(context).cast("B")
        value: int | None = None
        for run in runs:
            value = run(context, *data)
        return self._default if value is None else value


def counted(counter: count[int]) -> int:
    """How often `next` was called of it: the fastest count that threads may share under the interpreter's lock. What it
    has come to, "count(7)", it only says; Python 3.14 cannot pickle one any more.
    """
    return int(repr(counter).removeprefix("count(").removesuffix(")"))


class Target:
    """One codelet's instance, as its calls need it. address: of the context in its memory; memory: a view of all."""

    __slots__ = ("_function", "_in_c", "address", "counter", "memory", "pointer", "taken", "world")

    def __init__(self, world: World, memory: memoryview, address: int) -> None:
        self.world, self.memory, self.address = world, memory, address
        self._function: Any = None
        self.pointer = ctypes.c_void_p()
        self.counter, self.taken = count(), [0] * (BUCKETS + 1)
        self._in_c: Any = None

    def __repr__(self) -> str:
        return f"Target(context at {self.address}, {self.calls} calls)"

    @property
    def calls(self) -> int:
        """How often it was called."""
        return counted(self.counter) if self._in_c is None else int(self._in_c.calls)

    @property
    def times(self) -> list[int]:
        """How many of the timed calls took less than 2ⁿ ns, for each n."""
        return list(self.taken if self._in_c is None else self._in_c.times)

    def count_in(self, in_c: Any) -> None:
        """A call in C counts for itself."""
        self._in_c = in_c

    def enter(self, function: Any) -> None:
        """Calls go to this entry, a wasmtime_func_t, from now on."""
        self._function = function
        self.pointer.value = ctypes.addressof(function)


def quantile(times: list[int], part: float) -> int:
    """Nanoseconds that `part` of the timed calls stayed below, as a power of two; 0 where none was timed."""
    wanted, seen = part * sum(times), 0
    for bits, number in enumerate(times):
        seen += number
        if number and seen >= wanted:
            return 1 << bits
    return 0


def prepared(
    target: Target, hook: HookType, owner: Owner, threshold: int, before: Callable[[], None] | None = None
) -> Run:
    """What runs the codelet once. threshold: in ns, 0 for none; before: done before each call."""
    raw = (ctypes.c_uint8 * (RAW_BYTES * 3))()
    first, second, third = (ctypes.c_uint64.from_buffer(raw, RAW_BYTES * number) for number in range(3))
    result, trap = ctypes.c_int64.from_buffer(raw), ctypes.c_void_p()
    values, trap_at, context_at, arguments = ctypes.addressof(raw), ctypes.addressof(trap), target.address, 3
    store, fuel, pointer, world = target.world.context, hook.fuel, target.pointer, target.world
    region = target.memory[context_at : context_at + hook.context_bytes]
    data_at, most = context_at + hook.data_at, hook.data_bytes
    data_region = target.memory[data_at : data_at + most]
    times, calls, mask = target.taken, target.counter, 0 if threshold else SAMPLED - 1
    writable, control, lock = hook.writable, hook.control, world.lock
    if not most:
        arguments = 1

    def timed() -> int | None:
        begin = perf_counter_ns()
        error: int | None = CALL(store, pointer, values, arguments, trap_at)
        taken = perf_counter_ns() - begin
        times[min(taken.bit_length(), BUCKETS)] += 1
        if threshold and taken > threshold and not error and not trap.value:
            owner.overran(taken)
        return error

    def ended(error: int | None) -> None:
        pointer_of_trap, trap.value = trap.value, None
        owner.faulted(end_of(error, pointer_of_trap))
        world.raise_pending()

    def run(context: Any, data: Any = None) -> int | None:
        with lock:
            region[:] = context
            first.value = context_at
            if most:
                size = len(data)
                data_region[:size] = data
                second.value, third.value = data_at, size
            if before is not None:
                before()
            SET_FUEL(store, fuel)
            error = CALL(store, pointer, values, arguments, trap_at) if next(calls) & mask else timed()
            if error or trap.value:
                ended(error)
                return None
            if writable:
                context[:] = region
                if most:
                    data[:] = data_region[:size]
            return result.value if control else 0

    run.kept = (raw, target)  # type: ignore[attr-defined]  # what the addresses point into
    return run


def prepared_in_c(
    fast: Any, target: Target, hook: HookType, owner: Owner, threshold: int, before: Callable[[], None] | None = None
) -> Run:
    """The same by the module in C."""
    memory_at, data_at = ctypes.addressof(ctypes.c_uint8.from_buffer(target.memory)), target.address + hook.data_at

    def ended(error: int, trap: int) -> None:
        owner.faulted(end_of(error, trap))
        target.world.raise_pending()

    made: Run = fast.Call(
        call=ctypes.cast(CALL, ctypes.c_void_p).value,
        set_fuel=ctypes.cast(SET_FUEL, ctypes.c_void_p).value,
        store=target.world.context,
        function=ctypes.addressof(target.pointer),
        region=memory_at + target.address,
        region_at=target.address,
        size=hook.context_bytes,
        data_region=memory_at + data_at,
        data_at=data_at,
        most=hook.data_bytes,
        fuel=hook.fuel,
        writable=hook.writable,
        threshold=threshold,
        mask=0 if threshold else SAMPLED - 1,
        kept=target,
        before=before,
        ended=ended,
        overran=owner.overran,
    )
    target.count_in(made)
    return made


class Guard:
    """Lets one thread into a set at a time, where a call runs Python in between, which lets other threads run: its
    helpers, or what chooses the part of a map that is this thread's."""

    __slots__ = ("_lock", "_thread")

    def __init__(self) -> None:
        self._lock, self._thread = threading.Lock(), 0

    def __repr__(self) -> str:
        return f"Guard({'in use' if self._lock.locked() else 'free'})"

    def around(self, run: Run, owner: Owner) -> Run:
        """The same, one thread at a time; a call out of a helper of the same set is refused, which is a fault."""

        def guarded(context: Any, *data: Any) -> int | None:
            mine = threading.get_ident()
            if not self._lock.acquire(blocking=False):
                if self._thread == mine:
                    owner.reentered()
                    return None
                self._lock.acquire()
            self._thread = mine
            try:
                return run(context, *data)
            finally:
                self._thread = 0
                self._lock.release()

        return guarded
