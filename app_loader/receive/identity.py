"""The keep's key and self-signed certificate: made in this process, kept in one unlinked file in memory.

libcrypto makes the key, signs, and writes the key into the file; the certificate is written here; nothing is executed.
The file lies in the keep's runtime directory, a tmpfs, has no name, and is emptied when a workload is accepted.
Import rule: as `settings`, `_hashlib` and `libcrypto`.
"""

from __future__ import annotations

import binascii
import os
import time
from _hashlib import openssl_sha1

from app_loader.limits import CERTIFICATE_DAYS, MAX_IDENTITY_BYTES
from app_loader.receive.libcrypto import Key, Libcrypto
from app_loader.settings import Settings, canonical_address
from keep_protocol import sockets as socket
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record

_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
_PEM_LINE_BYTES = 48
"""64 characters a line (RFC 7468)."""
_SERIAL_BYTES = 16
"""128 random bits, over the 64 the CA/Browser Forum asks for, and a positive number in 17 DER bytes."""
_POINT_BYTES = 65
"""The end of a P-256 SubjectPublicKeyInfo: the point, whose SHA-1 identifies the key (RFC 5280, section 4.2.1.2)."""

_INTEGER, _BIT_STRING, _OCTET_STRING, _UTF8_STRING, _UTC_TIME, _GENERALIZED_TIME = 0x02, 0x03, 0x04, 0x0C, 0x17, 0x18
_SEQUENCE, _SET, _VERSION, _EXTENSIONS, _DNS, _IP = 0x30, 0x31, 0xA0, 0xA3, 0x82, 0x87
_TRUE = bytes.fromhex("0101ff")
_COMMON_NAME = bytes.fromhex("0603550403")
_SUBJECT_KEY_IDENTIFIER = bytes.fromhex("0603551d0e")
_KEY_USAGE = bytes.fromhex("0603551d0f")
_ALTERNATIVE_NAMES = bytes.fromhex("0603551d11")
_BASIC_CONSTRAINTS = bytes.fromhex("0603551d13")
_EXTENDED_KEY_USAGE = bytes.fromhex("0603551d25")
_SERVER_AUTHENTICATION = bytes.fromhex("06082b06010505070301")
_ECDSA_WITH_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")
"""Object identifiers, each a whole element: 2.5.4.3, 2.5.29.14, .15, .17, .19 and .37, 1.3.6.1.5.5.7.3.1, and the
algorithm 1.2.840.10045.4.3.2."""


class TlsIdentity(Record):
    """descriptor: the file with key and certificate; certificate: the PEM; der: the same in DER."""

    descriptor: int
    certificate: str
    der: bytes

    def __repr__(self) -> str:
        return f"TlsIdentity({self.descriptor})"

    @property
    def path(self) -> str:
        """Where `ssl` can open key and certificate."""
        return f"/proc/self/fd/{self.descriptor}"

    def wipe(self) -> None:
        """Empties the file: the key is gone for every holder of the descriptor."""
        os.ftruncate(self.descriptor, 0)


def alternative_names(settings: Settings) -> bytes:
    """The certificate's names as a subjectAltName: each once, addresses as such, all others as DNS names."""
    wanted = (settings.address, *(("localhost",) if settings.address in ("127.0.0.1", "::1") else ()), *settings.names)
    names: dict[bytes, None] = {}
    for name in wanted:
        address = canonical_address(name)
        if address is None:
            names[_der(_DNS, name.lower().encode("ascii"))] = None
        else:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            names[_der(_IP, socket.inet_pton(family, address))] = None
    return _der(_SEQUENCE, *names)


def _der(tag: int, *parts: bytes) -> bytes:
    """One element in DER, of the contents that stand in it."""
    contents = b"".join(parts)
    length = len(contents)
    if length < 0x80:
        return bytes((tag, length)) + contents
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(octets))) + octets + contents


def _time(seconds: float) -> bytes:
    """A time as RFC 5280, section 4.1.2.5, has it: with two digits for the year up to 2049."""
    moment = time.gmtime(seconds)
    if moment.tm_year < 2050:
        return _der(_UTC_TIME, time.strftime("%y%m%d%H%M%SZ", moment).encode("ascii"))
    return _der(_GENERALIZED_TIME, time.strftime("%Y%m%d%H%M%SZ", moment).encode("ascii"))


def _extension(identifier: bytes, value: bytes, *, critical: bool = False) -> bytes:
    return _der(_SEQUENCE, identifier, _TRUE if critical else b"", _der(_OCTET_STRING, value))


