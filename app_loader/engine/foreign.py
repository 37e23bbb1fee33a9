"""What is got from the engine's library: its objects, each with one owner, its memory, its errors and traps.

An object is freed by its `Owned`; what belongs to another object is read as soon as it is got, and its pointer not
kept; errors and traps are read whole and freed before they are raised. A process of a keep ends by os._exit: what lives
until then is left to the kernel.
"""

from __future__ import annotations

from _ctypes import byref

from app_loader.engine.binding import Byte, Int, Pointer, Vector, library

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from app_loader.run.outcome import Frame


class EngineError(Exception):
    """What the engine cannot do, in its own words."""


class Trap(EngineError):
    """A core module has done what WebAssembly forbids. frames: the innermost first."""

    def __init__(self, message: str, frames: tuple[Frame, ...]) -> None:
        super().__init__(message)
        self.frames = frames


class GuestExit(Exception):
    """The guest has left with `code`."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit {code}")
        self.code = code


class Owned:
    """An object of wasmtime's that is ours: freed with this one, unless another object took it over."""

    __slots__ = ("_free", "_pointer")

    def __init__(self, pointer: int, free: Callable[[int], object]) -> None:
        self._pointer, self._free = pointer, free

    def __repr__(self) -> str:
        return f"Owned({self._pointer:#x})"

    @property
    def pointer(self) -> int:
        """Valid as long as this object. Raises ValueError once it was given away."""
        if not self._pointer:
            raise ValueError("it was given away")
        return self._pointer

    def release(self) -> int:
        """The pointer, for a function that takes the object over."""
        pointer, self._pointer = self.pointer, 0
        return pointer

    def __del__(self) -> None:
        if self._pointer:
            self._free(self._pointer)


def bytes_at(address: int, size: int) -> bytes:
    """A copy of foreign memory."""
    return bytes((Byte * size).from_address(address)) if size else b""


def take_text(vector: Vector) -> str:
    """The text in a vector that is ours, which is freed."""
    text = bytes_at(vector.data, vector.size).decode("utf-8", "replace")
    library.wasm_byte_vec_delete(byref(vector))
    return text


def text_of(vector: int | None) -> str | None:
    """A copy of the text in another object's vector."""
    if not vector:
        return None
    found = Vector.from_address(vector)
    return bytes_at(found.data, found.size).decode("utf-8", "replace")


def pointers(vector: Vector) -> list[int]:
    return list((Pointer * vector.size).from_address(vector.data)) if vector.size else []


def succeed(error: int | None) -> None:
    """Raises EngineError, or GuestExit, for the error a function has returned, which is freed."""
    if not error:
        return
    code, message = Int(), Vector()
    left = library.wasmtime_error_exit_status(error, byref(code))
    library.wasmtime_error_message(error, byref(message))
    library.wasmtime_error_delete(error)
    text = take_text(message)
    raise GuestExit(code.value & 0xFFFFFFFF) if left else EngineError(text)


def take_trap(trap: int) -> Trap:
    message, frames = Vector(), Vector()
    library.wasm_trap_message(trap, byref(message))
    library.wasm_trap_trace(trap, byref(frames))
    found = tuple(
        (
            text_of(library.wasmtime_frame_func_name(frame)),
            library.wasm_frame_func_index(frame),
            library.wasm_frame_module_offset(frame),
        )
        for frame in pointers(frames)
    )
    library.wasm_frame_vec_delete(byref(frames))
    library.wasm_trap_delete(trap)
    return Trap(take_text(message).rstrip("\0"), found)
