"""JSON Schema made of the tables of records' fields, for OpenAPI and the reference pages. Pure.

No keep imports it.
"""

from __future__ import annotations

import re
from _collections_abc import Callable

from keep_protocol.fields import (
    REQUIRED,
    Flag,
    Items,
    Maybe,
    Nested,
    Pairs,
    Record,
    Seconds,
    Text,
    Type,
    Whole,
    Word,
    table_of,
)

Schema = dict[str, object]
Refer = Callable[[type[Record]], Schema]
"""How a nested record is named: by a reference, or by its whole schema."""


def inline(record: type[Record]) -> Schema:
    """The whole schema of a nested record, where it stands."""
    return record_schema(record, refer=inline)


def record_schema(record: type[Record], *, refer: Refer = inline, answer: bool = False) -> Schema:
    """An object of exactly the fields of `record`'s table.

    answer: every field is there, as `to_wire` writes them; without it only those are required that have no default.
    """
    properties: dict[str, object] = {}
    required: list[str] = []
    for row in table_of(record).values():
        schema = {**type_schema(row.type, refer), **({"description": row.about} if row.about else {})}
        if not answer and row.default is not REQUIRED and row.default is not None:
            schema["default"] = row.type.encode(row.default)
        properties[row.name] = schema
        if answer or row.default is REQUIRED:
            required.append(row.name)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def type_schema(kind: Type, refer: Refer) -> Schema:
    """What the JSON value of a field may be. Raises TypeError for a type that is not known here."""
    words = getattr(kind, "words", None)
    match kind:
        case Maybe():
            inner = type_schema(kind.of, refer)
            return {"anyOf": [inner, {"type": "null"}]} if "$ref" in inner else {**inner, **_or_null(inner)}
        case Word():
            values = [word.value for word in kind.words]
            return {"type": "integer" if isinstance(values[0], int) else "string", "enum": values}
        case Text() if words is not None:
            return {"type": "string", "enum": list(words)}
        case Text():
            pattern = {} if kind.pattern is None else {"pattern": f"^(?:{_ecma(kind.pattern)})$"}
            return {"type": "string", "maxLength": kind.longest, **pattern}
        case Whole():
            return {"type": "integer", "minimum": kind.low, "maximum": kind.high}
        case Seconds():
            return {"type": "number", "minimum": 0}
        case Flag():
            return {"type": "boolean"}
        case Items():
            return {"type": "array", "items": type_schema(kind.of, refer), "maxItems": kind.most}
        case Pairs():
            return {
                "type": "object",
                "propertyNames": type_schema(kind.name, refer),
                "additionalProperties": type_schema(kind.value, refer),
                "maxProperties": kind.most,
            }
        case Nested():
            return refer(kind.record)
    schema = getattr(kind, "schema", None)
    if schema is None:
        raise TypeError(f"there is no JSON Schema of {type(kind).__name__}")
    found: Schema = schema(refer)
    return found


def _or_null(schema: Schema) -> Schema:
    if "enum" in schema:
        return {"type": [schema["type"], "null"], "enum": [*_list(schema["enum"]), None]}
    return {"type": [schema["type"], "null"]}


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else []


def _ecma(pattern: re.Pattern[str]) -> str:
    """The regular expression as ECMA-262 has it, which JSON Schema uses: `\\Z` is `$` there."""
    return pattern.pattern.replace(r"\Z", "$")
