"""The manager's certificates and its clients': the only import of cryptography.

OpenSSL has checked a client's chain in the handshake. What it does not check is checked here: that the certificate
was made for a client (OpenSSL takes one without any extended key usage), and, for every request anew, that it has
not expired or been revoked while the connection stood open.
"""

from __future__ import annotations

import datetime
import logging
import os
import re
import ssl
import stat

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from keep_manager.model import ClientIdentity
from keep_protocol import tls
from keep_protocol.errors import ErrorKind, KeepfleetError

LOG = logging.getLogger("keepfleet.pki")
EXPIRY_WARNING = datetime.timedelta(days=30)
"""Long enough before the end that a monthly look at the log finds it."""
MAX_REVOKED_BYTES = 4 * 1024 * 1024
"""A hundred thousand serial numbers."""
_SERIAL = re.compile(rb"[0-9a-fA-F]{1,40}")


def now() -> datetime.datetime:
    """The time certificates are judged by."""
    return datetime.datetime.now(datetime.UTC)


def _refuse(path: str, why: object) -> KeepfleetError:
    return KeepfleetError(ErrorKind.CERTIFICATE, f"cannot use {path}: {why}")


class Directory:
    """The files `keepctl init` makes below one directory."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.ca = os.path.join(path, "ca.crt")
        self.certificate = os.path.join(path, "manager.crt")
        self.key = os.path.join(path, "manager.key")
        self.revoked = os.path.join(path, "revoked")

    def check(self) -> None:
        """Raises KeepfleetError(CERTIFICATE) unless every file is there, private where it must be, and usable."""
        try:
            status = os.stat(self.path)
        except OSError as error:
            raise _refuse(self.path, f"{error.strerror}; run: keepctl init") from error
        if not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o022 or status.st_uid not in (0, os.geteuid()):
            raise _refuse(self.path, "others could change what is in it; run: chmod 0700")
        tls.check_private_file(self.key)
        for path in (self.ca, self.certificate):
            self._check_certificate(path)
        Revoked(self.revoked).serials()

    def server_context(self, *, require_client: bool) -> ssl.SSLContext:
        """The TLS the manager serves with. Raises KeepfleetError(CERTIFICATE)."""
        return tls.server_context(
            self.certificate, self.key, _read(self.ca).decode("ascii", "replace"), require_client=require_client
        )

    def _check_certificate(self, path: str) -> None:
        try:
            certificate = x509.load_pem_x509_certificate(_read(path))
        except ValueError as error:
            raise _refuse(path, f"it holds no certificate: {error}") from error
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        remedy = "run: keepctl pki renew-server" if path == self.certificate else "make a new PKI"
        if begin > now():
            LOG.error("the certificate %s is valid from %s UTC on; is the clock right?", path, f"{begin:%F %R}")
        if end <= now():
            LOG.error("the certificate %s expired on %s; %s", path, end.date(), remedy)
        elif end <= now() + EXPIRY_WARNING:
            LOG.warning("the certificate %s expires on %s; %s", path, end.date(), remedy)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_REVOKED_BYTES + 1)
    except OSError as error:
        raise _refuse(path, f"{error.strerror}; run: keepctl init") from error


class Revoked:
    """The serial numbers in the file `revoked`, one in hexadecimal a line, read anew whenever the file has changed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._version: tuple[int, int, int] | None = None
        self._serials: frozenset[int] = frozenset()

    def __repr__(self) -> str:
        return f"Revoked({self._path!r}, {len(self._serials)})"

    def serials(self) -> frozenset[int]:
        """Every revoked serial number. Raises KeepfleetError(CERTIFICATE) when the file cannot be read whole."""
        try:
            status = os.stat(self._path)
        except OSError as error:
            raise _refuse(self._path, f"{error.strerror}; nobody is let in without it") from error
        version = (status.st_mtime_ns, status.st_size, status.st_ino)
        if version != self._version:
            data = _read(self._path)
            if len(data) > MAX_REVOKED_BYTES:
                raise _refuse(self._path, f"it is over {MAX_REVOKED_BYTES} bytes")
            self._serials = frozenset(self._parse(data))
            self._version = version
        return self._serials

    def _parse(self, data: bytes) -> list[int]:
        serials: list[int] = []
        for number, line in enumerate(data.splitlines(), 1):
            word = line.split(b"#")[0].strip()
            if _SERIAL.fullmatch(word):
                serials.append(int(word, 16))
            elif word:
                LOG.error("cannot read line %d of %s: it must be one hexadecimal serial number", number, self._path)
        return serials


class ClientCertificates:
    """Judges the certificates clients show."""

    def __init__(self, revoked: Revoked) -> None:
        self._revoked = revoked

    def identify(self, der: bytes) -> ClientIdentity:
        """Who the certificate belongs to, and what is wrong with it for good. Never raises for what a client sent."""
        try:
            certificate = x509.load_der_x509_certificate(der)
            return ClientIdentity(
                subject=_subject(certificate),
                serial=certificate.serial_number,
                not_before=certificate.not_valid_before_utc,
                not_after=certificate.not_valid_after_utc,
                fault=_fault(certificate),
            )
        except ValueError as error:
            epoch = datetime.datetime.fromtimestamp(0, datetime.UTC)
            return ClientIdentity("unreadable", 0, epoch, epoch, f"it cannot be read: {error}")

    def check(self, identity: ClientIdentity) -> None:
        """Raises KeepfleetError: FORBIDDEN when the certificate may not be used now, CERTIFICATE when that cannot
        be found out."""
        moment = now()
        if identity.fault:
            why = identity.fault
        elif not identity.not_before <= moment < identity.not_after:
            why = f"it is valid from {identity.not_before:%F %T} to {identity.not_after:%F %T} UTC"
        elif identity.serial in self._revoked.serials():
            why = "it was revoked"
        else:
            return
        raise KeepfleetError(ErrorKind.FORBIDDEN, f"cannot accept the certificate of {identity}: {why}")


def _subject(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value)[:64] if names else certificate.subject.rfc4514_string()[:64]


def _fault(certificate: x509.Certificate) -> str:
    """Why the certificate is no client's, or ""."""
    extensions = certificate.extensions
    try:
        usages = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return "it was not made for a client: it names no extended key usage"
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usages:
        return "it was not made for a client: its extended key usage lacks clientAuth"
    try:
        if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return "it is a certificate authority's, not a client's"
    except x509.ExtensionNotFound:
        pass
    try:
        if not extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature:
            return "its key usage lacks digitalSignature"
    except x509.ExtensionNotFound:
        pass
    return ""
