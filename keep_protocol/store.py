"""The module store as its users see it over /v1: names, and one record for each thing that is asked or answered.

`module_store` keeps and decides by the same records. The standard library alone, as all of keep_protocol.
"""

from __future__ import annotations

import re

from keep_protocol.constants import MAX_WORKLOAD_BYTES
from keep_protocol.fields import Flag, Items, Maybe, Nested, Record, Seconds, Text, Whole, field

V1_STORE_PATH = "/v1/store"
SIGNATURES_HEADER = "Keepfleet-Signatures"
"""Detached signatures of the body, each in Base64, with commas between them: what arrives with a module is checked
before the store has either."""
MAX_SIGNATURES_HEADER = 8000
"""aiohttp takes a header of 8190 bytes; a signature of ours is 400."""
ALGORITHM = "sha256:"
HEX = "[0-9a-f]{64}"
NAME = "[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?"
"""Of at most 63 characters; with a tag it stays below the 255 bytes of a file's name."""
TAG = "[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"
"""As registries have it (OCI distribution specification)."""
DIGEST = re.compile(f"{ALGORITHM}{HEX}")
REFERENCE = re.compile(f"(?!{ALGORITHM}){NAME}:{TAG}")
KEY_NAME = Text(63, "[a-z0-9]([a-z0-9-]*[a-z0-9])?", "1 to 63 of a-z, 0-9 and -")
MAX_OBJECT_BYTES = 4 * MAX_WORKLOAD_BYTES
"""A module may be larger here than one that is uploaded."""
MAX_OBJECTS = 10_000
"""Objects, and references, of a listing, an export and a collection."""
MAX_HISTORY = 16
"""Moves that a reference keeps: the objects that it named stay, so that a rollback finds them."""
MAX_WHO = 128
MAX_REASON = 1000
MAX_KEYS = 64
GRACE_SECONDS = 3600
"""From adding to naming or starting takes moments; a person who does it by hand is interrupted now and then."""
MAX_POLICY_BYTES = 1 << 20
MAX_FINDINGS = 100_000
MAX_SIGNATURE_TEXT = 10_000
_DIGEST = Text(71, DIGEST, "a digest")
_REFERENCE = Text(192, REFERENCE, "NAME:TAG")
_TEXT = Text(4000)
_SIZE = Whole(0, (1 << 53) - 1)


class Object(Record):
    """A module in the store. added: when it was, in seconds of the epoch."""

    digest: str = field(_DIGEST, about="the SHA-256 of its bytes, after sha256:")
    size: int = field(Whole(0, MAX_OBJECT_BYTES), about="its length in bytes")
    added: float = field(Seconds(), about="when it was added last, in seconds of the epoch")


class Move(Record):
    """One move of a reference. source: None where it was new."""

    when: float = field(Seconds(), about="when, in seconds of the epoch")
    who: str = field(Text(MAX_WHO), about="who moved it, as the manager or the host knows them")
    source: str | None = field(Maybe(_DIGEST), name="from", about="what it named before; null for a new one")
    target: str = field(_DIGEST, name="to", about="what it named from then on")


class Reference(Record):
    """A name of an object. history: its moves, the newest last."""

    name: str = field(_REFERENCE, about="the reference, NAME:TAG")
    digest: str = field(_DIGEST, about="the object that it names")
    history: tuple[Move, ...] = field(Items(Nested(Move, "move"), MAX_HISTORY), about="its moves, the newest last")

    @property
    def needed(self) -> set[str]:
        """The digests that it names, or could be moved back to."""
        before = (move.source for move in self.history)
        return {self.digest, *(digest for digest in before if digest), *(move.target for move in self.history)}

    def trimmed(self, moves: int) -> Reference:
        """The same with its last `moves` moves alone."""
        return self.replace(history=self.history[-moves:] if moves else ())


class Named(Record):
    """A reference, as a listing has it: without its history."""

    name: str = field(_REFERENCE, about="the reference, NAME:TAG")
    digest: str = field(_DIGEST, about="the object that it names")


class Listing(Record):
    """What a store has. damaged: references that cannot be read."""

    objects: tuple[Object, ...] = field(Items(Nested(Object, "object"), MAX_OBJECTS), about="every object, by digest")
    references: tuple[Named, ...] = field(Items(Nested(Named, "reference"), MAX_OBJECTS), about="every reference")
    damaged: tuple[str, ...] = field(
        Items(Text(192), MAX_OBJECTS),
        default=(),
        about="references that cannot be read: tag or remove them",
    )


