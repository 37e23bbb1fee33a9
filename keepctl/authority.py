"""Keys and certificates, in memory: what each certificate says, and for how long. The one import of cryptography."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.identity import DEFAULT_TRUST_DOMAIN, MAX_UPLOADER_SECONDS, Identity, Role, identity_of

CA_DAYS = 3653
"""Ten years: to replace the CA is to replace every certificate by hand, so it outlives a host's usual life."""
SERVER_DAYS = 397
"""A year and a month: renewed once a year with a month to be late in (the public web's limit until 2026)."""
CLIENT_LIFE = datetime.timedelta(days=397)
"""As for the server; a shorter one can be asked for, and any one can be revoked at any time."""
MAX_CLIENT_LIFE = datetime.timedelta(days=825)
"""The longest a client's certificate may be asked for: two years and a quarter, then people have changed jobs."""
MIN_CLIENT_LIFE = datetime.timedelta(minutes=1)
UPLOADER_LIFE = datetime.timedelta(seconds=MAX_UPLOADER_SECONDS)
"""The longest an uploader's is valid, from its first second on: managers and keeps refuse a longer one."""
MIN_RSA_BITS = 2048
"""What OpenSSL's default security level takes."""
BACKDATE = datetime.timedelta(minutes=5)
"""Certificates begin a little in the past, for peers whose clocks are behind."""
P12_ROUNDS = 100_000
"""PBKDF2 rounds for an exported key: 50 ms to open once, and a hundred thousand times that to guess at."""

Key = ec.EllipticCurvePrivateKey


PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey
"""A client's may be any that TLS 1.3 knows; those made here are P-256."""


@dataclass(frozen=True)
class KeyPair:
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


def _begin(
    key: PublicKey, subject: x509.Name, start: datetime.datetime, end: datetime.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def make_ca(now: datetime.datetime, trust_domain: str = DEFAULT_TRUST_DOMAIN) -> KeyPair:
    """A self-signed CA that issues end certificates only; named by its key, so that two are distinct.

    Its URI, `spiffe://TRUST-DOMAIN`, says which trust domain the identities it signs are of.
    """
    key = new_key()
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    name = _name(f"keepfleet CA {identifier.digest[:4].hex()}")
    start = now.replace(microsecond=0)
    certificate = (
        _begin(key.public_key(), name, start - BACKDATE, start + datetime.timedelta(days=CA_DAYS))
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .add_extension(_uri(f"spiffe://{trust_domain}"), critical=False)
        .sign(key, hashes.SHA256())
    )
    return KeyPair(certificate, key)


def _uri(uri: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])


def trust_domain(ca: x509.Certificate) -> str:
    """The trust domain a CA was made for; the default one's for a CA of before there were any."""
    found = [uri.removeprefix("spiffe://") for uri in _uris(ca) if uri.startswith("spiffe://")]
    return found[0] if found else DEFAULT_TRUST_DOMAIN


def _issue(
    ca: KeyPair,
    key: PublicKey,
    name: str,
    purpose: x509.ObjectIdentifier,
    validity: tuple[datetime.datetime, datetime.datetime],
    alternatives: list[x509.GeneralName],
) -> x509.Certificate:
    if validity[1] > ca.certificate.not_valid_after_utc:
        ends = f"{ca.certificate.not_valid_after_utc:%Y-%m-%d}"
        raise KeepfleetError(
            ErrorKind.CERTIFICATE,
            f"cannot issue a certificate until {validity[1]:%Y-%m-%d}: the CA itself ends on {ends}; "
            "ask for less with --for, or make a new CA: keepctl pki rotate",
        )
    identifier = ca.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        _begin(key, _name(name), *validity)
        .issuer_name(ca.certificate.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
    )
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return builder.sign(ca.key, hashes.SHA256())


def general_names(names: tuple[str, ...]) -> list[x509.GeneralName]:
    """DNS names and addresses (see `keep_protocol.api.check_names`) as alternative names."""
    found: list[x509.GeneralName] = []
    for name in names:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return found


def issue_server(ca: KeyPair, key: Key, names: tuple[str, ...], now: datetime.datetime) -> KeyPair:
    """The manager's certificate for `names`, at least one. Raises KeepfleetError(CERTIFICATE) when the CA ends."""
    purpose, start = ExtendedKeyUsageOID.SERVER_AUTH, now.replace(microsecond=0)
    validity = (start - BACKDATE, start + datetime.timedelta(days=SERVER_DAYS))
    return KeyPair(_issue(ca, key.public_key(), "keep-manager", purpose, validity, general_names(names)), key)


def issue_client(
    ca: KeyPair,
    key: PublicKey,
    name: str,
    life: datetime.timedelta,
    now: datetime.datetime,
    identity: Identity | None = None,
) -> x509.Certificate:
    """A client's certificate, which says who it is where there is an `identity`; `life` is counted from `now`.

    Raises KeepfleetError(CERTIFICATE) when the CA ends before it, BAD_REQUEST for a life that is too short or too long.
    """
    longest = MAX_CLIENT_LIFE
    if identity is not None and identity.role is Role.UPLOADER:
        longest = UPLOADER_LIFE
    if not MIN_CLIENT_LIFE <= life <= longest:
        most = f"{longest.days} days" if longest.days else f"{longest // datetime.timedelta(minutes=1)} minutes"
        raise KeepfleetError(
            ErrorKind.BAD_REQUEST, f"cannot issue a certificate to {name} for that time: it may be 1 minute to {most}"
        )
    start = now.replace(microsecond=0)
    backdate = min(BACKDATE, longest - life)  # an uploader's whole time is bounded, the beginning in the past included
    uris: list[x509.GeneralName] = [] if identity is None else [x509.UniformResourceIdentifier(identity.uri())]
    return _issue(ca, key, name, ExtendedKeyUsageOID.CLIENT_AUTH, (start - backdate, start + life), uris)


