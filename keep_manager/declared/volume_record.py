"""What lies next to a volume's image: whose it is, and how large, with a digest of that. Pure."""

from __future__ import annotations

import hashlib

from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record, Seconds, Text, Whole, field, parse
from keep_protocol.volumes import INODES, SIZES

SCHEMA = 1
MAX_RECORD = 4096


class Stored(Record):
    """What volume.json says."""

    owner: str = field(Text(128))
    size_bytes: int = field(Whole(*SIZES))
    inodes: int = field(Whole(*INODES))
    created_at: float = field(Seconds())


def encode(stored: Stored) -> bytes:
    """The file's bytes."""
    return strict_json.dumps({"schema": SCHEMA, **stored.to_wire(), "digest": _digest(stored)}) + b"\n"


def decode(name: str, data: bytes) -> Stored:
    """What the record of volume `name` says. Raises KeepfleetError for one that is damaged, or of another schema."""
    value = strict_json.loads_object(data, MAX_RECORD, f"the record of volume {name}")
    if value.pop("schema", None) != SCHEMA:
        raise KeepfleetError(ErrorKind.UNSUPPORTED, f"cannot use volume {name}: its schema is not {SCHEMA}")
    digest = value.pop("digest", "")
    stored = parse(Stored, value, f"record of volume {name}", strict=True)
    if digest != _digest(stored):
        why = "its record is damaged, or was changed"
        raise KeepfleetError(ErrorKind.FORBIDDEN, f"cannot use volume {name}: {why}")
    return stored


def _digest(stored: Stored) -> str:
    """By which a record that a fault of the disk has changed is distinguished from another's."""
    return hashlib.sha256(strict_json.dumps(stored.to_wire())).hexdigest()
