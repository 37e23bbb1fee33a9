"""Records whose fields stand in one table, of which parsing, error texts, JSON, JSON Schema and the reference are made.

A record is an immutable value with named fields, written as annotations. A field that crosses a process boundary has a
row, made by `field(TYPE, …)`: its type with bounds and pattern, its default, its name on the wire, and a sentence. The
rows of one class are its wire type, stated nowhere else. Fields without a row stay in the process.

Import rule: `errors` and `patterns` alone (the light part of keep_protocol). `dataclasses` would bring `inspect`, `ast`
and `dis`: 7 ms and 1 MB of every keep. JSON Schema is made of the same rows by `schema`, which no keep imports.
"""

from __future__ import annotations

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.patterns import matches

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module `typing` would be 3.5 ms of every keep's start
    from re import Pattern
    from typing import Any, Self, TypeVar, dataclass_transform

    from keep_protocol.enumeration import Enum

    R = TypeVar("R", bound="Record")
else:

    def dataclass_transform(**_):
        return lambda decorated: decorated


MAX_SECONDS = 1e12
"""JSON has numbers no clock shows: `1e999` reads as infinity, which could not be written again."""
_SHOWN = 60
"""Characters of a refused value that an error repeats."""


def invalid(what: str, why: str) -> KeepfleetError:
    """The error of a value that is not what it must be: `invalid request: field 'port' must be …`."""
    return KeepfleetError(ErrorKind.BAD_REQUEST, f"invalid {what}: {why}")


class Unfit(ValueError):
    """Why a part of a field's value is not what it must be."""


class Type:
    """What the JSON value of a field may be. `must` completes "field 'x' must be …"."""

    must = "a value"

    def parse(self, value: object) -> Any:
        """The field's value. Raises ValueError where `value` is none; a nested record raises KeepfleetError."""
        raise NotImplementedError  # each type of a field has its own

    def encode(self, value: Any) -> object:
        """The value as JSON has it."""
        return value


class Text(Type):
    """A string of at most `longest` characters, all of which must match `pattern`, a regular expression.

    Its classes are those of ASCII; one in text is compiled where it is no plain one: see `patterns`.
    """

    def __init__(self, longest: int = 1 << 20, pattern: str | Pattern[str] | None = None, must: str = "") -> None:
        self.longest, self._pattern = longest, pattern
        self.must = must or "a string"

    @property
    def pattern(self) -> Pattern[str] | None:
        """The compiled pattern, if there is one."""
        if isinstance(self._pattern, str):
            import re

            return re.compile(self._pattern, re.ASCII)
        return self._pattern

    def parse(self, value: object) -> str:
        if not isinstance(value, str) or len(value) > self.longest:
            raise ValueError
        pattern = self._pattern
        if isinstance(pattern, str):
            if not matches(pattern, value):
                raise ValueError
        elif pattern is not None and not pattern.fullmatch(value):
            raise ValueError
        return value


