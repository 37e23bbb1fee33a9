"""Joins two modules of WebAssembly to one: a guest, and the glue that has what it imports and calls what it exports.

What both import of WASI comes first, then the guest's functions, then the glue's: every number of a function in their
code is written again. The glue has no table, no data and no global variable of its own; functions of its that are to be
called by their number in a table come behind the guest's.
Import rule: the standard library, and `script_pool.engine.guest` for a module's sections and numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from script_pool.engine.guest import _read_unsigned, _signed, _unsigned, sections

_CUSTOM, _TYPES, _IMPORTS, _FUNCTIONS, _TABLES, _EXPORTS, _ELEMENTS, _CODE = 0, 1, 2, 3, 4, 7, 9, 10
_ORDER = (1, 2, 3, 4, 5, 13, 6, 7, 8, 9, 12, 10, 11)
"""In which sections stand: tags of exceptions come behind memories, the count of data segments before the code."""
_FUNCTION = 0
_FUNCTION_TYPE = 0x60
_ONE_TABLE = b"\1\x70\1"
"""One table of functions, whose size has a limit."""

_NO_OPERAND = frozenset((0x00, 0x01, 0x05, 0x0A, 0x0B, 0x0F, 0x1A, 0x1B, 0xD1, *range(0x45, 0xC5)))
_ONE = frozenset((0x02, 0x03, 0x04, 0x08, 0x0C, 0x0D, *range(0x20, 0x27), 0x3F, 0x40, 0x41, 0x42, 0xD0))
"""Opcodes with one LEB128 number that stays: blocks of at most one result, branches, throw, variables, constants."""
_TWO = frozenset((0x11, *range(0x28, 0x3F)))
_CATCH_ALL = 2
"""The first kind of catch that names no tag."""
_CALLS = frozenset((0x10, 0x12, 0xD2))
"""call, return_call, ref.func"""
_PREFIXED = {
    **dict.fromkeys(range(8), 0), 8: 2, 9: 1, 10: 2, 11: 1, 12: 2, 13: 1, 14: 2, 15: 1, 16: 1, 17: 1,
}  # fmt: skip
"""How many numbers follow an opcode behind 0xFC."""


class Module:
    """One module's parts, as the joining needs them."""

    def __init__(self, data: bytes) -> None:
        self.parts = {number: contents for number, contents in sections(data) if number != _CUSTOM}
        self.types = list(_function_types(self.parts[_TYPES]))
        self.imports = list(_imports(self.parts[_IMPORTS]))
        self.functions = list(_numbers(self.parts[_FUNCTIONS]))
        self.exports = dict(_exports(self.parts[_EXPORTS]))
        self.bodies = list(_bodies(self.parts[_CODE]))


def table_size(guest: bytes) -> int:
    """The number in the table of the first function of the glue's. Raises ValueError for a table of another kind."""
    contents = dict(sections(guest)).get(_TABLES, b"")
    if not contents.startswith(_ONE_TABLE):
        raise ValueError("cannot join the modules: the guest has not one table of functions, of a size with a limit")
    return _read_unsigned(contents, len(_ONE_TABLE))[0]


def join(guest: bytes, glue: bytes, entry: str = "_start", listed: tuple[str, ...] = ()) -> bytes:
    """The module of both, which exports its memory and `entry`. listed: exports of the glue that come into the table.
    Raises ValueError for what it does not know."""
    first, second = Module(guest), Module(glue)
    wasi: list[tuple[str, str, int]] = []
    for module, shift in ((first, 0), (second, len(first.types))):
        wasi += [(of, name, kind + shift) for of, name, kind in module.imports if of.startswith("wasi")]
    base = len(wasi)
    after = base + len(first.functions)
    theirs = [of.startswith("wasi") for of, _, _ in first.imports]
    of_glue = _places(second, sum(theirs), after, lambda name: _numbered(first, base, name))
    of_guest = _places(first, 0, base, lambda name: of_glue[second.exports[name]])
    parts = dict(first.parts)
    parts[_TYPES] = _vector([*first.types, *second.types])
    parts[_IMPORTS] = _vector(
        [_name(of) + _name(name) + bytes((_FUNCTION,)) + _unsigned(kind) for of, name, kind in wasi]
    )
    kinds = [*first.functions, *(kind + len(first.types) for kind in second.functions)]
    parts[_FUNCTIONS] = _vector([_unsigned(kind) for kind in kinds])
    parts[_EXPORTS] = _vector(
        [_name("memory") + b"\2\0", _name(entry) + b"\0" + _unsigned(of_glue[second.exports[entry]])]
    )
    parts[_ELEMENTS] = _elements(first.parts[_ELEMENTS], of_guest)
    if listed:
        size = table_size(guest)
        parts[_TABLES] = _ONE_TABLE + 2 * _unsigned(size + len(listed))
        count, at = _read_unsigned(parts[_ELEMENTS], 0)
        more = _vector([_unsigned(of_glue[second.exports[name]]) for name in listed])
        parts[_ELEMENTS] = _unsigned(count + 1) + parts[_ELEMENTS][at:] + b"\0\x41" + _signed(size) + b"\x0b" + more
    bodies = [*(_renumbered(body, of_guest) for body in first.bodies)]
    bodies += [_renumbered(body, of_glue) for body in second.bodies]
    parts[_CODE] = _vector([_unsigned(len(body)) + body for body in bodies])
    whole = bytearray(guest[:8])
    for number in _ORDER:
        if number in parts:
            whole += bytes((number,)) + _unsigned(len(parts[number])) + parts[number]
    return bytes(whole)


