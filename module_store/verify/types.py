"""The types of the component model, read strictly, as far as an imported interface's functions need them."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from module_store.verify.binary import Reader, over_budget
from module_store.verify.module import global_type, read_limits, table_type, tag_type, value_types

MAX_TYPE_DEPTH = 16
"""Types of components in types of components; the tools of today nest two."""
MAX_ITEMS = 100_000
"""Of one list: fields, cases, parameters, declarations."""
_PRIMITIVE = frozenset((*range(0x73, 0x80), 0x64))
_FUNCTION, _ASYNC_FUNCTION, _COMPONENT, _INSTANCE, _RESOURCE, _ASYNC_RESOURCE = 0x40, 0x43, 0x41, 0x42, 0x3F, 0x3E


class Interface(NamedTuple):
    """The type of an instance: the functions that it has."""

    functions: tuple[str, ...]


Known = Interface | None
"""What is kept of a type: of others than interfaces nothing is asked."""


class Scope:
    """The types by their indices, inside a component, or inside the type of one; `outer` encloses it.

    modules: the place of each core module among all; None for one that is another component's.
    """

    SORTS: ClassVar[dict[int, str]] = {1: "func", 2: "value", 3: "type", 4: "component", 5: "instance"}

    def __init__(self, outer: Scope | None) -> None:
        self.outer = outer
        self.types: list[Known] = []
        self.modules: list[int | None] = []
        self.depth: int = 0 if outer is None else outer.depth + 1

    def type_at(self, index: int) -> Known:
        """What is known of a type; nothing where there is no such type, which is the engine's to refuse."""
        return self.types[index] if index < len(self.types) else None

    def outward(self, levels: int) -> Scope | None:
        """The scope so many levels out."""
        scope: Scope | None = self
        while levels and scope is not None:
            scope, levels = scope.outer, levels - 1
        return scope


def read_extern_name(reader: Reader) -> str:
    """The name of an import or export."""
    if reader.byte() > 1:
        raise reader.fault("a name is of an unknown form")
    return reader.name()


def _value_type(reader: Reader) -> None:
    index = reader.s33()
    if index < 0 and index + 0x80 not in _PRIMITIVE:
        raise reader.fault(f"there is no type {index + 0x80:#x} of a value that an engine here takes")


def _optional(reader: Reader) -> None:
    present = reader.byte()
    if present > 1:
        raise reader.fault("an optional type is malformed")
    if present:
        _value_type(reader)


def _fields(reader: Reader, *, types: bool = True) -> None:
    for _ in range(reader.count("members", MAX_ITEMS)):
        reader.name()
        if types:
            _value_type(reader)


def _cases(reader: Reader) -> None:
    for _ in range(reader.count("cases", MAX_ITEMS, 3)):
        reader.name()
        _optional(reader)
        if reader.byte():
            raise reader.fault("a case is malformed")


def _defined(reader: Reader, form: int) -> None:
    """A type of values, after its first byte."""
    if form in _PRIMITIVE:
        return
    if form == 0x72:
        _fields(reader)
    elif form == 0x71:
        _cases(reader)
    elif form in (0x70, 0x6B):
        _value_type(reader)
    elif form == 0x67:
        _value_type(reader)
        reader.u32()
    elif form == 0x6F:
        for _ in range(reader.count("members", MAX_ITEMS)):
            _value_type(reader)
    elif form in (0x6E, 0x6D):
        _fields(reader, types=False)
    elif form == 0x6A:
        _optional(reader)
        _optional(reader)
    elif form in (0x69, 0x68):
        reader.u32()
    elif form in (0x66, 0x65):
        _optional(reader)
    elif form == 0x63:
        _value_type(reader)
        _value_type(reader)
    else:
        raise reader.fault(f"there is no form {form:#x} of a type that an engine here takes")


def _function(reader: Reader) -> None:
    _fields(reader)
    results = reader.byte()
    if results == 0:
        _value_type(reader)
    elif results != 1 or reader.byte() != 0:
        raise reader.fault("a function's result is malformed")


