"""Signing with minisign's secret keys, encrypted by a password or not. People sign: nothing that runs has such a key.

Import rule: that of module_store, and cryptography for Ed25519 alone.
"""

from __future__ import annotations

import base64
import hashlib
import hmac

from keep_protocol.fields import Record
from module_store.signatures import (
    LEGACY,
    MAX_COMMENT,
    PREHASHED,
    TRUSTED,
    UNTRUSTED,
    BadSignature,
    PublicKey,
    Signed,
    decoded,
    id_bytes,
    id_text,
    lines_of,
    message_of,
    parse_comment,
    without_prefix,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from module_store.signatures import Contents

WHAT = "secret key"
MAX_FILE_BYTES = MAX_COMMENT + 512
_SECRET_BYTES = 2 + 2 + 2 + 32 + 8 + 8 + 8 + 64 + 32
_ENCRYPTED, _PLAIN, _CHECKSUM = b"Sc", b"\0\0", b"B2"
MAX_SCRYPT_BYTES = 1 << 30
"""What minisign asks of scrypt (libsodium's MEMLIMIT_SENSITIVE); a file that asks for more is not its."""
MAX_SCRYPT_OPERATIONS = 1 << 25
_SCRYPT_SPARE = 1 << 20
_R = 8


class SecretKey(Record):
    """A key that signs. seed: Ed25519's 32 bytes; never shown."""

    id: str
    seed: bytes
    public: bytes

    def __repr__(self) -> str:
        return f"SecretKey({self.id})"

    @property
    def public_key(self) -> PublicKey:
        """Its public half."""
        return PublicKey(self.id, self.public)


class Sealed(Record):
    """A secret key's file; salt: b"" where it is not encrypted."""

    salt: bytes
    operations: int
    memory: int
    body: bytes


def parse_secret_key(data: bytes) -> Sealed:
    """A secret key's file, not decrypted. Raises BadSignature."""
    lines = lines_of(data, MAX_FILE_BYTES, WHAT)
    if len(lines) != 2:
        raise BadSignature(WHAT, f"it has {len(lines)} lines, and minisign's has two")
    without_prefix(lines[0], UNTRUSTED, MAX_COMMENT, WHAT)
    raw = decoded(lines[1], _SECRET_BYTES, WHAT)
    if raw[:2] != LEGACY or raw[4:6] != _CHECKSUM or raw[2:4] not in (_ENCRYPTED, _PLAIN):
        raise BadSignature(WHAT, "it is of an algorithm that minisign does not write")
    salt = raw[6:38] if raw[2:4] == _ENCRYPTED else b""
    operations, memory = (int.from_bytes(raw[at : at + 8], "little") for at in (38, 46))
    if operations > MAX_SCRYPT_OPERATIONS or memory > MAX_SCRYPT_BYTES:
        raise BadSignature(WHAT, "its password would take more than 1 GiB to check, which minisign's does not")
    return Sealed(salt, operations, memory, raw[54:])


def open_secret_key(sealed: Sealed, password: str = "") -> SecretKey:
    """The key, decrypted where it is encrypted, which takes a second and up to 1 GiB. Raises BadSignature."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    body = sealed.body
    if sealed.salt:
        n, p = _scrypt_parameters(sealed.operations, sealed.memory)
        stream = hashlib.scrypt(
            password.encode(),
            salt=sealed.salt,
            n=n,
            r=_R,
            p=p,
            maxmem=MAX_SCRYPT_BYTES + _SCRYPT_SPARE,
            dklen=len(body),
        )
        body = bytes(a ^ b for a, b in zip(body, stream, strict=True))
    identifier, seed, public, checksum = body[:8], body[8:40], body[40:72], body[72:]
    expected = hashlib.blake2b(LEGACY + body[:72], digest_size=32).digest()
    if not hmac.compare_digest(checksum, expected) and (sealed.salt or any(checksum)):  # minisign -W writes none
        raise BadSignature(WHAT, "the password is wrong" if sealed.salt else "its checksum is wrong")
    if Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw() != public:
        raise BadSignature(WHAT, "its two halves do not belong together")
    return SecretKey(id_text(identifier), seed, public)


def _scrypt_parameters(operations: int, memory: int) -> tuple[int, int]:
    """N and p as libsodium picks them (crypto_pwhash_scryptsalsa208sha256)."""
    operations = max(operations, 32768)
    most = operations // (_R * 4) if operations < memory // 32 else memory // (_R * 128)
    n = 2
    while n <= most // 2:
        n *= 2
    p = 1 if operations < memory // 32 else max(1, min(operations // 4 // n, 0x3FFFFFFF) // _R)
    return n, p


def sign(key: SecretKey, contents: Contents, signed: Signed, *, legacy: bool = False) -> str:
    """The signature file, as minisign writes and reads it. Raises BadSignature for a name or version of no form."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    comment = signed.to_text()
    parse_comment(comment)
    private = Ed25519PrivateKey.from_private_bytes(key.seed)
    algorithm = LEGACY if legacy else PREHASHED
    signature = private.sign(message_of(algorithm, contents))
    comment_signature = private.sign(signature + comment.encode())
    body = base64.b64encode(algorithm + id_bytes(key.id) + signature).decode()
    return (
        f"{UNTRUSTED}signature by keepctl with the key {key.id}\n{body}\n"
        f"{TRUSTED}{comment}\n{base64.b64encode(comment_signature).decode()}\n"
    )
