"""The manager's configuration: one YAML file, every key checked where it stands, flags over it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace

import yaml

from keep_manager import nodes
from keep_manager.keeps.policy import CallerEntry
from keep_manager.model import GrantRoot
from keep_protocol.constants import (
    DEFAULT_MANAGER_ADDRESS,
    DEFAULT_MANAGER_PORT,
    FIRST_KEEP_PORT,
    LAST_KEEP_PORT,
)
from keep_protocol.limits import BOUNDS

MAX_RETENTION_SECONDS = 365 * 86400
MAX_CALLER_NAME = 64
"""A common name has at most 64 characters (RFC 5280, ub-common-name)."""
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
    retention_seconds: int = 3600
    callers: Mapping[str, CallerEntry] = field(default_factory=dict)
    log_level: str = "info"


_CHECKS: dict[str, Callable[[str, object], object]] = {
    "address": nodes.address,
    "port": nodes.whole(1, 65535),
    "client_certificates": nodes.one_of("required", "optional"),
    "pki": nodes.directory,
    "instance": nodes.one_of("system", "user"),
    "start_timeout_seconds": nodes.whole(1, 300),
    "max_keeps": nodes.whole(1, 100_000),
    "max_creations_at_once": nodes.whole(1, 64),
    "retention_seconds": nodes.whole(1, MAX_RETENTION_SECONDS),
    "log_level": nodes.one_of(*LOG_LEVELS),
}
_PORT_CHECKS = {"first": nodes.whole(1, 65535), "last": nodes.whole(1, 65535)}


def load(path: str | None, flags: Mapping[str, object]) -> Settings:
    """The settings of the file at `path` with `flags` over them; None reads the default path, which may be missing.

    Raises KeepfleetError(CONFIGURATION).
    """
    where = default_path() if path is None else path
    try:
        with open(where, "rb") as file:
            text = file.read(nodes.MAX_CONFIG_BYTES + 1)
    except FileNotFoundError:
        if path is not None:
            raise nodes.refuse(where, "there is no such file") from None
        text = b""
    except OSError as error:
        raise nodes.refuse(where, str(error.strerror)) from error
    settings = parse(text, where)
    values = {name: _CHECKS[name](f"--{name.replace('_', '-')}", value) for name, value in flags.items()}
    return replace(settings, **values)  # type: ignore[arg-type] # each value passed its key's check


def parse(text: bytes, name: str) -> Settings:
    """The settings in a file's bytes; `name` is the file's, for messages. Raises KeepfleetError(CONFIGURATION)."""
    if len(text) > nodes.MAX_CONFIG_BYTES:
        raise nodes.refuse(name, f"it is over {nodes.MAX_CONFIG_BYTES} bytes")
    root = nodes.compose(text, name)
    if root is None:
        return Settings()
    known: list[str] = [*_CHECKS, *_MAPPINGS]
    values: dict[str, object] = {}
    for key, node in nodes.members(root, name, known):
        if key in _MAPPINGS:
            values[key] = _MAPPINGS[key](node, name)
        else:
            values[key] = _CHECKS[key](nodes.at(name, node, key), nodes.scalar(node, name, key))
    return replace(Settings(), **values)  # type: ignore[arg-type] # each value passed its key's check


def _ports(node: yaml.Node, name: str) -> PortRange:
    values = {
        key: _PORT_CHECKS[key](nodes.at(name, value, key), nodes.scalar(value, name, key))
        for key, value in nodes.members(node, name, list(_PORT_CHECKS))
    }
    ports = replace(PortRange(), **values)
    if ports.first > ports.last:
        raise nodes.refuse(nodes.at(name, node, "keep_ports"), f"first, {ports.first}, lies above last, {ports.last}")
    return ports


def _callers(node: yaml.Node, name: str) -> dict[str, CallerEntry]:
    found: dict[str, CallerEntry] = {}
    for key, value in nodes.members(node, name, None):
        if not 0 < len(key) <= MAX_CALLER_NAME:
            raise nodes.refuse(
                nodes.at(name, value, key[:40]), f"a certificate's name has 1 to {MAX_CALLER_NAME} characters"
            )
        found[key] = _caller(value, name)
    return found


def _caller(node: yaml.Node, name: str) -> CallerEntry:
    roots: tuple[GrantRoot, ...] | None = None
    ceilings: dict[str, int] = {}
    for key, value in nodes.members(node, name, ["grant_roots", "ceilings"]):
        if key == "grant_roots":
            roots = tuple(_grant_root(item, name) for item in nodes.items(value, name, key))
            continue
        for limit, number in nodes.members(value, name, list(BOUNDS)):
            check = nodes.whole(*BOUNDS[limit])
            ceilings[limit] = check(nodes.at(name, number, limit), nodes.scalar(number, name, limit))
    return CallerEntry(roots, ceilings)


def _grant_root(node: yaml.Node, name: str) -> GrantRoot:
    pairs = dict(nodes.members(node, name, ["path", "writable"]))
    if "path" not in pairs:
        raise nodes.refuse(nodes.at(name, node, "grant_roots"), "a grant root has a path")
    path = nodes.directory(nodes.at(name, pairs["path"], "path"), nodes.scalar(pairs["path"], name, "path"))
    return GrantRoot(path, "writable" in pairs and nodes.boolean(pairs["writable"], name, "writable"))


_MAPPINGS: dict[str, Callable[[yaml.Node, str], object]] = {"keep_ports": _ports, "callers": _callers}


def render(settings: Settings) -> str:
    """The settings as the YAML file that gives exactly them."""
    shown = asdict(settings)
    for entry in shown["callers"].values():
        if entry["grant_roots"] is None:
            del entry["grant_roots"]
        else:
            entry["grant_roots"] = list(entry["grant_roots"])
    return yaml.safe_dump(shown, sort_keys=False)