def make_request(name: str, key: Key) -> bytes:
    """A certificate signing request for `key` in PEM; of what it says, only the key and the name are used."""
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(_name(name))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


def load_request(pem: bytes, path: str) -> tuple[str, PublicKey]:
    """The common name and the key of a request whose signature shows that its maker holds the key.

    Raises KeepfleetError(CERTIFICATE), naming `path`.
    """
    try:
        request = x509.load_pem_x509_csr(pem)
        signed, key, name = request.is_signature_valid, request.public_key(), common_name(request)
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        why = "it is no PEM certificate signing request"
        raise KeepfleetError(ErrorKind.CERTIFICATE, f"cannot read {path}: {why}") from error
    if not signed:
        raise KeepfleetError(ErrorKind.CERTIFICATE, f"cannot use {path}: another key has signed it")
    return name, _client_key(key, path)


def client_key(certificate: x509.Certificate, path: str) -> PublicKey:
    """The public key of a client's certificate. Raises KeepfleetError(CERTIFICATE), naming `path`."""
    return _client_key(certificate.public_key(), path)


def _client_key(key: object, path: str) -> PublicKey:
    weak = (
        not isinstance(key, PublicKey)
        or (isinstance(key, rsa.RSAPublicKey) and key.key_size < MIN_RSA_BITS)
        or (isinstance(key, ec.EllipticCurvePublicKey) and not isinstance(key.curve, (ec.SECP256R1, ec.SECP384R1)))
    )
    if weak or not isinstance(key, PublicKey):
        why = f"its key must be P-256, P-384, Ed25519, or RSA of at least {MIN_RSA_BITS} bits"
        raise KeepfleetError(ErrorKind.CERTIFICATE, f"cannot use {path}: {why}")
    return key


def common_name(named: x509.Certificate | x509.CertificateSigningRequest) -> str:
    """The name a certificate is for, or "" where it has none."""
    attributes = named.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(attributes[0].value) if attributes else ""


def _alternatives(certificate: x509.Certificate) -> list[x509.GeneralName]:
    try:
        return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []


def alternative_names(certificate: x509.Certificate) -> tuple[str, ...]:
    """The DNS names and addresses a certificate is for."""
    return tuple(str(n.value) for n in _alternatives(certificate) if isinstance(n, (x509.DNSName, x509.IPAddress)))


def _uris(certificate: x509.Certificate) -> tuple[str, ...]:
    return tuple(str(n.value) for n in _alternatives(certificate) if isinstance(n, x509.UniformResourceIdentifier))


def identity(certificate: x509.Certificate) -> Identity | None:
    """Who a client's certificate says it is. Raises KeepfleetError(FORBIDDEN) where that cannot be read."""
    return identity_of(_uris(certificate))


def fingerprint(certificate: x509.Certificate) -> str:
    """`sha256:` and 64 digits, as START names an uploader."""
    return "sha256:" + certificate.fingerprint(hashes.SHA256()).hex()


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


def load_certificates(pem: bytes, path: str) -> list[x509.Certificate]:
    """The certificates in `pem`, at least one. Raises KeepfleetError(CERTIFICATE), naming `path`."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise KeepfleetError(ErrorKind.CERTIFICATE, f"cannot read {path}: it is no PEM certificate") from error


def load_certificate(pem: bytes, path: str) -> x509.Certificate:
    """The certificate in `pem`. Raises KeepfleetError(CERTIFICATE), naming `path`."""
    return load_certificates(pem, path)[0]


def issued_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    """Whether `ca` has signed `certificate`; true, too, for a kind of key that cannot be verified here."""
    try:
        certificate.verify_directly_issued_by(ca)
    except (InvalidSignature, ValueError):  # another key, another name
        return False
    except (TypeError, UnsupportedAlgorithm):
        return True
    return True


def load_key(pem: bytes, path: str) -> Key:
    """The P-256 key in `pem`. Raises KeepfleetError(CERTIFICATE), naming `path`."""
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError) as error:
        raise KeepfleetError(ErrorKind.CERTIFICATE, f"cannot read {path}: it is no unencrypted PEM key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise KeepfleetError(ErrorKind.CERTIFICATE, f"cannot use {path}: it is no elliptic-curve key")
    return key


def pkcs12_bytes(name: str, pair: KeyPair, cas: list[x509.Certificate], password: bytes) -> bytes:
    """Certificate, key and CAs as PKCS#12: AES-256-CBC and HMAC-SHA-256 under PBES2, or unencrypted without a password.

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
    return pkcs12.serialize_key_and_certificates(name.encode("ascii"), pair.key, pair.certificate, cas, protection)
