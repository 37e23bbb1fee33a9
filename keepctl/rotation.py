"""The rotation of the CA: a new one next to the old, both trusted, until nothing of the old one is in use."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Iterator

from cryptography import x509

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.identity import check_trust_domain
from keepctl import authority, files, pki
from keepctl.authority import KeyPair
from keepctl.layout import Layout


def begin(layout: Layout, now: datetime.datetime, trust_domain: str | None = None) -> KeyPair:
    """A new CA, which signs from now on; the old one stays trusted until `finish`.

    The old CA's key is not needed, and replaced. A crash between the two files leaves both CAs trusted and the old one
    signing, which `finish` ends. Raises KeepfleetError(CONFLICT) while a rotation is under way.
    """
    with files.explained("make a new CA"), files.locked(layout.directory):
        cas = pki.load_cas(layout)
        if len(cas) > 1:
            why = "a rotation is under way; end it first: keepctl pki rotate --finish"
            raise KeepfleetError(ErrorKind.CONFLICT, f"cannot make a new CA: {why}")
        domain = check_trust_domain(trust_domain or authority.trust_domain(cas[0]))
        new = authority.make_ca(now, domain)
        _write_bundle(layout.ca_certificate, [new.certificate, *cas])
        if os.path.lexists(layout.client_ca):
            _write_bundle(layout.client_ca, [new.certificate, *_bundle(layout.client_ca)])
        files.replace(layout.ca_key, authority.key_pem(new.key), files.PRIVATE_FILE)
    return new


def finish(layout: Layout, now: datetime.datetime, *, force: bool = False) -> list[x509.Certificate]:
    """Only the current CA is trusted from now on. Returns those that no longer are.

    Raises KeepfleetError(CONFLICT), with the names, while one has signed a certificate in use; not with `force`.
    """
    with files.explained("end the rotation of the CA"), files.locked(layout.directory):
        cas = pki.load_cas(layout)
        current = pki.load_ca(layout).certificate if os.path.lexists(layout.ca_key) else cas[0]
        old = [ca for ca in cas if ca != current]
        if not old:
            raise KeepfleetError(ErrorKind.CONFLICT, "cannot end a rotation of the CA: none is under way")
        used = [line for ca in old for line in _signed_by(layout, ca, now)]
        if used and not force:
            raise KeepfleetError(
                ErrorKind.CONFLICT,
                "cannot end the rotation of the CA: the old one has signed certificates in use; renew them and give "
                "them to their holders, or refuse them with --force",
                tuple(used),
            )
        if os.path.lexists(layout.client_ca):
            _write_bundle(layout.client_ca, [ca for ca in _bundle(layout.client_ca) if ca not in old])
        _write_bundle(layout.ca_certificate, [current])
    return old


def _bundle(path: str) -> list[x509.Certificate]:
    return authority.load_certificates(files.read(path), path)


def _write_bundle(path: str, cas: Iterable[x509.Certificate]) -> None:
    pem = b"".join(authority.certificate_pem(ca) for ca in dict.fromkeys(cas))
    files.replace(path, pem, files.PUBLIC_FILE)


def _signed_by(layout: Layout, ca: x509.Certificate, now: datetime.datetime) -> Iterator[str]:
    """The certificates in use that `ca` has signed, each with what replaces it."""
    revoked = pki.revoked_serials(layout)
    clients = [name for name in sorted(os.listdir(layout.clients)) if name.endswith(".crt")]
    paths = [(layout.manager_certificate, "renew-server")]
    paths += [(os.path.join(layout.clients, name), f"renew {name[:-4]}") for name in clients if "+" not in name]
    for path, remedy in paths:
        found = authority.load_certificate(files.read(path), path)
        used = found.not_valid_after_utc > now and found.serial_number not in revoked
        if used and authority.issued_by(found, ca):
            yield f"{path}: keepctl pki {remedy}"
