"""The manager's configuration: one YAML file, every key checked where it stands, flags over it.

The file is composed into nodes and never constructed, so that each refusal names line and column, and so that no
tag, alias or duplicate key is ever acted upon.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Protocol

import yaml

from keep_protocol.constants import (
    DEFAULT_MANAGER_ADDRESS,
    DEFAULT_MANAGER_PORT,
    FIRST_KEEP_PORT,
    LAST_KEEP_PORT,
)
from keep_protocol.errors import ErrorKind, KeepfleetError

MAX_CONFIG_BYTES = 64 * 1024
"""The longest sensible file is 1 KiB; this bounds what the YAML scanner is asked to look at."""
LOG_LEVELS = ("debug", "info", "warning", "error")
SYSTEM_CONFIG = "/etc/keepfleet/manager.yaml"
SYSTEM_PKI = "/etc/keepfleet/pki"


def default_path() -> str:
    """Where the file is looked for: root's in /etc, a user's below ~/.config."""
    return SYSTEM_CONFIG if os.geteuid() == 0 else os.path.expanduser("~/.config/keepfleet/manager.yaml")


def default_pki() -> str:
    """Where `keepctl init` puts the certificates."""
    return SYSTEM_PKI if os.geteuid() == 0 else os.path.expanduser("~/.config/keepfleet/pki")


def default_instance() -> str:
    """The service manager whose owner we are."""
    return "system" if os.geteuid() == 0 else "user"


class _Mark(Protocol):
    """A place in the file; the scanner in C and the one in Python have a class each."""

    line: int
    column: int


@dataclass(frozen=True)
class PortRange:
    """The ports keeps on 127.0.0.1 may move to, both ends included."""

    first: int = FIRST_KEEP_PORT
    last: int = LAST_KEEP_PORT


@dataclass(frozen=True)
class Settings:
    """The configuration in force; docs/operations.md explains each key."""

    address: str = DEFAULT_MANAGER_ADDRESS
    port: int = DEFAULT_MANAGER_PORT
    client_certificates: str = "required"
    pki: str = field(default_factory=default_pki)
    instance: str = field(default_factory=default_instance)
    keep_ports: PortRange = field(default_factory=PortRange)
    start_timeout_seconds: int = 15
    max_keeps: int = 2000
    max_creations_at_once: int = 8
    log_level: str = "info"


def _refuse(where: str, why: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.CONFIGURATION, f"cannot use {where}: {why}")


def _whole(low: int, high: int) -> Callable[[str, object], object]:
    def check(where: str, value: object) -> object:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise _refuse(where, f"it must be a whole number in {low} … {high}")
        return value

    return check


def _one_of(*words: str) -> Callable[[str, object], object]:
    def check(where: str, value: object) -> object:
        if value not in words:
            raise _refuse(where, f"it must be one of {', '.join(words)}")
        return value

    return check


def _address(where: str, value: object) -> object:
    try:
        return str(ipaddress.ip_address(value if isinstance(value, str) else ""))
    except ValueError:
        raise _refuse(where, "it must be an IPv4 or IPv6 address") from None


def _directory(where: str, value: object) -> object:
    if not isinstance(value, str) or not os.path.isabs(os.path.expanduser(value)) or "\0" in value:
        raise _refuse(where, "it must be the absolute path of a directory")
    return os.path.normpath(os.path.expanduser(value))


_CHECKS: dict[str, Callable[[str, object], object]] = {
    "address": _address,
    "port": _whole(1, 65535),
    "client_certificates": _one_of("required", "optional"),
    "pki": _directory,
    "instance": _one_of("system", "user"),
    "start_timeout_seconds": _whole(1, 300),
    "max_keeps": _whole(1, 100_000),
    "max_creations_at_once": _whole(1, 64),
    "log_level": _one_of(*LOG_LEVELS),
}
_PORT_CHECKS = {"first": _whole(1, 65535), "last": _whole(1, 65535)}


def load(path: str | None, flags: Mapping[str, object]) -> Settings:
    """The settings of the file at `path` with `flags` over them; None reads the default path, which may be missing.

    Raises KeepfleetError(CONFIGURATION).
    """
    where = default_path() if path is None else path
    try:
        with open(where, "rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError:
        if path is not None:
            raise _refuse(where, "there is no such file") from None
        text = b""
    except OSError as error:
        raise _refuse(where, str(error.strerror)) from error
    settings = parse(text, where)
    values = {name: _CHECKS[name](f"--{name.replace('_', '-')}", value) for name, value in flags.items()}
    return replace(settings, **values)  # type: ignore[arg-type] # each value passed its key's check


def parse(text: bytes, name: str) -> Settings:
    """The settings in a file's bytes; `name` is the file's, for messages. Raises KeepfleetError(CONFIGURATION)."""
    if len(text) > MAX_CONFIG_BYTES:
        raise _refuse(name, f"it is over {MAX_CONFIG_BYTES} bytes")
    root = _compose(text, name)
    if root is None:
        return Settings()
    known: list[str] = [*_CHECKS, "keep_ports"]
    values: dict[str, object] = {}
    for key, node in _members(root, name, known):
        if key == "keep_ports":
            values[key] = _ports(node, name)
        else:
            values[key] = _CHECKS[key](_at(name, node, key), _scalar(node, name, key))
    return replace(Settings(), **values)  # type: ignore[arg-type] # each value passed its key's check


def _place(name: str, mark: _Mark | None) -> str:
    """FILE:LINE:COLUMN, as editors and compilers write it."""
    return name if mark is None else f"{name}:{mark.line + 1}:{mark.column + 1}"


def _compose(text: bytes, name: str) -> yaml.Node | None:
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise _refuse(_place(name, event.start_mark), "aliases (*name) are not taken")
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise _refuse(_place(name, error.problem_mark), f"it is not YAML: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _refuse(name, f"it is not YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise _refuse(name, "it is nested too deeply") from None


def _at(name: str, node: yaml.Node, key: str) -> str:
    return f"{_place(name, node.start_mark)} ({key})"


def _members(node: yaml.Node, name: str, known: list[str]) -> list[tuple[str, yaml.Node]]:
    """The pairs of a mapping, each key known and standing once."""
    if not isinstance(node, yaml.MappingNode):
        raise _refuse(_place(name, node.start_mark), "it must be a mapping")
    found: dict[str, yaml.Node] = {}
    for key_node, value in node.value:
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a key"
        if key not in known:
            raise _refuse(_at(name, key_node, str(key)[:40]), f"the key is not known; known are {', '.join(known)}")
        if key in found:
            raise _refuse(_at(name, key_node, key), "the key stands twice")
        found[key] = value
    return list(found.items())


def _scalar(node: yaml.Node, name: str, key: str) -> object:
    """A plain string or whole number; nothing else has a meaning here."""
    if isinstance(node, yaml.ScalarNode):
        if node.tag == "tag:yaml.org,2002:str":
            return str(node.value)
        if node.tag == "tag:yaml.org,2002:int" and str(node.value).isdecimal() and len(node.value) <= 9:
            return int(node.value)
    raise _refuse(_at(name, node, key), "it must be a plain string or a whole number")


def _ports(node: yaml.Node, name: str) -> PortRange:
    values = {
        key: _PORT_CHECKS[key](_at(name, value, key), _scalar(value, name, key))
        for key, value in _members(node, name, list(_PORT_CHECKS))
    }
    ports = replace(PortRange(), **values)  # type: ignore[arg-type] # each value passed its key's check
    if ports.first > ports.last:
        raise _refuse(_at(name, node, "keep_ports"), f"first, {ports.first}, lies above last, {ports.last}")
    return ports


def render(settings: Settings) -> str:
    """The settings as the YAML file that gives exactly them."""
    return yaml.safe_dump(asdict(settings), sort_keys=False)
