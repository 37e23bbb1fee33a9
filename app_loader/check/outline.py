"""What a module says of itself in front of its code: what it imports and exports, and how much code it has.

Read in milliseconds, before anything is compiled, so that a module that can never run costs no processor time and is
refused for its first fault. What is read here is not valid because of it: what cannot be read is left to the engine's
validation, which says why.
Import rule: `app_loader.limits` and the standard library.
"""

from __future__ import annotations

import mmap
import os

from app_loader.limits import MAX_EXPORTS, MAX_IMPORTS, MAX_SECTION_HEADS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HEAD_BYTES = 8
"""A file's magic and version, which say whether it is a core module or a component."""
TYPES, IMPORTS, FUNCTIONS, EXPORTS, CODE = 1, 2, 3, 7, 10
"""Sections of a core module."""
CORE_MODULE, COMPONENT, COMPONENT_IMPORTS, COMPONENT_EXPORTS = 1, 4, 10, 11
"""Sections of a component."""
_SECTION_HEAD_BYTES = 6
_FUNCTION, _TABLE, _MEMORY, _GLOBAL, _TAG = range(5)
_FUNCTION_TYPE = 0x60
_HAS_MAXIMUM, _HAS_PAGE_SIZE = 1, 8
_CORE_SORT, _VALUE_SORT, _TYPE_SORT = 0, 2, 3
_TYPES = {0x7F: "i32", 0x7E: "i64", 0x7D: "f32", 0x7C: "f64", 0x7B: "v128", 0x70: "funcref", 0x6F: "externref"}
_TYPES |= {0x69: "exnref"}
_TYPED_REFERENCES = (0x63, 0x64)


class Unreadable(Exception):
    """What is to be read is no such section, or is of a proposal that is not known here."""


class _Reader:
    """Numbers and names, one after the other."""

    def __init__(self, data: mmap.mmap | bytes, place: int, end: int) -> None:
        if end > len(data):
            raise Unreadable
        self.data, self.place, self.end = data, place, end

    def __repr__(self) -> str:
        return f"_Reader({self.place}, {self.end})"

    def byte(self) -> int:
        if self.place >= self.end:
            raise Unreadable
        self.place += 1
        return self.data[self.place - 1]

    def number(self, bits: int = 32) -> int:
        """An unsigned LEB128 number."""
        value = shift = 0
        while shift < bits:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >> bits:
                    raise Unreadable
                return value
            shift += 7
        raise Unreadable

    def name(self) -> str:
        size = self.number()
        start, self.place = self.place, self.place + size
        if self.place > self.end:
            raise Unreadable
        try:
            return bytes(self.data[start : self.place]).decode()
        except UnicodeDecodeError as error:
            raise Unreadable from error

    def value_type(self) -> str:
        byte = self.byte()
        if byte in _TYPED_REFERENCES:
            self.number()
            return "a reference"
        if byte not in _TYPES:
            raise Unreadable
        return _TYPES[byte]

    def limits(self) -> None:
        """Of a table or a memory."""
        flags = self.byte()
        self.number(64)
        if flags & _HAS_MAXIMUM:
            self.number(64)
        if flags & _HAS_PAGE_SIZE:
            self.number()


Signature = tuple[list[str], list[str]]
"""The types a function takes, and those it returns."""


class CoreOutline:
    """A core module. imports: module and name of each; functions: the names of the functions it exports; exported,
    imported: how many of everything."""

    def __init__(self, file: int) -> None:
        """Raises Unreadable. Where there are more imports or exports than MAX_IMPORTS, MAX_EXPORTS, none is read."""
        self._data = _mapped(file)
        self._sections = dict(_sections(self._data))
        self.imports: list[tuple[str, str]] = []
        self._imported_types: list[int] = []
        self._places: dict[str, int] = {}
        self.imported, self.exported = self._count(IMPORTS), self._count(EXPORTS)
        if self.imported <= MAX_IMPORTS and self.exported <= MAX_EXPORTS:
            self._read_imports()
            self._read_exports()
        self.functions = list(self._places)

    def __repr__(self) -> str:
        return f"CoreOutline({self.imported} imports, {self.exported} exports)"

    def signature(self, name: str) -> Signature:
        """Of an exported function. Raises Unreadable."""
        place = self._places[name]
        if place < len(self._imported_types):
            return self._type(self._imported_types[place])
        reader, count = self._vector(FUNCTIONS)
        if place - len(self._imported_types) >= count:
            raise Unreadable
        for _ in range(place - len(self._imported_types)):
            reader.number()
        return self._type(reader.number())

    def _vector(self, section: int) -> tuple[_Reader, int]:
        start, end = self._sections.get(section, (0, 0))
        reader = _Reader(self._data, start, end)
        return reader, reader.number() if end else 0

    def _count(self, section: int) -> int:
        return self._vector(section)[1]

    def _read_imports(self) -> None:
        reader, count = self._vector(IMPORTS)
        for _ in range(count):
            self.imports.append((reader.name(), reader.name()))
            kind = reader.byte()
            if kind == _FUNCTION:
                self._imported_types.append(reader.number())
            elif kind == _TABLE:
                reader.value_type()
                reader.limits()
            elif kind == _MEMORY:
                reader.limits()
            elif kind == _GLOBAL:
                reader.value_type()
                reader.byte()
            elif kind == _TAG:
                reader.byte()
                reader.number()
            else:
                raise Unreadable

    def _read_exports(self) -> None:
        reader, count = self._vector(EXPORTS)
        for _ in range(count):
            name, kind, index = reader.name(), reader.byte(), reader.number()
            if kind == _FUNCTION:
                self._places[name] = index

    def _type(self, wanted: int) -> Signature:
        reader, count = self._vector(TYPES)
        if wanted >= count:
            raise Unreadable
        found: Signature = ([], [])
        for _ in range(wanted + 1):
            if reader.byte() != _FUNCTION_TYPE:
                raise Unreadable
            found = ([reader.value_type() for _ in range(reader.number())], [])
            found[1].extend(reader.value_type() for _ in range(reader.number()))
        return found


