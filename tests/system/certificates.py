"""Clients of the installed PKI that are wrong in exactly one way, made with its own CA as keepctl would not."""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from keepctl import authority
from keepctl.authority import KeyPair
from tests.system.fleet import Fleet

CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
HOUR = datetime.timedelta(hours=1)


def installed_ca(fleet: Fleet) -> KeyPair:
    """The CA of the installed PKI."""
    certificate, key = (fleet.pki / name for name in ("ca.crt", "ca.key"))
    return KeyPair(
        authority.load_certificate(certificate.read_bytes(), str(certificate)),
        authority.load_key(key.read_bytes(), str(key)),
    )


def foreign_ca() -> KeyPair:
    """A CA of another party."""
    return authority.make_ca(datetime.datetime.now(datetime.UTC))


def issue(
    ca: KeyPair,
    file: Path,
    name: str = "other",
    *,
    usages: tuple[x509.ObjectIdentifier, ...] | None = (CLIENT,),
    begins: datetime.timedelta = -HOUR,
    ends: datetime.timedelta = HOUR,
    is_ca: bool = False,
) -> Path:
    """Writes a certificate and its key to `file`, with `usages` (None: no such extension); returns `file`.

    It is valid from now + `begins` until now + `ends`.
    """
    key, now = authority.new_key(), datetime.datetime.now(datetime.UTC)
    sign = x509.KeyUsage(True, False, False, False, False, is_ca, is_ca, False, False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(ca.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
        .add_extension(x509.BasicConstraints(is_ca, 0 if is_ca else None), critical=True)
        .add_extension(sign, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key()), critical=False)
    )
    if usages is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    certificate = builder.sign(ca.key, hashes.SHA256())
    file.write_bytes(authority.certificate_pem(certificate) + authority.key_pem(key))
    return file


def chained(ca: KeyPair, directory: Path) -> Path:
    """A client whose certificate another client of `ca`, made to look like a CA, has signed; the chain in one file."""
    middle = issue(ca, directory / "middle.pem", "middle", is_ca=True)
    pem = middle.read_bytes()
    between = KeyPair(authority.load_certificate(pem, "middle"), authority.load_key(pem, "middle"))
    leaf = issue(between, directory / "leaf.pem", "leaf")
    leaf.write_bytes(leaf.read_bytes() + pem)
    return leaf
