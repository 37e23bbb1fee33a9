"""A PKI as `keepctl init` makes it, and the TLS contexts of both sides made of it."""

from __future__ import annotations

import datetime
import os
import ssl
from pathlib import Path

from keep_client.credentials import Credentials
from keep_protocol.tls import fingerprint_of, server_context
from keepctl import authority, files, pki
from keepctl.layout import Layout

NAMES = ("localhost", "127.0.0.1", "127.0.0.2", "::1")


class Pki:
    """One PKI directory, with a self-signed identity for a keep next to it."""

    def __init__(self, parent: Path, names: tuple[str, ...] = NAMES, now: datetime.datetime | None = None) -> None:
        self.now = now or datetime.datetime.now(datetime.UTC)
        self.layout = Layout(str(parent / "pki"))
        pki.create(self.layout, names, "admin", self.now)
        keep = authority.make_ca(self.now)
        self._keep = str(parent / "keep")
        files.write_new(self._keep + ".crt", authority.certificate_pem(keep.certificate), files.PUBLIC_FILE)
        files.write_new(self._keep + ".key", authority.key_pem(keep.key), files.PRIVATE_FILE)

    @property
    def ca_pem(self) -> str:
        return Path(self.layout.ca_certificate).read_text()

    @property
    def keep_pem(self) -> str:
        return Path(self._keep + ".crt").read_text()

    @property
    def fingerprint(self) -> str:
        """The keep's."""
        return fingerprint_of(ssl.PEM_cert_to_DER_cert(self.keep_pem))

    def credentials(self, name: str = "admin") -> Credentials:
        return Credentials.find(self.layout.ca_certificate, self.layout.client_certificate(name))

    def manager(self, client_ca: str | None = None) -> ssl.SSLContext:
        """The manager's side; `client_ca` instead of our CA for its clients."""
        return server_context(self.layout.manager_certificate, self.layout.manager_key, client_ca or self.ca_pem)

    def keep(self) -> ssl.SSLContext:
        """The keep's side."""
        return server_context(self._keep + ".crt", self._keep + ".key", self.ca_pem)

    def client(self, name: str, now: datetime.datetime, days: int = 30) -> Credentials:
        """Another client, issued as if it were `now`."""
        if not os.path.exists(self.layout.client_certificate(name)):
            pki.issue(self.layout, name, datetime.timedelta(days=days), now)
        return self.credentials(name)
