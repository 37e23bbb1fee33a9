"""WASI for codelets: of preview 1 what needs nothing of the host but a clock, random numbers and the log.

A hook grants each function by its name; without that there is none. Import rule: the standard library, codelets.
"""

from __future__ import annotations

import secrets
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from codelets.standard import MAX_PRINTED, print_line

if TYPE_CHECKING:
    from codelets.engine import HostFunction  # verification asks for types alone, and imports no engine

MODULE = "wasi_snapshot_preview1"
CALL_FUEL, BYTES_OF_FUEL = 100, 16
"""As for helpers: what a call takes of its codelet's fuel, and the bytes that one more unit is for."""
MAX_PARTS = 16
"""Of one fd_write: what a line is made of."""
_I32 = 0xFFFFFFFF
SUCCESS, BADF, FAULT, INVAL = 0, 8, 21, 28
"""Numbers of errors (preview 1, errno)."""
_CLOCKS: dict[int, Callable[[], int]] = {0: time.time_ns, 1: time.monotonic_ns}
Use = Callable[[int], None]


class Exited(Exception):
    """proc_exit: the call ends here, as with a trap."""


class _Outside(Exception):
    """An address that is not the codelet's."""


def _part(view: memoryview, at: int, size: int) -> memoryview:
    if at + size > len(view):
        raise _Outside
    return view[at : at + size]


def _clock_time_get(view: memoryview, use: Use, clock: int, precision: int, at: int) -> int:
    if clock not in _CLOCKS:
        return INVAL
    struct.pack_into("<Q", _part(view, at, 8), 0, _CLOCKS[clock]())
    return SUCCESS


def _random_get(view: memoryview, use: Use, at: int, size: int) -> int:
    place = _part(view, at, size)
    use(size // BYTES_OF_FUEL)
    place[:] = secrets.token_bytes(size)
    return SUCCESS


def _fd_write(view: memoryview, use: Use, file: int, parts_at: int, parts: int, written_at: int) -> int:
    if file not in (1, 2):
        return BADF
    if parts > MAX_PARTS:
        return INVAL
    text, written = b"", 0
    for at, size in struct.iter_unpack("<II", _part(view, parts_at, 8 * parts)):
        text += bytes(_part(view, at, size)[: MAX_PRINTED - len(text)])
        written += size
    struct.pack_into("<I", _part(view, written_at, 4), 0, written & _I32)
    print_line(text)
    return SUCCESS


def _proc_exit(view: memoryview, use: Use, code: int) -> int:
    raise Exited(f"it called proc_exit({code})")


_FUNCTIONS: dict[str, tuple[tuple[str, ...], Callable[..., int]]] = {
    "clock_time_get": (("i32", "i64", "i32"), _clock_time_get),
    "random_get": (("i32", "i32"), _random_get),
    "fd_write": (("i32", "i32", "i32", "i32"), _fd_write),
    "proc_exit": (("i32",), _proc_exit),
}


def signature(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A function's type, as WebAssembly has it."""
    return _FUNCTIONS[name][0], () if name == "proc_exit" else ("i32",)


def host_function(name: str, view: memoryview) -> HostFunction:
    """The function as the engine calls it, for a codelet with this memory."""
    kinds, function = _FUNCTIONS[name]

    def host(values: Any, use: Use) -> None:
        use(CALL_FUEL)
        given = [values[at].i64 if kind == "i64" else values[at].i32 & _I32 for at, kind in enumerate(kinds)]
        try:
            found = function(view, use, *given)
        except _Outside:
            found = FAULT
        values[0].i32 = found

    return host
