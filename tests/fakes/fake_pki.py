"""A PKI made in memory for tests: an authority, and certificates with any fault one asks for."""

from __future__ import annotations

import datetime
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
DAY = datetime.timedelta(days=1)


def name_of(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


@dataclass(frozen=True)
class Identity:
    """A certificate and its key, and where both lie as one PEM file."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    file: str

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)


class FakeAuthority:
    """A certificate authority whose files lie in `directory`."""

    def __init__(self, directory: Path, name: str = "test CA") -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = name_of(name)
        self._count = 0
        builder = self._builder(self._name, self._key.public_key(), DAY, -DAY)
        self.certificate = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(sign_certificates=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.file = self._write("ca.crt", self.certificate.public_bytes(serialization.Encoding.PEM))

    def __repr__(self) -> str:
        return f"FakeAuthority({self._name})"

    def issue(
        self,
        name: str,
        *,
        usages: tuple[x509.ObjectIdentifier, ...] | None = (CLIENT,),
        ends_in: datetime.timedelta = DAY,
        began: datetime.timedelta = DAY,
        ca: bool = False,
        digital_signature: bool = True,
        uri: str = "",
    ) -> Identity:
        """A certificate; it is valid from `began` ago, for `ends_in` from now on. uri: the identity in it, or none."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(name_of(name), key.public_key(), ends_in, -began)
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        builder = builder.add_extension(_key_usage(digital_signature=digital_signature), critical=True)
        if usages is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if usages is not None and SERVER in usages:
            names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        elif uri:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False
            )
        certificate = builder.sign(self._key, hashes.SHA256())
        pem = certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return Identity(certificate, key, self._write(f"{name}.pem", pem))

    def manager_files(self) -> None:
        """Writes what a manager needs in its PKI directory."""
        identity = self.issue("manager", usages=(SERVER,))
        self._write("manager.crt", identity.certificate.public_bytes(serialization.Encoding.PEM))
        self._write("manager.key", Path(identity.file).read_bytes())
        self._write("revoked", b"")

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, ends_in: datetime.timedelta, began: datetime.timedelta
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        self._count += 1
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(0x1000 + self._count)
            .not_valid_before(now + began)
            .not_valid_after(now + ends_in)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )

    def _write(self, name: str, data: bytes) -> str:
        path = self._directory / name
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
        return str(path)


def _key_usage(*, digital_signature: bool = True, sign_certificates: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=not digital_signature and not sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )
