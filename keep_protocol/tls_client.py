"""The client's part of the one TLS policy, in terms of `_ssl`, whose objects those of `ssl` are: `tls` has the rest.

A command that is typed uses it as it stands here: what `ssl` adds, names for numbers, imports `enum`, `re` and `socket`
for it, which is half of such a command's own start.
Import rule: `_ssl` and the light part of keep_protocol.
"""

from __future__ import annotations

import _ssl
import os
import stat
from _collections_abc import Callable

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.patterns import matches
from keep_protocol.tls_server import fingerprint_of, restrict

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


def trust(
    context: _ssl._SSLContext,
    ca_file: str,
    certificate: str | None,
    key: str | None,
    passphrase: Passphrase | None = None,
) -> None:
    """Makes `context`, which is a new one for clients, that of a client which trusts `ca_file` alone, checks the
    server's name or address, and shows its own certificate.

    Raises KeepfleetError(CERTIFICATE) when a file cannot be used, and what `passphrase` raises.
    """
    restrict(context)  # a new context for clients wants a certificate, and one for the host
    try:
        context.load_verify_locations(cafile=ca_file)
    except (OSError, ValueError) as error:
        raise KeepfleetError(ErrorKind.CERTIFICATE, f"cannot use the CA file {ca_file}: {_reason(error)}") from error
    if certificate is not None:
        _show(context, certificate, key, passphrase)


def trust_pins(
    context: _ssl._SSLContext, certificate: str, key: str | None, passphrase: Passphrase | None = None
) -> None:
    """Makes `context` that of a client for a keep, whose self-signed certificate is known by its fingerprint and by
    nothing else.

    The handshake itself accepts any certificate, so the caller must call `check_pin` on the connection before it
    sends the first byte. Raises KeepfleetError(CERTIFICATE) when a file cannot be used, and what `passphrase` raises.
    """
    restrict(context)
    context.check_hostname = False
    context.verify_mode = _ssl.CERT_NONE
    _show(context, certificate, key, passphrase)


def light_client_context(
    ca_file: str, certificate: str | None, key: str | None, passphrase: Passphrase | None = None
) -> _ssl._SSLContext:
    """As `tls.client_context`. Raises what `trust` does."""
    context = _ssl._SSLContext(_ssl.PROTOCOL_TLS_CLIENT)
    trust(context, ca_file, certificate, key, passphrase)
    return context


def light_pinned_client_context(
    certificate: str, key: str | None, passphrase: Passphrase | None = None
) -> _ssl._SSLContext:
    """As `tls.pinned_client_context`. Raises what `trust_pins` does."""
    context = _ssl._SSLContext(_ssl.PROTOCOL_TLS_CLIENT)
    trust_pins(context, certificate, key, passphrase)
    return context


def _reason(error: Exception) -> str:
    """What is wrong with a file, in words: OpenSSL names a library, a code and a line of C."""
    return next((words for sign, words in _FAULTS.items() if sign in str(error)), str(error))


def _show(context: _ssl._SSLContext, certificate: str, key: str | None, passphrase: Passphrase | None) -> None:
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
    except (OSError, ValueError) as error:
        why = "the passphrase is wrong" if asked and isinstance(error, _ssl.SSLError) else _reason(error)
        raise KeepfleetError(
            ErrorKind.CERTIFICATE, f"cannot use the certificate {certificate} with the key {key}: {why}"
        ) from error


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
    from _operator import _compare_digest  # what `hmac` and `secrets` compare with, without their 2 ms

    shown = "none" if der is None else fingerprint_of(der)
    if not _compare_digest(shown, parse_fingerprint(fingerprint)):
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
