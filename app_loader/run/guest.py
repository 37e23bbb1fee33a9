"""A guest: a compiled core module or component, loaded, linked with what it is given, and run to its end."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import wasmtime
from wasmtime import _ffi as ffi
from wasmtime._extern import wrap_extern

from app_loader.check.imports import COMMAND, INITIALIZE, find_entry
from app_loader.limits import (
    COMPONENT_INSTANCES,
    COMPONENT_MEMORIES,
    COMPONENT_TABLES,
    GUEST_INSTANCES,
    GUEST_MEMORIES,
    GUEST_TABLES,
    MAX_EVIDENCE_LINE,
)
from app_loader.run import outcome as outcomes
from app_loader.run.engine import GuestExit, make_engine, make_linker
from keep_protocol.limits import Limits
from keep_protocol.outcome import Outcome
from keep_protocol.workload import Workload

if TYPE_CHECKING:
    from wasmtime import component  # 2 MB that a core module does not need

    from app_loader.run.meter import Meter

_HEAD, _FLAGS = 64, slice(48, 52)
"""A compiled file is ELF; wasmtime says in its header's e_flags what it is (wasmtime, `ObjectKind`)."""
_MODULE, _COMPONENT = 1, 2
_ERR = "err"


class Unfit(Exception):
    """The compiled file does not fit this engine: another version or other settings made it, or it is damaged."""


class Guest(Protocol):
    """Loaded; nothing of it has run yet. started: whether `run` has come as far as calling it."""

    started: bool

    def link(self, wasi: wasmtime.WasiConfig) -> None:
        """Gives it what it may reach; once, before `run`."""

    def run(self) -> tuple[int, list[object]]:
        """Runs it to its end: its exit code, and what an export returned.

        Raises GuestExit, wasmtime.Trap, wasmtime.ExitTrap, or wasmtime.WasmtimeError for a component's trap or invalid
        result, and, before it has started, for what cannot be instantiated within its limits.
        """


class CoreGuest:
    """A core module."""

    def __init__(self, compiled: int, limits: Limits, workload: Workload) -> None:
        """See `load_guest`."""
        self.started, self._limits = False, limits
        self._engine = make_engine(limits.stack_bytes)
        self._module = _load_module(self._engine, compiled)
        self._entry = find_entry(self._module, workload)
        is_function = self._entry.name not in (COMMAND, INITIALIZE)
        self._reactor = is_function and any(e.name == INITIALIZE for e in self._module.exports)
        self._linker = make_linker(self._engine)

    def __repr__(self) -> str:
        return f"CoreGuest({self._entry!r})"

    def link(self, wasi: wasmtime.WasiConfig) -> None:
        """See `Guest`."""
        self._store = _make_store(self._engine, self._limits, (GUEST_INSTANCES, GUEST_TABLES, GUEST_MEMORIES), wasi)

    def run(self) -> tuple[int, list[object]]:
        """See `Guest`."""
        instance = self._linker.instantiate(self._store, self._module)
        self.started = True
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
            self._store._context(), ctypes.byref(instance._instance), encoded, len(encoded), ctypes.byref(item)
        ):
            raise wasmtime.WasmtimeError("what is to be called is not there")
        function = wrap_extern(item)
        if not isinstance(function, wasmtime.Func):
            raise wasmtime.WasmtimeError("what is to be called is no function")
        return function(self._store, *values)


class ComponentGuest:
    """A WASI 0.2 command component."""

    def __init__(self, compiled: int, limits: Limits, workload: Workload) -> None:
        """See `load_guest`."""
        from app_loader.check.components import find_run, make_component_linker

        self.started, self._limits = False, limits
        self._engine = make_engine(limits.stack_bytes, components=True)
        self._component = _load_component(self._engine, compiled)
        self._interface = find_run(self._engine, self._component, workload)
        self._linker = make_component_linker(self._engine)

    def __repr__(self) -> str:
        return f"ComponentGuest({self._interface})"

    def link(self, wasi: wasmtime.WasiConfig) -> None:
        """See `Guest`."""
        counts = (COMPONENT_INSTANCES, COMPONENT_TABLES, COMPONENT_MEMORIES)
        self._store = _make_store(self._engine, self._limits, counts, wasi)

    def run(self) -> tuple[int, list[object]]:
        """See `Guest`. Its `run` returns ok or not, 0 or 1; by `exit-with-code` it may leave with any other."""
        instance = self._linker.instantiate(self._store, self._component)
        interface = instance.get_export_index(self._store, self._interface)
        index = None if interface is None else instance.get_export_index(self._store, "run", interface)
        function = None if index is None else instance.get_func(self._store, index)
        if function is None:
            raise wasmtime.WasmtimeError("what is to be called is no function")
        self.started = True
        result = function(self._store)
        return int(getattr(result, "tag", None) == _ERR), []