def read_type(reader: Reader, scope: Scope) -> Known:
    """One definition of a type; what is kept of it."""
    form = reader.byte()
    if form in (_FUNCTION, _ASYNC_FUNCTION):
        _function(reader)
    elif form in (_COMPONENT, _INSTANCE):
        return _declarations(reader, scope, component=form == _COMPONENT)
    elif form in (_RESOURCE, _ASYNC_RESOURCE):
        reader.byte()
        for _ in range(1 if form == _RESOURCE else 2):
            if reader.byte():
                reader.u32()
    else:
        _defined(reader, form)
    return None


def _declarations(reader: Reader, outer: Scope, *, component: bool) -> Known:
    scope, functions = Scope(outer), list[str]()
    if scope.depth > MAX_TYPE_DEPTH:
        raise over_budget(reader.at, "levels of types", scope.depth, MAX_TYPE_DEPTH)
    for _ in range(reader.count("declarations", MAX_ITEMS, 2)):
        form = reader.byte()
        if form == 0:
            _core_type(reader)
        elif form == 1:
            scope.types.append(read_type(reader, scope))
        elif form == 2:
            read_alias(reader, scope)
        elif form == 4 or (form == 3 and component):
            name = read_extern_name(reader)
            kind, _ = read_described(reader, scope)
            if form == 4 and kind == "func":
                functions.append(name)
            elif form == 4 and kind in ("instance", "component", "module"):
                functions.append(f"{name}/*")
        else:
            raise reader.fault(f"a declaration is of the unknown form {form:#x}")
    return None if component else Interface(tuple(functions))


def read_alias(reader: Reader, scope: Scope) -> None:
    """An alias: a type's becomes a type of `scope`."""
    sort = reader.byte()
    if sort == 0:
        if reader.byte() == 0x11:
            scope.modules.append(None)
    elif sort not in Scope.SORTS:
        raise reader.fault("an alias is of an unknown kind")
    target, index, known = reader.byte(), reader.u32(), None
    if target in (0, 1):
        reader.name()
    elif target == 2:
        enclosing, of = scope.outward(index), reader.u32()
        known = enclosing.type_at(of) if enclosing is not None else None
    else:
        raise reader.fault("an alias is malformed")
    if sort == 3:
        scope.types.append(known)


def read_described(reader: Reader, scope: Scope, *, declares: bool = True) -> tuple[str, Known]:
    """What is said of an import or export: its kind, and its type where it is an instance's.

    declares: whether a type among them becomes a type of `scope`.
    """
    form = reader.byte()
    if form == 0:
        if reader.byte() != 0x11:
            raise reader.fault("a core module's description is malformed")
        reader.u32()
        return "module", None
    if form not in Scope.SORTS:
        raise reader.fault(f"an import or export is of the unknown kind {form:#x}")
    kind, known = Scope.SORTS[form], None
    if kind == "value":
        if reader.byte():
            _value_type(reader)
        else:
            reader.u32()
    elif kind == "type":
        if (bound := reader.byte()) == 0:
            known = scope.type_at(reader.u32())
        elif bound != 1:
            raise reader.fault("a type's bound is malformed")
        if declares:
            scope.types.append(known)
    else:
        known = scope.type_at(reader.u32())
    return kind, known


def _core_type(reader: Reader) -> None:
    """A core type among declarations: a function's, or a module's."""
    form = reader.byte()
    if form == 0x60:
        value_types(reader)
        value_types(reader)
        return
    if form != 0x50:
        raise reader.fault(f"a core type is of the form {form:#x}, which no engine here takes")
    for _ in range(reader.count("declarations", MAX_ITEMS, 2)):
        form = reader.byte()
        if form == 0:
            reader.name()
            reader.name()
            _core_described(reader)
        elif form == 1:
            if reader.byte() != 0x60:
                raise reader.fault("a module's type declares a type that no engine here takes")
            value_types(reader)
            value_types(reader)
        elif form == 2:
            reader.take(2)
            reader.u32()
            reader.u32()
        elif form == 3:
            reader.name()
            _core_described(reader)
        else:
            raise reader.fault(f"a declaration is of the unknown form {form:#x}")


def _core_described(reader: Reader) -> None:
    kind = reader.byte()
    if kind == 0:
        reader.u32()
    elif kind == 1:
        table_type(reader)
    elif kind == 2:
        read_limits(reader)
    elif kind == 3:
        global_type(reader)
    elif kind == 4:
        tag_type(reader)
    else:
        raise reader.fault("a core import or export is of an unknown kind")
