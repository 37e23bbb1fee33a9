"""The keep's record: what its loader, and others when that has gone, must know again.

It lies in the manager's folder for the keep from its start on, in two slots that are written in turn, each with its
number before and after it: a loader killed half-way through a writing leaves the slot before it whole.
A loader that was taken over may have written anything: what is read is bounded and checked.
Import rule: `os` and the light part of keep_protocol.
"""

from __future__ import annotations

import os

from keep_protocol import strict_json
from keep_protocol.constants import MAX_CERTIFICATE_NAMES, MAX_CONTROL_FDS
from keep_protocol.control import CERTIFICATE_NAME, Description
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Flag, Items, Maybe, Nested, Record, Seconds, Text, Whole, field, parse
from keep_protocol.keep import KeepReport
from keep_protocol.spec import KeepSpec
from keep_protocol.states import Phase

SCHEMA = 3
"""A record of another number is never guessed at."""
MAX_RECORD = 256 * 1024
"""Bytes of a record: twice the longest answer to keep-info, which holds most of it; one with a certificate and a
backtrace is 8 KiB."""
GRANTED = r"workload|stdin|input|directory-[0-9]{1,2}|secret-[0-9]{1,2}"
"""The names of a workload's description and of what it is granted."""


class Private(Record):
    """What a loader must know of its keep and does not report.

    names: further names for the certificate; granted: the names of what its workload gets, in order; reruns: when that
    was lately started again, on the monotonic clock; started_at: when it was last, in seconds of the epoch;
    user: who the keep was at its start, None for one of a version before; unstored: whether journald stored nothing for
    a time; description: what a manager of version 1 called it, where its unit has no spec; claimed: what it is, where
    its unit was made as a spare's.
    """

    names: tuple[str, ...] = field(Items(CERTIFICATE_NAME, MAX_CERTIFICATE_NAMES), default=())
    granted: tuple[str, ...] = field(Items(Text(16, GRANTED), MAX_CONTROL_FDS), default=())
    reruns: tuple[float, ...] = field(Items(Seconds(), 1000), default=())
    started_at: float | None = field(Maybe(Seconds()), default=None)
    user: int | None = field(Maybe(Whole(0, 2**32)), default=None)
    unstored: bool = field(Flag(), default=False)
    description: Description | None = field(Maybe(Nested(Description, "description")), default=None)
    claimed: KeepSpec | None = field(Maybe(Nested(KeepSpec, "spec")), default=None)

    @property
    def outlives_idle(self) -> bool:
        """Whether a loader that was killed before the keep's start must know it again."""
        return self.description is not None or self.claimed is not None


class KeepRecord(Record):
    """What a loader that was killed must know again."""

    report: KeepReport = field(Nested(KeepReport, "report"))
    private: Private = field(Nested(Private, "private part"), default=Private())

    @property
    def phase(self) -> Phase:
        """Where exactly the keep is."""
        return Phase(self.report.phase)

    def encode(self) -> bytes:
        """The record as JSON."""
        return strict_json.dumps({"schema": SCHEMA, **self.to_wire()})


def _bad_record(why: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read the keep's record: {why}")


def decode_record(data: bytes) -> KeepRecord:
    """The record in `data`. Raises KeepfleetError for anything but a whole record of this schema."""
    value = strict_json.loads_object(data, MAX_RECORD, "the keep's record")
    if value.get("schema") != SCHEMA:
        raise _bad_record(f"its schema is not {SCHEMA}")
    try:
        record = parse(KeepRecord, value, "record")
    except KeepfleetError as error:
        raise _bad_record(error.message) from error
    if not record.report.phase:
        raise _bad_record("it has no phase")
    return record


def read_record(descriptor: int) -> tuple[KeepRecord, int]:
    """What was written last, and its number. Raises KeepfleetError when nothing of it is whole, or could be read."""
    try:
        slots = [_slot(os.pread(descriptor, MAX_RECORD, place)) for place in (0, MAX_RECORD)]
    except OSError as error:
        raise _bad_record(str(error.strerror)) from error
    whole = [slot for slot in slots if slot is not None]
    if not whole:
        raise _bad_record("none of its slots is whole")
    number, data = max(whole)
    return decode_record(data), number


def write_record(descriptor: int, record: KeepRecord, number: int) -> None:
    """Writes `record` with its number, and leaves the one before it. Raises OSError."""
    text = str(number).encode()
    data = text + b"\n" + record.encode() + b"\n" + text + b"\n"
    # A slot is cut off where its text ends by its last number; what an older one left behind it is not read.
    if os.pwrite(descriptor, data, MAX_RECORD * (number % 2)) != len(data):
        raise OSError(28, os.strerror(28))  # ENOSPC, after the first of the bytes


def _slot(data: bytes) -> tuple[int, bytes] | None:
    """The number and the record in one slot, None unless it is whole: the same number stands before and after it."""
    parts = data.split(b"\n", 3)
    if len(parts) < 4 or parts[0] != parts[2] or not parts[0].isdigit() or len(parts[0]) > 18:
        return None
    return int(parts[0]), parts[1]
