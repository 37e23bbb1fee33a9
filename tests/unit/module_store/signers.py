"""Keys and signatures made for these tests by `cryptography`, independently of our own signing."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from module_store.signatures import PublicKey
from module_store.trust import Key

COMMENT = "keepfleet name=web version=1.2.0"


@dataclass(frozen=True)
class Signer:
    """A key pair with an identifier."""

    name: str
    private: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    @property
    def raw_id(self) -> bytes:
        return hashlib.sha256(self.name.encode()).digest()[:8]

    @property
    def public(self) -> PublicKey:
        return PublicKey(f"{int.from_bytes(self.raw_id, 'little'):016X}", self.private.public_key().public_bytes_raw())

    @property
    def key(self) -> Key:
        return Key(self.name, self.public.id, self.public)

    def sign(
        self,
        contents: bytes,
        comment: str = COMMENT,
        *,
        algorithm: bytes = b"ED",
        untrusted: str = "by a test",
        raw_id: bytes = b"",
    ) -> bytes:
        """A signature file."""
        message = contents if algorithm == b"Ed" else hashlib.blake2b(contents).digest()
        signature = self.private.sign(message)
        body = base64.b64encode(algorithm + (raw_id or self.raw_id) + signature).decode()
        whole = base64.b64encode(self.private.sign(signature + comment.encode())).decode()
        return f"untrusted comment: {untrusted}\n{body}\ntrusted comment: {comment}\n{whole}\n".encode()
