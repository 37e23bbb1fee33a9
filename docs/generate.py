"""Writes what the docs derive from code, between its markers: the state diagram, and the tables of statuses, operations
and limits.

`python docs/generate.py` rewrites them; `--check` only compares and exits 1 on a difference.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from app_loader import answers  # noqa: E402 - found by the line above
from keep_manager.http import errors, openapi  # noqa: E402 - found by the line above
from keep_manager.keeps.allowances import DEFAULT_CEILINGS  # noqa: E402 - found by the line above
from keep_protocol import limits  # noqa: E402 - found by the line above
from keep_protocol.errors import ErrorKind  # noqa: E402 - found by the line above
from keep_protocol.states import STATE_OF, TRANSITIONS, Event, Phase  # noqa: E402 - found by the line above

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
    """The statuses error kinds have over HTTP, at the manager and at a keep's door; a dash where one never says it."""
    lines = ["| kind | manager | keep |", "|---|---|---|"]
    for kind in ErrorKind:
        statuses = [table.get(kind) for table in (errors.STATUS_OF, answers.STATUS_OF)]
        lines.append(f"| `{kind.value}` | " + " | ".join("—" if s is None else str(int(s)) for s in statuses) + " |")
    return "\n".join(lines)


def operation_table() -> str:
    """Every operation of /v1, from what the OpenAPI document is made of."""
    lines = ["| request | answer | parameters | what it does |", "|---|---|---|---|"]
    for (method, path), operation in openapi.OPERATIONS.items():
        body = f" with `{operation.body}`" if operation.body else ""
        answer = f"{operation.status} `{operation.answer}`" if operation.answer else str(operation.status)
        parameters = ", ".join(f"`{parameter.name}`" for parameter in operation.parameters) or "—"
        lines.append(f"| `{method} {path}`{body} | {answer} | {parameters} | {operation.summary} |")
    return "\n".join(lines)


def limit_table() -> str:
    """Every limit with its default, its bounds, and the ceiling nobody has to configure."""
    lines = ["| limit | default | smallest | largest | ceiling by default |", "|---|---|---|---|---|"]
    for name, (low, high) in limits.BOUNDS.items():
        lines.append(f"| `{name}` | {limits.DEFAULTS[name]} | {low} | {high} | {DEFAULT_CEILINGS[name]} |")
    return "\n".join(lines)


GENERATED: tuple[tuple[str, str, Callable[[], str]], ...] = (
    ("architecture.md", "states", state_diagram),
    ("wire-protocol.md", "statuses", status_table),
    ("reference/v1.md", "operations", operation_table),
    ("reference/v1.md", "limits", limit_table),
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
