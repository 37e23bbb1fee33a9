"""A component's sections: its imports with the functions of each, its exports, and the modules nested in it.

What needs no description (instances, canonical functions, core types) is passed over by its section's size. Types are
read whole, since an imported interface is one: which functions it has is said there alone. Nesting is bounded.
"""

from __future__ import annotations

from typing import NamedTuple

from keep_protocol.fields import Record
from module_store.verify.binary import SECTION_ENTRIES, Allowance, Buffer, Reader, Unreadable, over_budget
from module_store.verify.core import MAX_NAMED, MAX_TYPES, PREAMBLE, parse_core
from module_store.verify.module import CoreModule
from module_store.verify.types import Interface, Scope, read_alias, read_described, read_extern_name, read_type

COMPONENT_PREAMBLE = b"\0asm\x0d\0\1\0"
MAX_DEPTH = 32
"""Components in components. Tools that link nest two or three."""
MAX_MODULES = 1000
"""The engine's own limit is 1,000 too (wasmparser's MAX_WASM_MODULES)."""
_COUNTED = {3: "core types", 5: "instances", 8: "canonical functions"}
_CORE_MODULE, _CORE_INSTANCE, _COMPONENT, _ALIAS, _TYPE, _START, _IMPORT, _EXPORT = 1, 2, 4, 6, 7, 9, 10, 11


class ComponentImport(NamedTuple):
    """What a component asks for. functions: those of an imported interface; None where they cannot be known."""

    name: str
    kind: str
    functions: tuple[str, ...] | None = ()


class Component(Record):
    """A component as its sections say: its own imports and exports, and every core module in it, however deep.

    instances: the place in `modules` of each core module that it instantiates; None where a nested component does,
    which may itself be instantiated any number of times, or where a module is another's.
    """

    data: Buffer
    size: int
    imports: tuple[ComponentImport, ...]
    exports: tuple[tuple[str, str], ...]
    modules: tuple[CoreModule, ...]
    components: int
    depth: int
    custom: tuple[tuple[str, int], ...]
    instances: tuple[int, ...] | None

    def __repr__(self) -> str:
        return f"Component({self.size} bytes, {len(self.modules)} modules)"


class _Level:
    """A component that is being read, and what encloses it."""

    def __init__(self, reader: Reader, outer: Scope | None) -> None:
        self.reader, self.scope = reader, Scope(outer)
        self.imports: list[ComponentImport] = []
        self.exports: list[tuple[str, str]] = []
        self.instances: list[int | None] = []