class ComponentOutline:
    """A component. imports, exports: their names."""

    def __init__(self, file: int) -> None:
        """Raises Unreadable. Where there are more than MAX_IMPORTS or MAX_EXPORTS, it is."""
        self.imports: list[str] = []
        self.exports: list[str] = []
        data = _mapped(file)
        for section, (start, end) in _sections(data):
            reader = _Reader(data, start, end)
            if section == COMPONENT_IMPORTS:
                self._read(reader, self.imports, MAX_IMPORTS, self._skip_type)
            elif section == COMPONENT_EXPORTS:
                self._read(reader, self.exports, MAX_EXPORTS, self._skip_export)

    def __repr__(self) -> str:
        return f"ComponentOutline({self.imports!r}, {self.exports!r})"

    @staticmethod
    def _read(reader: _Reader, into: list[str], most: int, skip: Callable[[_Reader], None]) -> None:
        count = reader.number()
        if len(into) + count > most:
            raise Unreadable
        for _ in range(count):
            reader.byte()  # how the name is written, which is all the same to us
            into.append(reader.name())
            skip(reader)

    @staticmethod
    def _skip_type(reader: _Reader) -> None:
        sort = reader.byte()
        if sort == _CORE_SORT:
            reader.byte()
            reader.number()
        elif sort == _TYPE_SORT:
            if reader.byte() == 0:
                reader.number()
        elif sort == _VALUE_SORT:
            raise Unreadable
        else:
            reader.number()

    @classmethod
    def _skip_export(cls, reader: _Reader) -> None:
        if reader.byte() == _CORE_SORT:
            reader.byte()
        reader.number()
        if reader.byte():
            cls._skip_type(reader)


def _mapped(file: int) -> mmap.mmap:
    try:
        return mmap.mmap(file, 0, access=mmap.ACCESS_READ)
    except ValueError as error:  # it is empty
        raise Unreadable from error


def _sections(data: mmap.mmap) -> Iterator[tuple[int, tuple[int, int]]]:
    """Each section's number, and where its contents begin and end. Raises Unreadable."""
    place, count = HEAD_BYTES, 0
    while place < len(data):
        count += 1
        reader = _Reader(data, place, min(len(data), place + _SECTION_HEAD_BYTES))
        number, size = reader.byte(), reader.number()
        place = reader.place + size
        if place > len(data) or count > MAX_SECTION_HEADS:
            raise Unreadable
        yield number, (reader.place, place)


def code_bytes(file: int, *, component: bool) -> int:
    """How much code a file has, in its code sections, at any depth of a component; all of it where that cannot be read.

    No more is read than each section's number and size.
    """
    size = os.fstat(file).st_size
    found = heads = 0
    ranges = [(HEAD_BYTES, size, component)]  # still to be looked at
    while ranges:
        place, end, in_component = ranges.pop()
        while place < end:
            heads += 1
            head = os.pread(file, _SECTION_HEAD_BYTES, place)
            reader = _Reader(head, 0, min(len(head), end - place))
            try:
                number, length = reader.byte(), reader.number()
            except Unreadable:
                return size
            start, place = place + reader.place, place + reader.place + length
            if place > end or heads > MAX_SECTION_HEADS:
                return size
            if in_component and number in (CORE_MODULE, COMPONENT):
                ranges.append((start + HEAD_BYTES, place, number == COMPONENT))
            elif not in_component and number == CODE:
                found += length
    return found