def _make_store(
    engine: wasmtime.Engine, limits: Limits, counts: tuple[int, int, int], wasi: wasmtime.WasiConfig
) -> wasmtime.Store:
    """A store that holds its guest to `limits` and to so many instances, tables and memories."""
    store = wasmtime.Store(engine)
    instances, tables, memories = counts
    store.set_limits(
        memory_size=limits.memory_bytes,
        table_elements=limits.table_elements,
        instances=instances,
        tables=tables,
        memories=memories,
    )
    store.set_wasi(wasi)
    return store


def _load_module(engine: wasmtime.Engine, compiled: int) -> wasmtime.Module:
    """The module mapped from its file; where the file's mount allows no code (NoExecPaths=), from a copy of it."""
    try:
        return wasmtime.Module.deserialize_file(engine, f"/proc/self/fd/{compiled}")
    except wasmtime.WasmtimeError:
        pointer = ctypes.POINTER(ffi.wasmtime_module_t)()
        _copy(ffi.wasmtime_module_deserialize, engine, compiled, pointer)
        return wasmtime.Module._from_ptr(pointer)


def _load_component(engine: wasmtime.Engine, compiled: int) -> component.Component:
    """See `_load_module`."""
    from wasmtime import component

    try:
        return component.Component.deserialize_file(engine, f"/proc/self/fd/{compiled}")
    except wasmtime.WasmtimeError:
        pointer = ctypes.POINTER(ffi.wasmtime_component_t)()
        _copy(ffi.wasmtime_component_deserialize, engine, compiled, pointer)
        return component.Component._from_ptr(pointer)


def _copy(deserialize: Callable[..., object], engine: wasmtime.Engine, compiled: int, pointer: object) -> None:
    """Makes one copy, wasmtime's own: the package's calls would make three of what may be 32 MB."""
    size = os.fstat(compiled).st_size
    mapped = mmap.mmap(compiled, size, access=mmap.ACCESS_COPY)
    view = (ctypes.c_uint8 * size).from_buffer(mapped)
    failed = deserialize(engine.ptr(), view, size, ctypes.byref(pointer))  # type: ignore[arg-type]
    del view  # or the mapping could not be closed
    mapped.close()
    if failed:
        raise wasmtime.WasmtimeError._from_ptr(failed)  # type: ignore[arg-type]


def load_guest(compiled: int, limits: Limits, workload: Workload) -> Guest:
    """The guest in the compiled file, whichever kind it is.

    Raises Unfit when it does not fit this engine, KeepfleetError when what the workload calls is not in it.
    """
    kind = int.from_bytes(os.pread(compiled, _HEAD, 0)[_FLAGS], "little")
    if kind not in (_MODULE, _COMPONENT):
        raise Unfit("it is no compiled module")
    try:
        return (CoreGuest if kind == _MODULE else ComponentGuest)(compiled, limits, workload)
    except wasmtime.WasmtimeError as error:
        raise Unfit(" ".join(str(error).split())[:MAX_EVIDENCE_LINE]) from error


def run_guest(guest: Guest, limits: Limits, meter: Meter) -> Outcome:
    """Runs the guest to its end, whichever that is; prints what an export returned.

    Where it failed with as many files open as the process may have, the outcome says so: all that WASI reports to the
    guest is that a file could not be opened, "I/O error".
    """
    outcome = _run_to_end(guest, limits, meter)
    if outcome.exit_code != 0 and _has_no_descriptor_left():
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return outcome.replace(text=f"{outcome.text}; it had all files open that a keep may, {most} (LimitNOFILE=)")
    return outcome


def _has_no_descriptor_left() -> bool:
    try:
        os.close(os.dup(1))
    except OSError as error:
        return error.errno == errno.EMFILE
    return False


def _run_to_end(guest: Guest, limits: Limits, meter: Meter) -> Outcome:
    try:
        code, returned = guest.run()
    except GuestExit as left:
        return outcomes.exited(left.code, meter.usage())
    except wasmtime.Trap as trap:
        frames = ((frame.func_name, frame.func_index, frame.module_offset) for frame in trap.frames)
        return outcomes.trapped(trap.message, frames, meter.usage())
    except wasmtime.ExitTrap as left:
        return outcomes.exited(left.code, meter.usage())
    except wasmtime.WasmtimeError as error:
        return outcomes.of_error(str(error), limits, meter.usage(), started=guest.started)
    if returned:
        _print(f"returned: {returned}")
    return outcomes.exited(code, meter.usage())


def _print(line: str) -> None:
    """One line on the journal's stream, where the guest's own output goes."""
    text = (line + "\n").encode("ascii", "backslashreplace")
    while text:
        text = text[os.write(1, text) :]
