"""A core module's sections: types, imports, counts and sizes. Bodies are passed over by their sizes.

What no keep's engine takes (struct and array types) is refused here too, so that what is described is whole.
Memory is bounded by the file's size: of types only their places are kept, and what is named is counted first.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

from module_store.verify.binary import (
    CONSTANT,
    SECTION_ENTRIES,
    U32,
    VALUE_TYPE,
    Allowance,
    Reader,
    Unreadable,
    repeated,
)
from module_store.verify.module import (
    KINDS,
    TYPES,
    Code,
    CoreModule,
    Export,
    Import,
    Segments,
    Size,
    global_type,
    read_limits,
    table_type,
    tag_type,
    value_type,
)

PREAMBLE = b"\0asm\1\0\0\0"
MAX_TYPES = MAX_FUNCTIONS = MAX_GLOBALS = MAX_TAGS = 1_000_000
MAX_SEGMENTS = 100_000
MAX_MEMORIES = MAX_TABLES = 100
MAX_PARAMETERS = 1000
"""The engine's own limits (wasmparser's `limits.rs`): what is over them it refuses too."""
MAX_NAMED = 100_000
"""Imports and exports, each of which is described by name: a tenth of what the engine takes."""
_SIMPLE = bytes(TYPES)
_INDICES, _CONSTANTS, _VALUES = repeated(U32), repeated(CONSTANT), repeated(VALUE_TYPE)
_ORDER = (1, 2, 3, 4, 5, 13, 6, 7, 8, 9, 12, 10, 11)
"""Section identifiers in the order in which they may come; 12 is the data count, 13 are the tags."""


class _Parser:
    """Reads one module's sections into its fields."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.types, self.functions = array("L"), array("L")
        self.imports: list[Import] = []
        self.tables: list[Size] = []
        self.memories: list[Size] = []
        self.tags = array("L")
        self.globals = 0
        self.exports: list[Export] = []
        self.start: int | None = None
        self.elements, self.data, self.code = Segments(), Segments(), Code()
        self.data_count: int | None = None
        self.custom: list[tuple[str, int]] = []
        self.sections: dict[int, Callable[[Reader], None]] = {
            1: self.read_types,
            2: self.read_imports,
            3: self.read_functions,
            4: self.read_tables,
            5: self.read_memories,
            6: self.read_globals,
            7: self.read_exports,
            8: self.read_start,
            9: self.read_elements,
            10: self.read_code,
            11: self.read_data,
            12: self.read_data_count,
            13: self.read_tags,
        }

    def parse(self) -> CoreModule:
        reader, offset, last = self.reader, self.reader.at, -1
        allowance = reader.allowance or Allowance()
        if reader.left < 8 or reader.take(8) != PREAMBLE:
            raise Unreadable(offset, "it does not begin as a core module does")
        while reader.left:
            identifier = reader.byte()
            part = reader.part(reader.u32())
            allowance.take(SECTION_ENTRIES, part.at)
            if identifier == 0:
                self.read_custom(part)
                continue
            if identifier not in _ORDER:
                raise Unreadable(part.at, f"there is no section {identifier} that an engine here takes")
            if _ORDER.index(identifier) <= last:
                raise Unreadable(part.at, f"section {identifier} comes twice, or too late")
            last = _ORDER.index(identifier)
            self.sections[identifier](part)
            part.finish(f"section {identifier}")
        if self.code.number != len(self.functions):
            raise reader.fault(f"it declares {len(self.functions):,} functions and has {self.code.number:,} bodies")
        if self.data_count is not None and self.data_count != self.data.number:
            raise reader.fault(f"it announces {self.data_count:,} data segments and has {self.data.number:,}")
        return self.found(offset)

    def found(self, offset: int) -> CoreModule:
        return CoreModule(
            self.reader.data,
            offset,
            self.reader.end - offset,
            self.types,
            tuple(self.imports),
            self.functions,
            tuple(self.tables),
            tuple(self.memories),
            self.tags,
            self.globals,
            tuple(self.exports),
            self.start,
            self.elements,
            self.data,
            self.code,
            tuple(self.custom),
        )

    def read_custom(self, reader: Reader) -> None:
        size = reader.left
        self.custom.append((reader.name(), size))

    def read_types(self, reader: Reader) -> None:
        data, end, places = reader.data, reader.end, self.types
        for _ in range(reader.count("types", MAX_TYPES, 3)):
            at = reader.at
            places.append(at)
            if reader.byte() != 0x60:
                raise Unreadable(at, "a type is not a function's, and no engine here takes others")
            for _ in range(2):  # parameters, results: most are few, and of one byte each
                at = reader.at
                size = data[at] if at < end else 0
                if size < 0x80 and at + size < end and not bytes(data[at + 1 : at + 1 + size]).translate(None, _SIMPLE):
                    reader.at = at + 1 + size
                else:
                    reader.skip_items(reader.count("values", MAX_PARAMETERS, cheap=True), _VALUES, "a type")

    def read_imports(self, reader: Reader) -> None:
        for _ in range(reader.count("imports", MAX_NAMED, 4)):
            module, name, kind = reader.name(), reader.name(), reader.byte()
            of: int | str | Size
            if kind == 0:
                of = reader.u32()
            elif kind == 1:
                of = table_type(reader)
                self.tables.append(of)
            elif kind == 2:
                of = read_limits(reader)
                self.memories.append(of)
            elif kind == 3:
                of = global_type(reader)
            elif kind == 4:
                of = tag_type(reader)
                self.tags.append(of)
            else:
                raise reader.fault(f"an import is of the kind {kind}, which no engine here takes")
            self.imports.append(Import(module, name, KINDS[kind], of))

    def read_functions(self, reader: Reader) -> None:
        count = reader.count("functions", MAX_FUNCTIONS, cheap=True)
        rest = bytes(reader.data[reader.at : reader.end])
        if len(rest) == count and rest.isascii():  # each index is one byte
            self.functions.extend(rest)
            reader.at = reader.end
            return
        for _ in range(count):
            self.functions.append(reader.u32())

    def read_tables(self, reader: Reader) -> None:
        for _ in range(reader.count("tables", MAX_TABLES, 3)):
            explicit = reader.left and reader.data[reader.at] == 0x40
            if explicit and reader.take(2)[1:] != b"\0":
                raise reader.fault("a table is malformed")
            self.tables.append(table_type(reader))
            if explicit:
                reader.constant()

    def read_memories(self, reader: Reader) -> None:
        for _ in range(reader.count("memories", MAX_MEMORIES, 2)):
            self.memories.append(read_limits(reader))

    def read_tags(self, reader: Reader) -> None:
        for _ in range(reader.count("tags", MAX_TAGS, 2)):
            self.tags.append(tag_type(reader))

    def read_globals(self, reader: Reader) -> None:
        self.globals = reader.count("globals", MAX_GLOBALS, 3)
        for _ in range(self.globals):
            global_type(reader)
            reader.constant()

    def read_exports(self, reader: Reader) -> None:
        names: set[str] = set()
        for _ in range(reader.count("exports", MAX_NAMED, 3)):
            name, kind, index = reader.name(), reader.byte(), reader.u32()
            if kind >= len(KINDS):
                raise reader.fault(f"an export is of the kind {kind}, which no engine here takes")
            if name in names:
                raise reader.fault("two exports have one name")
            names.add(name)
            self.exports.append(Export(name, KINDS[kind], index))

    def read_start(self, reader: Reader) -> None:
        self.start = reader.u32()

    def read_data_count(self, reader: Reader) -> None:
        self.data_count = reader.u32()

    def read_elements(self, reader: Reader) -> None:
        count, items = reader.count("element segments", MAX_SEGMENTS, 2), 0
        for _ in range(count):
            items += self.read_element(reader)
        self.elements = Segments(count, items)

    def read_element(self, reader: Reader) -> int:
        flags = reader.u32()
        if flags > 7:
            raise reader.fault(f"an element segment has the unknown flags {flags:#x}")
        if not flags & 1:
            if flags & 2:
                reader.u32()
            reader.constant()
        if flags & 4:
            if flags & 3:
                value_type(reader)
        elif flags & 3 and reader.byte() != 0:
            raise reader.fault("an element segment is of an unknown kind")
        count = reader.count("elements", reader.left, cheap=True)
        reader.skip_items(count, _CONSTANTS if flags & 4 else _INDICES, "an element")
        return count

    def read_code(self, reader: Reader) -> None:
        count = reader.count("bodies", MAX_FUNCTIONS, cheap=True)
        start = at = reader.at
        data, end, largest, total = reader.data, reader.end, 0, 0
        for _ in range(count):
            size = data[at] if at < end else 0x80
            if size < 0x80:  # most bodies; a call for each would take as long again
                at += 1
            else:
                reader.at = at
                size = reader.u32()
                at = reader.at
            at += size
            total += size
            if size > largest:
                largest = size
        if at > end:
            raise reader.fault("a body is longer than its section")
        reader.at = at
        self.code = Code(start, count, largest, total)

    def read_data(self, reader: Reader) -> None:
        count, size = reader.count("data segments", MAX_SEGMENTS, 2), 0
        for _ in range(count):
            flags = reader.u32()
            if flags > 2:
                raise reader.fault(f"a data segment has the unknown flags {flags:#x}")
            if flags == 2:
                reader.u32()
            if flags != 1:
                reader.constant()
            length = reader.u32()
            reader.skip(length)
            size += length
        self.data = Segments(count, size)


def parse_core(reader: Reader) -> CoreModule:
    """The core module that `reader` has. Raises Unreadable, and nothing else."""
    return _Parser(reader).parse()
