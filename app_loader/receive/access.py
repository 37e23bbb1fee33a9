"""Who is let in: the policy of who may upload, and the table of the few connections an endpoint has.

OpenSSL has verified a certificate's chain to the client CA in the handshake. What it leaves open is checked here, for
every request and again while a body is received: the certificate's purpose and its time (`keep_protocol.certificate`),
its revocation, and whether its holder may upload into this keep.

Silent clients cannot lock out a good one: above MAX_CONNECTIONS the oldest that has sent nothing is dropped first, and
one connection is accepted between two looks at those already open.
"""

from __future__ import annotations

import time

from app_loader.limits import MAX_CONNECTIONS
from app_loader.receive.exchange import Channel, Exchange, Gone, Stage
from keep_protocol import sockets as socket
from keep_protocol.certificate import CertificateFields, check_client
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.identity import Identity, Role, may_upload, owner_of
from keep_protocol.keep import Uploader
from keep_protocol.revocation import RevokedFile, serial_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _ssl import _SSLContext


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


class ConnectionTable:
    """All exchanges of an endpoint. exchanges: those not yet removed, in the order they came."""

    def __init__(self, context: _SSLContext, access: UploadAccess) -> None:
        self._context, self._access = context, access
        self.exchanges: list[Exchange] = []

    def __repr__(self) -> str:
        return f"ConnectionTable({self.exchanges!r})"

    def accept(self, listener: socket.socket, now: float) -> None:
        """Accepts one connection, if there still is one and room for it."""
        try:
            connection, _ = listener.accept()
        except OSError:
            return  # it has gone again before it was accepted
        if len(self.exchanges) >= MAX_CONNECTIONS and not self._make_room():
            connection.close()
            return
        try:
            self.exchanges.append(Exchange(Channel(connection, self._context), now))
        except Gone:
            return

    def _make_room(self) -> bool:
        """Drops the one that matters least: a refused one, else the oldest that may not upload, the silent first."""
        others = [e for e in self.exchanges if e.stage is Stage.LINGERING or not self.may_upload(e)]
        if not others:
            return False
        victim = min(others, key=lambda e: (e.stage is not Stage.LINGERING, e.heard, e.opened))
        victim.close()
        self.exchanges.remove(victim)
        return True

    def check(self, exchange: Exchange) -> Uploader:
        """The exchange's client, who may upload. Raises KeepfleetError(FORBIDDEN) for any other."""
        if isinstance(exchange.peer, KeepfleetError):
            raise exchange.peer
        if exchange.peer is None:
            raise KeepfleetError(ErrorKind.FORBIDDEN, "cannot let the client in: its handshake is not complete")
        return self._access.check(exchange.peer)

    def may_upload(self, exchange: Exchange) -> bool:
        """Whether the client may upload, so that no other can push it out."""
        try:
            self.check(exchange)
        except KeepfleetError:
            return False
        return True

    def remove_closed(self) -> None:
        """Drops the exchanges that are over."""
        self.exchanges = [e for e in self.exchanges if e.stage is not Stage.CLOSED]

    def close(self) -> None:
        """Ends every exchange."""
        for exchange in self.exchanges:
            exchange.close()
