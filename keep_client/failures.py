"""Foreign exceptions of a connection, turned into sentences in one place; http.client's are `answers`' own."""

from __future__ import annotations

import socket
import ssl
import time

from keep_client.endpoint import Endpoint
from keep_protocol.errors import ErrorKind, KeepfleetError

_CLOCK = "; are both clocks right?"
_REFUSALS = {
    "UNKNOWN_CA": "another CA issued it",
    "CERTIFICATE_EXPIRED": f"it has expired by its clock{_CLOCK}",
    "CERTIFICATE_REVOKED": "it is revoked",
    "CERTIFICATE_REQUIRED": "it wants one and none was shown",
    "BAD_CERTIFICATE": f"it is not acceptable, or not valid yet by its clock{_CLOCK}",
    "UNSUPPORTED_CERTIFICATE": "it is not one for clients",
    "CERTIFICATE_UNKNOWN": "it is not acceptable",
    "ACCESS_DENIED": "it is not allowed there",
}
"""What a TLS alert (RFC 8446, section 6.2) says about the certificate we showed."""


_OUT_OF_TIME = (9, 10)
"""OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""


class ConnectionFailed(KeepfleetError):
    """No answer came: the server was not reached, or one side did not trust the other, or it went away."""


class CertificateRefused(ConnectionFailed):
    """`peer` refused our certificate, or hung up as one does that refuses it."""

    def __init__(self, message: str, peer: Endpoint) -> None:
        super().__init__(ErrorKind.CERTIFICATE, message)
        self.peer = peer


def _of_tls(error: ssl.SSLError, peer: Endpoint) -> ConnectionFailed:
    if isinstance(error, ssl.SSLCertVerificationError):
        hint = "check the CA file, and that the certificate names the address used"
        if error.verify_code in _OUT_OF_TIME:
            hint = f"this machine's clock shows {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}; is it right?"
        return ConnectionFailed(
            ErrorKind.CERTIFICATE, f"cannot trust {peer}: {error.verify_message.rstrip('.')}; {hint}"
        )
    reason = error.reason or ""
    for word, meaning in _REFUSALS.items():
        if reason.endswith("ALERT_" + word):
            return CertificateRefused(f"cannot use {peer}: it refused our certificate: {meaning}", peer)
    if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
        return ConnectionFailed(ErrorKind.UNAVAILABLE, f"cannot use {peer}: it does not speak TLS")
    return ConnectionFailed(ErrorKind.UNAVAILABLE, f"cannot use {peer}: TLS failed: {reason or error.strerror}")


def closed_in_silence(peer: Endpoint) -> CertificateRefused:
    """The error for a peer that hung up without one byte of an answer: so it does to a certificate it refuses."""
    return CertificateRefused(
        f"cannot use {peer}: it closed the connection without an answer; most likely it refused our certificate "
        "(from another CA, revoked, or expired or not valid yet by its clock)",
        peer,
    )


def not_whole(error: Exception, peer: Endpoint) -> KeepfleetError:
    """The error for an answer that is no HTTP, or ends too early."""
    return KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot read the answer of {peer}: it is not whole HTTP: {error!r}")


def translate(error: Exception, peer: Endpoint) -> KeepfleetError:
    """The KeepfleetError for what a socket or TLS raised while talking to `peer`."""
    if isinstance(error, KeepfleetError):
        return error
    if isinstance(error, (ssl.SSLZeroReturnError, ssl.SSLEOFError)):
        return closed_in_silence(peer)
    if isinstance(error, ssl.SSLError):
        return _of_tls(error, peer)
    if isinstance(error, ValueError):
        return not_whole(error, peer)
    if isinstance(error, ConnectionRefusedError):
        return ConnectionFailed(
            ErrorKind.UNAVAILABLE, f"cannot reach {peer}: nothing listens there{peer.hint and '; '}{peer.hint}"
        )
    if isinstance(error, (ConnectionResetError, BrokenPipeError)):
        return closed_in_silence(peer)
    if isinstance(error, TimeoutError):
        return ConnectionFailed(ErrorKind.TOO_SLOW, f"cannot reach {peer}: it did not answer in time")
    if isinstance(error, socket.gaierror):
        return ConnectionFailed(ErrorKind.UNAVAILABLE, f"cannot reach {peer}: no such host")
    strerror = getattr(error, "strerror", None)
    return ConnectionFailed(ErrorKind.UNAVAILABLE, f"cannot reach {peer}: {strerror or error}")