class Whole(Type):
    """A whole number in `low` … `high`."""

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high
        self.must = f"a whole number in {low} … {high}"

    def parse(self, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not self.low <= value <= self.high:
            raise ValueError
        return value


class Seconds(Type):
    """A number of seconds that a clock can show, as a float."""

    must = "a number of seconds"

    def parse(self, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_SECONDS:
            raise ValueError  # which neither NaN nor an infinity passes
        return float(value)


class Flag(Type):
    """`true` or `false`."""

    must = "true or false"

    def parse(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise ValueError  # noqa: TRY004 - of every value alike
        return value


class Word(Type):
    """One member of an enumeration, by its value, which is a string or a number."""

    def __init__(self, words: type[Enum]) -> None:
        self.words = words
        self.must = f"one of {', '.join(str(word.value) for word in words)}"

    def parse(self, value: object) -> Enum:
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise ValueError  # noqa: TRY004 - of every value alike
        return self.words(value)

    def encode(self, value: Any) -> object:
        return value.value


class Maybe(Type):
    """`null`, as None, or a value of another type."""

    def __init__(self, of: Type) -> None:
        self.of = of
        self.must = f"null or {of.must}"

    def parse(self, value: object) -> Any:
        return None if value is None else self.of.parse(value)

    def encode(self, value: Any) -> object:
        return None if value is None else self.of.encode(value)


class Items(Type):
    """A list of at most `most` values of one type, as a tuple."""

    def __init__(self, of: Type, most: int) -> None:
        self.of, self.most = of, most
        self.must = f"a list of at most {most}"

    def parse(self, value: object) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) > self.most:
            raise ValueError
        found: list[Any] = []
        for item in value:
            try:
                found.append(self.of.parse(item))
            except ValueError:
                raise Unfit(f"item {len(found) + 1} must be {self.of.must}{_shown(item)}") from None
        return tuple(found)

    def encode(self, value: Any) -> object:
        return [self.of.encode(item) for item in value]


class Pairs(Type):
    """An object of strings with at most `most` members, as (name, value) pairs, sorted by name where `ordered`."""

    def __init__(self, name: Text, value: Text, most: int, *, ordered: bool = False) -> None:
        self.name, self.value, self.most, self.ordered = name, value, most, ordered
        self.must = f"an object of at most {most} strings"

    def parse(self, value: object) -> tuple[tuple[str, str], ...]:
        if not isinstance(value, dict) or len(value) > self.most:
            raise ValueError
        pairs: list[tuple[str, str]] = []
        for name, text in value.items():
            part: Text = self.name
            try:
                self.name.parse(name)
                part = self.value
                pairs.append((name, self.value.parse(text)))
            except ValueError:
                which = "a name" if part is self.name else f"the value of {name!r}"
                raise Unfit(f"{which} must be {part.must}{_shown(name if part is self.name else text)}") from None
        return tuple(sorted(pairs) if self.ordered else pairs)

    def encode(self, value: Any) -> object:
        return dict(value)


class Nested(Type):
    """Another record, as an object; `what` names it in errors, `strict` is that of `parse`."""

    must = "an object"

    def __init__(self, record: type[Record], what: str, *, strict: bool = False) -> None:
        self.record, self.what, self.strict = record, what, strict

    def parse(self, value: object) -> Record:
        if not isinstance(value, dict):
            raise ValueError  # noqa: TRY004 - of every value alike
        return parse(self.record, value, self.what, strict=self.strict)

    def encode(self, value: Any) -> object:
        return value.to_wire()


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED = _Required()


class Field:
    """One row of a record's table: its type, its default, its name on the wire and what it means."""

    __slots__ = ("about", "default", "name", "type")

    def __init__(self, type: Type, default: object, name: str, about: str) -> None:
        self.type, self.default, self.name, self.about = type, default, name, about


def field(type: Type, *, default: Any = REQUIRED, name: str = "", about: str = "") -> Any:
    """A row: without a default the field is required on the wire; `name` is its name there where it is another one."""
    return Field(type, default, name, about)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class RecordType(type):
    """Makes a class of annotated fields a record: slots, defaults, and the table of those that have a row."""

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> RecordType:
        if "__annotate__" in namespace or "__annotate_func__" in namespace:
            # From 3.14 on; they stand in `__annotations__`, as text, only where the module asks for that (PEP 749).
            raise TypeError(f"the module of the record {name} must have `from __future__ import annotations`")
        names = [own for own, hint in namespace.get("__annotations__", {}).items() if not hint.startswith("ClassVar")]
        inherited = [base for base in bases if isinstance(base, RecordType)]
        defaults = {key: value for base in inherited for key, value in base._defaults.items()}
        table = {key: row for base in inherited for key, row in base._table.items()}
        for own in names:
            value = namespace.pop(own, REQUIRED)
            if isinstance(value, Field):
                value.name = value.name or own
                table[own], value = value, value.default
            if value is not REQUIRED:
                defaults[own] = value
        namespace["__slots__"] = tuple(names)
        namespace["__match_args__"] = (*(known for base in inherited for known in base.__match_args__), *names)
        namespace["_defaults"], namespace["_table"] = defaults, table
        return super().__new__(mcs, name, bases, namespace)

    if TYPE_CHECKING:
        __match_args__: tuple[str, ...]
        _defaults: dict[str, object]
        _table: dict[str, Field]


class Record(metaclass=RecordType):
    """Base of immutable values with named fields.

    Two records are equal when they are of one class and all fields are. Setting or deleting a field raises
    AttributeError. A subclass may check itself as a whole in `_check`, which raises KeepfleetError.
    """

    def __init__(self, *values: object, **named: object) -> None:
        kind: RecordType = type(self)
        names = kind.__match_args__
        if len(values) == len(names) and not named:  # of a frame of output there may be ten thousand a second
            for each, value in zip(names, values):  # noqa: B905  # of one length, as just seen
                object.__setattr__(self, each, value)
            self._check()
            return
        given = {**kind._defaults, **dict(zip(names, values, strict=False)), **named}
        if len(values) > len(names) or set(names[: len(values)]) & named.keys() or len(given) != len(names):
            raise TypeError(f"{type(self).__name__} takes {', '.join(names)}, not {', '.join(given)}")
        for each, value in given.items():
            object.__setattr__(self, each, value)  # AttributeError where there is no such field
        self._check()

    def _check(self) -> None:
        """What only the whole can be checked for; nothing here."""

    def fields(self) -> dict[str, Any]:
        """The record's fields by name, in order."""
        return {name: getattr(self, name) for name in type(self).__match_args__}

    def replace(self, **changes: object) -> Self:
        """The same record with other values of some fields."""
        return type(self)(**{**self.fields(), **changes})

    def to_wire(self) -> dict[str, object]:
        """The fields of the table as JSON members, in order, by their names on the wire."""
        return {row.name: row.type.encode(getattr(self, name)) for name, row in table_of(type(self)).items()}

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} is read-only")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} is read-only")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and type(self) is type(other) and self.fields() == other.fields()

    def __hash__(self) -> int:
        return hash((type(self), *self.fields().values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.fields().items())})"


