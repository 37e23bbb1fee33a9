"""What a module may be: a policy with a name, as YAML or as it is here. Unset, a member is what a keep would take."""

from __future__ import annotations

import re
from enum import Enum
from typing import Any

from keep_protocol.constants import MAX_WORKLOAD_BYTES
from keep_protocol.fields import Flag, Items, Maybe, Record, Text, Type, Unfit, Whole, Word, field
from keep_protocol.limits import BOUNDS, DEFAULT_LIMITS
from keep_protocol.wasi import INTERFACES, PREVIEW_1, PREVIEW_1_FUNCTIONS, VERSION

MAX_INTERFACES = 1000
MAX_FUNCTIONS = 1000
"""Of an allow-list that people write; WASI 0.2 has 30 interfaces, the largest with 40 functions."""
ALL = "all"
"""In an allow-list, in place of an interface's functions."""
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SIZE = re.compile(r"([0-9]{1,12})([KMG]?)", re.ASCII)
_MOST = (1 << 53) - 1
"""Every JSON reader keeps such a number whole."""


class Kind(Enum):
    """What a file is."""

    MODULE = "module"
    COMPONENT = "component"


class Size(Type):
    """A number of bytes, or text as `64M`; K, M and G count in 1024."""

    must = "a size: bytes, or 64K, 64M, 1G"

    def parse(self, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise ValueError  # noqa: TRY004 - of every value alike
        match = _SIZE.fullmatch(str(value))
        if match is None or (size := int(match[1]) * _UNITS[match[2]]) > _MOST:
            raise ValueError
        return size


Allowed = tuple[tuple[str, tuple[str, ...] | None], ...]
"""Interfaces, each with its functions, or None for all of them."""


class Imports(Type):
    """An allow-list: a mapping from interfaces to `all` or a list of functions."""

    must = "a mapping of interfaces to `all` or lists of functions"

    def parse(self, value: object) -> Allowed:
        if not isinstance(value, dict) or len(value) > MAX_INTERFACES:
            raise ValueError
        return tuple((str(name), self._functions(str(name), functions)) for name, functions in value.items())

    def _functions(self, interface: str, value: object) -> tuple[str, ...] | None:
        if value == ALL:
            return None
        if (
            not isinstance(value, list)
            or len(value) > MAX_FUNCTIONS
            or not all(isinstance(each, str) for each in value)
        ):
            raise Unfit(f"{interface[:60]!r} must have `all` or a list of at most {MAX_FUNCTIONS} functions")
        return tuple(value)

    def encode(self, value: Any) -> object:
        return {name: ALL if functions is None else list(functions) for name, functions in value}


COUNT = Maybe(Whole(0, _MOST))
BYTES = Maybe(Size())
KEEP_IMPORTS: Allowed = (
    (PREVIEW_1, PREVIEW_1_FUNCTIONS),
    *((f"{package}/{name}@{VERSION}", None) for package, names in INTERFACES.items() for name in names),
)
"""What a keep gives a guest."""
LARGEST_MEMORY = BOUNDS["memory_bytes"][1]


class Policy(Record):
    """The rules that a module must pass. null lifts one; what is not said stays as a keep has it."""

    name: str = field(
        Text(63, "[a-z0-9]([a-z0-9-]*[a-z0-9])?", "1 to 63 of a-z, 0-9 and -"), about="what reports call it"
    )
    about: str = field(Text(1000), default="", about="a sentence for people")
    valid: bool = field(Flag(), default=True, about="it must be valid for the engine, with the features a keep has")
    kinds: tuple[Kind, ...] = field(
        Items(Word(Kind), 2), default=tuple(Kind), about="what it may be: `module` (a core module), `component`"
    )
    size: int | None = field(BYTES, default=MAX_WORKLOAD_BYTES, about="bytes of the file")
    imports: Allowed | None = field(
        Maybe(Imports()), default=KEEP_IMPORTS, about="interfaces that it may import, and which functions of each"
    )
    memories: int | None = field(COUNT, default=None, about="linear memories; of a component, in all its modules")
    memory_initial: int | None = field(
        BYTES, default=DEFAULT_LIMITS.memory_bytes, about="what all memories have at first, in bytes"
    )
    memory_maximum: int | None = field(
        BYTES, default=None, about="what all may grow to, in bytes; one without a maximum counts as 4 GiB"
    )
    tables: int | None = field(COUNT, default=None, about="tables")
    table_initial: int | None = field(
        COUNT, default=DEFAULT_LIMITS.table_elements, about="elements that all tables have at first"
    )
    table_maximum: int | None = field(
        COUNT, default=None, about="elements that all may grow to; one without a maximum counts as 2³²"
    )
    tags: int | None = field(COUNT, default=None, about="tags of exceptions that it defines")
    functions: int | None = field(COUNT, default=None, about="functions that it defines")
    function_bytes: int | None = field(BYTES, default=None, about="bytes of its largest function")
    data_segments: int | None = field(COUNT, default=None, about="data segments")
    data_bytes: int | None = field(BYTES, default=None, about="bytes of all data segments")
    element_segments: int | None = field(COUNT, default=None, about="element segments")
    elements: int | None = field(COUNT, default=None, about="elements of all element segments")
    locals: int | None = field(COUNT, default=None, about="locals of one function; its bodies are decoded for it")
    nesting: int | None = field(
        COUNT, default=None, about="blocks in blocks, at the deepest; its bodies are decoded for it"
    )
    start: bool = field(Flag(), default=True, about="whether it may have a start function, which runs before its entry")
    custom_sections: tuple[str, ...] | None = field(
        Maybe(Items(Text(1000), 1000)), default=None, about="names of the custom sections that it may have"
    )
    custom_bytes: int | None = field(BYTES, default=None, about="bytes of all custom sections")
    modules: int | None = field(COUNT, default=None, about="core modules in a component")
    depth: int | None = field(COUNT, default=None, about="components in components, at the deepest")
    instructions: int | None = field(
        COUNT,
        default=None,
        about="instructions that any exported function may run: no loops, no recursion, no calls through tables",
    )


KEEP = Policy(name="keep")
"""The policy where none is given: what a keep with its default limits takes."""
