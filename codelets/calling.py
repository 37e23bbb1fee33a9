"""A hook as the application calls it, and a codelet's call as a hook runs it.

A call of a codelet is made ready when it is loaded: a view of the part of its memory where its context lies, the slots
of its arguments, and two calls of the engine that keep the interpreter's lock. What runs at all hooks of an application
is one list, of which each hook has a place: a set is loaded or unloaded by assigning the whole of it, which no thread
sees half done.

Import rule: the standard library, codelets.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from itertools import count
from time import perf_counter_ns
from typing import Any, Protocol

from codelets.engine import CALL, RAW_BYTES, SET_FUEL, Trap, World, end_of, raw_function
from codelets.interface import HookType

SAMPLED = 16
"""Of so many calls one is timed, where no threshold asks for each: reading the clock twice is a third of a call."""
BUCKETS = 48
"""Of a histogram of times: bucket n counts calls of less than 2ⁿ ns, the last all that are longer."""

MEETING_SECONDS = 1.0
"""What a call out of a helper waits for a set that another thread is in. Two threads whose helpers call hooks of each
other's sets would wait for ever."""

Run = Callable[..., "int | None"]
"""Runs one codelet once: takes the context, and the data where its hook has a region; gives its result, or None."""
Chains = list[tuple[Run, ...]]
"""What runs at each hook, in order; shared by all hooks of an application, and assigned as a whole."""


class Owner(Protocol):
    """What a call reports to."""

    def faulted(self, end: Trap) -> None:
        """A call has ended early: the codelet's instance may hold anything, and is to be replaced."""

    def overran(self, nanoseconds: int) -> None:
        """A call has taken longer than its threshold."""

    def refused(self, why: str) -> None:
        """A helper has called a hook that the set is on, and that call was not made."""


class Hook:
    """A place in an application where codelets run: `hook(context)`.

    context: a buffer of exactly the context's size, `bytearray` or a flat memoryview; or, where the hook was declared
    with a `ctypes.Structure`, one of that class. Raises ValueError or TypeError for others. A hook with a data region
    takes a second buffer, which may be shorter than the region. Threads may call it; loading never stops a call.
    """

    __slots__ = ("_chains", "_count", "_default", "_place", "_typed", "type")

    def __init__(self, kind: HookType, chains: Chains, place: int, default: int = 0, *, typed: bool = False) -> None:
        """chains: of the application; place: this hook's in them."""
        self.type, self._default, self._typed = kind, default, typed
        self._chains, self._place = chains, place
        self._count = count()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.type.name}, {len(self._chains[self._place])} codelets)"

    @property
    def calls(self) -> int:
        """How often it was called with codelets loaded."""
        return counted(self._count)

    def __call__(self, context: Any, data: Any = None) -> Any:
        runs = self._chains[self._place]
        if runs:
            next(self._count)
            if self._typed:
                context = memoryview(context).cast("B")
            for run in runs:
                run(context, data)


class ControlHook(Hook):
    """A hook whose value is that of its last codelet; a default with none, and where the last has a fault."""

    __slots__ = ()

    def __call__(self, context: Any, data: Any = None) -> int:
        runs = self._chains[self._place]
        if not runs:
            return self._default
        next(self._count)
        if self._typed:
            context = memoryview(context).cast("B")
        value: int | None = None
        for run in runs:
            value = run(context, data)
        return self._default if value is None else value


def counted(counter: count[int]) -> int:
    """How often `next` was called of it: the fastest count that threads may share under the interpreter's lock. What it
    has come to, "count(7)", it only says; Python 3.14 cannot pickle one any more.
    """
    return int(repr(counter).removeprefix("count(").removesuffix(")"))