class Details(Record):
    """One object, whose every byte was compared with its digest."""

    digest: str = field(_DIGEST, about="the SHA-256 of its bytes, after sha256:")
    size: int = field(Whole(0, MAX_OBJECT_BYTES), about="its length in bytes")
    added: float = field(Seconds(), about="when it was added last, in seconds of the epoch")
    attachments: tuple[str, ...] = field(Items(Text(63), 1000), default=(), about="the kinds of what is attached to it")
    needed_by: tuple[str, ...] = field(Items(_TEXT, MAX_OBJECTS), default=(), about="what needs it, in words")


class Tagging(Record):
    """What a reference is to name."""

    digest: str = field(_DIGEST, about="the object that it is to name")
    force: bool = field(
        Flag(),
        default=False,
        about="it may start although a newer version of it was seen, until a yet newer one starts",
    )


class Collection(Record):
    """How garbage is collected."""

    grace: float = field(
        Seconds(), default=float(GRACE_SECONDS), about="spare what was added less than so many seconds ago"
    )
    history: int | None = field(
        Maybe(Whole(0, MAX_HISTORY)), default=None, about="have references forget all but so many moves first"
    )
    dry_run: bool = field(Flag(), default=False, about="only say what would be removed")


class Collected(Record):
    """What was removed, or would be; young: objects that nothing needs, and that are too young to go."""

    removed: tuple[Object, ...] = field(Items(Nested(Object, "object"), MAX_OBJECTS), about="what was removed")
    young: tuple[Object, ...] = field(
        Items(Nested(Object, "object"), MAX_OBJECTS), default=(), about="what nothing needs, too young to go"
    )

    @property
    def bytes(self) -> int:
        """The length of what was removed."""
        return sum(each.size for each in self.removed)


class Findings(Record):
    """What is wrong with a store."""

    store: str = field(Text(4096), about="its directory")
    findings: tuple[str, ...] = field(Items(_TEXT, MAX_FINDINGS), about="a sentence each; none where all is well")


class Moved(Record):
    """What an export or an import took along."""

    objects: int = field(_SIZE, about="objects")
    attachments: int = field(_SIZE, about="what is attached to them, such as signatures")
    references: int = field(_SIZE, about="references")
    bytes: int = field(_SIZE, about="the length of all of it")


class Signature(Record):
    """A detached signature, as minisign writes it."""

    signature: str = field(Text(MAX_SIGNATURE_TEXT), about="its four lines")


class Attached(Record):
    """Signatures that are kept with an object by now."""

    digest: str = field(_DIGEST, about="the object")
    keys: tuple[str, ...] = field(Items(KEY_NAME, MAX_KEYS), about="the keys they are by")


class KnownKey(Record):
    """A public key that a store knows."""

    name: str = field(KEY_NAME, about="what it is called here")
    id: str = field(Text(16, "[0-9A-F]{16}"), about="its identifier, as minisign shows it")
    revoked: float | None = field(Maybe(Seconds()), default=None, about="when it was revoked, in seconds of the epoch")
    reason: str = field(Text(MAX_REASON), default="", about="why it was revoked")


class InUse(Record):
    """A keep, a declared keep or a codelet set that runs a module. keys: those whose signatures it was accepted by."""

    user: str = field(_TEXT, about="what runs it")
    digest: str = field(_DIGEST, about="the module")
    keys: tuple[str, ...] = field(Items(KEY_NAME, MAX_KEYS), about="the keys that have signed it")


class Requirements(Record):
    """What modules of the store must be, to start. affected: what runs, and could not start any more."""

    keys: tuple[KnownKey, ...] = field(Items(Nested(KnownKey, "key"), MAX_KEYS), about="every key that is known")
    require: tuple[str, ...] = field(Items(KEY_NAME, MAX_KEYS), about="keys that all must have signed")
    any_of: tuple[str, ...] = field(Items(KEY_NAME, MAX_KEYS), about="keys of which one must have signed")
    policy: str | None = field(
        Maybe(Text(MAX_POLICY_BYTES)), default=None, about="the policy's file, in YAML; null for none"
    )
    affected: tuple[InUse, ...] = field(
        Items(Nested(InUse, "use"), MAX_OBJECTS), default=(), about="what runs, and could not start any more"
    )


class Revoking(Record):
    """Why a key is revoked."""

    reason: str = field(Text(MAX_REASON), default="", about="why, for those who are refused because of it")


class Revoked(Record):
    """A key that counts no more, and what runs that could not start any more."""

    key: KnownKey = field(Nested(KnownKey, "key"), about="the key")
    affected: tuple[InUse, ...] = field(
        Items(Nested(InUse, "use"), MAX_OBJECTS), default=(), about="what runs, and could not start any more"
    )
