"""Who may upload: one policy, asked for every request and again while a body is received.

OpenSSL has verified the chain to the client CA in the handshake. What it leaves open is checked here: the certificate's
purpose and its time (`keep_protocol.certificate`), its revocation, and whether its holder may upload into this keep.
"""

from __future__ import annotations

import ssl
import time

from keep_protocol.certificate import CertificateFields, check_client, read_certificate
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.identity import Identity, Role, may_upload, owner_of
from keep_protocol.keep import Uploader
from keep_protocol.revocation import RevokedFile, serial_text


def peer_of(connection: ssl.SSLSocket) -> CertificateFields:
    """The client's certificate, after the handshake. Raises KeepfleetError(FORBIDDEN) when it cannot be read."""
    der = connection.getpeercert(binary_form=True)
    if not der:
        raise KeepfleetError(ErrorKind.FORBIDDEN, "cannot let the client in: it showed no certificate")
    return read_certificate(der)


class UploadAccess:
    """The policy of one keep's endpoint: a client's certificate, valid, not revoked, whose holder `uploaders` names or
    which was made for an upload into this keep."""

    def __init__(self, revoked: int, kuuid: int, uploaders: tuple[str, ...]) -> None:
        """revoked: the descriptor of the list of revoked certificates; it is read again whenever it has changed."""
        self._revoked = RevokedFile(revoked)
        self._kuuid, self._uploaders = kuuid, uploaders

    def __repr__(self) -> str:
        return f"UploadAccess({self._kuuid}, {', '.join(self._uploaders) or 'no uploaders'}, {self._revoked!r})"

    def check(self, certificate: CertificateFields, now: float | None = None) -> Uploader:
        """The certificate's holder, who may upload. Raises KeepfleetError(FORBIDDEN) for any other, and for all where
        the list of revoked certificates cannot be read."""
        identity = check_client(certificate, time.time() if now is None else now)
        try:
            revoked = self._revoked.serials()
        except KeepfleetError as error:
            raise KeepfleetError(ErrorKind.FORBIDDEN, error.message) from error
        if certificate.serial in revoked:
            raise _refused(certificate, "it is revoked")
        if not may_upload(self._uploaders, self._kuuid, identity, certificate.subject, certificate.fingerprint):
            raise _refused(certificate, _reason(identity))
        name = owner_of(certificate.subject) if identity is None else identity.name
        return Uploader(certificate.fingerprint, name, serial_text(certificate.serial))


def _reason(identity: Identity | None) -> str:
    """Why `may_upload` refuses."""
    if identity is not None and identity.role is Role.UPLOADER:
        return f"it is for an upload into another keep, {identity.keep}"
    if identity is not None and identity.role is Role.VIEWER:
        return "it is a viewer's, which may not upload"
    return "its holder may not upload into this keep; who may is decided by the caller who starts it"


def _refused(certificate: CertificateFields, why: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.FORBIDDEN, f"cannot accept the certificate of {certificate}: {why}")
