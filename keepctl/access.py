"""Which manager a command speaks to and as whom: the options of every command that does; the context file, which has
managers by name with the files that let us in, so that nothing needs typing twice; and this host's own manager, where
its manager.yaml says."""

from __future__ import annotations

import os
import sys
from _collections_abc import Callable, Mapping

from keep_client.connection import RECONNECT_SECONDS
from keep_client.credentials import MANAGER_VARIABLE, PKI_VARIABLE, Credentials, parse_manager, pki_directory
from keep_client.manager import ManagerClient
from keep_client.peer import authority
from keep_protocol import sockets as socket
from keep_protocol.constants import DEFAULT_MANAGER_ADDRESS, DEFAULT_MANAGER_PORT
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.patterns import matches
from keepctl.arguments import FILE, TEXT, Argument, Choice, ContextName, Option, Parsed, Reference
from keepctl.display import WaitingLine, remember
from keepctl.references import check_reference

TYPE_CHECKING = False
if TYPE_CHECKING:
    from strict_yaml.tree import Node

CONTEXT_VARIABLE = "KEEPFLEET_CONTEXT"
CONNECTION = (
    Option(("--context",), "context", "One of `keepctl context list`; also $KEEPFLEET_CONTEXT.", ContextName(), "NAME"),
    Option(
        ("--manager",),
        "manager",
        "The manager: HOST:PORT or https://HOST:PORT; also $KEEPFLEET_MANAGER; otherwise the context's, "
        "or this host's, where its manager.yaml says.",
        TEXT,
        "URL",
    ),
    Option(("--ca",), "ca", "The CA of the manager; otherwise ca.crt of the PKI directory.", FILE, "FILE"),
    Option(("--cert",), "cert", "Your certificate; otherwise clients/admin.crt.", FILE, "FILE"),
    Option(("--key",), "key", "Its key; otherwise the .key next to it.", FILE, "FILE"),
)


def _seconds(text: str) -> int:
    from keepctl.job import parse_duration  # here: for those alone who say how long

    return parse_duration(text)


RECONNECT = Option(
    ("--reconnect-for",),
    "reconnect",
    "How long to wait for a manager that is away meanwhile: 2m, or 0.",
    Parsed(_seconds),
    "TIME",
)
"""Of the commands that wait for what a keep does."""
OUTPUT = Option(("-o", "--output"), "output", "How to print it.", Choice("text", "json"), default="text", shown=True)
KEEP = Argument("keep", "KEEP", Reference(check_reference))
KEEPS = Argument("keeps", "KEEP...", Reference(check_reference), many=True)
CONTEXT_FIELDS = ("manager", "address", "ca", "cert", "key")
"""address: where its keeps are to listen."""
_CONTEXT_NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
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


def context_path() -> str:
    """$XDG_CONFIG_HOME/keepfleet/context.yaml, below ~/.config where that is not set."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return os.path.join(home, "keepfleet", "context.yaml")


def check_context_name(name: str) -> str:
    """`name` itself. Raises KeepfleetError(BAD_REQUEST) unless a context may be called so."""
    if not matches(_CONTEXT_NAME, name):
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
        if not isinstance(context, dict) or not all(
            k in CONTEXT_FIELDS and isinstance(v, str) for k, v in context.items()
        ):
            raise _unreadable(where, [f"context {name[:40]!r} may have {', '.join(CONTEXT_FIELDS)}, each of them text"])
        found[check_context_name(name)] = context
    return Contexts(current, found)


def load_contexts() -> Contexts:
    """What the file holds; nothing where there is none. Raises KeepfleetError(CONFIGURATION)."""
    where = context_path()
    try:
        os.lstat(where)
    except FileNotFoundError:
        return Contexts()
    except OSError:
        pass  # to read it, below, fails for the same reason, which is explained there
    from keepctl import files
    from strict_yaml.tree import parse  # here: YAML costs 15 ms, and few have such a file

    with files.explained(f"read {where}"):
        data = files.read(where)

    tree, faults = parse(data)
    if faults:
        raise _unreadable(where, [str(fault) for fault in faults])
    return Contexts() if tree is None else _from_tree(tree, where)


def save_contexts(contexts: Contexts) -> str:
    """Writes the file, readable by its owner alone; its path. Raises KeepfleetError."""
    import json

    from keepctl import files

    where = context_path()
    lines = ["# Written by keepctl context; a manager, and the files that let you in, by name.\n"]
    lines += [f"current: {json.dumps(contexts.current)}\n", "contexts:\n" if contexts.contexts else "contexts: {}\n"]
    for name, context in sorted(contexts.contexts.items()):
        lines.append(f"  {json.dumps(name)}:{'' if context else ' {}'}\n")
        lines += [f"    {key}: {json.dumps(context[key])}\n" for key in CONTEXT_FIELDS if key in context]
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


class Access(Record):
    """Which manager, who we are to it and to its keeps, and where these are to listen ("": where it is reached)."""

    manager: str
    credentials: Credentials
    address: str = ""
    reconnect_seconds: float = RECONNECT_SECONDS

    def client(self) -> ManagerClient:
        """The manager's calls, inside `with` all on one connection. Raises KeepfleetError when the address or a file
        cannot be used."""
        client = ManagerClient(parse_manager(self.manager), self.credentials.manager_context(), self.reconnect_seconds)
        if sys.stderr.isatty():
            client.waiting = WaitingLine()
        return client


def find(context: str | None, manager: str | None, ca: str | None, cert: str | None, key: str | None) -> Access:
    """An option wins over a context that was asked for, that over the environment, that over the current context."""
    asked = context or os.environ.get(CONTEXT_VARIABLE)
    known = load_contexts() if not (manager and ca and cert) or asked else Contexts()
    chosen = known.get(asked) if asked else {}
    current = known.get(known.current) if known.current and not asked else {}
    files = current if PKI_VARIABLE not in os.environ else {}
    address = manager or chosen.get("manager") or os.environ.get(MANAGER_VARIABLE) or current.get("manager")
    found = {name: chosen.get(name) or files.get(name) for name in ("ca", "cert", "key")}
    credentials = Credentials.find(ca or found["ca"], cert or found["cert"], key or (None if cert else found["key"]))
    listening = {} if manager else chosen if asked else {} if MANAGER_VARIABLE in os.environ else current
    return Access(address or local_manager(pki_directory()), credentials, listening.get("address", ""))


def connected(work: Callable[..., int]) -> Callable[..., int]:
    """What takes `access`, made to take CONNECTION's values."""

    def with_access(
        context: str | None,
        manager: str | None,
        ca: str | None,
        cert: str | None,
        key: str | None,
        reconnect: int | None = None,
        **values: object,
    ) -> int:
        access = find(context, manager, ca, cert, key)
        if reconnect is not None:
            access = access.replace(reconnect_seconds=float(reconnect))
        remember(access.credentials)
        return work(access=access, **values)

    return with_access
