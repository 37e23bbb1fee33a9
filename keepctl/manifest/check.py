"""Checks a tree of YAML against the manifest's schema: every fault, each with its line and column. Pure.

A validator of the keywords the schema uses and no others (a test compares); one of the published packages would bring
five more with it and would not know where in the file a value is.
"""

from __future__ import annotations

import re
from _collections_abc import Callable, Iterator, Mapping
from typing import cast

from strict_yaml.tree import Fault, Node

_SHOWN = 40
_TYPES: Mapping[str, tuple[str, Callable[[object], bool]]] = {
    "string": ("text", lambda value: isinstance(value, str)),
    "integer": ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "number": ("a number", lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)),
    "boolean": ("true or false", lambda value: isinstance(value, bool)),
    "array": ("a list", lambda value: isinstance(value, list)),
    "object": ("a mapping of names to values", lambda value: isinstance(value, dict)),
}
Schema = Mapping[str, object]


def faults_of(node: Node, schema: Schema, what: str = "") -> Iterator[Fault]:
    """What is wrong with `node`, called `what`, by `schema`."""
    if node.broken:
        return
    named = what or "the manifest"
    types = schema.get("type")
    if types is not None:
        allowed = cast("list[str]", [types] if isinstance(types, str) else types)
        if not any(_TYPES[name][1](node.value) for name in allowed):
            yield _fault(node, _type_words(named, node, allowed))
            return
    enum = schema.get("enum")
    if isinstance(enum, list) and node.value not in enum:
        yield _fault(node, f"{named} must be one of {', '.join(map(str, enum))}, not {_shown(node)}")
    if isinstance(node.value, dict):
        yield from _mapping(node, node.value, schema, what)
    elif isinstance(node.value, list):
        yield from _list(node, node.value, schema, what)
    else:
        yield from _scalar(node, schema, named)


def _fault(node: Node, message: str) -> Fault:
    return Fault(node.line, node.column, message)


def _key_fault(node: Node, message: str) -> Fault:
    line, column = node.key or (node.line, node.column)
    return Fault(line, column, message)


def _shown(node: Node) -> str:
    if isinstance(node.value, dict):
        return "a mapping"
    if isinstance(node.value, list):
        return "a list"
    return repr(node.text[:_SHOWN]) if node.text else "nothing"


def _type_words(named: str, node: Node, allowed: list[str]) -> str:
    words = " or ".join(_TYPES[name][0] for name in allowed)
    quotes = f'; write it in quotes: "{node.text[:_SHOWN]}"'
    scalar = not isinstance(node.value, (dict, list)) and node.text
    return f"{named} must be {words}, not {_shown(node)}" + (quotes if "string" in allowed and scalar else "")


def _scalar(node: Node, schema: Schema, named: str) -> Iterator[Fault]:
    value = node.value
    pattern, longest = schema.get("pattern"), schema.get("maxLength")
    if isinstance(value, str):
        if isinstance(pattern, str) and not re.search(pattern.replace("$", r"\Z"), value):
            yield _fault(node, f"{named} must {schema.get('x-must', 'match ' + pattern)}, not {_shown(node)}")
        if isinstance(longest, int) and len(value) > longest:
            yield _fault(node, f"{named} is {len(value)} characters long; at most {longest} fit")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        low, high = schema.get("minimum"), schema.get("maximum")
        if (isinstance(low, (int, float)) and value < low) or (isinstance(high, (int, float)) and value > high):
            within = f"in {low} … {high}" if high is not None else f"at least {low}"
            yield _fault(node, f"{named} must be {within}, not {node.text[:_SHOWN]}")


def _list(node: Node, items: list[Node], schema: Schema, what: str) -> Iterator[Fault]:
    most = schema.get("maxItems")
    if isinstance(most, int) and len(items) > most:
        yield _fault(node, f"{what} has {len(items)} entries; at most {most} fit")
        return
    item = schema.get("items")
    if isinstance(item, dict):
        for number, entry in enumerate(items):
            yield from faults_of(entry, item, f"{what}[{number}]")


def _mapping(node: Node, entries: dict[str, Node], schema: Schema, what: str) -> Iterator[Fault]:
    properties = cast("dict[str, Schema]", schema.get("properties", {}))
    others, most = schema.get("additionalProperties"), schema.get("maxProperties")
    names = cast("Schema", schema.get("propertyNames", {}))
    if isinstance(most, int) and len(entries) > most:
        yield _fault(node, f"{what} has {len(entries)} entries; at most {most} fit")
        return
    for name, entry in entries.items():
        inner = f"{what}.{name[:_SHOWN]}" if what else name[:_SHOWN]
        pattern = names.get("pattern")
        if isinstance(pattern, str) and not re.search(pattern.replace("$", r"\Z"), name):
            yield _key_fault(entry, f"the name {name[:_SHOWN]!r} in {what} must {names['x-must']}")
        if name in properties:
            yield from faults_of(entry, properties[name], inner)
        elif isinstance(others, dict):
            yield from faults_of(entry, others, inner)
        elif others is False:
            known = ", ".join(properties)
            yield _key_fault(entry, f"{inner!r} is not known{f' in {what}' if what else ''}; there are {known}")
    for name in cast("list[str]", schema.get("required", [])):
        if name not in entries:
            yield _fault(node, f"{what or 'the manifest'} has no {name!r}")


IMPLEMENTED = frozenset(
    (
        *("type", "enum", "pattern", "maxLength", "minimum", "maximum", "maxItems", "items"),
        *("properties", "additionalProperties", "maxProperties", "propertyNames", "required"),
    )
)
"""The keywords that are checked here."""
ANNOTATIONS = frozenset(["$schema", "$id", "title", "description", "default", "x-must"])
"""The keywords that say something to people alone."""
