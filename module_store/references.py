"""What a reference names, and how that moved: pure.

Import rule: that of module_store.
"""

from __future__ import annotations

from keep_protocol import strict_json
from keep_protocol.fields import parse
from keep_protocol.store import MAX_HISTORY, MAX_WHO, Move, Reference
from module_store.place import MAX_RECORD_BYTES


def moved(before: Reference | None, name: str, digest: str, who: str, when: float) -> Reference:
    """The reference after a move; the same where it names that object already."""
    if before is not None and before.digest == digest:
        return before
    move = Move(when, who[:MAX_WHO], before.digest if before else None, digest)
    history = (*(before.history if before else ()), move)
    return Reference(name, digest, history[-MAX_HISTORY:])


def encode(reference: Reference) -> bytes:
    """The record's body."""
    return strict_json.dumps(reference.to_wire())


def decode(body: bytes) -> Reference:
    """The reference in a record's body. Raises KeepfleetError(BAD_REQUEST)."""
    return parse(Reference, strict_json.loads_object(body, MAX_RECORD_BYTES, "a reference"), "reference")
