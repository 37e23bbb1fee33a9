"""The floor's units, made from the installed drop-in of keep@.service: every directive but the program. Pure.

What a keep costs above this floor is what keepfleet's own programs cost.
"""

from __future__ import annotations

import re

READY = (
    "import os, signal, socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM);"
    " s.sendto(b'READY=1', os.environ['NOTIFY_SOCKET']); signal.pause()"
)
"""The least a Type=notify service in Python can be."""
_DIRECTIVE = re.compile(r"([A-Za-z]+)=(.*)")
_PATHS = ("ExecPaths", "BindReadOnlyPaths")
_OF_A_NOTIFIER = ("NotifyAccess", "WatchdogSec")
RUNTIME_DIRECTORY = "keepfleet-floor"
"""Instead of keepfleet/, where the manager looks for keeps."""


def _words(value: str, old: str, new: str) -> str:
    return " ".join(new if word == old else word for word in value.split())


def sleeping(text: str, interpreter: str, program: str) -> str:
    """The drop-in with `program` sleeping in the keep's place: Type=exec, so it is started once it is executed.

    `interpreter` is the program the drop-in lets a keep execute; `program` takes its place there.
    Raises ValueError when the text is no keep's drop-in.
    """
    return _rewritten(text, "exec", f"{program} infinity", {interpreter: program})


def notifying(text: str, interpreter: str) -> str:
    """The drop-in with an interpreter that says READY and waits. Raises ValueError as `sleeping` does."""
    return _rewritten(text, "notify", f'{interpreter} -I -S -c "{READY}"', {})


def _rewritten(text: str, kind: str, start: str, replaced: dict[str, str]) -> str:
    lines, seen = [], set()
    for line in text.splitlines():
        match = _DIRECTIVE.fullmatch(line)
        if match is None:
            lines.append(line)
            continue
        name, value = match[1], match[2]
        seen.add(name)
        if name in _OF_A_NOTIFIER and kind != "notify":
            continue
        if name == "WatchdogSec":
            continue  # nothing feeds it
        if name == "ExecStart":
            value = start
        elif name == "Type":
            value = kind
        elif name in _PATHS:
            for old, new in replaced.items():
                value = _words(value, old, new)
        value = value.replace("keepfleet/%i", f"{RUNTIME_DIRECTORY}/%i")
        lines.append(f"{name}={value}")
    missing = {"ExecStart", "Type", "RuntimeDirectory", *_PATHS} - seen
    if missing:
        raise ValueError(f"cannot make a floor of this drop-in: it has no {', '.join(sorted(missing))}")
    return "\n".join(lines) + "\n"


def directives(text: str) -> int:
    """How many directives a drop-in has."""
    return sum(_DIRECTIVE.fullmatch(line) is not None for line in text.splitlines())
