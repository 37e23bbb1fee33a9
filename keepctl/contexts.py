"""Which managers there are: those of the context file, by name, with the files that let us in, so that nothing needs
typing twice; and this host's own, where its manager.yaml says."""

from __future__ import annotations

import os
from _collections_abc import Mapping

from keep_client.peer import authority
from keep_protocol import sockets as socket
from keep_protocol.constants import DEFAULT_MANAGER_ADDRESS, DEFAULT_MANAGER_PORT
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.patterns import matches

TYPE_CHECKING = False
if TYPE_CHECKING:
    from strict_yaml.tree import Node

FIELDS = ("manager", "address", "ca", "cert", "key")
"""address: where its keeps are to listen."""
_NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,62}"

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # what is written there, not what we bind
"""What listens on every address is met here at this one."""
_KEY, _VALUE = "[a-z_]{1,40}", "[0-9A-Fa-f.:]{1,45}"
_QUOTES = ('"', "'")
MAX_CONFIGURATION = 4 * 1024 * 1024
"""Bytes of a manager.yaml that are read."""

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
    if not matches(_NAME, name):
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


def configuration_path(directory: str) -> str:
    """Where manager.yaml lies for a PKI directory: next to it."""
    return os.path.join(os.path.dirname(directory), "manager.yaml")


def local_manager(directory: str) -> str:
    """HOST:PORT of this host's manager, as the manager.yaml next to a PKI directory says it; the defaults where
    there is none, or none that we may read. Raises KeepfleetError(CONFIGURATION) for one that cannot be understood."""
    path = configuration_path(directory)
    try:
        with open(path, "rb") as file:  # a link is followed: the manager follows it, too
            data = file.read(MAX_CONFIGURATION)
    except OSError:
        data = b""
    found = _settings(data, path)
    address, port = found.get("address", DEFAULT_MANAGER_ADDRESS), found.get("port", str(DEFAULT_MANAGER_PORT))
    if not _is_address(address) or not (port.isdecimal() and 0 < int(port) < 1 << 16):
        raise KeepfleetError(
            ErrorKind.CONFIGURATION,
            f"cannot read where the manager listens in {path}; name it with --manager HOST:PORT, and see: "
            "keep-manager --check-config",
        )
    return authority(_EVERYWHERE.get(address, address), int(port))


def _is_address(text: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except OSError:
        return False
    return True


def _plain(text: str) -> dict[str, str] | None:
    """The same of lines alone; None where a line says one of them in another way, or could."""
    found: dict[str, str] = {}
    for line in text.split("\n"):
        said = line.partition("#")[0]
        if "address" not in said and "port" not in said:
            continue
        name, _, rest = said.partition(":")
        if name not in ("address", "port"):
            if not matches(_KEY, name) or "address" in rest or "port" in rest:
                return None
            continue
        value = rest.strip(" \t")
        value = value[value[:1] in _QUOTES : len(value) - (value[-1:] in _QUOTES)]
        if rest[:1] not in (" ", "\t") or not matches(_VALUE, value):
            return None
        found[name] = value
    return found


def _settings(data: bytes, path: str) -> dict[str, str]:
    """`address` and `port` where they are given; read without YAML's 15 ms where they are plain lines, as ours are."""
    text = data.decode("utf-8", "replace")
    plain = _plain(text)
    if plain is not None:
        return plain
    from strict_yaml.tree import parse

    tree, faults = parse(data)
    if faults:
        why = "it is not understood; name the manager with --manager HOST:PORT, and see: keep-manager --check-config"
        raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot read {path}: {why}", tuple(map(str, faults)))
    value = tree.value if tree is not None else None
    entries = value if isinstance(value, dict) else {}
    return {name: entries[name].text for name in ("address", "port") if name in entries}
