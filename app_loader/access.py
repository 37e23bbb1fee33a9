"""Who may upload: one policy, asked for every request and again while a body is received.

OpenSSL has verified the chain to the client CA in the handshake. What it leaves open is checked here: the usage of
the certificate, its revocation, and its expiry since the handshake.
"""

from __future__ import annotations

import os
import ssl
import time

from app_loader.certificate import CLIENT_AUTH, MalformedCertificate, extended_key_usages
from app_loader.limits import MAX_REVOKED_BYTES
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record


class Peer(Record):
    """A client's verified certificate: serial, a number; expires, in Unix seconds; usages, its extended key usages."""

    serial: int
    expires: float
    usages: frozenset[bytes]


def _forbidden(message: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.FORBIDDEN, message)


def peer_of(connection: ssl.SSLSocket) -> Peer:
    """The client at the other end of a finished handshake. Raises KeepfleetError(FORBIDDEN) when it cannot be read."""
    der, fields = connection.getpeercert(binary_form=True), connection.getpeercert()
    if not der or not fields:
        raise _forbidden("cannot let the client in: it showed no certificate")
    try:
        usages = extended_key_usages(der)
        return Peer(int(str(fields["serialNumber"]), 16), ssl.cert_time_to_seconds(str(fields["notAfter"])), usages)
    except (MalformedCertificate, KeyError, ValueError) as error:
        raise _forbidden(f"cannot read the client's certificate: {error}") from error


def revoked_serials(text: bytes) -> frozenset[int]:
    """The serial numbers in a list of hexadecimal lines; empty lines and those that begin with # are skipped.

    A last line without its newline is being written and counts already. Raises KeepfleetError(FORBIDDEN) for a line
    that is no number: an unreadable list lets nobody in.
    """
    serials = set()
    for line in text.split(b"\n"):
        word = line.split(b"#", 1)[0].strip()
        if not word:
            continue
        try:
            serials.add(int(word.removeprefix(b"0x").replace(b":", b""), 16))
        except ValueError:
            raise _forbidden("cannot let any client in: the list of revoked certificates is not readable") from None
    return frozenset(serials)


class UploadAccess:
    """The policy of the door: a certificate for clients, not revoked, not expired.

    The list of revoked serial numbers is only ever appended to; it is read again when its size or time has changed.
    """

    def __init__(self, revoked: int) -> None:
        self._revoked = revoked
        self._seen: tuple[int, int] | None = None
        self._serials: frozenset[int] = frozenset()

    def __repr__(self) -> str:
        return f"UploadAccess({len(self._serials)} revoked)"

    def _current(self) -> frozenset[int]:
        try:
            status = os.fstat(self._revoked)
            stamp = (status.st_size, status.st_mtime_ns)
            if stamp == self._seen:
                return self._serials
            if status.st_size > MAX_REVOKED_BYTES:
                raise _forbidden(f"cannot let any client in: the revocation list is over {MAX_REVOKED_BYTES} bytes")
            self._serials = revoked_serials(os.pread(self._revoked, MAX_REVOKED_BYTES, 0))
        except OSError as error:
            raise _forbidden(f"cannot let any client in: the revocation list is unreadable: {error}") from error
        self._seen = stamp
        return self._serials

    def check(self, peer: Peer, now: float | None = None) -> None:
        """Returns when `peer` may upload. Raises KeepfleetError(FORBIDDEN) otherwise."""
        if CLIENT_AUTH not in peer.usages:
            raise _forbidden(
                "cannot let the client in: its certificate is not for clients (extended key usage clientAuth)"
            )
        if peer.serial in self._current():
            raise _forbidden(f"cannot let the client in: its certificate {peer.serial:x} is revoked")
        if (time.time() if now is None else now) > peer.expires:
            raise _forbidden(f"cannot let the client in: its certificate {peer.serial:x} has expired")