def to_be_signed(kuuid: int, names: bytes, public: bytes, serial: bytes, now: float) -> bytes:
    """The certificate up to its signature (RFC 5280). names: see `alternative_names`; public: the key's
    SubjectPublicKeyInfo; serial: what its number is made of, a positive one."""
    name = _der(_SEQUENCE, _der(_SET, _der(_SEQUENCE, _COMMON_NAME, _der(_UTF8_STRING, b"keep-%d" % kuuid))))
    key_identifier = openssl_sha1(public[-_POINT_BYTES:], usedforsecurity=False).digest()
    extensions = (
        _extension(_ALTERNATIVE_NAMES, names),
        _extension(_BASIC_CONSTRAINTS, _der(_SEQUENCE), critical=True),  # no CA: the default, left out in DER
        _extension(_KEY_USAGE, _der(_BIT_STRING, b"\x07\x80"), critical=True),  # digitalSignature, the first bit
        _extension(_EXTENDED_KEY_USAGE, _der(_SEQUENCE, _SERVER_AUTHENTICATION)),
        _extension(_SUBJECT_KEY_IDENTIFIER, _der(_OCTET_STRING, key_identifier)),
    )
    return _der(
        _SEQUENCE,
        _der(_VERSION, _der(_INTEGER, b"\x02")),  # the third
        _der(_INTEGER, b"\x01" + serial),
        _ECDSA_WITH_SHA256,
        name,  # the issuer: itself
        _der(_SEQUENCE, _time(now), _time(now + CERTIFICATE_DAYS * 86400)),
        name,
        public,
        _der(_EXTENSIONS, _der(_SEQUENCE, *extensions)),
    )


def certificate(signed: bytes, signature: bytes) -> bytes:
    """The certificate in DER."""
    return _der(_SEQUENCE, signed, _ECDSA_WITH_SHA256, _der(_BIT_STRING, b"\0", signature))


_ready: list[Key] = []
"""A key that was made before it was known for what certificate."""


def prepare_key() -> None:
    """Makes the key that the next identity gets. Raises as `make_identity` does."""
    _ready.append(Key(Libcrypto()))


def make_identity(settings: Settings) -> TlsIdentity:
    """A new key and its certificate, in a file without a name.

    Raises KeepfleetError: CERTIFICATE, or CONFIGURATION when libcrypto or the runtime directory is not there.
    """
    key = _ready.pop() if _ready else Key(Libcrypto())
    try:
        names, serial = alternative_names(settings), os.urandom(_SERIAL_BYTES)
        signed = to_be_signed(settings.kuuid, names, key.public, serial, time.time())
        return _store(settings.runtime_directory, key, certificate(signed, key.sign(signed)))
    finally:
        key.close()


def _store(directory: str, key: Key, der: bytes) -> TlsIdentity:
    try:
        descriptor = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_APPEND, 0o600)
    except OSError as error:
        raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot store the keep's key in {directory}: {error}") from error
    identity = None
    try:
        key.write(descriptor)
        os.write(descriptor, _pem(der))
        identity = read_identity(descriptor)
    except OSError as error:
        raise KeepfleetError(ErrorKind.CERTIFICATE, f"cannot store the keep's certificate: {error}") from error
    finally:
        if identity is None:
            os.close(descriptor)
    return identity


def _pem(der: bytes) -> bytes:
    lines = [binascii.b2a_base64(der[at : at + _PEM_LINE_BYTES]) for at in range(0, len(der), _PEM_LINE_BYTES)]
    return b"\n".join((_BEGIN, b"".join(lines) + _END, b""))


def read_identity(descriptor: int) -> TlsIdentity:
    """The identity in the file `descriptor`. Raises KeepfleetError(CERTIFICATE) when it has been wiped or is none."""
    text = bytearray(MAX_IDENTITY_BYTES)  # the key is in it, too: a buffer that can be wiped
    try:
        os.preadv(descriptor, [text], 0)
        begin, end = text.find(_BEGIN), text.find(_END)
        if b"PRIVATE KEY-----" not in text or begin < 0 or end < begin:
            raise KeepfleetError(
                ErrorKind.CERTIFICATE, "cannot use the keep's identity: no key and certificate are in it"
            )
        pem = bytes(text[begin : end + len(_END)]) + b"\n"
    finally:
        text[:] = bytes(len(text))
    try:
        der = binascii.a2b_base64(pem[len(_BEGIN) : -len(_END) - 1])
    except binascii.Error as error:
        raise KeepfleetError(ErrorKind.CERTIFICATE, f"cannot read the keep's certificate: {error}") from error
    return TlsIdentity(descriptor, pem.decode("ascii"), der)
