"""YAML read strictly: bounded before it is parsed, every value with its line and column, every fault reported.

Plain words mean what YAML 1.2 says (only `true` and `false` are booleans, so `restart: no` is a word). Refused are
anchors and aliases (a bomb of a few lines), tags, directives, a second document, keys that occur twice, deep nesting.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import yaml

MAX_BYTES = 1024 * 1024
"""A manifest with arguments and environment at half the kernel's limit; checked before anything is parsed."""
MAX_DEPTH = 16
MAX_FAULTS = 50
"""More are of no use to a person, and a hostile file has as many as bytes."""
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,3})?", re.ASCII)
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ufffe\uffff]")
_LOADER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
_CONSTANTS = {"null": None, "~": None, "": None, "true": True, "false": False}

Scalar = str | int | float | bool | None


class _Mark(Protocol):
    """A place in the text, from either of PyYAML's parsers; both count from 0."""

    line: int
    column: int


class Fault(NamedTuple):
    """What is wrong, and where: line and column count from 1."""

    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}: {self.message}"


class Node:
    """A value with its place; text: a scalar as it is written; key: the place of its key, where it has one.

    broken: its fault is reported already, and nothing more should be said of it.
    """

    __slots__ = ("broken", "column", "key", "line", "text", "value")

    def __init__(self, line: int, column: int, *, broken: bool = False) -> None:
        self.line, self.column, self.broken = line, column, broken
        self.value: Scalar | list[Node] | dict[str, Node] = None
        self.text = ""
        self.key: tuple[int, int] | None = None

    def __repr__(self) -> str:
        return f"Node({self.line}, {self.column}, {self.plain()!r})"

    def plain(self) -> object:
        """The value as lists, dictionaries and scalars."""
        if isinstance(self.value, dict):
            return {name: node.plain() for name, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


class _Open:
    """A list or mapping under construction, and the key that waits for its value."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.key: Node | None = None


class _Faults(Exception):
    """Nothing can be read beyond this point."""


class _Builder:
    """Makes the tree of the parser's events, without recursion."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.root: Node | None = None
        self.stack: list[_Open] = []

    def fault(self, place: tuple[int, int], message: str) -> None:
        self.faults.append(Fault(*place, message))
        if len(self.faults) >= MAX_FAULTS:
            raise _Faults

    def take(self, event: yaml.Event) -> None:
        place = _place(event.start_mark)
        if isinstance(event, yaml.DocumentStartEvent):
            if self.root is not None:
                self.fault(place, "a second document begins here; one file describes one thing")
                raise _Faults
            if event.tags or event.version:
                self.fault(place, "directives (%) are not used here; leave the line out")
        elif isinstance(event, yaml.AliasEvent):
            self.fault(place, f"aliases are not allowed; write out what *{event.anchor} stands for")
            self.place(Node(*place, broken=True))
        elif isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)):
            self.node(event, place)
        elif isinstance(event, yaml.CollectionEndEvent):
            self.stack.pop()

    def node(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent, place: tuple[int, int]) -> None:
        node = Node(*place)
        if event.anchor is not None:
            self.fault(place, f"anchors are not allowed; leave out &{event.anchor}")
        if event.tag is not None:
            self.fault(place, f"tags are not allowed; leave out {event.tag}")
            node.broken = True
        if isinstance(event, yaml.ScalarEvent):
            node.text = event.value
            node.value = _resolve(event.value) if event.implicit[0] and not event.style else event.value
            self.place(node)
            return
        node.value = {} if isinstance(event, yaml.MappingStartEvent) else []
        self.place(node)
        self.stack.append(_Open(node))
        if len(self.stack) > MAX_DEPTH:
            self.fault(place, f"it is nested more than {MAX_DEPTH} deep")
            raise _Faults

    def place(self, node: Node) -> None:
        if not self.stack:
            self.root = node
            return
        parent = self.stack[-1]
        if isinstance(parent.node.value, list):
            parent.node.value.append(node)
        elif parent.key is None:
            parent.key = node
            if isinstance(node.value, (dict, list)):
                self.faults.append(Fault(node.line, node.column, "a key must be a word, not a list or a mapping"))
        else:
            self.entry(parent, parent.key, node)
            parent.key = None

    def entry(self, parent: _Open, key: Node, node: Node) -> None:
        assert isinstance(parent.node.value, dict)  # noqa: S101  # the caller has looked
        first = parent.node.value.get(key.text)
        if first is not None and first.key is not None:
            self.faults.append(
                Fault(key.line, key.column, f"duplicate key {key.text[:40]!r}; the first is in line {first.key[0]}")
            )
        node.key = (key.line, key.column)
        parent.node.value[key.text] = node


def _resolve(text: str) -> Scalar:
    lowered = text.lower() if text in (text.lower(), text.upper(), text.capitalize()) else text
    if lowered in _CONSTANTS:
        return _CONSTANTS[lowered]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def _place(mark: _Mark | None) -> tuple[int, int]:
    return (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)


def _place_of(text: str, offset: int) -> tuple[int, int]:
    before = text[:offset]
    return before.count("\n") + 1, offset - before.rfind("\n")


def _decoded(data: bytes) -> tuple[str, list[Fault]]:
    if len(data) > MAX_BYTES:
        return "", [Fault(1, 1, f"it is over {MAX_BYTES} bytes")]
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        return "", [Fault(data[: error.start].count(b"\n") + 1, 1, "it is not UTF-8 text")]
    control = _CONTROL.search(text)
    if control is not None:
        line, column = _place_of(text, control.start())
        return "", [Fault(line, column, f"a control character (U+{ord(control[0]):04X}) is not allowed")]
    return text, []


def parse(data: bytes) -> tuple[Node | None, list[Fault]]:
    """The tree of a document and what is wrong with its YAML; no tree where nothing could be read."""
    text, faults = _decoded(data)
    if faults:
        return None, faults
    builder = _Builder()
    events: Iterator[yaml.Event] = yaml.parse(text, Loader=_LOADER)
    try:
        for event in events:
            builder.take(event)
    except _Faults:
        return None, builder.faults
    except yaml.MarkedYAMLError as error:
        place = _place(error.problem_mark or error.context_mark)
        return None, [*builder.faults, Fault(*place, f"it is not YAML: {error.problem}")]
    except yaml.YAMLError as error:
        return None, [*builder.faults, Fault(1, 1, f"it is not YAML: {' '.join(str(error).split())}")]
    return builder.root, builder.faults
