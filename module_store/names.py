"""What objects, references, attachments and users of a store are called. Pure.

Import rule: that of module_store.
"""

from __future__ import annotations

import re

from keep_protocol import store as wire
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record

ALGORITHM, DIGEST, REFERENCE = wire.ALGORITHM, wire.DIGEST, wire.REFERENCE
WORD = re.compile(wire.NAME)
_HEXADECIMAL = re.compile(wire.HEX)
_ATTACHMENT = re.compile(rf"({wire.HEX})\.({wire.NAME})")
SHORTEST = 8
"""Hexadecimal digits by which a person may mean a digest: 1,000 objects share that many once in 8,600 stores."""
_ABBREVIATED = re.compile(rf"{ALGORITHM}[0-9a-f]{{{SHORTEST},64}}")
_SHOWN = 80


class Wanted(Record):
    """An object as it is asked for. reference: "" where the digest alone was given; digest: "" where it was not."""

    reference: str
    digest: str


def check_digest(text: str) -> str:
    """`text` itself. Raises KeepfleetError(BAD_REQUEST) unless it is `sha256:` and 64 digits."""
    if not DIGEST.fullmatch(text):
        raise _bad(text, "a digest", "it must be sha256: and 64 hexadecimal digits in lower case")
    return text


def check_reference(text: str) -> str:
    """`text` itself. Raises KeepfleetError(BAD_REQUEST) unless it is NAME:TAG."""
    if not REFERENCE.fullmatch(text):
        why = "it must be NAME:TAG, as in web:1.2: a name in lower case of at most 63 characters, a tag of at most 128"
        raise _bad(text, "a reference", why)
    return text


def check_word(text: str, what: str) -> str:
    """`text` itself: the kind of an attachment, or a user of the store. Raises KeepfleetError(BAD_REQUEST)."""
    if not WORD.fullmatch(text):
        raise _bad(text, what, "it must be at most 63 of a-z, 0-9, '.', '_' and '-', and begin and end with the first")
    return text


def parse_wanted(text: str) -> Wanted:
    """What `NAME:TAG`, `NAME:TAG@sha256:…` or `sha256:…` asks for. Raises KeepfleetError(BAD_REQUEST)."""
    if text.startswith(ALGORITHM):
        return Wanted("", check_digest(text))
    reference, at, digest = text.partition("@")
    return Wanted(check_reference(reference), check_digest(digest) if at else "")


def is_abbreviated(text: str) -> bool:
    """Whether a person means a digest by its beginning."""
    return bool(_ABBREVIATED.fullmatch(text))


def file_of(digest: str) -> str:
    """The name of an object's file."""
    return check_digest(digest).removeprefix(ALGORITHM)


def digest_of_file(name: str) -> str | None:
    """The digest of the object in the file `name`; None where that is no object's name."""
    return ALGORITHM + name if _HEXADECIMAL.fullmatch(name) else None


def attachment_file(digest: str, kind: str) -> str:
    """The name of an attachment's file."""
    return f"{file_of(digest)}.{check_word(kind, 'the kind of an attachment')}"


def attachment_of_file(name: str) -> tuple[str, str] | None:
    """The digest and the kind of the attachment in the file `name`; None where that is no attachment's name."""
    match = _ATTACHMENT.fullmatch(name)
    return (ALGORITHM + match[1], match[2]) if match else None


def _bad(text: str, what: str, why: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read {text[:_SHOWN]!r} as {what}: {why}")
