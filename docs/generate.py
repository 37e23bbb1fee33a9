"""Writes what the docs derive from code, between its markers: the state diagram in architecture.md.

`python docs/generate.py` rewrites it; `--check` only compares and exits 1 on a difference.
"""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from keep_protocol.states import STATE_OF, TRANSITIONS, Event, Phase  # noqa: E402 - found by the line above

BEGIN, END = "<!-- generated: states -->", "<!-- end -->"


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


def filled(text: str) -> str:
    """`text` with the generated block renewed. Raises ValueError where the markers are missing."""
    before, after = text.index(BEGIN) + len(BEGIN), text.index(END)
    return f"{text[:before]}\n{state_diagram()}\n{text[after:]}"


def main() -> int:
    """Renews, or with --check compares; 1 when it differs."""
    path = DOCS / "architecture.md"
    old = path.read_text(encoding="utf-8")
    new = filled(old)
    if "--check" in sys.argv[1:]:
        if new != old:
            print(
                "docs/architecture.md is not what the state table says; run: python docs/generate.py", file=sys.stderr
            )
        return int(new != old)
    path.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
