"""What a reference names, and how that moved: pure.

Import rule: that of module_store.
"""

from __future__ import annotations

from keep_protocol import strict_json
from keep_protocol.fields import Items, Maybe, Nested, Record, Seconds, Text, field, parse
from module_store.names import DIGEST, REFERENCE
from module_store.place import MAX_RECORD_BYTES

MAX_HISTORY = 16
"""Moves that a reference keeps: the objects that it named stay, so that a rollback finds them."""
MAX_WHO = 128
_DIGEST = Text(71, DIGEST, "a digest")


class Move(Record):
    """One move of a reference. source: None where it was new."""

    when: float = field(Seconds(), about="When, in seconds of the epoch.")
    who: str = field(Text(MAX_WHO), about="Who moved it, as the manager or the host knows them.")
    source: str | None = field(Maybe(_DIGEST), name="from", about="What it named before; null for a new one.")
    target: str = field(_DIGEST, name="to", about="What it named from then on.")


class Reference(Record):
    """A name of an object. history: its moves, the newest last."""

    name: str = field(Text(192, REFERENCE, "NAME:TAG"), about="The reference, NAME:TAG.")
    digest: str = field(_DIGEST, about="The object that it names.")
    history: tuple[Move, ...] = field(Items(Nested(Move, "move"), MAX_HISTORY), about="Its moves, the newest last.")

    @property
    def needed(self) -> set[str]:
        """The digests that it names, or could be moved back to."""
        before = (move.source for move in self.history)
        return {self.digest, *(digest for digest in before if digest), *(move.target for move in self.history)}

    def trimmed(self, moves: int) -> Reference:
        """The same with its last `moves` moves alone."""
        return self.replace(history=self.history[-moves:] if moves else ())


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