def _places(module: Module, wasi: int, own: int, other: Callable[[str], int]) -> dict[int, int]:
    """Each of the module's function numbers in the joined one. wasi: where its imports of WASI begin; own: where its
    own functions do."""
    count = len(module.imports)
    found = {count + at: own + at for at in range(len(module.functions))}
    for number, (of, name, _) in enumerate(module.imports):
        if of.startswith("wasi"):
            found[number], wasi = wasi, wasi + 1
        else:
            found[number] = other(name)
    return found


def _numbered(guest: Module, base: int, name: str) -> int:
    """Where an exported function of the guest, which imports none of what it exports, is in the joined module."""
    return guest.exports[name] - len(guest.imports) + base


def _renumbered(body: bytes, places: Mapping[int, int]) -> bytes:
    """A function's body with the functions that it names at their new places."""
    at = _after_locals(body)
    out, copied, end = bytearray(), 0, len(body)
    while at < end:
        code = body[at]
        at += 1
        if code in _CALLS:
            number, after = _read_unsigned(body, at)
            out += body[copied:at] + _unsigned(places[number])
            copied = at = after
        elif code in _NO_OPERAND:
            continue
        elif code in _ONE:
            at = _skip(body, at)
        elif code in _TWO:
            at = _skip(body, _skip(body, at))
        elif code == 0x43:
            at += 4
        elif code == 0x44:
            at += 8
        elif code == 0x0E:
            count, at = _read_unsigned(body, at)
            for _ in range(count + 1):
                at = _skip(body, at)
        elif code == 0x1F:
            at = _after_catches(body, at)
        elif code == 0x1C:
            count, at = _read_unsigned(body, at)
            at += count
        elif code == 0xFC and (sub := _read_unsigned(body, at))[0] in _PREFIXED:
            at = sub[1]
            for _ in range(_PREFIXED[sub[0]]):
                at = _skip(body, at)
        else:
            raise ValueError(f"cannot join the modules: there is an instruction {code:#x}")
    return bytes(out + body[copied:])


def _after_locals(body: bytes) -> int:
    groups, at = _read_unsigned(body, 0)
    for _ in range(groups):
        at = _skip(body, at) + 1
    return at


def _after_catches(body: bytes, at: int) -> int:
    """Behind what follows a try_table: its type, and of each catch the kind, perhaps a tag, and the label."""
    count, at = _read_unsigned(body, _skip(body, at))
    for _ in range(count):
        at = _skip(body, _skip(body, at + 1) if body[at] < _CATCH_ALL else at + 1)
    return at


def _skip(data: bytes, at: int) -> int:
    while data[at] & 0x80:
        at += 1
    return at + 1


def _elements(contents: bytes, places: Mapping[int, int]) -> bytes:
    """The one kind of segment that compilers write: active, in table 0, a list of functions."""
    count, at = _read_unsigned(contents, 0)
    out = bytearray(_unsigned(count))
    for _ in range(count):
        if contents[at : at + 2] != b"\0\x41":
            raise ValueError("cannot join the modules: there is a segment of elements of another kind")
        offset = _skip(contents, at + 2) + 1
        number, after = _read_unsigned(contents, offset)
        out += contents[at:after]
        at = after
        for _ in range(number):
            function, at = _read_unsigned(contents, at)
            out += _unsigned(places[function])
    return bytes(out)


def _vector(items: list[bytes]) -> bytes:
    return _unsigned(len(items)) + b"".join(items)


def _name(text: str) -> bytes:
    data = text.encode()
    return _unsigned(len(data)) + data


def _read_name(data: bytes, at: int) -> tuple[str, int]:
    size, at = _read_unsigned(data, at)
    return data[at : at + size].decode(), at + size


def _numbers(contents: bytes) -> Iterator[int]:
    count, at = _read_unsigned(contents, 0)
    for _ in range(count):
        number, at = _read_unsigned(contents, at)
        yield number


def _function_types(contents: bytes) -> Iterator[bytes]:
    count, at = _read_unsigned(contents, 0)
    for _ in range(count):
        begin = at
        if contents[at] != _FUNCTION_TYPE:
            raise ValueError("cannot join the modules: there is a type that is no function's")
        for _ in range(2):
            size, at = _read_unsigned(contents, at + 1 if at == begin else at)
            at += size
        yield contents[begin:at]


def _imports(contents: bytes) -> Iterator[tuple[str, str, int]]:
    """The functions; the glue's memory is the guest's."""
    count, at = _read_unsigned(contents, 0)
    for _ in range(count):
        of, at = _read_name(contents, at)
        name, at = _read_name(contents, at)
        kind = contents[at]
        if kind != _FUNCTION:
            at = _skip(contents, at + 2)  # a memory's flags, and its pages
            continue
        number, at = _read_unsigned(contents, at + 1)
        yield of, name, number


def _exports(contents: bytes) -> Iterator[tuple[str, int]]:
    """Those of functions."""
    count, at = _read_unsigned(contents, 0)
    for _ in range(count):
        name, at = _read_name(contents, at)
        kind = contents[at]
        number, at = _read_unsigned(contents, at + 1)
        if kind == _FUNCTION:
            yield name, number


def _bodies(contents: bytes) -> Iterator[bytes]:
    count, at = _read_unsigned(contents, 0)
    for _ in range(count):
        size, at = _read_unsigned(contents, at)
        yield contents[at : at + size]
        at += size
