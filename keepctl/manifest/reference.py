"""The reference page of the manifest, written from its schema: `python -m keepctl.manifest.reference`."""

from __future__ import annotations

from _collections_abc import Iterator
from typing import cast

from keepctl.manifest.schema import SCHEMA, Schema

_HEAD = """\
# Reference: the manifest

One YAML file describes one workload: `keepctl run -f FILE.yaml` runs it, `keepctl manifest check FILE.yaml` says what
is wrong with it, `keepctl manifest schema` prints the JSON Schema this page is generated from. How to use it:
[manifests](../how-to/manifests.md).

The file is UTF-8, at most 1 MiB, one document, read as YAML 1.2: only `true` and `false` are booleans. Anchors,
aliases, tags, directives, and duplicate names are refused. Any member not marked as needed may be left out.
"""


def _type(schema: Schema) -> str:
    enum, types = schema.get("enum"), schema.get("type")
    if isinstance(enum, list):
        return ", ".join(f"`{value}`" for value in enum)
    words = {"object": "mapping", "array": "list", "string": "text", "integer": "whole number", "boolean": "boolean"}
    return " or ".join(
        words.get(name, name) for name in ([types] if isinstance(types, str) else cast("list[str]", types))
    )


def _rules(schema: Schema) -> Iterator[str]:
    if "x-must" in schema:
        yield f"Must {schema['x-must']}."
    if "minimum" in schema and "maximum" in schema:
        yield f"{schema['minimum']} to {schema['maximum']}."
    for keyword, words in (("maxLength", "characters"), ("maxItems", "entries"), ("maxProperties", "entries")):
        if keyword in schema:
            yield f"At most {schema[keyword]} {words}."
    if "default" in schema:
        yield f"Default `{str(schema['default']).lower()}`."


def _rows(schema: Schema) -> Iterator[str]:
    required = cast("list[str]", schema.get("required", []))
    for name, member in cast("dict[str, Schema]", schema["properties"]).items():
        said = " ".join([str(member["description"]), *_rules(member)])
        needed = " (needed)" if name in required else ""
        yield f"| `{name}`{needed} | {_type(member)} | {said} |"


def _table(schema: Schema) -> str:
    return "\n".join(["| member | type | meaning |", "|---|---|---|", *_rows(schema)])


def page() -> str:
    """The whole page."""
    parts = [_HEAD, _table(SCHEMA)]
    for name, member in cast("dict[str, Schema]", SCHEMA["properties"]).items():
        inner = cast(Schema, member.get("items", member))
        if "properties" in inner:
            each = "Each entry has:" if "items" in member else "Its members:"
            parts.append(f"\n## `{name}`\n\n{each}\n\n{_table(inner)}")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    print(page(), end="")
