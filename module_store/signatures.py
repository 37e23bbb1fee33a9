"""Detached signatures in minisign's format: read strictly, checked, and made.

    untrusted comment: …                       not signed, and never shown
    BASE64 of algorithm, key identifier, signature
    trusted comment: keepfleet name=web version=1.2.0
    BASE64 of the signature of that signature and the trusted comment

Algorithm `ED` signs the BLAKE2b-512 of the file, `Ed`, the older one, the file itself. minisign reads and writes both.
Pure, but for `cryptography`, which is imported where it computes: it costs 45 ms.
Import rule: that of module_store, and cryptography for Ed25519 alone.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    Contents = bytes | bytearray | memoryview

UNTRUSTED, TRUSTED = "untrusted comment: ", "trusted comment: "
MAX_COMMENT, MAX_TRUSTED_COMMENT = 1024, 8192
"""minisign's own limits (COMMENTMAXBYTES, TRUSTEDCOMMENTMAXBYTES), with the words before the comment."""
MAX_SIGNATURE_BYTES = MAX_COMMENT + MAX_TRUSTED_COMMENT + 512
MAX_KEY_BYTES = MAX_COMMENT + 512
LEGACY, PREHASHED = b"Ed", b"ED"
_ID_BYTES, _PUBLIC_BYTES, _SIGNATURE_BYTES = 8, 32, 64
_LINE = re.compile(r"[\t\x20-\x7e]*", re.ASCII)
FORM = "keepfleet name=NAME version=VERSION"
_NAME = "[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?"
_VERSION = r"[0-9]{1,9}(?:\.[0-9]{1,9}){0,3}(?:-[0-9A-Za-z]{1,16}(?:\.[0-9A-Za-z]{1,16}){0,3})?"
_COMMENT = re.compile(f"keepfleet name=({_NAME}) version=({_VERSION})", re.ASCII)


class BadSignature(KeepfleetError):
    """A signature, or a key, that cannot be used; FORBIDDEN, as what it was for."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(ErrorKind.FORBIDDEN, f"cannot use the {what}: {why}")


class PublicKey(Record):
    """A key that signatures are checked with. id: 16 hexadecimal digits; minisign shows those without leading zeros."""

    id: str
    public: bytes

    def to_text(self) -> str:
        """The key's file, as minisign writes it."""
        body = base64.b64encode(LEGACY + id_bytes(self.id) + self.public).decode()
        number = self.id.lstrip("0") or "0"  # minisign writes it as a number
        return f"{UNTRUSTED}minisign public key {number}\n{body}\n"


class Signed(Record):
    """What a signature says of a file: which module it is, in which version."""

    name: str
    version: str

    @property
    def order(self) -> tuple[object, ...]:
        """What versions are compared by, as semantic versions are: numbers as numbers, and a part behind `-` before
        the same without."""
        numbers, _, before = self.version.partition("-")
        counted = [int(part) for part in numbers.split(".")]
        counted += [0] * (4 - len(counted))
        parts = [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in before.split(".") if part]
        return (*counted, not before, tuple(parts))

    def to_text(self) -> str:
        """The trusted comment."""
        return f"keepfleet name={self.name} version={self.version}"


class Signature(Record):
    """A signature file, read and not yet checked."""

    algorithm: bytes
    key_id: str
    signature: bytes
    comment: str
    comment_signature: bytes


def id_text(raw: bytes) -> str:
    """A key's identifier as minisign shows it."""
    return f"{int.from_bytes(raw, 'little'):016X}"


def id_bytes(text: str) -> bytes:
    """The same as it is written in a file."""
    return int(text, 16).to_bytes(_ID_BYTES, "little")


def lines_of(data: bytes, most: int, what: str) -> list[str]:
    """The lines of a file of printable ASCII, each ended by one newline."""
    if len(data) > most:
        raise BadSignature(what, f"it is over {most} bytes")
    if b"\r" in data:
        raise BadSignature(what, "its lines end in CR LF; it was changed on its way")
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        raise BadSignature(what, "it is not ASCII") from None
    if not text.endswith("\n"):
        raise BadSignature(what, "its last line is cut off")
    lines = text[:-1].split("\n")
    for line in lines:
        if not _LINE.fullmatch(line):
            raise BadSignature(what, "it has control characters")
    return lines


