"""Which file of a PKI directory is what.

ca.crt ca.key              the authority; during a rotation the new one's certificate first, the old one's behind it
client-ca.crt              the CAs of clients' certificates, where there are others than in ca.crt
manager.crt manager.key    the manager's identity
clients/NAME.crt .key      each client's current certificate; its key, unless it was made elsewhere (--csr)
clients/NAME+ID.crt .key   an uploader's, for the keep ID
issued/SERIAL.crt          every certificate the authority ever signed, for `pki list` and `pki revoke`
revoked                    serial numbers, one a line (keep_protocol/revocation.py); only ever appended to
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.identity import check_name
from keep_protocol.revocation import serial_text

_FILE_NAME = re.compile(r"[A-Za-z0-9_@][A-Za-z0-9._@-]*", re.ASCII)


def check_client_name(name: str) -> str:
    """`name` itself. Raises KeepfleetError(BAD_REQUEST) unless a certificate and its files may be called so."""
    if not _FILE_NAME.fullmatch(check_name(name)):
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"invalid name {name[:80]!r}: it must not begin with - or .")
    return name


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

    @property
    def client_ca(self) -> str:
        return self._at("client-ca.crt")

    def client_certificate(self, name: str, keep: int | None = None) -> str:
        """A client's certificate; with `keep`, the one to upload into that keep."""
        return self._client(name, keep) + ".crt"

    def client_key(self, name: str, keep: int | None = None) -> str:
        return self._client(name, keep) + ".key"

    def _client(self, name: str, keep: int | None) -> str:
        return self._at("clients", check_client_name(name) + ("" if keep is None else f"+{keep}"))

    def issued_certificate(self, serial: int) -> str:
        return self._at("issued", serial_text(serial) + ".crt")
