"""What the upload endpoint and the runner report to their loader, over a SOCK_SEQPACKET pair each: one JSON object a
packet; and the three packets that go the other way.

Takes and returns bytes and objects; no sockets here. Import rule: the light part of keep_protocol.
"""

from __future__ import annotations

from _collections_abc import Mapping

from keep_protocol import strict_json
from keep_protocol.constants import MAX_CONTROL_FDS, MAX_CONTROL_FRAME
from keep_protocol.enumeration import Enum
from keep_protocol.errors import ErrorKind, KeepfleetError, error_from_wire
from keep_protocol.fields import Items, Maybe, Nested, Record, Text, Type, Word, field, parse
from keep_protocol.keep import Module, Uploader
from keep_protocol.outcome import Outcome

COMPILED_AGAIN = "compiled again"
"""What a report of RUNNING says where the engine did not take the compiled code that came."""
MAX_REPORT_DESCRIPTORS = 4
READY_PACKET = b"ready"
"""To an endpoint that has reported CONNECTED: the runner is there, and it may read what its client sends."""
MAX_BEGIN_PACKET = 64 * 1024
"""Bytes of the packet that a prepared fork begins with: its environment, of which the names and those who may upload
are the longest, some 20 KB."""
MAX_RUN_PACKET = 4096
"""Bytes of the packet that makes a runner run: at most 48 names of 16 characters."""
_DESCRIPTOR = Text(16, must="a descriptor's name")
_RUN_NAMES = Items(_DESCRIPTOR, MAX_CONTROL_FDS)


class ReportType(Enum):
    """What is reported.

    The endpoint: LISTENING (with IDENTITY), CONNECTED (the first connection is there, and nothing of it was read),
    RECEIVING, AWAITING (an upload was refused or lost; the endpoint waits again), ACCEPTED (the workload is whole,
    valid and compiled; the answer goes out next). The runner: CHECKED (with COMPILED and MODULE: this module can run),
    RUNNING (with STATUS) and ENDED (also where it has failed). Both: FAILED (it cannot go on).
    """

    LISTENING = "listening"
    CONNECTED = "connected"
    CHECKED = "checked"
    RECEIVING = "receiving"
    AWAITING = "awaiting"
    ACCEPTED = "accepted"
    FAILED = "failed"
    RUNNING = "running"
    ENDED = "ended"


class _Error(Type):
    """An error as `error_from_wire` reads it, which takes anything."""

    must = "an error"

    def parse(self, value: object) -> KeepfleetError:
        return error_from_wire(value)

    def encode(self, value: KeepfleetError) -> object:
        return value.to_wire()


class Report(Record):
    """One report. text: a sentence for `detail`; certificate and fingerprint with LISTENING; upload and module with
    ACCEPTED; outcome with ENDED; error with FAILED; descriptors: the names of those that the packet carries, in their
    order."""

    type: ReportType = field(Word(ReportType), name="report", about="what is reported")
    text: str = field(Text(), default="", about="a sentence for people")
    fingerprint: str = field(Text(), default="", about="of the endpoint's certificate")
    certificate: str = field(Text(), default="", about="that certificate, PEM")
    outcome: Outcome | None = field(Maybe(Nested(Outcome, "outcome")), default=None, about="how the workload ended")
    error: KeepfleetError | None = field(Maybe(_Error()), default=None, about="why it cannot go on")
    descriptors: tuple[str, ...] = field(
        Items(_DESCRIPTOR, MAX_REPORT_DESCRIPTORS), default=(), about="the names of the descriptors the packet carries"
    )
    upload: Uploader | None = field(Maybe(Nested(Uploader, "uploader")), default=None, about="who sent the workload")
    module: Module | None = field(Maybe(Nested(Module, "module")), default=None, about="the module that was sent")


def encode_report(report: Report) -> bytes:
    """The report as one packet, shortened to fit MAX_CONTROL_FRAME by dropping the outcome's backtrace if it must."""
    packet = strict_json.dumps(report.to_wire())
    if len(packet) > MAX_CONTROL_FRAME and report.outcome is not None:
        short = report.outcome.replace(text=report.outcome.text[:1000], backtrace=())
        packet = strict_json.dumps(report.replace(outcome=short).to_wire())
    return packet


def decode_report(packet: bytes) -> Report:
    """The report in one packet. Raises KeepfleetError(BAD_REQUEST or TOO_LARGE): the sender runs foreign code."""
    return parse(Report, strict_json.loads_object(packet, MAX_CONTROL_FRAME, "the app-loader's report"), "report")


def encode_begin(name: str, environment: Mapping[str, str], names: tuple[str, ...]) -> bytes:
    """The packet by which a prepared fork becomes the process `name`: it brings where its words go, and then the
    descriptors of `names`."""
    return strict_json.dumps({"name": name, "environment": dict(environment), "descriptors": list(names)})


def decode_begin(packet: bytes) -> tuple[str, dict[str, str], tuple[str, ...]]:
    """What it says. Raises KeepfleetError(BAD_REQUEST or TOO_LARGE)."""
    said = strict_json.loads_object(packet, MAX_BEGIN_PACKET, "what to begin with")
    environment = said.get("environment")
    try:
        names = tuple(_RUN_NAMES.parse(said.get("descriptors")))
        name = _DESCRIPTOR.parse(said.get("name"))
        if not isinstance(environment, dict) or not all(isinstance(text, str) for text in environment.values()):
            raise ValueError("its environment must be words")
    except ValueError as error:
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read what to begin with: {error}") from error
    return name, environment, names


def encode_run(names: tuple[str, ...]) -> bytes:
    """The packet that makes a runner run what it brings, the descriptors of `names` in their order."""
    return strict_json.dumps({"run": list(names)})


def decode_run(packet: bytes) -> tuple[str, ...]:
    """The names of the descriptors that came with it. Raises KeepfleetError(BAD_REQUEST or TOO_LARGE)."""
    names = strict_json.loads_object(packet, MAX_RUN_PACKET, "what is to be run").get("run")
    try:
        return tuple(_RUN_NAMES.parse(names))
    except ValueError as error:
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read what is to be run: {error}") from error