def without_prefix(line: str, prefix: str, most: int, what: str) -> str:
    """The comment of a line."""
    if not line.startswith(prefix):
        raise BadSignature(what, f"a line that must begin with {prefix!r} does not")
    if len(line) > most:
        raise BadSignature(what, f"its {prefix.removesuffix(': ')} is over {most} characters")
    return line.removeprefix(prefix)


def decoded(line: str, size: int, what: str) -> bytes:
    """The bytes of a line of Base64, which has one form for them."""
    try:
        found = binascii.a2b_base64(line, strict_mode=True)
    except binascii.Error:
        raise BadSignature(what, "a line that must be Base64 is not") from None
    if len(found) != size or base64.b64encode(found).decode() != line:
        raise BadSignature(what, f"a line that must be {size} bytes in Base64 is {len(found)}")
    return found


def parse_public_key(data: bytes) -> PublicKey:
    """The key in minisign's file, or in its second line alone. Raises BadSignature."""
    what = "public key"
    lines = lines_of(data if data.endswith(b"\n") else data + b"\n", MAX_KEY_BYTES, what)
    if len(lines) == 2:
        without_prefix(lines.pop(0), UNTRUSTED, MAX_COMMENT, what)
    if len(lines) != 1:
        raise BadSignature(what, f"it has {len(lines)} lines, and minisign's has a comment and the key")
    raw = decoded(lines[0], len(LEGACY) + _ID_BYTES + _PUBLIC_BYTES, what)
    if raw[:2] != LEGACY:
        raise BadSignature(what, "it is not for Ed25519")
    return PublicKey(id_text(raw[2:10]), raw[10:])


def parse_signature(data: bytes) -> Signature:
    """A signature file. Raises BadSignature naming what is wrong."""
    what = "signature"
    lines = lines_of(data, MAX_SIGNATURE_BYTES, what)
    if len(lines) != 4:
        raise BadSignature(what, f"it has {len(lines)} lines, and minisign's has four")
    without_prefix(lines[0], UNTRUSTED, MAX_COMMENT, what)
    raw = decoded(lines[1], len(LEGACY) + _ID_BYTES + _SIGNATURE_BYTES, what)
    if raw[:2] not in (LEGACY, PREHASHED):
        raise BadSignature(what, "it is neither of minisign's two algorithms")
    comment = without_prefix(lines[2], TRUSTED, MAX_TRUSTED_COMMENT, what)
    return Signature(raw[:2], id_text(raw[2:10]), raw[10:], comment, decoded(lines[3], _SIGNATURE_BYTES, what))


def parse_comment(comment: str) -> Signed:
    """What the trusted comment says. Raises BadSignature where it is of another form."""
    match = _COMMENT.fullmatch(comment)
    if match is None:
        why = f'its trusted comment is not "{FORM}"; sign with: minisign -S -t "keepfleet name=web version=1.2.0"'
        raise BadSignature("signature", why)
    return Signed(match[1], match[2])


def check(signature: Signature, key: PublicKey, contents: Contents) -> Signed:
    """What a signature says of `contents`, when it is `key`'s signature of them. Raises BadSignature."""
    if signature.key_id != key.id:
        raise BadSignature("signature", f"it is by the key {signature.key_id}, and not by {key.id}")
    if not _is_by(key, signature.signature, message_of(signature.algorithm, contents)):
        raise BadSignature(
            "signature", "it is not this file's: one of the two was changed, or they do not belong together"
        )
    if not _is_by(key, signature.comment_signature, signature.signature + signature.comment.encode()):
        raise BadSignature("signature", "its trusted comment was changed")
    return parse_comment(signature.comment)


def message_of(algorithm: bytes, contents: Contents) -> Contents:
    """What is signed of a file."""
    return contents if algorithm == LEGACY else hashlib.blake2b(contents).digest()


def _is_by(key: PublicKey, signature: bytes, message: Contents) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(key.public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
