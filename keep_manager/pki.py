"""The manager's certificates and its clients'.

OpenSSL has checked a client's chain in the handshake. What it does not check is checked here, for every request again,
since a certificate may expire or be revoked while its connection stays open: by `keep_protocol.certificate`, the same
policy as a keep's.
"""

from __future__ import annotations

import datetime
import logging
import os
import re
import ssl
import stat
from collections.abc import Iterator

from keep_manager.model import ClientIdentity
from keep_protocol import tls
from keep_protocol.certificate import check_client, read_certificate
from keep_protocol.constants import MAX_CA_FILE_BYTES
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.identity import identity_of
from keep_protocol.revocation import RevokedFile

LOG = logging.getLogger("keepfleet.pki")
EXPIRY_WARNING = datetime.timedelta(days=30)
"""Long enough before the end that a monthly look at the log finds it."""
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\s[A-Za-z0-9+/=\s]*-----END CERTIFICATE-----")


def now() -> datetime.datetime:
    """The time that certificates are compared with."""
    return datetime.datetime.now(datetime.UTC)


def _unusable(path: str, why: object) -> KeepfleetError:
    return KeepfleetError(ErrorKind.CERTIFICATE, f"cannot use {path}: {why}")


def _unread(path: str, error: OSError) -> KeepfleetError:
    missing = isinstance(error, FileNotFoundError)
    return _unusable(path, f"{error.strerror}; run: keepctl init" if missing else error.strerror)


class Directory:
    """The files `keepctl init` makes below one directory, and `client-ca.crt` where clients have a CA of their own."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.ca = os.path.join(path, "ca.crt")
        self.certificate = os.path.join(path, "manager.crt")
        self.key = os.path.join(path, "manager.key")
        self.revoked = os.path.join(path, "revoked")
        self._client_ca = os.path.join(path, "client-ca.crt")

    @property
    def client_ca(self) -> str:
        """The file with the CAs of clients' certificates: `client-ca.crt` where there is one, else `ca.crt`."""
        return self._client_ca if os.path.lexists(self._client_ca) else self.ca

    def check(self) -> None:
        """Raises KeepfleetError(CERTIFICATE) unless every file is there, private where it must be, and usable."""
        try:
            status = os.stat(self.path)
        except OSError as error:
            raise _unread(self.path, error) from error
        if not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o022 or status.st_uid not in (0, os.geteuid()):
            raise _unusable(self.path, "others could change what is in it; run: chmod 0700")
        tls.check_private_file(self.key)
        remedies = {
            self.client_ca: "add its successor to the file",
            self.ca: "run: keepctl pki rotate",
            self.certificate: "run: keepctl pki renew-server",
        }
        for path in remedies:
            for der in _certificates(path):
                _check_time(path, der, remedies[path])
        RevokedFile(self.revoked).serials()

    def server_context(self, *, require_client: bool) -> ssl.SSLContext:
        """The TLS the manager serves with. Raises KeepfleetError(CERTIFICATE)."""
        bundle = "".join(ssl.DER_cert_to_PEM_cert(der) for der in _certificates(self.client_ca))
        return tls.server_context(self.certificate, self.key, bundle, require_client=require_client)


def _check_time(path: str, der: bytes, remedy: str) -> None:
    try:
        certificate = read_certificate(der)
    except KeepfleetError as error:
        raise _unusable(path, error.message) from error
    begin, end = (
        datetime.datetime.fromtimestamp(moment, datetime.UTC)
        for moment in (certificate.not_before, certificate.not_after)
    )
    if begin > now():
        LOG.error("the certificate %s is valid from %s UTC on; is the clock right?", path, f"{begin:%F %R}")
    if end <= now():
        LOG.error("the certificate %s expired on %s; %s", path, end.date(), remedy)
    elif end <= now() + EXPIRY_WARNING:
        LOG.warning("the certificate %s expires on %s; %s", path, end.date(), remedy)


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)  # as it is opened for a keep


def _certificates(path: str) -> Iterator[bytes]:
    """The certificates of a PEM file in DER, at least one. Raises KeepfleetError(CERTIFICATE)."""
    try:
        with open(path, "rb", opener=_no_link) as file:
            data = file.read(MAX_CA_FILE_BYTES + 1)
    except OSError as error:
        raise _unread(path, error) from error
    if len(data) > MAX_CA_FILE_BYTES:
        raise _unusable(path, f"it is over {MAX_CA_FILE_BYTES} bytes")
    try:
        blocks = _PEM.findall(data.decode("ascii"))
        found = [ssl.PEM_cert_to_DER_cert(block) for block in blocks]
    except ValueError as error:
        raise _unusable(path, f"it is not PEM in ASCII: {error}") from error
    if not found or data.count(b"-----BEGIN CERTIFICATE-----") != len(found):
        raise _unusable(path, "it holds no certificate, or one that is cut short")
    return iter(found)


class ClientCertificates:
    """Decides about the certificates clients show."""

    def __init__(self, revoked: RevokedFile) -> None:
        self._revoked = revoked
        self._complaint = ""

    def __repr__(self) -> str:
        return f"ClientCertificates({self._revoked!r})"

    def identify(self, der: bytes) -> ClientIdentity:
        """Who the certificate belongs to, and what is wrong with it whatever the time. Never raises for its bytes."""
        try:
            certificate = read_certificate(der)
        except KeepfleetError as error:
            return ClientIdentity(None, fault=error.message)
        try:
            return ClientIdentity(certificate, identity_of(certificate.uris))
        except KeepfleetError as error:
            return ClientIdentity(certificate, fault=f"cannot accept the certificate of {certificate}: {error.message}")

    def check(self, identity: ClientIdentity) -> None:
        """Raises KeepfleetError: FORBIDDEN when the certificate may not be used now, CERTIFICATE when that cannot
        be found out."""
        if identity.fault or identity.certificate is None:
            raise KeepfleetError(ErrorKind.FORBIDDEN, identity.fault)
        check_client(identity.certificate, now().timestamp())
        if identity.serial in self._serials():
            raise KeepfleetError(ErrorKind.FORBIDDEN, f"cannot accept the certificate of {identity}: it was revoked")

    def _serials(self) -> frozenset[int]:
        try:
            serials = self._revoked.serials()
        except KeepfleetError as error:
            if error.message != self._complaint:  # one line for the operator, not one for each request
                LOG.error("%s; every client is refused until it is fixed", error.message)
            self._complaint = error.message
            raise
        self._complaint = ""
        return serials
