"""One run of a core module: what it is linked with, its limits, its calls, and how they end."""

from __future__ import annotations

from _ctypes import byref

from app_loader.engine.binding import EXTERN_FUNCTION, TYPE_NAMES, Extern, Instance, Pointer, Text, Value, library
from app_loader.engine.compiled import Module
from app_loader.engine.foreign import EngineError, GuestExit, Owned, succeed, take_trap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from app_loader.engine.settings import Engine

WASI_MODULE = "wasi_snapshot_preview1"
"""The one import module of core modules."""
EXIT, LEFT = "proc_exit", "left"
_KINDS = {name: kind for kind, name in TYPE_NAMES.items()}
EXIT_MODULE = bytes.fromhex(
    "0061736d01000000 0105 0160017f00 03020100 0606 017e01427f0b 0714 02 04 6c656674 0300 09 70726f635f65786974 0000"
    "0a0a 010800 2000 ad 2400 00 0b"
)
"""What stands for WASI's own `proc_exit`, which loses codes above 125, in WebAssembly itself: a host function would be
a closure, which is executable memory. It notes the code and traps:

    (module (global (export "left") (mut i64) (i64.const -1))
      (func (export "proc_exit") (param i32) (global.set 0 (i64.extend_i32_u (local.get 0))) unreachable))
"""


_exit_modules: dict[Engine, Module] = {}


def exit_module(engine: Engine) -> Module:
    """EXIT_MODULE, compiled once for an engine, and so before a lock."""
    if engine not in _exit_modules:
        _exit_modules[engine] = Module.compile(engine, EXIT_MODULE)
    return _exit_modules[engine]


class Wasi(Owned):
    """What a guest finds around it, to be used once."""

    __slots__ = ()

    def __init__(self) -> None:
        """Output is this process's own."""
        super().__init__(library.wasi_config_new(), library.wasi_config_delete)
        library.wasi_config_inherit_stdout(self.pointer)
        library.wasi_config_inherit_stderr(self.pointer)

    def set_arguments(self, arguments: Sequence[str]) -> None:
        """Its argv. Raises EngineError for what is none."""
        if not library.wasi_config_set_argv(self.pointer, len(arguments), _texts(arguments)):
            raise EngineError("it cannot have these arguments")

    def set_environment(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Its environment. Raises EngineError for what is none."""
        names, values = _texts([name for name, _ in pairs]), _texts([value for _, value in pairs])
        if not library.wasi_config_set_env(self.pointer, len(pairs), names, values):
            raise EngineError("it cannot have this environment")

    def inherit_input(self) -> None:
        """Its input is this process's."""
        library.wasi_config_inherit_stdin(self.pointer)

    def open_directory(self, path: str, guest: str, writable: bool) -> None:
        """Opens a directory for the guest. Raises EngineError when that fails."""
        if not library.wasi_config_preopen_dir(self.pointer, path.encode(), guest.encode(), writable):
            raise EngineError(f"the directory for {guest} cannot be opened")


def _texts(texts: Sequence[str]) -> object:
    return (Text * len(texts))(*[text.encode() for text in texts])


class Store(Owned):
    """One run's state. context: the library's handle of it, which lives as long."""

    __slots__ = ("context", "engine", "left")

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        super().__init__(library.wasmtime_store_new(engine.pointer, None, None), library.wasmtime_store_delete)
        self.context: int = library.wasmtime_store_context(self.pointer)
        self.left: Extern | None = None

    def limit(
        self,
        *,
        memory_bytes: int = -1,
        table_elements: int = -1,
        instances: int = -1,
        tables: int = -1,
        memories: int = -1,
    ) -> None:
        """Holds what is made in it to these; -1 is the library's own limit."""
        library.wasmtime_store_limiter(self.pointer, memory_bytes, table_elements, instances, tables, memories)

    def take(self, wasi: Wasi) -> None:
        """Takes over what the guest finds around it."""
        succeed(library.wasmtime_context_set_wasi(self.context, wasi.release()))

    def call(self, function: Extern, values: Sequence[tuple[str, int | float]] = (), results: int = 0) -> list[object]:
        """Calls a function that takes these, each with its type's name, and returns so many.

        Raises GuestExit, Trap, or EngineError.
        """
        if function.kind != EXTERN_FUNCTION:
            raise EngineError("what is to be called is no function")
        given, returned = (Value * len(values))(), (Value * results)()
        for slot, (name, value) in zip(given, values, strict=True):
            slot.kind = _KINDS[name]
            setattr(slot.of, name, value)
        trap = Pointer()
        error = library.wasmtime_func_call(
            self.context, byref(function.of.func), given, len(values), returned, results, byref(trap)
        )
        self.ended(error, trap)
        return [getattr(slot.of, TYPE_NAMES[slot.kind]) for slot in returned]

    def ended(self, error: int | None, trap: Pointer) -> None:
        """Raises what a call into WebAssembly ended with, if it did not return."""
        if trap.value:
            ended = take_trap(trap.value)
            code = -1 if self.left is None else self._read_left(self.left)
            raise ended if code < 0 else GuestExit(code)
        succeed(error)

    def _read_left(self, left: Extern) -> int:
        value = Value()
        library.wasmtime_global_get(self.context, byref(left.of.global_), byref(value))
        return int(value.of.i64)

    def export(self, instance: Instance, name: str) -> Extern:
        """What an instance of this store exports by this name. Raises EngineError when it does not."""
        item, encoded = Extern(), name.encode()
        if not library.wasmtime_instance_export_get(self.context, byref(instance), encoded, len(encoded), byref(item)):
            raise EngineError(f"there is no export {name!r}")
        return item


class Linker(Owned):
    """What a core module may import: WASI preview 1."""

    __slots__ = ()

    def __init__(self, engine: Engine) -> None:
        super().__init__(library.wasmtime_linker_new(engine.pointer), library.wasmtime_linker_delete)
        library.wasmtime_linker_allow_shadowing(self.pointer, True)
        succeed(library.wasmtime_linker_define_wasi(self.pointer))

    def check(self, module: Module) -> None:
        """Raises EngineError when it imports what is not here, or is of another type."""
        checked = Pointer()
        succeed(library.wasmtime_linker_instantiate_pre(self.pointer, module.pointer, byref(checked)))
        library.wasmtime_instance_pre_delete(checked)

    def has(self, store: Store, module: str, name: str) -> bool:
        """Whether there is something to import by these names."""
        first, second, item = module.encode(), name.encode(), Extern()
        found = library.wasmtime_linker_get(
            self.pointer, store.context, first, len(first), second, len(second), byref(item)
        )
        return bool(found)

    def replace_exit(self, store: Store) -> Extern:
        """Puts EXIT_MODULE's function, which is returned, in the place of WASI's own, for this store alone."""
        instance = self.instantiate(store, exit_module(store.engine))
        function, left = store.export(instance, EXIT), store.export(instance, LEFT)
        module, name = WASI_MODULE.encode(), EXIT.encode()
        succeed(
            library.wasmtime_linker_define(
                self.pointer, store.context, module, len(module), name, len(name), byref(function)
            )
        )
        store.left = left
        return function

    def instantiate(self, store: Store, module: Module) -> Instance:
        """Links the module and runs its start function. Raises what `Store.call` does."""
        instance, trap = Instance(), Pointer()
        error = library.wasmtime_linker_instantiate(
            self.pointer, store.context, module.pointer, byref(instance), byref(trap)
        )
        store.ended(error, trap)
        return instance
