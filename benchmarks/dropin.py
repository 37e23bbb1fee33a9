"""The floors' units, made from a drop-in of keep@.service: every directive but the program. Pure.

What a keep costs above a floor is what keepfleet's own programs cost. There are two: the installed drop-in's, and that
of the unit a keep had before it had a root of its own, which earlier figures and the goals are compared with.
"""

from __future__ import annotations

import re

READY = (
    "import os, signal, socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM);"
    " s.sendto(b'READY=1', os.environ['NOTIFY_SOCKET']); signal.pause()"
)
"""The least a Type=notify service in Python can be."""
PYTHON = "/keepfleet/python"
SHOWN = "/run/floor-program"
"""Where the unit shows its root a program that is not in it."""
_DIRECTIVE = re.compile(r"([A-Za-z]+)=(.*)")
_PLACEHOLDER = re.compile(r"@([A-Z_]+)@")
_PATHS = ("ExecPaths", "BindReadOnlyPaths")
_OF_A_NOTIFIER = ("NotifyAccess", "WatchdogSec")
RUNTIME_DIRECTORY = "keepfleet-floor"
"""Instead of keepfleet/, where the manager looks for keeps."""


def sleeping(text: str, root: str, program: str) -> str:
    """The drop-in with `program` sleeping in the keep's place, in the tree `root`: Type=exec, so it is started once it
    is executed. Raises ValueError when the text is no keep's drop-in."""
    more = (f"RootDirectory={root}", f"BindReadOnlyPaths={program}:{SHOWN}")
    return _rewritten(text, "exec", f"{SHOWN} infinity", more=more)


def notifying(text: str, root: str) -> str:
    """The drop-in with the tree's interpreter, which says READY and waits. Raises ValueError as `sleeping` does."""
    return _rewritten(text, "notify", f'{PYTHON} -I -S -c "{READY}"', more=(f"RootDirectory={root}",))


def sleeping_without_a_root(text: str, values: dict[str, str], program: str) -> str:
    """The older drop-in with its placeholders filled in, and `program` in the place of the interpreter: it was the
    host's, and the unit let a keep execute it. Raises ValueError as `sleeping` does, or for a placeholder without a
    value."""
    missing = set(_PLACEHOLDER.findall(text)) - values.keys()
    if missing:
        raise ValueError(f"cannot make a floor of this drop-in: @{min(missing)}@ has no value")
    filled = _PLACEHOLDER.sub(lambda match: values[match[1]], text)
    interpreter = values["PYTHON_REAL"]
    return _rewritten(filled, "exec", f"{program} infinity", {interpreter: program}, needed=_PATHS)


def _rewritten(
    text: str,
    kind: str,
    start: str,
    replaced: dict[str, str] | None = None,
    more: tuple[str, ...] = (),
    needed: tuple[str, ...] = (),
) -> str:
    lines, seen = [], set()
    for line in text.splitlines():
        match = _DIRECTIVE.fullmatch(line)
        if match is None:
            lines.append(line)
            continue
        name, value = match[1], match[2]
        seen.add(name)
        if name in _OF_A_NOTIFIER and (kind != "notify" or name == "WatchdogSec"):  # nothing feeds the watchdog
            continue
        if name == "ExecStart":
            value = start
        elif name == "Type":
            value = kind
        elif name in _PATHS:
            value = " ".join((replaced or {}).get(word, word) for word in value.split())
        value = value.replace("keepfleet/%i", f"{RUNTIME_DIRECTORY}/%i")
        lines.append(f"{name}={value}")
    missing = {"ExecStart", "Type", "RuntimeDirectory", *needed} - seen
    if missing:
        raise ValueError(f"cannot make a floor of this drop-in: it has no {', '.join(sorted(missing))}")
    return "\n".join([*lines, *more]) + "\n"


def directives(text: str) -> int:
    """How many directives a drop-in has."""
    return sum(_DIRECTIVE.fullmatch(line) is not None for line in text.splitlines())
