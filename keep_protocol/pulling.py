"""Pulls of modules from registries over /v1: what is asked, and how far one is. The standard library alone."""

from __future__ import annotations

from keep_protocol.enumeration import Enum
from keep_protocol.errors import ErrorKind
from keep_protocol.fields import Maybe, Nested, Record, Text, Whole, Word, field
from keep_protocol.store import MAX_OBJECT_BYTES, REFERENCE, V1_STORE_PATH, Object

V1_PULLS_PATH = f"{V1_STORE_PATH}/pulls"
PULL_ID = Text(16, "[0-9a-f]{16}", "16 hexadecimal digits")
WAIT_SECONDS = 1.0
"""How long an answer about a pull waits for its end, where it is to."""
_ADDRESS = Text(1000, must="oci://HOST/NAME:TAG, oci://HOST/NAME@sha256:… or both")


class PullState(Enum):
    """How far a pull is."""

    PULLING = "pulling"
    DONE = "done"
    FAILED = "failed"


class Pulling(Record):
    """What is to be pulled."""

    address: str = field(
        _ADDRESS, about="where the artifact is: oci://HOST[:PORT]/NAME:TAG, oci://HOST/NAME@sha256:… or both"
    )
    reference: str = field(
        Text(192, f"(?:{REFERENCE.pattern})?", "NAME:TAG"), default="", about="what to call it here; as there without"
    )


class Failure(Record):
    """Why a pull failed."""

    kind: ErrorKind = field(Word(ErrorKind), about="for programs")
    message: str = field(Text(4000), about="cannot X: why")


class Pull(Record):
    """A pull, under way or ended."""

    id: str = field(PULL_ID, about="its ID")
    address: str = field(_ADDRESS, about="where the artifact is; with its manifest's digest as soon as that is known")
    reference: str = field(Text(192), about="what it is called here; empty for no reference")
    state: PullState = field(Word(PullState), about="how far it is")
    received: int = field(Whole(0, MAX_OBJECT_BYTES), default=0, about="bytes of the module that have come")
    size: int | None = field(
        Maybe(Whole(0, MAX_OBJECT_BYTES)), default=None, about="how many those are to be; null while it is not known"
    )
    object: Object | None = field(
        Maybe(Nested(Object, "object")), default=None, about="the module in the store; null until it is there"
    )
    error: Failure | None = field(Maybe(Nested(Failure, "failure")), default=None, about="why it failed; null if not")
