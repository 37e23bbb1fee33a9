"""Two functions that the guest gets besides its own: what a run calls, in one call, since each costs 4 µs from outside.

    go(input, bytes, console's characters, arguments): begins a run, and finishes it
    finish(): runs what waits, ends the run, and leaves where its text is

Both return 0, or which of the three calls has failed. What they are made of (the prelude's functions, the scratch
memory) is known once the guest has booted. Import rule: the standard library, and `guest` for a module's sections.
"""

from __future__ import annotations

from collections.abc import Iterator

from script_pool.engine.guest import _read_unsigned, _signed, _unsigned, sections

GO, FINISH = "keepfleet_go", "keepfleet_finish"
BEGIN_FAILED, END_FAILED, NO_STRING = 1, 2, 3
"""What they return: `begin` or `end` has thrown, or there was no memory for the text."""
ARGUMENTS, OUT, SIZE, TEXT, INPUT = 0, 16, 20, 24, 32
"""In the scratch memory of an instance: handles for a call, the handle that it gave, the run's text; and a short input,
which so needs no memory to be allocated."""
INPUT_BYTES = 4096
SCRATCH_BYTES = INPUT + INPUT_BYTES

_IMPORTS, _TYPES, _FUNCTIONS, _EXPORTS, _CODE = 2, 1, 3, 7, 10
_I32, _I64, _EMPTY = 0x7F, 0x7E, 0x40
_CALLED = (
    "new_string", "new_number", "call_function", "execute_pending_jobs", "get_string", "qjs_last_len", "qjs_last_ptr",
)  # fmt: skip


def with_runner(module: bytes, scratch: int, undefined: int, begin: int, end: int) -> bytes:
    """The guest with both; `begin` and `end` are the prelude's functions, by their handles."""
    parts = dict(sections(module))
    exports = dict(_functions_exported(parts[_EXPORTS]))
    called = {name: b"\x10" + _unsigned(exports[name]) for name in _CALLED}
    types, _ = _read_unsigned(parts[_TYPES], 0)
    own, _ = _read_unsigned(parts[_FUNCTIONS], 0)
    first = sum(1 for _ in _imported(parts[_IMPORTS])) + own

    def prelude(function: int, arguments: bytes) -> bytes:
        of = (function, undefined, scratch + ARGUMENTS)
        return b"".join(map(_constant, of)) + arguments + _constant(scratch + OUT) + called["call_function"]

    def store(value: bytes, at: int) -> bytes:
        return _constant(scratch) + value + b"\x36\2" + _unsigned(at)

    def failed(status: int) -> bytes:
        return bytes((0x04, _EMPTY)) + _constant(status) + b"\x0f\x0b"

    finish = (
        called["execute_pending_jobs"] + b"\x1a"
        + prelude(end, _constant(0)) + failed(END_FAILED)
        + _constant(scratch) + b"\x28\2" + _unsigned(OUT) + called["get_string"] + failed(NO_STRING)
        + store(called["qjs_last_len"], SIZE) + store(called["qjs_last_ptr"], TEXT)
        + _constant(0)
    )  # fmt: skip
    go = (
        store(_local(0) + _local(1) + called["new_string"], ARGUMENTS)
        + store(_local(2) + called["new_number"], ARGUMENTS + 4)
        + prelude(begin, _local(3)) + failed(BEGIN_FAILED)
        + b"\x10" + _unsigned(first)
    )  # fmt: skip
    added = {
        _TYPES: [b"\x60\0\1" + bytes((_I32,)), b"\x60\4" + bytes((_I32, _I32, _I64, _I32)) + b"\1" + bytes((_I32,))],
        _FUNCTIONS: [_unsigned(types), _unsigned(types + 1)],
        _EXPORTS: [_name(name) + b"\0" + _unsigned(first + at) for at, name in enumerate((FINISH, GO))],
        _CODE: [_unsigned(len(body) + 2) + b"\0" + body + b"\x0b" for body in (finish, go)],
    }
    out = bytearray(module[:8])
    for number, contents in sections(module):
        whole = contents
        if number in added:
            count, at = _read_unsigned(contents, 0)
            whole = _unsigned(count + len(added[number])) + contents[at:] + b"".join(added[number])
        out += bytes((number,)) + _unsigned(len(whole)) + whole
    return bytes(out)


def _constant(value: int) -> bytes:
    return b"\x41" + _signed(value)


def _local(number: int) -> bytes:
    return b"\x20" + _unsigned(number)


def _name(text: str) -> bytes:
    return _unsigned(len(text)) + text.encode("ascii")


def _imported(contents: bytes) -> Iterator[None]:
    """Once for each import; the guest has none but functions. Raises ValueError for another."""
    count, at = _read_unsigned(contents, 0)
    for _ in range(count):
        for _ in range(2):
            size, at = _read_unsigned(contents, at)
            at += size
        if contents[at]:
            raise ValueError("cannot add functions to the guest: it imports something else than functions")
        _, at = _read_unsigned(contents, at + 1)
        yield None


def _functions_exported(contents: bytes) -> Iterator[tuple[str, int]]:
    count, at = _read_unsigned(contents, 0)
    for _ in range(count):
        size, begin = _read_unsigned(contents, at)
        at = begin + size
        kind = contents[at]
        number, at = _read_unsigned(contents, at + 1)
        if kind == 0:
            yield contents[begin : begin + size].decode("ascii"), number
