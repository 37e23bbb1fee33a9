"""The server's part of the one TLS policy, in terms of `_ssl`, whose objects those of `ssl` are: `tls` has the rest.

A keep's endpoint uses it as it stands here: what `ssl` adds, names for numbers, is 6 ms of every keep's start.
Import rule: `_ssl` and the light part of keep_protocol.
Session tickets are off because a resumed session skips the certificate checks: a client whose certificate had
expired or was revoked would still be served (RFC 8446, section 4.6.1; measured with OpenSSL 3.0).
"""

from __future__ import annotations

import _ssl

from keep_protocol.errors import ErrorKind, KeepfleetError

HANDSHAKE_SECONDS = 5.0
"""A TLS 1.3 handshake takes two round trips; five seconds cover a slow radio link and bound a silent peer."""


def restrict(context: _ssl._SSLContext) -> None:
    """What holds for both sides: TLS 1.3, and nothing that lets a peer skip a check."""
    context.minimum_version = _ssl.PROTO_TLSv1_3
    context.options |= _ssl.OP_NO_TICKET | _ssl.OP_NO_COMPRESSION | _ssl.OP_NO_RENEGOTIATION


def prepare(
    context: _ssl._SSLContext, certificate: str, key: str | None, client_ca_pem: str, *, require_client: bool = True
) -> None:
    """Makes `context` that of a server, see `tls.server_context`. Raises KeepfleetError(CERTIFICATE)."""
    restrict(context)
    context.num_tickets = 0
    context.verify_mode = _ssl.CERT_REQUIRED if require_client else _ssl.CERT_OPTIONAL
    context.verify_flags |= _ssl.VERIFY_X509_STRICT | _ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(cadata=client_ca_pem)
    except (OSError, ValueError) as error:
        raise KeepfleetError(ErrorKind.CERTIFICATE, f"cannot use the certificate {certificate}: {error}") from error


def light_server_context(certificate: str, client_ca_pem: str) -> _ssl._SSLContext:
    """As `tls.server_context`, key and certificate in one file. Raises KeepfleetError(CERTIFICATE)."""
    context = _ssl._SSLContext(_ssl.PROTOCOL_TLS_SERVER)
    prepare(context, certificate, None, client_ca_pem)
    return context


def fingerprint_of(der: bytes) -> str:
    """`sha256:` and the SHA-256 of a DER certificate in 64 hexadecimal digits."""
    from _hashlib import openssl_sha256  # here: a client that pins nothing needs none; `hashlib` would be 2 ms more

    return "sha256:" + openssl_sha256(der).hexdigest()
