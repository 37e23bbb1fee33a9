"""The context file: managers by name, with the files that let us in, so that nothing needs typing twice."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from strict_yaml.tree import Node

FIELDS = ("manager", "address", "ca", "cert", "key")
"""address: where its keeps are to listen."""
_NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,62}"

Context = Mapping[str, str]
NO_CONTEXTS: Mapping[str, Context] = {}


class Contexts(Record):
    """Every context by its name, and the one in use, "" for none."""

    current: str = ""
    contexts: Mapping[str, Context] = NO_CONTEXTS

    def get(self, name: str) -> Context:
        """The context `name`. Raises KeepfleetError(NOT_FOUND)."""
        if name not in self.contexts:
            raise KeepfleetError(
                ErrorKind.NOT_FOUND, f"cannot use context {name[:40]!r}: there is none; see: keepctl context list"
            )
        return self.contexts[name]


def path() -> str:
    """$XDG_CONFIG_HOME/keepfleet/context.yaml, below ~/.config where that is not set."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return os.path.join(home, "keepfleet", "context.yaml")


def check_name(name: str) -> str:
    """`name` itself. Raises KeepfleetError(BAD_REQUEST) unless a context may be called so."""
    if not re.fullmatch(_NAME, name):
        raise KeepfleetError(
            ErrorKind.BAD_REQUEST,
            f"cannot name a context {name[:40]!r}: it must be letters, digits, `.`, `_` and -, at most 63",
        )
    return name


def _unreadable(where: str, faults: list[str]) -> KeepfleetError:
    return KeepfleetError(ErrorKind.CONFIGURATION, f"cannot read {where}: correct it or remove it", tuple(faults))


def _from_tree(node: Node, where: str) -> Contexts:
    plain = node.plain()
    value = plain if isinstance(plain, dict) else {"": plain}
    current, listed = value.get("current", ""), value.get("contexts", {})
    if not isinstance(current, str) or not isinstance(listed, dict) or set(value) - {"current", "contexts"}:
        raise _unreadable(where, ["it must have `current: NAME` and `contexts:`, a mapping, and nothing else"])
    found: dict[str, Context] = {}
    for name, context in listed.items():
        if not isinstance(context, dict) or not all(k in FIELDS and isinstance(v, str) for k, v in context.items()):
            raise _unreadable(where, [f"context {name[:40]!r} may have {', '.join(FIELDS)}, each of them text"])
        found[check_name(name)] = context
    return Contexts(current, found)


def load() -> Contexts:
    """What the file holds; nothing where there is none. Raises KeepfleetError(CONFIGURATION)."""
    where = path()
    try:
        os.lstat(where)
    except FileNotFoundError:
        return Contexts()
    except OSError:
        pass  # which `files` explains
    from keepctl import files
    from strict_yaml.tree import parse  # here: YAML costs 15 ms, and few have such a file

    with files.explained(f"read {where}"):
        data = files.read(where)

    tree, faults = parse(data)
    if faults:
        raise _unreadable(where, [str(fault) for fault in faults])
    return Contexts() if tree is None else _from_tree(tree, where)


def save(contexts: Contexts) -> str:
    """Writes the file, readable by its owner alone; its path. Raises KeepfleetError."""
    import json

    from keepctl import files

    where = path()
    lines = ["# Written by keepctl context; a manager, and the files that let you in, by name.\n"]
    lines += [f"current: {json.dumps(contexts.current)}\n", "contexts:\n" if contexts.contexts else "contexts: {}\n"]
    for name, context in sorted(contexts.contexts.items()):
        lines.append(f"  {json.dumps(name)}:{'' if context else ' {}'}\n")
        lines += [f"    {key}: {json.dumps(context[key])}\n" for key in FIELDS if key in context]
    with files.explained(f"write {where}"):
        files.make_directories(os.path.dirname(where), files.PRIVATE_DIRECTORY)
        files.replace(where, "".join(lines).encode("utf-8"), files.PRIVATE_FILE)
    return where