class Target:
    """One codelet's instance, as its calls need it. address: of the context in its memory; memory: a view of all;
    function: where its entry's wasmtime_func_t is, another one after each fault."""

    __slots__ = ("_in_c", "address", "counter", "function", "memory", "taken", "world")

    def __init__(self, world: World, memory: memoryview, address: int, entry: Any) -> None:
        self.world, self.memory, self.address = world, memory, address
        self.function = type(raw_function(entry))()
        self.enter(entry)
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

    def enter(self, entry: Any) -> None:
        """Calls go to this function from now on."""
        ctypes.memmove(ctypes.byref(self.function), ctypes.byref(raw_function(entry)), ctypes.sizeof(self.function))


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
    result, trap, context_at, world = ctypes.c_int64.from_buffer(raw), ctypes.c_void_p(), target.address, target.world
    function, values, trap_at = map(ctypes.byref, (target.function, raw, trap))
    store, fuel = ctypes.c_void_p.from_param(world.context.value), ctypes.c_uint64.from_param(hook.fuel)
    call, set_fuel = CALL, SET_FUEL
    size, data_at, most = hook.context_bytes, context_at + hook.data_at, hook.data_bytes
    region, data_region = target.memory[context_at : context_at + size], target.memory[data_at : data_at + most]
    into = (ctypes.c_char * size).from_buffer(region)  # takes a buffer in half of a slice's time
    times, calls, mask = target.taken, target.counter, 0 if threshold else SAMPLED - 1
    writable, control, lock = hook.writable, hook.control, world.lock
    arguments = ctypes.c_size_t.from_param(3 if most else 1)

    def timed() -> int | None:
        begin = perf_counter_ns()
        error: int | None = call(store, function, values, arguments, trap_at)
        taken = perf_counter_ns() - begin
        times[min(taken.bit_length(), BUCKETS)] += 1
        if threshold and taken > threshold and not error and not trap:
            owner.overran(taken)
        return error

    def ended(error: int | None) -> None:
        pointer_of_trap, trap.value = trap.value, None
        owner.faulted(end_of(error, pointer_of_trap))
        world.raise_pending()

    def run(context: Any, data: Any = None) -> int | None:
        if len(context) != size:
            raise ValueError(f"the context has {len(context)} bytes and not {size}")
        with lock:
            into.raw = context
            first.value = context_at
            if most:
                third.value = length = 0 if data is None else len(data)
                second.value = data_at
                if length:
                    data_region[:length] = data
            if before is not None:
                before()
            set_fuel(store, fuel)
            error = call(store, function, values, arguments, trap_at) if next(calls) & mask else timed()
            if error or trap:
                ended(error)
                return None
            if writable:
                context[:] = region
                if most and length:
                    data[:] = data_region[:length]
            return result.value if control else 0

    return run


def prepared_in_c(
    fast: Any, target: Target, hook: HookType, owner: Owner, threshold: int, before: Callable[[], None] | None = None
) -> Run:
    """The same by the module in C."""
    memory_at, data_at = ctypes.addressof(ctypes.c_uint8.from_buffer(target.memory)), target.address + hook.data_at
    world = target.world

    def ended(error: int, trap: int) -> None:
        with world.lock:
            owner.faulted(end_of(error, trap))
        world.raise_pending()

    def wait() -> None:
        with world.lock:  # which the thread that repairs has until it is done
            pass

    made: Run = fast.Call(
        call=ctypes.cast(CALL, ctypes.c_void_p).value,
        set_fuel=ctypes.cast(SET_FUEL, ctypes.c_void_p).value,
        store=world.context.value,
        function=ctypes.addressof(target.function),
        repairing=ctypes.addressof(world.repairing),
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
        wait=wait,
        ended=ended,
        overran=owner.overran,
    )
    target.count_in(made)
    return made


class Guard:
    """Lets one thread into a set at a time, where a call runs Python in between, which lets other threads run: its
    helpers, or what chooses the part of a map that is this thread's."""

    __slots__ = ("_inside", "_lock")

    def __init__(self) -> None:
        self._lock, self._inside = threading.RLock(), False

    def __repr__(self) -> str:
        return f"Guard({'in use' if self._inside else 'free'})"

    def around(self, run: Run, owner: Owner) -> Run:
        """The same, one thread at a time. Two calls are refused, which is a fault: one out of a helper of the same set,
        and one out of another set's helper while another thread is in this set, and stays there."""
        lock = self._lock

        def guarded(context: Any, data: Any = None) -> int | None:
            before = getattr(_GUARDS, "held", 0)
            if not lock.acquire(timeout=MEETING_SECONDS if before else -1):
                owner.refused("a helper called a hook that its set is on, which another thread was in for too long")
                return None
            _GUARDS.held = before + 1
            try:
                if self._inside:
                    owner.refused("a helper called a hook that its own set is on")
                    return None
                self._inside = True
                try:
                    return run(context, data)
                finally:
                    self._inside = False
            finally:
                _GUARDS.held = before
                lock.release()

        return guarded


_GUARDS = threading.local()
"""How many guards a thread has passed: what its helpers call may be another set, which has one, too."""
