"""Which file of a PKI directory is what.

ca.crt ca.key              the authority
manager.crt manager.key    the manager's identity
clients/NAME.crt .key      each client's current identity
issued/SERIAL.crt          every certificate the authority ever signed, for `pki list` and `pki revoke`
revoked                    serial numbers in lowercase hexadecimal, one a line; only ever appended to
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from keep_protocol.errors import ErrorKind, KeepfleetError

_CLIENT_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
SERIAL = re.compile(r"[0-9a-f]{1,40}")
"""RFC 5280 allows a serial number 20 octets."""


def check_client_name(name: str) -> str:
    """`name` itself. Raises KeepfleetError(BAD_REQUEST) unless it is safe in a file's name and a log line."""
    if not _CLIENT_NAME.fullmatch(name):
        raise KeepfleetError(
            ErrorKind.BAD_REQUEST,
            f"cannot name a client {name[:80]!r}: it must be 1 to 63 of a-z, 0-9 and -, and not begin with -",
        )
    return name


def serial_text(serial: int) -> str:
    """A serial number as it stands in `revoked` and in file names."""
    return f"{serial:x}"


@dataclass(frozen=True)
class Layout:
    """The paths below one PKI directory."""

    directory: str

    def _at(self, *parts: str) -> str:
        return os.path.join(self.directory, *parts)

    @property
    def ca_certificate(self) -> str:
        return self._at("ca.crt")

    @property
    def ca_key(self) -> str:
        return self._at("ca.key")

    @property
    def manager_certificate(self) -> str:
        return self._at("manager.crt")

    @property
    def manager_key(self) -> str:
        return self._at("manager.key")

    @property
    def clients(self) -> str:
        return self._at("clients")

    @property
    def issued(self) -> str:
        return self._at("issued")

    @property
    def revoked(self) -> str:
        return self._at("revoked")

    def client_certificate(self, name: str) -> str:
        return self._at("clients", check_client_name(name) + ".crt")

    def client_key(self, name: str) -> str:
        return self._at("clients", check_client_name(name) + ".key")

    def issued_certificate(self, serial: int) -> str:
        return self._at("issued", serial_text(serial) + ".crt")
