"""Writes what the docs derive from code, between its markers: the state diagram, and the tables of statuses, of
operations, of limits and of shapes.

`python docs/generate.py` rewrites them; `--check` only compares and exits 1 on a difference.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from app_loader.receive import requests  # noqa: E402 - found by the line above
from keep_manager.http import middleware, operations, schemas  # noqa: E402 - found by the line above
from keep_manager.http.schemas import Schema  # noqa: E402 - found by the line above
from keep_manager.keeps.policy import DEFAULT_CEILINGS  # noqa: E402 - found by the line above
from keep_protocol import limits  # noqa: E402 - found by the line above
from keep_protocol.errors import ErrorKind  # noqa: E402 - found by the line above
from keep_protocol.fields import table_of  # noqa: E402 - found by the line above
from keep_protocol.states import STATE_OF, TRANSITIONS, Event, Phase  # noqa: E402 - found by the line above
from module_store.verify.policy import KEEP, Policy  # noqa: E402 - found by the line above

END = "<!-- end -->"


def state_diagram() -> str:
    """The table of keep_protocol.states as a Mermaid diagram; the many moves to `failed` are one line of prose."""
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [f"    {phase.name} : {STATE_OF[phase].value} {phase.value}" for phase in Phase]
    lines += [f"    [*] --> {next(iter(Phase)).name}"]
    lines += [
        f"    {start.name} --> {end.name} : {event.value}"
        for (start, event), end in TRANSITIONS.items()
        if event is not Event.FAIL
    ]
    lines.append("```")
    failing = ", ".join(phase.value for phase, event in TRANSITIONS if event is Event.FAIL)
    lines += ["", f"From {failing}, the event `fail` leads to `failed` (state 15)."]
    return "\n".join(lines)


def status_table() -> str:
    """The statuses error kinds have over HTTP, of the manager and of keeps; a dash where one never says it."""
    lines = ["| kind | manager | keep |", "|---|---|---|"]
    for kind in ErrorKind:
        statuses = [table.get(kind) for table in (middleware.STATUS_OF, requests.STATUS_OF)]
        lines.append(f"| `{kind.value}` | " + " | ".join("—" if s is None else str(int(s)) for s in statuses) + " |")
    return "\n".join(lines)


def operation_table() -> str:
    """Every operation of /v1, from what the OpenAPI document is made of."""
    lines = ["| request | answer | parameters | what it does |", "|---|---|---|---|"]
    for (method, path), operation in operations.OPERATIONS.items():
        body = f" with `{operation.body}`" if operation.body else ""
        answer = f"{operation.status} `{operation.answer}`" if operation.answer else str(operation.status)
        parameters = ", ".join(f"`{parameter.name}`" for parameter in operation.parameters) or "—"
        lines.append(f"| `{method} {path}`{body} | {answer} | {parameters} | {operation.summary} |")
    return "\n".join(lines)


def limit_table() -> str:
    """Every limit with its default, its bounds, and its ceiling where none is configured."""
    lines = ["| limit | default | smallest | largest | ceiling by default |", "|---|---|---|---|---|"]
    for name, (low, high) in limits.BOUNDS.items():
        lines.append(f"| `{name}` | {limits.DEFAULTS[name]} | {low} | {high} | {DEFAULT_CEILINGS[name]} |")
    return "\n".join(lines)


BODIES = ("Create", "Start", "Tag", "Collect", "Signature", "Revoke")
ANSWERS = (
    *("Keep", "Outcome", "Lease", "Module", "Workload", "Uploader", "Page", "Error"),
    *("Store", "StoredObject", "StoredDetails", "Reference", "Collected", "Findings", "Moved", "Signatures"),
    *("Requirements", "Key", "InUse", "Revoked"),
)
"""In the order in which a client meets them; of an answer all members are there, of a body those it needs."""


def shape_tables() -> str:
    """Every member of what /v1 takes and answers, from the schemas of the OpenAPI document."""
    shapes = schemas.schemas()
    parts = []
    for name in BODIES + ANSWERS:
        head = f"### `{name}`\n\n| member | type | meaning |\n|---|---|---|\n"
        parts.append(head + "\n".join(_members(shapes[name], "", mark=name in BODIES)))
    return "\n" + "\n\n".join(parts) + "\n"


def _members(shape: Schema, prefix: str, *, mark: bool) -> Iterator[str]:
    properties = shape["properties"]
    required = shape.get("required")
    assert isinstance(properties, dict)  # noqa: S101 - of an object there are
    assert isinstance(required, list)  # noqa: S101 - of an object it is said
    for name, schema in properties.items():
        needed = " (needed)" if mark and name in required else ""
        yield f"| `{prefix}{name}`{needed} | {_type(schema)} | {_meaning(name, schema)} |"
        inner, more = _inner(schema)
        if inner is not None and name != "limits":
            yield from _members(inner, f"{prefix}{name}{more}.", mark=mark)


def _alternatives(schema: Schema) -> list[Schema]:
    several = schema.get("anyOf")
    return several if isinstance(several, list) else [schema]


def _inner(schema: Schema) -> tuple[Schema | None, str]:
    """The object in `schema` that has members of its own, and how they are reached."""
    for one in _alternatives(schema):
        items = one.get("items")
        if isinstance(items, dict) and "properties" in items:
            return items, "[]"
        if "properties" in one:
            return one, ""
    return None, ""


def _type(schema: Schema) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in _alternatives(schema))
    if "$ref" in schema:
        return f"`{str(schema['$ref']).rpartition('/')[2]}`"
    if isinstance(words := schema.get("enum"), list):
        return "one of " + ", ".join("null" if word is None else f"`{word}`" for word in words)
    kind = schema.get("type")
    text = " or ".join(map(str, kind)) if isinstance(kind, list) else str(kind)
    items = schema.get("items")
    if isinstance(items, dict):
        text += f" of {_type(items)}"
    return text


def _meaning(name: str, schema: Schema) -> str:
    if name == "limits":
        return "[limits](#limits)"
    parts = [str(schema["description"])] if "description" in schema else []
    if "minimum" in schema and "maximum" in schema:
        parts.append(f"{schema['minimum']} … {schema['maximum']}")
    parts += [f"at most {schema[most]}" for most in ("maxItems", "maxProperties") if most in schema]
    if "default" in schema:
        parts.append(f"default `{str(schema['default']).lower()}`")
    return "; ".join(parts) or "—"


def policy_table() -> str:
    """Every member of a policy, with what it is where the file does not say."""
    lines = ["| member | value | where it is left out | meaning |", "|---|---|---|---|"]
    for name, row in table_of(Policy).items():
        must = row.type.must.removeprefix("null or ").partition(" in 0 …")[0].partition(":")[0].partition(" of at")[0]
        default = KEEP.to_wire()[name]
        if name == "imports":
            shown = "what a keep has: WASI 0.1 and 0.2"
        elif name == "name":
            shown = "needed"
        else:
            shown = "not limited" if default is None else f"`{json.dumps(default)}`" if default != "" else "—"
        lines.append(f"| `{name}` | {must} | {shown} | {row.about} |")
    return "\n".join(lines)


GENERATED: tuple[tuple[str, str, Callable[[], str]], ...] = (
    ("architecture.md", "states", state_diagram),
    ("wire-protocol.md", "statuses", status_table),
    ("reference/v1.md", "operations", operation_table),
    ("reference/v1.md", "limits", limit_table),
    ("reference/v1.md", "shapes", shape_tables),
    ("reference/policy.md", "policy", policy_table),
)
"""Page, marker, and what stands after it."""


def filled(text: str, marker: str, content: str) -> str:
    """`text` with the block after `<!-- generated: MARKER -->` renewed. Raises ValueError where it is missing."""
    begin = f"<!-- generated: {marker} -->"
    start = text.index(begin) + len(begin)
    return f"{text[:start]}\n{content}\n{text[text.index(END, start) :]}"


def main() -> int:
    """Renews, or with --check compares; 1 when something differs."""
    stale = 0
    for page, marker, make in GENERATED:
        path = DOCS / page
        old = path.read_text(encoding="utf-8")
        new = filled(old, marker, make())
        if new == old:
            continue
        if "--check" in sys.argv[1:]:
            print(f"docs/{page} is not what the code says ({marker}); run: python docs/generate.py", file=sys.stderr)
            stale = 1
        else:
            path.write_text(new, encoding="utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main())
