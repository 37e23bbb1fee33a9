"""A server: where it is, how errors speak of it, what a connection's foreign exceptions mean in words, and how what it
said is made safe for a terminal."""

from __future__ import annotations

import _ssl
import time

from keep_protocol import sockets as socket
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.tls_server import HANDSHAKE_SECONDS

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
REFUSAL_SECONDS = 3.0
"""A server refuses a certificate as soon as it has seen it; one that never sees it whole gives up after its own
HANDSHAKE_SECONDS."""
_LOSSES = "does the network between lose large packets (a wrong MTU)?"
_HUNG_UP = (_ssl.SSLZeroReturnError, _ssl.SSLEOFError, ConnectionResetError, BrokenPipeError)


def printable(text: str) -> str:
    """`text` with every control character but newline and tab shown as an escape: a guest may have chosen it."""
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def one_line(text: str) -> str:
    """`text` made printable on one line."""
    return printable(" ".join(text.split()))


def authority(host: str, port: int) -> str:
    """HOST:PORT, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Endpoint(Record):
    """Where a server listens; `role` names it in errors, as in "the manager"; `hint` is for when none does."""

    host: str
    port: int
    role: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.role} at {self.authority}"

    @property
    def authority(self) -> str:
        """HOST:PORT, as it is written in a URL and in the Host header."""
        return authority(self.host, self.port)


class ConnectionFailed(KeepfleetError):
    """No answer came: the server was not reached, or one side did not trust the other, or it went away."""


class CertificateRefused(ConnectionFailed):
    """`peer` refused our certificate, or hung up as a server does that refuses it."""

    def __init__(self, message: str, peer: Endpoint) -> None:
        super().__init__(ErrorKind.CERTIFICATE, message)
        self.peer = peer


def _of_tls(error: _ssl.SSLError, peer: Endpoint) -> ConnectionFailed:
    if isinstance(error, _ssl.SSLCertVerificationError):
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


def closed_in_silence(peer: Endpoint, seconds: float, kept: bool) -> ConnectionFailed:
    """The error for a peer that hung up without one byte of an answer, `seconds` after the TLS handshake; kept: on a
    connection on which it had answered before.

    In TLS 1.3 a server sees our certificate when the handshake is over for us; one that refuses it hangs up then.
    """
    if kept:
        return ConnectionFailed(
            ErrorKind.UNAVAILABLE,
            f"cannot use {peer}: it closed the connection without an answer: it was stopped, or no longer accepts our "
            "certificate",
        )
    if seconds < REFUSAL_SECONDS:
        return CertificateRefused(
            f"cannot use {peer}: it closed the connection without an answer; most likely it refused our certificate "
            "(from another CA, revoked, or expired or not valid yet by its clock)",
            peer,
        )
    return ConnectionFailed(
        ErrorKind.UNAVAILABLE,
        f"cannot use {peer}: it closed the connection after {seconds:.0f} s without an answer: it was stopped, or did "
        f"not receive all that we sent; {_LOSSES}",
    )


def handshake_failed(error: OSError, peer: Endpoint) -> KeepfleetError:
    """The KeepfleetError for what a TLS handshake raised; before its end no server has seen our certificate."""
    if isinstance(error, TimeoutError):
        return ConnectionFailed(
            ErrorKind.TOO_SLOW,
            f"cannot use {peer}: the TLS handshake did not end in {HANDSHAKE_SECONDS:.0f} s: it is overloaded, or "
            f"speaks no TLS; or {_LOSSES}",
        )
    if isinstance(error, _HUNG_UP):
        return ConnectionFailed(
            ErrorKind.UNAVAILABLE,
            f"cannot use {peer}: it closed the connection during the TLS handshake, before it saw our certificate: it "
            f"takes no more connections at the moment, or speaks no TLS 1.3; or {_LOSSES}",
        )
    return translate(error, peer)


def not_whole(error: Exception, peer: Endpoint) -> KeepfleetError:
    """The error for an answer that is no HTTP, or ends too early."""
    return KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot read the answer of {peer}: it is not whole HTTP: {error!r}")


def translate(error: Exception, peer: Endpoint, seconds: float = 0.0, kept: bool = False) -> KeepfleetError:
    """The KeepfleetError for what a socket or TLS raised while talking to `peer`, `seconds` and `kept` as in
    `closed_in_silence`."""
    if isinstance(error, KeepfleetError):
        return error
    if isinstance(error, _HUNG_UP):
        return closed_in_silence(peer, seconds, kept)
    if isinstance(error, _ssl.SSLError):
        return _of_tls(error, peer)
    if isinstance(error, ValueError):
        return not_whole(error, peer)
    if isinstance(error, ConnectionRefusedError):
        return ConnectionFailed(
            ErrorKind.UNAVAILABLE, f"cannot reach {peer}: nothing listens there{peer.hint and '; '}{peer.hint}"
        )
    if isinstance(error, TimeoutError):
        return ConnectionFailed(ErrorKind.TOO_SLOW, f"cannot reach {peer}: it did not answer in time")
    if isinstance(error, socket.gaierror):
        return ConnectionFailed(ErrorKind.UNAVAILABLE, f"cannot reach {peer}: no such host")
    strerror = getattr(error, "strerror", None)
    return ConnectionFailed(ErrorKind.UNAVAILABLE, f"cannot reach {peer}: {strerror or error}")
