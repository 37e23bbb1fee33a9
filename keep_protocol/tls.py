"""The one TLS policy: TLS 1.3, client certificates, no session tickets, pins compared in constant time.

What a server needs of it stands in `tls_server`, on less than `ssl`, for those that start once per keep.
Import rule: the standard library and the light part of keep_protocol.
"""

from __future__ import annotations

import os
import ssl
import stat
from _collections_abc import Callable

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.patterns import matches
from keep_protocol.tls_server import HANDSHAKE_SECONDS as HANDSHAKE_SECONDS
from keep_protocol.tls_server import fingerprint_of as fingerprint_of
from keep_protocol.tls_server import prepare, restrict

_FAULTS = {
    "key values mismatch": "they do not belong together",
    "no certificate or crl found": "there is no certificate in PEM in it",
    "no start line": "there is no PEM in it",
    "PEM lib": "it is not PEM",
}
"""What OpenSSL says where a wrong file was named."""
Passphrase = Callable[[], str]
"""Asks for the passphrase of an encrypted key; it is called only for one."""
_FINGERPRINT = "sha256:[0-9a-f]{64}"


def _base(purpose: int) -> ssl.SSLContext:
    context = ssl.SSLContext(purpose)
    restrict(context)
    return context


def server_context(
    certificate: str, key: str | None, client_ca_pem: str, *, require_client: bool = True
) -> ssl.SSLContext:
    """A server that asks for a client certificate issued by one of the CAs in `client_ca_pem` (PEM text).

    Each of these is trusted by itself, also one below another CA (PARTIAL_CHAIN): so that the clients of one department
    can be trusted without those of its whole company. A client sends the intermediate certificates between.
    `certificate` and `key` are paths (`key` None: in the certificate's file). With `require_client` false a client
    without a certificate is let in, one with a foreign certificate still is not.
    Raises KeepfleetError(CERTIFICATE) when a file or the PEM cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    prepare(context, certificate, key, client_ca_pem, require_client=require_client)
    return context


def client_context(
    ca_file: str, certificate: str | None, key: str | None, passphrase: Passphrase | None = None
) -> ssl.SSLContext:
    """A client that trusts `ca_file` alone, checks the server's name or address, and shows its own certificate.

    Raises KeepfleetError(CERTIFICATE) when a file cannot be used, and what `passphrase` raises.
    """
    context = _base(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cafile=ca_file)
    except (OSError, ValueError) as error:
        raise KeepfleetError(ErrorKind.CERTIFICATE, f"cannot use the CA file {ca_file}: {_reason(error)}") from error
    if certificate is not None:
        _show(context, certificate, key, passphrase)
    return context


def _reason(error: Exception) -> str:
    """What is wrong with a file, in words: OpenSSL names a library, a code and a line of C."""
    return next((words for sign, words in _FAULTS.items() if sign in str(error)), str(error))


def _show(context: ssl.SSLContext, certificate: str, key: str | None, passphrase: Passphrase | None) -> None:
    """Shows `certificate` to servers. Raises KeepfleetError(CERTIFICATE)."""
    asked = False

    def answer() -> str:
        nonlocal asked
        asked = True
        if passphrase is None:
            raise KeepfleetError(
                ErrorKind.CERTIFICATE,
                f"cannot use the key {key}: it is encrypted; write it without a passphrase: "
                f"openssl pkey -in {key} -out NEW.key",
            )
        return passphrase()

    try:
        context.load_cert_chain(certificate, key, answer)
    except ssl.SSLError as error:
        why = "the passphrase is wrong" if asked else _reason(error)
        raise KeepfleetError(
            ErrorKind.CERTIFICATE, f"cannot use the certificate {certificate} with the key {key}: {why}"
        ) from error
    except (OSError, ValueError) as error:
        raise KeepfleetError(
            ErrorKind.CERTIFICATE, f"cannot use the certificate {certificate} with the key {key}: {_reason(error)}"
        ) from error


def pinned_client_context(certificate: str, key: str | None, passphrase: Passphrase | None = None) -> ssl.SSLContext:
    """A client for a keep, whose self-signed certificate is known by its fingerprint and by nothing else.

    The handshake itself accepts any certificate, so the caller must call `check_pin` on the connection before it
    sends the first byte. Raises KeepfleetError(CERTIFICATE) when a file cannot be used, and what `passphrase` raises.
    """
    context = _base(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    _show(context, certificate, key, passphrase)
    return context


def parse_fingerprint(text: str) -> str:
    """`text` as a fingerprint: with or without `sha256:`, colons between bytes or not, any case.

    Raises KeepfleetError(BAD_REQUEST) otherwise.
    """
    lowered = text.strip().lower()
    digits = lowered.removeprefix("sha256:").replace(":", "")
    if not matches(_FINGERPRINT, "sha256:" + digits):
        raise KeepfleetError(
            ErrorKind.BAD_REQUEST,
            f"cannot read {text[:80]!r} as a fingerprint: it must be sha256: and 64 hexadecimal digits",
        )
    return "sha256:" + digits


def check_pin(der: bytes | None, fingerprint: str) -> None:
    """Raises KeepfleetError(CERTIFICATE) unless `der`, the peer's certificate, has exactly this fingerprint."""
    import hmac  # here: 2 ms, and a client that only asks its manager needs none

    shown = "none" if der is None else fingerprint_of(der)
    if not hmac.compare_digest(shown, parse_fingerprint(fingerprint)):
        raise KeepfleetError(
            ErrorKind.CERTIFICATE,
            f"cannot trust the keep: its certificate is {shown}, not {fingerprint}; nothing was sent; "
            "ask the manager which keep listens there",
        )


def check_private_file(path: str) -> None:
    """Raises KeepfleetError(CERTIFICATE) unless `path` is a regular file that only its owner (us, or root) can read."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise KeepfleetError(ErrorKind.CERTIFICATE, f"cannot use the key {path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
        raise KeepfleetError(
            ErrorKind.CERTIFICATE,
            f"cannot use the key {path}: its mode is {stat.S_IMODE(status.st_mode):04o}; run: chmod 0600 {path}",
        )
    if status.st_uid not in (0, os.geteuid()):
        raise KeepfleetError(
            ErrorKind.CERTIFICATE, f"cannot use the key {path}: it belongs to uid {status.st_uid}, who could change it"
        )
