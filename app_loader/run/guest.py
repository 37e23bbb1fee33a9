"""A guest: a compiled core module or component, loaded, linked with what it is given, and run to its end."""

from __future__ import annotations

import errno
import os
import resource

from app_loader.check.imports import INITIALIZE, find_entry
from app_loader.check.programs import DIRECTORY, file_name, holds_program, read_program, words_of
from app_loader.engine.compiled import Module
from app_loader.engine.foreign import EngineError, GuestExit, Trap
from app_loader.engine.settings import Engine, make_engine, settings_for
from app_loader.engine.store import Linker, Store, Wasi, exit_module
from app_loader.limits import (
    COMPONENT_INSTANCES,
    COMPONENT_MEMORIES,
    COMPONENT_TABLES,
    GUEST_INSTANCES,
    GUEST_MEMORIES,
    GUEST_TABLES,
    MAX_EVIDENCE_LINE,
    SCRIPT_STACK_BYTES,
)
from app_loader.run import outcome as outcomes
from keep_protocol.limits import Limits
from keep_protocol.outcome import Outcome
from keep_protocol.spec import Compiler
from keep_protocol.workload import Workload

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from app_loader.run.meter import Meter
else:
    Protocol = object

_HEAD, _FLAGS = 64, slice(48, 52)
"""A compiled file is ELF; wasmtime says in its header's e_flags what it is (wasmtime, `ObjectKind`)."""
_MODULE, _COMPONENT, _KINDS = 1, 2, 3
"""Two bits; another one says that it is to be interpreted, which the engine itself checks."""


class Unfit(Exception):
    """The compiled file does not fit this engine: another version or other settings made it, or it is damaged."""


PROGRAM = "workload.wasm"
"""A module's argv[0]: it has no name of its own."""


class Guest(Protocol):
    """Loaded; nothing of it has run yet. words: what its argv begins with; limits: those that it is held to; started:
    whether `run` has come as far as calling it."""

    words: tuple[str, ...]
    limits: Limits
    started: bool

    def link(self, wasi: Wasi) -> None:
        """Gives it what it may reach; once, before `run`."""

    def run(self) -> tuple[int, list[object]]:
        """Runs it to its end: its exit code, and what an export returned.

        Raises GuestExit, Trap, or EngineError for a component's trap or invalid result, and, before it has started, for
        what cannot be instantiated within its limits.
        """


class CoreGuest:
    """A core module."""

    words: tuple[str, ...] = (PROGRAM,)

    def __init__(self, compiled: int, limits: Limits, workload: Workload) -> None:
        """See `load_guest`."""
        self.started, self.limits = False, limits
        self._engine = make_engine(settings_for(compiled, limits, workload))
        self._module = Module.load(self._engine, compiled)
        self._entry = find_entry(self._module.exports(), workload)
        self._linker = Linker(self._engine)
        exit_module(self._engine)  # compiled here: behind the lock nothing can be

    def __repr__(self) -> str:
        return f"CoreGuest({self._entry!r})"

    def link(self, wasi: Wasi) -> None:
        """See `Guest`."""
        self._store = _make_store(self._engine, self.limits, (GUEST_INSTANCES, GUEST_TABLES, GUEST_MEMORIES), wasi)
        self._linker.replace_exit(self._store)

    def run(self) -> tuple[int, list[object]]:
        """See `Guest`."""
        instance, entry = self._linker.instantiate(self._store, self._module), self._entry
        self.started = True
        if entry.initialize:
            self._store.call(self._store.export(instance, INITIALIZE))
        return 0, self._store.call(self._store.export(instance, entry.name), entry.values, entry.results)


class ProgramGuest(CoreGuest):
    """A script, which is the first arguments of the command that runs it."""

    def __init__(self, compiled: int, limits: Limits, workload: Workload) -> None:
        """See `load_guest`. The command is compiled already, with the one compiler."""
        program = read_program(compiled)
        name = file_name(program.language, workload.profile)
        try:
            command = os.open(os.path.join(DIRECTORY, name), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise Unfit(f"there is no {name} in this installation") from None
        try:
            own = limits.replace(stack_bytes=max(limits.stack_bytes, SCRIPT_STACK_BYTES))
            super().__init__(command, own, workload.replace(compiler=Compiler.OPTIMIZING))
        finally:
            os.close(command)
        self.words = words_of(program, limits.memory_bytes)


class ComponentGuest:
    """A WASI 0.2 command component."""

    words: tuple[str, ...] = (PROGRAM,)

    def __init__(self, compiled: int, limits: Limits, workload: Workload) -> None:
        """See `load_guest`."""
        from app_loader.check.components import find_run  # with these, what a core module does not need
        from app_loader.engine.component import Component, ComponentLinker

        self.started, self.limits = False, limits
        self._engine = make_engine(settings_for(compiled, limits, workload, components=True))
        self._component = Component.load(self._engine, compiled)
        self._interface = find_run(self._component.exports(), workload)
        self._linker = ComponentLinker(self._engine)

    def __repr__(self) -> str:
        return f"ComponentGuest({self._interface})"

    def link(self, wasi: Wasi) -> None:
        """See `Guest`."""
        counts = (COMPONENT_INSTANCES, COMPONENT_TABLES, COMPONENT_MEMORIES)
        self._store = _make_store(self._engine, self.limits, counts, wasi)

    def run(self) -> tuple[int, list[object]]:
        """See `Guest`. Its `run` returns ok or not, 0 or 1; by `exit-with-code` it may leave with any other."""
        from app_loader.check.components import RUN_FUNCTION
        from app_loader.engine.component import call_run, find_function

        instance = self._linker.instantiate(self._store, self._component)
        function = find_function(self._store, instance, self._interface, RUN_FUNCTION)
        self.started = True
        return int(not call_run(self._store, function)), []


def _make_store(engine: Engine, limits: Limits, counts: tuple[int, int, int], wasi: Wasi) -> Store:
    """A store that holds its guest to `limits` and to so many instances, tables and memories."""
    store = Store(engine)
    instances, tables, memories = counts
    store.limit(
        memory_bytes=limits.memory_bytes,
        table_elements=limits.table_elements,
        instances=instances,
        tables=tables,
        memories=memories,
    )
    store.take(wasi)
    return store


def load_guest(compiled: int, limits: Limits, workload: Workload) -> Guest:
    """The guest in the compiled file, whichever kind it is.

    Raises Unfit when it does not fit this engine, KeepfleetError when what the workload calls is not in it.
    """
    if holds_program(compiled):
        return _loaded(ProgramGuest, compiled, limits, workload)
    kind = int.from_bytes(os.pread(compiled, _HEAD, 0)[_FLAGS], "little") & _KINDS
    if kind not in (_MODULE, _COMPONENT):
        raise Unfit("it is no compiled module")
    return _loaded(CoreGuest if kind == _MODULE else ComponentGuest, compiled, limits, workload)


def _loaded(kind: Callable[[int, Limits, Workload], Guest], compiled: int, limits: Limits, workload: Workload) -> Guest:
    try:
        return kind(compiled, limits, workload)
    except EngineError as error:
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
    except Trap as trap:
        return outcomes.trapped(str(trap), trap.frames, meter.usage())
    except EngineError as error:
        return outcomes.of_error(str(error), limits, meter.usage(), started=guest.started)
    if returned:
        _print(f"returned: {returned}")
    return outcomes.exited(code, meter.usage())


def _print(line: str) -> None:
    """One line where the guest's own output goes."""
    text = (line + "\n").encode("ascii", "backslashreplace")
    while text:
        text = text[os.write(1, text) :]
