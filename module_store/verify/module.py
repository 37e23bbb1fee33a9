"""What a core module is, as its sections say: records, and the readers of the types in them."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from typing import NamedTuple

from keep_protocol.fields import Record
from module_store.verify.binary import VALUE_TYPE, Buffer, Reader, Unreadable

PAGE_BYTES = 65536
MAX_PARAMETERS = 1000
"""The engine's own limit (wasmparser's `limits.rs`)."""
KINDS = ("func", "table", "memory", "global", "tag")
TYPES = {
    0x7F: "i32",
    0x7E: "i64",
    0x7D: "f32",
    0x7C: "f64",
    0x7B: "v128",
    0x70: "funcref",
    0x6F: "externref",
    0x69: "exnref",
    0x74: "nullexnref",
}
_HEAPS = {0x70 - 0x80: "func", 0x6F - 0x80: "extern", 0x69 - 0x80: "exn", 0x74 - 0x80: "noexn"}
"""What a reference is to; a number that is not negative is a type's index."""
_TYPE = re.compile(VALUE_TYPE)


class Size(NamedTuple):
    """What a memory (in pages) or a table (in elements) has at first and may have; maximum: None where none is said."""

    minimum: int
    maximum: int | None
    flags: int = 0


class Import(NamedTuple):
    """What a module asks for: of is the type's index for a function or a tag, else what is said of it."""

    module: str
    name: str
    kind: str
    of: int | str | Size = ""


class Export(NamedTuple):
    """What a module offers."""

    name: str
    kind: str
    place: int


class Segments(NamedTuple):
    """How many segments there are, and what they hold together: bytes of data, or elements."""

    number: int = 0
    items: int = 0


class Code(NamedTuple):
    """Where the bodies are, how many, and the size of the largest and of all."""

    start: int = 0
    number: int = 0
    largest: int = 0
    total: int = 0


class CoreModule(Record):
    """A core module as its sections say. type_places: where each function type begins; functions, tags: each one's
    type, and of tags also those of imports."""

    data: Buffer
    offset: int
    size: int
    type_places: array[int]
    imports: tuple[Import, ...]
    functions: array[int]
    tables: tuple[Size, ...]
    memories: tuple[Size, ...]
    tags: array[int]
    globals: int
    exports: tuple[Export, ...]
    start: int | None
    elements: Segments
    data_segments: Segments
    code: Code
    custom: tuple[tuple[str, int], ...]

    def __repr__(self) -> str:
        return f"CoreModule({self.size} bytes at {self.offset}, {self.code.number} functions)"

    @property
    def imported_functions(self) -> int:
        """How many of the functions' indices are of imports."""
        return sum(each.kind == "func" for each in self.imports)

    @property
    def contents(self) -> memoryview:
        """The module's bytes, not copied."""
        return memoryview(self.data)[self.offset : self.offset + self.size]

    def signature(self, index: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Parameters and results of the type `index`. Raises Unreadable where there is no such type."""
        if index >= len(self.type_places):
            raise Unreadable(self.offset, f"there is no type {index}")
        reader = Reader(self.data, self.type_places[index] + 1, self.offset + self.size)
        return value_types(reader), value_types(reader)

    def bodies(self) -> Iterator[Reader]:
        """Each function's body, in order."""
        reader = Reader(self.data, self.code.start, self.offset + self.size)
        for _ in range(self.code.number):
            yield reader.part(reader.u32())


def value_types(reader: Reader) -> tuple[str, ...]:
    """A list of types, as of parameters."""
    found = []
    for _ in range(reader.count("values", MAX_PARAMETERS)):
        at, first = reader.at, reader.byte()
        if first in TYPES:
            found.append(TYPES[first])
        else:
            reader.at = at
            found.append(value_type(reader))
    return tuple(found)


def value_type(reader: Reader) -> str:
    """One type, in the words of the text format."""
    at = reader.at
    first = reader.data[at] if reader.left else None
    reader.match(_TYPE, "a type")
    if first in TYPES:
        return TYPES[first]
    heap = Reader(reader.data, at + 1, reader.at).s33()
    if first == 0x63 and heap + 0x80 in TYPES:
        return TYPES[heap + 0x80]
    return f"(ref {'null ' if first == 0x63 else ''}{_HEAPS.get(heap, str(heap))})"


def read_limits(reader: Reader) -> Size:
    """The limits of a memory or a table."""
    flags = reader.byte()
    if flags > 7:
        raise reader.fault(f"limits have the unknown flags {flags:#x}")
    return Size(reader.u64(), reader.u64() if flags & 1 else None, flags)  # of 32 bits, too, since version 3.0


def table_type(reader: Reader) -> Size:
    """A table's type: its limits."""
    value_type(reader)
    return read_limits(reader)


def tag_type(reader: Reader) -> int:
    """A tag's type: the index of a function's, whose parameters an exception carries."""
    if reader.byte() != 0:
        raise reader.fault("a tag has an unknown attribute")
    return reader.u32()


def global_type(reader: Reader) -> str:
    """A global's type, in the words of the text format."""
    of = value_type(reader)
    mutable = reader.byte()
    if mutable > 1:
        raise reader.fault(f"a global has the unknown flags {mutable:#x}")
    return f"{'mut ' if mutable else ''}{of}"
