"""The runner: maps and links the compiled module, gives up the right to make code, and runs it. Nothing else is left
in this process: no key, no HTTP, no listener.

Loading comes before the lock, the first instruction of the guest (its start section, at instantiation) after it.
"""

from __future__ import annotations

import os
import time

import wasmtime

from app_loader import outcome as outcomes
from app_loader.engine import COMMAND, DEFAULT, INITIALIZE, GuestExit, make_engine, make_linker
from app_loader.limits import (
    COMPILED_FD,
    GUEST_INSTANCES,
    GUEST_MEMORIES,
    GUEST_MEMORY_BYTES,
    GUEST_TABLE_ELEMENTS,
    GUEST_TABLES,
)
from app_loader.lock import lock
from app_loader.reports import Reporter
from keep_protocol.control import Report, ReportType
from keep_protocol.errors import KeepfleetError
from keep_protocol.keep import Outcome

ARGUMENTS = ["workload.wasm"]
"""The guest's argv: the module has no name of its own."""


class Meter:
    """Measures the run from its construction on; peak memory is read from a file opened before the lock."""

    def __init__(self) -> None:
        self._status = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def __repr__(self) -> str:
        return f"Meter({self.spent()!r})"

    def spent(self) -> outcomes.Spent:
        """What has been used so far."""
        return outcomes.Spent(time.monotonic() - self._wall, time.process_time() - self._cpu, self._peak())

    def _peak(self) -> int | None:
        for line in os.pread(self._status, 8192, 0).splitlines():
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) * 1024
        return None


class Guest:
    """A module that is loaded and linked, in a store of its own, and has not run yet."""

    def __init__(self, compiled: int) -> None:
        """Raises wasmtime.WasmtimeError when the compiled module does not fit this engine."""
        self._engine = make_engine()
        self._module = _load(self._engine, compiled)
        self._linker = make_linker(self._engine)
        self._store = wasmtime.Store(self._engine)
        self._store.set_limits(
            memory_size=GUEST_MEMORY_BYTES,
            table_elements=GUEST_TABLE_ELEMENTS,
            instances=GUEST_INSTANCES,
            tables=GUEST_TABLES,
            memories=GUEST_MEMORIES,
        )
        wasi = wasmtime.WasiConfig()
        wasi.argv = ARGUMENTS
        wasi.inherit_stdout()
        wasi.inherit_stderr()
        self._store.set_wasi(wasi)

    def __repr__(self) -> str:
        return f"Guest({self._module!r})"

    def run(self) -> list[object]:
        """Instantiates the module and calls it; what its default export returned, nothing for a command.

        Raises GuestExit, wasmtime.Trap, or wasmtime.WasmtimeError when it cannot be instantiated within its limits.
        """
        instance = self._linker.instantiate(self._store, self._module)
        exports = instance.exports(self._store)
        if COMMAND in exports:
            self._call(exports[COMMAND])
            return []
        if INITIALIZE in exports:
            self._call(exports[INITIALIZE])
        returned = self._call(exports[DEFAULT])
        if returned is None:
            return []
        return returned if isinstance(returned, list) else [returned]

    def _call(self, function: object) -> object:
        if not isinstance(function, wasmtime.Func):
            raise wasmtime.WasmtimeError("what is to be called is no function")
        return function(self._store)


def _load(engine: wasmtime.Engine, compiled: int) -> wasmtime.Module:
    """The module mapped from its file; where the file's mount allows no code (NoExecPaths=), from a copy of it."""
    try:
        return wasmtime.Module.deserialize_file(engine, f"/proc/self/fd/{compiled}")
    except wasmtime.WasmtimeError:
        return wasmtime.Module.deserialize(engine, os.pread(compiled, os.fstat(compiled).st_size, 0))


def _live(guest: Guest, meter: Meter) -> Outcome:
    """Runs the guest to its end, whichever that is."""
    try:
        returned = guest.run()
    except GuestExit as left:
        return outcomes.exited(left.code, meter.spent())
    except wasmtime.Trap as trap:
        frames = ((frame.func_name, frame.func_index, frame.module_offset) for frame in trap.frames)
        return outcomes.trapped(trap.message, frames, meter.spent())
    except wasmtime.ExitTrap as left:
        return outcomes.exited(left.code, meter.spent())
    except wasmtime.WasmtimeError as error:
        return outcomes.refused(str(error), meter.spent())
    if returned:
        _say(f"returned: {returned}")
    return outcomes.exited(0, meter.spent())


def _say(line: str) -> None:
    """One line on the journal's stream, where the guest's own output goes."""
    text = (line + "\n").encode("ascii", "backslashreplace")
    while text:
        text = text[os.write(1, text) :]


def run() -> int:
    """The process: load, link, lock, run, report, end; it never returns to its caller."""
    reporter, meter = Reporter(), Meter()
    try:
        guest = Guest(COMPILED_FD)
        os.close(COMPILED_FD)
        lock(executable_memory=False)
        reporter.send(Report(ReportType.RUNNING, "running the workload"))
        outcome = _live(guest, meter)
    except (KeepfleetError, wasmtime.WasmtimeError, OSError, MemoryError) as error:
        outcome = outcomes.lost(str(error) or type(error).__name__, meter.spent())
    except BaseException as error:
        outcome = outcomes.lost(f"{type(error).__name__}: {error}", meter.spent())
        reporter.send(Report(ReportType.ENDED, outcome.text, outcome=outcome))
        raise
    reporter.send(Report(ReportType.ENDED, outcome.text, outcome=outcome))
    os._exit(outcomes.process_code(outcome))  # wasmtime's own clean-up could only fail