class _Parser:
    """Reads components by a stack of levels, not by recursion."""

    def __init__(self, data: Buffer) -> None:
        self.data = data
        self.modules: list[CoreModule] = []
        self.custom: list[tuple[str, int]] = []
        self.components = self.depth = 0

    def parse(self) -> Component:
        allowance = Allowance()
        outermost = self.begin(Reader(self.data, 0, len(self.data), allowance), None)
        levels = [outermost]
        while levels:
            self.depth = max(self.depth, len(levels) - 1)
            level = levels[-1]
            if not level.reader.left:
                levels.pop()
                continue
            identifier = level.reader.byte()
            part = level.reader.part(level.reader.u32())
            allowance.take(SECTION_ENTRIES, part.at)
            if identifier == _COMPONENT:
                if len(levels) > MAX_DEPTH:
                    raise over_budget(part.at, "levels of components", len(levels) + 1, MAX_DEPTH + 1)
                self.components += 1
                levels.append(self.begin(part, level.scope))
            else:
                self.section(level, identifier, part)
        return Component(
            self.data,
            len(self.data),
            tuple(outermost.imports),
            tuple(outermost.exports),
            tuple(self.modules),
            self.components,
            self.depth,
            (*self.custom, *(each for module in self.modules for each in module.custom)),
            self.instances(outermost),
        )

    def instances(self, outermost: _Level) -> tuple[int, ...] | None:
        own = [each for each in outermost.scope.modules if each is not None]
        found = tuple(each for each in outermost.instances if each is not None)
        return found if len(own) == len(self.modules) and len(found) == len(outermost.instances) else None

    def begin(self, reader: Reader, outer: Scope | None) -> _Level:
        at = reader.at
        if reader.left < 8 or reader.take(8) != COMPONENT_PREAMBLE:
            raise Unreadable(at, "it does not begin as a component does")
        return _Level(reader, outer)

    def section(self, level: _Level, identifier: int, part: Reader) -> None:
        if identifier == 0:
            size = part.left
            self.custom.append((part.name(), size))
            return
        if identifier == _CORE_MODULE:
            level.scope.modules.append(len(self.modules))
            self.modules.append(parse_core(part))
            if len(self.modules) > MAX_MODULES:
                raise over_budget(part.at, "core modules", len(self.modules), MAX_MODULES)
            return
        if identifier in _COUNTED:
            part.count(_COUNTED[identifier], MAX_TYPES, cheap=True)
            return
        if identifier == _START:
            part.u32()
            return
        readers = {
            _CORE_INSTANCE: self.read_core_instance,
            _ALIAS: self.read_alias,
            _TYPE: self.read_type,
            _IMPORT: self.read_import,
            _EXPORT: self.read_export,
        }
        if identifier not in readers:
            raise Unreadable(part.at, f"there is no section {identifier} of a component that an engine here takes")
        for _ in range(part.count("entries", MAX_NAMED)):
            readers[identifier](level, part)
        part.finish(f"section {identifier}")

    def read_core_instance(self, level: _Level, part: Reader) -> None:
        form = part.byte()
        if form > 1:
            raise part.fault("a core instance is of an unknown form")
        if form == 0:
            index, modules = part.u32(), level.scope.modules
            level.instances.append(modules[index] if index < len(modules) else None)
        for _ in range(part.count("arguments", MAX_NAMED, 3)):
            part.name()
            part.byte()
            part.u32()

    def read_alias(self, level: _Level, part: Reader) -> None:
        read_alias(part, level.scope)

    def read_type(self, level: _Level, part: Reader) -> None:
        level.scope.types.append(read_type(part, level.scope))

    def read_import(self, level: _Level, part: Reader) -> None:
        name = read_extern_name(part)
        kind, of = read_described(part, level.scope)
        functions: tuple[str, ...] | None = ()
        if kind == "instance":
            functions = of.functions if isinstance(of, Interface) else None
        elif kind in ("component", "module"):
            functions = None
        if kind == "module":
            level.scope.modules.append(None)
        level.imports.append(ComponentImport(name, kind, functions))

    def read_export(self, level: _Level, part: Reader) -> None:
        name, kind = read_extern_name(part), part.byte()
        sort = Scope.SORTS.get(kind)
        if kind == 0:
            sort = "module" if part.byte() == 0x11 else None
        if sort is None:
            raise part.fault("an export is of an unknown kind")
        index = part.u32()
        if sort == "type":
            level.scope.types.append(level.scope.type_at(index))
        elif sort == "module":
            level.scope.modules.append(level.scope.modules[index] if index < len(level.scope.modules) else None)
        described = part.byte()
        if described == 1:
            read_described(part, level.scope, declares=False)
        elif described:
            raise part.fault("an export is malformed")
        level.exports.append((name, sort))


def parse_component(data: Buffer) -> Component:
    """The component that `data` is. Raises Unreadable, and nothing else."""
    return _Parser(data).parse()


def parse(data: Buffer) -> CoreModule | Component:
    """The core module or component that `data` is. Raises Unreadable, and nothing else."""
    head = bytes(data[:8])
    if head == COMPONENT_PREAMBLE:
        return parse_component(data)
    if head != PREAMBLE:
        what = "text" if head[:1].isascii() and head[:1] in b"(; \t\r\n" and head else "neither"
        hint = "; compile the text first" if what == "text" else ""
        raise Unreadable(0, f"it begins neither as a core module nor as a component does{hint}")
    return parse_core(Reader(data, 0, len(data), Allowance()))
