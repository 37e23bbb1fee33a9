"""A guest: a compiled core module or component, linked with what it is given, ready for its first instruction."""

from __future__ import annotations

import os
from collections.abc import Callable
from ctypes import byref
from typing import Protocol, TypeVar

import wasmtime
from wasmtime import _ffi as ffi
from wasmtime._extern import wrap_extern

from app_loader.engine import make_engine, make_linker
from app_loader.entry import COMMAND, INITIALIZE, find_entry
from app_loader.limits import (
    COMPONENT_INSTANCES,
    COMPONENT_MEMORIES,
    COMPONENT_TABLES,
    GUEST_INSTANCES,
    GUEST_MEMORIES,
    GUEST_TABLES,
)
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.limits import Limits
from keep_protocol.workload import Workload

_HEAD, _FLAGS = 64, slice(48, 52)
"""A compiled file is ELF; wasmtime says in its header's e_flags what it is (wasmtime, `ObjectKind`)."""
_MODULE, _COMPONENT = 1, 2
_ERR = "err"
Compiled = TypeVar("Compiled")


class Guest(Protocol):
    """Loaded and linked; nothing of it has run yet."""

    def run(self) -> tuple[int, list[object]]:
        """Runs it to its end: its exit code, and what an export returned.

        Raises GuestExit, wasmtime.Trap, wasmtime.ExitTrap, or wasmtime.WasmtimeError for a component's trap and for
        what cannot be instantiated within its limits.
        """


class CoreGuest:
    """A core module."""

    def __init__(self, compiled: int, limits: Limits, workload: Workload, wasi: wasmtime.WasiConfig) -> None:
        """Raises wasmtime.WasmtimeError when the compiled module does not fit this engine."""
        self._engine = make_engine(limits.stack_bytes)
        self._module = _load(wasmtime.Module.deserialize_file, wasmtime.Module.deserialize, self._engine, compiled)
        self._entry = find_entry(self._module, workload)
        self._reactor = self._entry.name != COMMAND and any(e.name == INITIALIZE for e in self._module.exports)
        self._linker = make_linker(self._engine)
        self._store = wasmtime.Store(self._engine)
        self._store.set_limits(
            memory_size=limits.memory_bytes,
            table_elements=limits.table_elements,
            instances=GUEST_INSTANCES,
            tables=GUEST_TABLES,
            memories=GUEST_MEMORIES,
        )
        self._store.set_wasi(wasi)

    def __repr__(self) -> str:
        return f"CoreGuest({self._entry!r})"

    def run(self) -> tuple[int, list[object]]:
        """See `Guest`."""
        instance = self._linker.instantiate(self._store, self._module)
        if self._reactor:
            self._call(instance, INITIALIZE)
        returned = self._call(instance, self._entry.name, *self._entry.values)
        if returned is None:
            return 0, []
        return 0, returned if isinstance(returned, list) else [returned]

    def _call(self, instance: wasmtime.Instance, name: str, *values: int | float) -> object:
        """Calls one export; the package's own look-up would wrap every one of them first."""
        item, encoded = ffi.wasmtime_extern_t(), name.encode()
        if not ffi.wasmtime_instance_export_get(
            self._store._context(), byref(instance._instance), encoded, len(encoded), byref(item)
        ):
            raise wasmtime.WasmtimeError("what is to be called is not there")
        function = wrap_extern(item)
        if not isinstance(function, wasmtime.Func):
            raise wasmtime.WasmtimeError("what is to be called is no function")
        return function(self._store, *values)


class ComponentGuest:
    """A WASI 0.2 command component."""

    def __init__(self, compiled: int, limits: Limits, workload: Workload, wasi: wasmtime.WasiConfig) -> None:
        """Raises wasmtime.WasmtimeError when the compiled component does not fit this engine."""
        from wasmtime import component

        from app_loader.component import find_run, make_component_linker

        self._engine = make_engine(limits.stack_bytes, components=True)
        kind = component.Component
        self._component = _load(kind.deserialize_file, kind.deserialize, self._engine, compiled)
        self._interface = find_run(self._engine, self._component, workload)
        self._linker = make_component_linker(self._engine)
        self._store = wasmtime.Store(self._engine)
        self._store.set_limits(
            memory_size=limits.memory_bytes,
            table_elements=limits.table_elements,
            instances=COMPONENT_INSTANCES,
            tables=COMPONENT_TABLES,
            memories=COMPONENT_MEMORIES,
        )
        self._store.set_wasi(wasi)

    def __repr__(self) -> str:
        return f"ComponentGuest({self._interface})"

    def run(self) -> tuple[int, list[object]]:
        """See `Guest`. Its `run` says ok or not; more than 0 and 1 a component cannot say."""
        instance = self._linker.instantiate(self._store, self._component)
        interface = instance.get_export_index(self._store, self._interface)
        index = None if interface is None else instance.get_export_index(self._store, "run", interface)
        function = None if index is None else instance.get_func(self._store, index)
        if function is None:
            raise wasmtime.WasmtimeError("what is to be called is no function")
        result = function(self._store)
        return int(getattr(result, "tag", None) == _ERR), []


def _load(
    from_file: Callable[[wasmtime.Engine, str], Compiled],
    from_bytes: Callable[[wasmtime.Engine, bytes], Compiled],
    engine: wasmtime.Engine,
    compiled: int,
) -> Compiled:
    """What was compiled, mapped from its file; where the file's mount allows no code (NoExecPaths=), from a copy."""
    try:
        return from_file(engine, f"/proc/self/fd/{compiled}")
    except wasmtime.WasmtimeError:
        return from_bytes(engine, os.pread(compiled, os.fstat(compiled).st_size, 0))


def load_guest(compiled: int, limits: Limits, workload: Workload, wasi: wasmtime.WasiConfig) -> Guest:
    """The guest in the compiled file, whichever kind it is.

    Raises wasmtime.WasmtimeError when it does not fit this engine, KeepfleetError when it is none.
    """
    kind = int.from_bytes(os.pread(compiled, _HEAD, 0)[_FLAGS], "little")
    if kind not in (_MODULE, _COMPONENT):
        raise KeepfleetError(ErrorKind.INVALID_MODULE, "cannot run the file: it is no compiled module")
    return (CoreGuest if kind == _MODULE else ComponentGuest)(compiled, limits, workload, wasi)