def table_of(record: type[Record]) -> dict[str, Field]:
    """The rows of a record's table, by the names of its fields, in order."""
    return record._table


def parse(record: type[R], value: dict[str, object], what: str, *, strict: bool = False) -> R:
    """The record in a JSON object; `what` names it in errors, as in "request". A missing field has its default.

    strict: a member that the table does not have is refused, as of a client; without it, it is passed over: another
    process of ours may be of another version. Raises KeepfleetError(BAD_REQUEST) naming the field.
    """
    return record(**members(record, value, what, strict=strict))


def members(record: type[Record], value: dict[str, object], what: str, *, strict: bool = False) -> dict[str, Any]:
    """The values of those fields that have a row, by name, as `parse` reads them."""
    found: dict[str, object] = {}
    for name, row in table_of(record).items():
        if row.name in value:
            found[name] = check(row, value[row.name], what)
        elif row.default is REQUIRED:
            raise invalid(what, f"field {row.name!r} is missing")
    if strict:
        refuse_unknown(value, [row.name for row in table_of(record).values()], what)
    return found


def refuse_unknown(value: dict[str, object], known: list[str], what: str) -> None:
    """Raises KeepfleetError(BAD_REQUEST) for a member that is not one of `known`."""
    for name in value:
        if name not in known:
            raise invalid(what, f"unknown field {name[:_SHOWN]!r}; it takes {', '.join(known) or 'none'}")


def check(row: Field, value: object, what: str) -> Any:
    """The value of one field. Raises KeepfleetError(BAD_REQUEST) naming it."""
    try:
        return row.type.parse(value)
    except Unfit as unfit:
        raise invalid(what, f"field {row.name!r}: {unfit}") from None
    except ValueError:
        raise invalid(what, f"field {row.name!r} must be {row.type.must}{_shown(value)}") from None


def _shown(value: object) -> str:
    return f", not {value[:_SHOWN]!r}" if isinstance(value, str) else ""
