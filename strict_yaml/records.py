"""A tree of YAML read by the table of a record's fields: every fault together, each with its line and column. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import REQUIRED, Items, Maybe, Nested, Record, Type, Unfit, table_of
from strict_yaml.tree import Fault, Node, parse

R = TypeVar("R", bound=Record)
_SHOWN = 40


class Entries(Type):
    """A mapping from names to records of one kind, as a tuple of pairs."""

    def __init__(self, name: Type, record: type[Record], what: str) -> None:
        self.name, self.record, self.what = name, record, what
        self.must = f"a mapping of names to {what}s"

    def parse(self, value: object) -> tuple[tuple[str, Any], ...]:
        if not isinstance(value, dict):
            raise ValueError  # noqa: TRY004 - of every value alike
        entry = Nested(self.record, self.what, strict=True)
        return tuple((self.name.parse(name), entry.parse(item)) for name, item in value.items())

    def encode(self, value: Any) -> object:
        return {name: item.to_wire() for name, item in value}


class _Unread(Exception):
    """A value has faults, which are noted."""


class _Reader:
    """Reads nodes and collects what is wrong with them."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def fault(self, node: Node, message: str, *, key: bool = False) -> None:
        line, column = node.key if key and node.key is not None else (node.line, node.column)
        self.faults.append(Fault(line, column, message))

    def record(self, record: type[R], node: Node, where: str) -> R:
        if node.broken:
            raise _Unread
        if not isinstance(node.value, dict):
            self.fault(node, f"{where or 'the file'} must be a mapping")
            raise _Unread
        rows = {row.name: (name, row) for name, row in table_of(record).items()}
        before, values = len(self.faults), dict[str, Any]()
        for key, entry in node.value.items():
            place = f"{where}.{key[:_SHOWN]}" if where else key[:_SHOWN]
            if key not in rows:
                self.fault(entry, f"unknown key {place!r}; there are {', '.join(rows)}", key=True)
                continue
            name, row = rows[key]
            try:
                values[name] = self.value(row.type, entry, place)
            except _Unread:
                continue
        missing = [name for name, (_, row) in rows.items() if row.default is REQUIRED and name not in node.value]
        if missing:
            self.fault(node, f"{where or 'the file'} has no {', '.join(map(repr, missing))}")
        if len(self.faults) > before:
            raise _Unread
        try:
            return record(**values)
        except KeepfleetError as error:
            self.fault(node, error.message)
            raise _Unread from None

    def value(self, kind: Type, node: Node, where: str) -> Any:
        if node.broken:
            raise _Unread
        if isinstance(kind, Maybe) and node.value is not None:
            return self.value(kind.of, node, where)
        if isinstance(kind, Nested):
            return self.record(kind.record, node, where)
        if isinstance(kind, Items) and isinstance(node.value, list) and len(node.value) <= kind.most:
            items = [self._or_none(kind.of, item, f"{where}[{n}]") for n, item in enumerate(node.value)]
            return self._whole([item for item in items if item is not None], items)
        if isinstance(kind, Entries) and isinstance(node.value, dict):
            return self._entries(kind, node.value, where)
        try:
            return kind.parse(node.plain())
        except Unfit as unfit:
            self.fault(node, f"{where}: {unfit}")
        except KeepfleetError as error:
            self.fault(node, f"{where}: {error.message}")
        except ValueError:
            self.fault(node, f"{where} must be {kind.must}")
        raise _Unread

    def _entries(self, kind: Entries, entries: dict[str, Node], where: str) -> Any:
        found: list[Any] = []
        for name, entry in entries.items():
            try:
                kind.name.parse(name)
            except ValueError:
                self.fault(entry, f"the name {name[:_SHOWN]!r} in {where} must be {kind.name.must}", key=True)
                found.append(None)
                continue
            record = self._or_none(Nested(kind.record, kind.what), entry, f"{where}.{name[:_SHOWN]}")
            found.append(None if record is None else (name, record))
        return self._whole([pair for pair in found if pair is not None], found)

    def _or_none(self, kind: Type, node: Node, where: str) -> Any:
        try:
            return self.value(kind, node, where)
        except _Unread:
            return None

    def _whole(self, read: list[Any], found: list[Any]) -> tuple[Any, ...]:
        if len(read) != len(found):
            raise _Unread
        return tuple(read)


def read(record: type[R], root: Node) -> tuple[R | None, list[Fault]]:
    """The record in a tree, or every fault of it, in the order of their places."""
    reader = _Reader()
    try:
        return reader.record(record, root, ""), []
    except _Unread:
        return None, sorted(reader.faults)


def read_bytes(
    record: type[R], data: bytes, change: Callable[[Node, list[Fault]], None] = lambda root, faults: None
) -> tuple[R | None, list[Fault]]:
    """The record in a file's bytes, or every fault of it, none where the file is empty. `change`: what is done to the
    tree before it is read; it may add faults."""
    root, faults = parse(data)
    if root is not None and not faults:
        change(root, faults)
    return (None, faults) if root is None or faults else read(record, root)


def refused(doing: str, file: str, faults: Sequence[Fault], kind: ErrorKind) -> KeepfleetError:
    """The error for a file with these faults, "cannot DOING FILE: fault", with every fault as evidence."""
    lines = tuple(f"{file}: {fault}" for fault in faults) or (f"{file}: it is empty",)
    more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
    return KeepfleetError(kind, f"cannot {doing} {lines[0]}{more}", lines)
