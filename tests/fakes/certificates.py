"""Client certificates of every shape, for tests: other keys than ours, intermediates, identities, odd extensions."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
HOUR = datetime.timedelta(hours=1)
KEY_KINDS = ("p256", "ed25519", "rsa")


def new_key(kind: str) -> Key:
    """A key of one of KEY_KINDS."""
    if kind == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if kind == "rsa":
        return rsa.generate_private_key(65537, 2048)
    return ec.generate_private_key(ec.SECP256R1())


def key_usage(*names: str) -> x509.KeyUsage:
    """A key usage of the names given, as `cryptography` calls them."""
    every = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: name in names for name in every})


def name_of(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


@dataclass(frozen=True)
class Issued:
    """A certificate, its key, and the certificates above it that its holder sends along."""

    certificate: x509.Certificate
    key: Key
    chain: tuple[x509.Certificate, ...] = ()

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def pem(self) -> bytes:
        """Certificate, chain and key, as a client reads them from one file."""
        certificates = [c.public_bytes(serialization.Encoding.PEM) for c in (self.certificate, *self.chain)]
        return b"".join(certificates) + self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


class ForeignAuthority:
    """A CA that is not keepfleet's, with a key of any kind, maybe below another."""

    def __init__(
        self,
        name: str = "foreign CA",
        kind: str = "p256",
        above: ForeignAuthority | None = None,
        end: datetime.timedelta = 1000 * HOUR,
    ) -> None:
        self.key, self.above, self.name = new_key(kind), above, name_of(name)
        self.certificate = self._sign(
            self.name,
            self.key,
            above or self,
            [
                (x509.BasicConstraints(ca=True, path_length=None), True),
                (key_usage("key_cert_sign", "crl_sign"), True),
            ],
            end=end,
        )

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")

    def issue(
        self,
        subject: x509.Name | str,
        kind: str = "p256",
        *,
        usages: tuple[x509.ObjectIdentifier, ...] | None = (CLIENT,),
        uris: tuple[str, ...] = (),
        ca: bool = False,
        usage: x509.KeyUsage | None = None,
        others: tuple[tuple[x509.ExtensionType, bool], ...] = (),
        begin: datetime.timedelta = -HOUR,
        end: datetime.timedelta = HOUR,
        serial: int | None = None,
        key: Key | None = None,
    ) -> Issued:
        """A certificate below this CA; a client's that is good, unless an option says otherwise."""
        key = key or new_key(kind)
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.BasicConstraints(ca=ca, path_length=None), True),
            (usage or key_usage("digital_signature"), True),
        ]
        if usages is not None:
            extensions.append((x509.ExtendedKeyUsage(usages), False))
        if uris:
            extensions.append((x509.SubjectAlternativeName([x509.UniformResourceIdentifier(u) for u in uris]), False))
        name = name_of(subject) if isinstance(subject, str) else subject
        certificate = self._sign(name, key, self, [*extensions, *others], begin=begin, end=end, serial=serial)
        chain, above = [], self
        while above.above is not None:
            chain.append(above.certificate)
            above = above.above
        return Issued(certificate, key, tuple(chain))

    @staticmethod
    def _sign(
        name: x509.Name,
        key: Key,
        by: ForeignAuthority,
        extensions: list[tuple[x509.ExtensionType, bool]],
        *,
        begin: datetime.timedelta = -HOUR,
        end: datetime.timedelta = HOUR,
        serial: int | None = None,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(by.name)
            .public_key(key.public_key())
            .serial_number(serial or x509.random_serial_number())
            .not_valid_before(now + begin)
            .not_valid_after(now + end)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.key.public_key()), critical=False)
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(by.key, None if isinstance(by.key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
