"""The manager's configuration: one YAML file, every fault of it with its place, flags over it."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from enum import Enum

import yaml

from keep_manager.callers import DEFAULT_LEASE, MAX_CALLER_NAME, CallerEntry, Callers, DirectoryPath, GrantRoot
from keep_manager.registries import Registries, RegistryEntry, RegistryName
from keep_protocol.constants import (
    DEFAULT_MANAGER_ADDRESS,
    DEFAULT_MANAGER_PORT,
    FIRST_KEEP_PORT,
    LAST_KEEP_PORT,
)
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Maybe, Nested, Record, Text, Whole, Word, check, field, invalid, table_of
from keep_protocol.identity import owner_of
from keep_protocol.spec import Lease
from strict_yaml.records import Entries, read
from strict_yaml.tree import Fault
from strict_yaml.tree import parse as parse_yaml

MAX_CONFIG_BYTES = 64 * 1024
"""The longest sensible file is 4 KiB; this bounds what the YAML scanner is asked to look at."""
MAX_RETENTION_SECONDS = 365 * 86400
MAX_SPARE_KEEPS = 64
"""A third of a gigabyte; a host makes fewer keeps than that in the seconds in which it makes them again."""
LOG_LEVELS = ("debug", "info", "warning", "error")
SYSTEM_CONFIG = "/etc/keepfleet/manager.yaml"
SYSTEM_PKI = "/etc/keepfleet/pki"


def default_path() -> str:
    """Where the file is looked for: root's in /etc, a user's below ~/.config."""
    return SYSTEM_CONFIG if os.geteuid() == 0 else os.path.expanduser("~/.config/keepfleet/manager.yaml")


def default_pki() -> str:
    """Where `keepctl init` puts the certificates."""
    return SYSTEM_PKI if os.geteuid() == 0 else os.path.expanduser("~/.config/keepfleet/pki")


class Instance(Enum):
    """Which service manager runs the keeps."""

    SYSTEM = "system"
    USER = "user"


class ClientCertificates(Enum):
    """Whether a client must show a certificate."""

    REQUIRED = "required"
    OPTIONAL = "optional"


class LogLevel(Enum):
    """The least important lines that are logged."""

    DEBUG, INFO, WARNING, ERROR = LOG_LEVELS


class _Address(Text):
    """An IPv4 or IPv6 address, in its canonical form."""

    def __init__(self) -> None:
        super().__init__(60, must="an IPv4 or IPv6 address")

    def parse(self, value: object) -> str:
        return str(ipaddress.ip_address(super().parse(value)))


class _CallerName(Text):
    """The name of a caller: a certificate's, `anonymous`, or `*`."""

    def __init__(self) -> None:
        super().__init__(MAX_CALLER_NAME, must=f"a certificate's name of 1 to {MAX_CALLER_NAME} characters")

    def parse(self, value: object) -> str:
        name = super().parse(value)
        if not name:
            raise ValueError
        return name


class PortRange(Record):
    """The ports keeps on 127.0.0.1 may move to, both ends included."""

    first: int = field(Whole(1, 65535), default=FIRST_KEEP_PORT)
    last: int = field(Whole(1, 65535), default=LAST_KEEP_PORT)

    def _check(self) -> None:
        if self.first > self.last:
            raise invalid("port range", f"first, {self.first}, lies above last, {self.last}")


class Settings(Record):
    """The configuration in force; docs/operations.md explains each key."""

    address: str = field(_Address(), default=DEFAULT_MANAGER_ADDRESS)
    port: int = field(Whole(1, 65535), default=DEFAULT_MANAGER_PORT)
    client_certificates: ClientCertificates = field(Word(ClientCertificates), default=ClientCertificates.REQUIRED)
    pki: str = field(DirectoryPath(), default=default_pki())
    instance: Instance = field(Word(Instance), default=Instance.SYSTEM if os.geteuid() == 0 else Instance.USER)
    keep_ports: PortRange = field(Nested(PortRange, "port range", strict=True), default=PortRange())
    start_timeout_seconds: int = field(Whole(1, 300), default=15)
    max_keeps: int = field(Whole(1, 100_000), default=2000)
    max_creations_at_once: int = field(Whole(1, 64), default=8)
    retention_seconds: int = field(Whole(1, MAX_RETENTION_SECONDS), default=3600)
    lease: Lease = field(Nested(Lease, "lease", strict=True), default=DEFAULT_LEASE)
    callers: tuple[tuple[str, CallerEntry], ...] = field(Entries(_CallerName(), CallerEntry, "caller"), default=())
    log_level: LogLevel = field(Word(LogLevel), default=LogLevel.INFO)
    spare_keeps: int = field(Whole(0, MAX_SPARE_KEEPS), default=0)
    store: str | None = field(Maybe(DirectoryPath()), default=None)
    registries: Registries = field(Entries(RegistryName(), RegistryEntry, "registry"), default=())

    def _check(self) -> None:
        if self.instance is Instance.USER and any(root.files_as for root in self.grant_roots):
            raise invalid(
                "configuration", "files_as has no use in a user's own instance: every keep there is that user"
            )

    @property
    def grant_roots(self) -> tuple[GrantRoot, ...]:
        """The grant roots of all callers, each once."""
        return tuple(dict.fromkeys(root for _, entry in self.callers for root in entry.grant_roots or ()))

    @property
    def callers_by_name(self) -> Callers:
        """The entries of `callers`, by the names there and by the owner words of those that are common names."""
        return {owner_of(name): entry for name, entry in self.callers} | dict(self.callers)


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
    for name, value in flags.items():
        try:
            settings = settings.replace(**{name: check(table_of(Settings)[name], value, "flag")})
        except KeepfleetError as error:
            raise _refuse(f"--{name.replace('_', '-')}", error.message) from None
    return settings


def parse(text: bytes, name: str) -> Settings:
    """The settings in a file's bytes; `name` is the file's, for messages.

    Raises KeepfleetError(CONFIGURATION) with the first fault, and all of them as evidence.
    """
    if len(text) > MAX_CONFIG_BYTES:
        raise _refuse(name, f"it is over {MAX_CONFIG_BYTES} bytes")
    root, faults = parse_yaml(text)
    if root is None and not faults:
        return Settings()
    settings = None
    if root is not None:
        settings, more = read(Settings, root)
        faults = sorted([*faults, *more])
    if settings is None or faults:
        every = tuple(f"{_at(name, fault)}: {fault.message}" for fault in faults)
        raise _refuse(_at(name, faults[0]), faults[0].message, every)
    return settings


def _at(name: str, fault: Fault) -> str:
    """FILE:LINE:COLUMN, as editors and compilers write it."""
    return f"{name}:{fault.line}:{fault.column}"


def _refuse(where: str, why: str, evidence: tuple[str, ...] = ()) -> KeepfleetError:
    return KeepfleetError(ErrorKind.CONFIGURATION, f"cannot use {where}: {why}", evidence)


def render(settings: Settings) -> str:
    """The settings as the YAML file that gives exactly them."""
    return yaml.safe_dump(settings.to_wire(), sort_keys=False)
