"""The one TLS policy: TLS 1.3, client certificates, no session tickets, pins compared in constant time.

Here are its contexts for those who use `ssl`. What they are stands in `tls_server` and `tls_client`, on less than
`ssl`, for what starts once per keep and once per command.
Import rule: the standard library and the light part of keep_protocol.
"""

from __future__ import annotations

import ssl

from keep_protocol.tls_client import Passphrase, trust, trust_pins
from keep_protocol.tls_client import check_pin as check_pin
from keep_protocol.tls_client import check_private_file as check_private_file
from keep_protocol.tls_client import parse_fingerprint as parse_fingerprint
from keep_protocol.tls_server import HANDSHAKE_SECONDS as HANDSHAKE_SECONDS
from keep_protocol.tls_server import fingerprint_of as fingerprint_of
from keep_protocol.tls_server import prepare


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
    """A client, see `tls_client.trust`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trust(context, ca_file, certificate, key, passphrase)
    return context


def pinned_client_context(certificate: str, key: str | None, passphrase: Passphrase | None = None) -> ssl.SSLContext:
    """A client for a keep, see `tls_client.trust_pins`: call `check_pin` before the first byte is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trust_pins(context, certificate, key, passphrase)
    return context
