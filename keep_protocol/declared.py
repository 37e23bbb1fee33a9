"""Declared keeps as clients see them, and what clients ask of them.

Pure: JSON values in, frozen records out.
"""

from __future__ import annotations

from enum import Enum

from keep_protocol import strict_json
from keep_protocol.constants import KUUID_BITS
from keep_protocol.fields import Items, Maybe, Nested, Record, Seconds, Text, Whole, Word, field, parse
from keep_protocol.runs import Run
from keep_protocol.spec import NAME

V1_DECLARED_PATH = "/v1/declared"
MAX_MANIFEST = 1 << 20
"""Characters of a manifest: what its parser takes."""
MAX_APPLY_BODY = 6 * MAX_MANIFEST + 1024
"""JSON writes one character of it in at most six bytes."""
MAX_SETTLING_SECONDS = 60
"""The longest that one request waits for a declared keep; a longer wait asks again."""


class DeclaredState(Enum):
    """How a declared keep is. REPLACING: a new one is made, and the old one runs; UNREADY: it runs, and has not shown
    in time that it is ready; WAITING: it has ended, and runs again after a pause; UNMET: no keep could be made;
    SCHEDULED: a job that waits for its time; UNREADABLE: its file says nothing that could be run; UNKNOWN: the keep's
    loader does not answer."""

    STARTING = "starting"
    RUNNING = "running"
    REPLACING = "replacing"
    UNREADY = "unready"
    WAITING = "waiting"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"
    UNMET = "unmet"
    UNREADABLE = "unreadable"
    UNKNOWN = "unknown"
    SCHEDULED = "scheduled"


UNSETTLED = (DeclaredState.STARTING, DeclaredState.REPLACING, DeclaredState.UNKNOWN)
"""States that pass within moments, or with a start."""


class DeclaredKeep(Record):
    """A declared keep."""

    name: str = field(NAME, about="what it is called; one declared keep of the host has it")
    state: DeclaredState = field(Word(DeclaredState), about="how it is")
    detail: str = field(Text(), default="", about="a sentence for people: why it is so")
    owner: str = field(Text(128), default="", about="whose it is: the name of the caller who declared it")
    version: int = field(Whole(0, 1 << 53), default=0, about="counted up by each change; 0 where it cannot be read")
    kuuid: int | None = field(
        Maybe(Whole(1, (1 << KUUID_BITS) - 1)), default=None, about="the ID of the keep that counts, or null"
    )
    module: str = field(Text(512), default="", about="the module, as its manifest names it")
    digest: str = field(Text(71), default="", about="what that named when it was applied; empty where it named nothing")
    applied_at: float | None = field(Maybe(Seconds()), default=None, about="seconds of the epoch, or null")
    note: str = field(Text(), default="", about="what the manager did of its own, such as going back")
    manifest: str = field(Text(), default="", about="its manifest, word for word")
    schedule: str = field(Text(256), default="", about="when it runs, of a job; empty for what runs permanently")
    next_run: float | None = field(Maybe(Seconds()), default=None, about="of a job, seconds of the epoch, or null")
    last_run: Run | None = field(Maybe(Nested(Run, "run")), default=None, about="of a job: its latest run, or null")

    @property
    def settled(self) -> bool:
        """Whether nothing is done for it now."""
        return self.state not in UNSETTLED


class RunHistory(Record):
    """The latest runs of a job, the oldest first."""

    runs: tuple[Run, ...] = field(Items(Nested(Run, "run"), 1000), about="the oldest first")


class Apply(Record):
    """Have there be a keep as `manifest` says."""

    manifest: str = field(Text(MAX_MANIFEST, must=f"a string of at most {MAX_MANIFEST} characters"), about="YAML")


def parse_apply(body: bytes) -> Apply:
    """The body of `PUT /v1/declared/NAME`. Raises KeepfleetError(BAD_REQUEST or TOO_LARGE)."""
    return parse(Apply, strict_json.loads_object(body, MAX_APPLY_BODY, "the request"), "request", strict=True)


def declared_from_wire(value: dict[str, object]) -> DeclaredKeep:
    """The declared keep another process described. Raises KeepfleetError(BAD_REQUEST) on another shape."""
    return parse(DeclaredKeep, value, "declared keep")
