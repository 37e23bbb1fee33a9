"""Keys and certificates, in memory: what each certificate says, and for how long. The one import of cryptography."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from keep_protocol.errors import ErrorKind, KeepfleetError

CA_DAYS = 3653
"""Ten years: to replace the CA is to replace every certificate by hand, so it outlives a host's usual life."""
SERVER_DAYS = 397
"""A year and a month: renewed once a year with a month to be late in (the public web's limit until 2026)."""
CLIENT_DAYS = 397
"""As for the server; a shorter one can be asked for, and any one can be revoked at once."""
MAX_CLIENT_DAYS = 825
"""The longest a client's certificate may be asked for: two years and a quarter, then people have changed jobs."""
BACKDATE = datetime.timedelta(minutes=5)
"""Certificates begin a little in the past, for peers whose clocks are behind."""
P12_ROUNDS = 100_000
"""PBKDF2 rounds for an exported key: 50 ms to open once, and a hundred thousand times that to guess at."""

Key = ec.EllipticCurvePrivateKey


@dataclass(frozen=True)
class Identity:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: Key


def new_key() -> Key:
    """A P-256 key: what TLS 1.3 peers all know, with the smallest handshake."""
    return ec.generate_private_key(ec.SECP256R1())


def _name(common_name: str) -> x509.Name:
    # RFC 5280 allows a common name 64 characters; the subject alternative name is what is verified.
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "keepfleet"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64]),
        ]
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _begin(key: Key, subject: x509.Name, now: datetime.datetime, days: int) -> x509.CertificateBuilder:
    start = now.replace(microsecond=0) - BACKDATE
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + BACKDATE + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def make_ca(now: datetime.datetime) -> Identity:
    """A self-signed CA that issues end certificates only; named by its key, so that two are told apart."""
    key = new_key()
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    name = _name(f"keepfleet CA {identifier.digest[:4].hex()}")
    certificate = (
        _begin(key, name, now, CA_DAYS)
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Identity(certificate, key)


def _issue(
    ca: Identity,
    key: Key,
    name: str,
    purpose: x509.ObjectIdentifier,
    days: int,
    now: datetime.datetime,
    alternatives: list[x509.GeneralName],
) -> Identity:
    left = ca.certificate.not_valid_after_utc - now
    if left < datetime.timedelta(days=days):
        raise KeepfleetError(
            ErrorKind.CERTIFICATE,
            f"cannot issue a certificate for {days} days: the CA itself ends in {max(left.days, 0)}; "
            "make a new PKI, or ask for fewer with --days",
        )
    identifier = ca.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        _begin(key, _name(name), now, days)
        .issuer_name(ca.certificate.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
    )
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return Identity(builder.sign(ca.key, hashes.SHA256()), key)


def general_names(names: tuple[str, ...]) -> list[x509.GeneralName]:
    """DNS names and addresses (see `keep_protocol.api.check_names`) as alternative names."""
    found: list[x509.GeneralName] = []
    for name in names:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return found


def issue_server(ca: Identity, key: Key, names: tuple[str, ...], now: datetime.datetime) -> Identity:
    """The manager's certificate for `names`, at least one. Raises KeepfleetError(CERTIFICATE) when the CA ends."""
    purpose = ExtendedKeyUsageOID.SERVER_AUTH
    return _issue(ca, key, "keep-manager", purpose, SERVER_DAYS, now, general_names(names))


def issue_client(ca: Identity, key: Key, name: str, days: int, now: datetime.datetime) -> Identity:
    """A client's certificate. Raises KeepfleetError(CERTIFICATE) when the CA ends before it."""
    return _issue(ca, key, name, ExtendedKeyUsageOID.CLIENT_AUTH, days, now, [])


def common_name(certificate: x509.Certificate) -> str:
    """The name a certificate is for, or "" where it has none."""
    attributes = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(attributes[0].value) if attributes else ""


def alternative_names(certificate: x509.Certificate) -> tuple[str, ...]:
    """The DNS names and addresses a certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(name.value) for name in names if isinstance(name, (x509.DNSName, x509.IPAddress)))


def purposes(certificate: x509.Certificate) -> set[x509.ObjectIdentifier]:
    """The extended key usages a certificate names."""
    try:
        return set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return set()


def is_server(certificate: x509.Certificate) -> bool:
    """Whether a certificate is a server's."""
    return ExtendedKeyUsageOID.SERVER_AUTH in purposes(certificate)


def is_client(certificate: x509.Certificate) -> bool:
    """Whether a certificate is a client's."""
    return ExtendedKeyUsageOID.CLIENT_AUTH in purposes(certificate)


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """The certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: Key) -> bytes:
    """The key as unencrypted PKCS#8 PEM: file modes protect it, since a daemon must read it unattended."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_certificate(pem: bytes, path: str) -> x509.Certificate:
    """The certificate in `pem`. Raises KeepfleetError(CERTIFICATE), naming `path`."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise KeepfleetError(ErrorKind.CERTIFICATE, f"cannot read {path}: it is no PEM certificate") from error


def load_key(pem: bytes, path: str) -> Key:
    """The P-256 key in `pem`. Raises KeepfleetError(CERTIFICATE), naming `path`."""
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError) as error:
        raise KeepfleetError(ErrorKind.CERTIFICATE, f"cannot read {path}: it is no unencrypted PEM key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise KeepfleetError(ErrorKind.CERTIFICATE, f"cannot use {path}: it is no elliptic-curve key")
    return key


def pkcs12_bytes(name: str, identity: Identity, ca: x509.Certificate, password: bytes) -> bytes:
    """The identity as PKCS#12: AES-256-CBC and HMAC-SHA-256 under PBES2, or unencrypted for an empty password.

    OpenSSL reads this since 1.0 (2010), so the 2020 clients do (Rust's native-tls over OpenSSL 1.1), and OpenSSL 3
    does without its legacy provider; the older 3DES form is weaker and needed by none of them.
    """
    protection: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        protection = (
            serialization.PrivateFormat.PKCS12.encryption_builder()
            .kdf_rounds(P12_ROUNDS)
            .key_cert_algorithm(pkcs12.PBES.PBESv2SHA256AndAES256CBC)
            .hmac_hash(hashes.SHA256())
            .build(password)
        )
    return pkcs12.serialize_key_and_certificates(
        name.encode("ascii"), identity.key, identity.certificate, [ca], protection
    )
