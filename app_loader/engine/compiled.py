"""What is compiled, stored and loaded: core modules, and for `component` what both kinds have in common."""

from __future__ import annotations

import mmap
import os
from _ctypes import byref

from app_loader.engine.binding import EXTERN_FUNCTION, TYPE_NAMES, Byte, Pointer, Vector, library
from app_loader.engine.foreign import EngineError, Owned, pointers, succeed, text_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ClassVar, Self

    from app_loader.engine.settings import Engine


class Compiled(Owned):
    """A core module or a component. The library has the same functions for both, by two names."""

    __slots__ = ("engine",)
    name: ClassVar[str]

    def __init__(self, engine: Engine, pointer: int) -> None:
        self.engine = engine
        super().__init__(pointer, self._function("delete"))

    @classmethod
    def _function(cls, name: str) -> Callable[..., int | None]:
        return getattr(library, f"wasmtime_{cls.name}_{name}")  # type: ignore[no-any-return]

    @classmethod
    def compile(cls, engine: Engine, source: int | bytes) -> Self:
        """Compiles a file, or bytes. Raises EngineError for what is invalid."""
        pointer, (view, size) = Pointer(), _view(source)
        succeed(cls._function("new")(engine.pointer, view, size, byref(pointer)))
        return cls(engine, pointer.value)

    @classmethod
    def load(cls, engine: Engine, compiled: int) -> Self:
        """What `store` has written into the file: mapped from it; where its mount allows no code (NoExecPaths=), from
        a copy, the library's own. Raises EngineError for what does not fit."""
        pointer = Pointer()
        try:
            path = f"/proc/self/fd/{compiled}".encode()
            succeed(cls._function("deserialize_file")(engine.pointer, path, byref(pointer)))
        except EngineError:
            view, size = _view(compiled)
            succeed(cls._function("deserialize")(engine.pointer, view, size, byref(pointer)))
        return cls(engine, pointer.value)

    def store(self, file: int) -> None:
        """Writes what was compiled straight from the library's memory. Raises EngineError, OSError."""
        vector = Vector()
        succeed(self._function("serialize")(self.pointer, byref(vector)))
        try:
            left = memoryview((Byte * vector.size).from_address(vector.data)).cast("B")
            while left:
                left = left[os.write(file, left) :]
        finally:
            library.wasm_byte_vec_delete(byref(vector))


def _view(source: int | bytes) -> tuple[object, int]:
    """What a function reads as bytes, and how many: a file is mapped, and stays so as long as the object."""
    if isinstance(source, bytes):
        return (Byte * len(source)).from_buffer_copy(source), len(source)
    size = os.fstat(source).st_size
    if not size:
        return None, 0
    try:
        mapped = mmap.mmap(source, size)
    except PermissionError:  # a loader keeps it open read-only
        mapped = mmap.mmap(source, size, access=mmap.ACCESS_COPY)
    return (Byte * size).from_buffer(mapped), size


class Module(Compiled):
    """A core module."""

    __slots__ = ()
    name = "module"

    @staticmethod
    def validate(engine: Engine, source: int | bytes) -> None:
        """Raises EngineError for what is invalid; quicker than compiling that."""
        view, size = _view(source)
        succeed(library.wasmtime_module_validate(engine.pointer, view, size))

    def exports(self) -> Exports:
        """What it exports."""
        return Exports(self)


class Exports:
    """The exports of a core module. functions: the names of its functions."""

    def __init__(self, module: Module) -> None:
        self._vector = Vector()
        library.wasmtime_module_exports(module.pointer, byref(self._vector))
        self._places = {}
        for place, entry in enumerate(pointers(self._vector)):
            if library.wasm_externtype_kind(library.wasm_exporttype_type(entry)) == EXTERN_FUNCTION:
                self._places[text_of(library.wasm_exporttype_name(entry)) or ""] = place
        self.functions = list(self._places)

    def __repr__(self) -> str:
        return f"Exports({self.functions!r})"

    def __del__(self) -> None:
        library.wasm_exporttype_vec_delete(byref(self._vector))

    def signature(self, name: str) -> tuple[list[str], list[str]]:
        """The types a function takes, and those it returns. The library aborts where one of them is a vector."""
        entry = pointers(self._vector)[self._places[name]]
        kind = library.wasm_externtype_as_functype_const(library.wasm_exporttype_type(entry))
        return _types(library.wasm_functype_params(kind)), _types(library.wasm_functype_results(kind))


def _types(vector: int) -> list[str]:
    kinds = (library.wasm_valtype_kind(entry) for entry in pointers(Vector.from_address(vector)))
    return [TYPE_NAMES.get(kind, f"number {kind}") for kind in kinds]
