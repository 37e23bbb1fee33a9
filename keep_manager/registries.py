"""What the configuration says of registries: from which modules may be pulled, as whom, and whose certificates count.

Frozen values, as `callers` has them, and what is read by them. Passwords stand in files, never in the configuration.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Flag, Maybe, Record, Text, field
from module_pull.artifact import Address, parse_address
from module_pull.exchange import MAX_CA_BYTES, Request
from module_pull.registry import read_credentials

EVERY = "*"
"""The entry for registries that have none of their own."""
CA_FILES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
"""Where Debian, Fedora, SUSE and Alpine have the CAs that their users trust."""


class RegistryName(Text):
    """HOST, HOST:PORT, or `*`."""

    def __init__(self) -> None:
        super().__init__(
            260,
            r"\*|([a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(:[0-9]{1,5})?",
            must="a registry's HOST or HOST:PORT in lower case, or *",
        )


class FilePath(Text):
    """The absolute path of a file, `~` resolved and without `..`."""

    def __init__(self) -> None:
        super().__init__(4095, must="the absolute path of a file")

    def parse(self, value: object) -> str:
        path = os.path.expanduser(super().parse(value))
        if not os.path.isabs(path) or "\0" in path:
            raise ValueError
        return os.path.normpath(path)


class RegistryEntry(Record):
    """One registry. credentials: a file as `docker login` writes it; ca: a file in PEM; plain_http: without TLS."""

    credentials: str | None = field(Maybe(FilePath()), default=None)
    ca: str | None = field(Maybe(FilePath()), default=None)
    plain_http: bool = field(Flag(), default=False)


Registries = tuple[tuple[str, RegistryEntry], ...]


def allowed(entries: Registries, text: str) -> tuple[Address, RegistryEntry]:
    """The artifact at the address `text`, where the configuration lets modules be pulled from there.

    Raises KeepfleetError: BAD_REQUEST, FORBIDDEN. Pure.
    """
    secure = parse_address(text)
    known = dict(entries)
    site = secure.site
    bracketed = f"[{site.host}]" if ":" in site.host else site.host
    asked = text.removeprefix("oci://").partition("/")[0].lower()
    for name in (asked, str(site).lower(), bracketed.lower(), EVERY):
        if name in known:
            entry = known[name]
            return parse_address(text, plain=entry.plain_http), entry
    why = f"the manager's configuration does not name {asked} among its registries; add it there, under registries"
    raise KeepfleetError(ErrorKind.FORBIDDEN, f"cannot pull {secure}: {why}")


def request_for(address: Address, entry: RegistryEntry, defaults: Iterable[str] = CA_FILES) -> Request:
    """What the unit is asked, with the password and the CAs that the entry names. Raises KeepfleetError."""
    login = read_credentials(entry.credentials).of(address.site) if entry.credentials else ""
    if entry.credentials and not login:
        why = f"it has no entry for {address.site}"
        raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot use {entry.credentials}: {why}")
    ca = "" if entry.plain_http else _authorities(entry.ca, defaults)
    return Request(str(address), entry.plain_http, login, ca)


def _authorities(path: str | None, defaults: Iterable[str]) -> str:
    for each in (path,) if path else defaults:
        try:
            with open(each, encoding="utf-8", errors="replace") as file:
                text = file.read(MAX_CA_BYTES + 1)
        except FileNotFoundError:
            if path is None:
                continue
            raise _unreadable(each, "there is no such file") from None
        except OSError as error:
            raise _unreadable(each, error.strerror or str(error)) from error
        if len(text) > MAX_CA_BYTES:
            raise _unreadable(each, f"it is over {MAX_CA_BYTES} bytes")
        return text
    raise _unreadable("the CAs of this host", "it has none; install ca-certificates, or name a registry's own by ca")


def _unreadable(path: str, why: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.CONFIGURATION, f"cannot read {path}: {why}")
