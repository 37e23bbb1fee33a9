"""The loader's control protocol (manager ↔ keep-loader, a Unix stream socket) and its reports from the app-loader.

Takes and returns bytes and objects; no sockets here. Import rule: the light part of keep_protocol.

A command is `{"commandtype": "…", "commandcontents": "…"}`, one after another, a newline between them allowed.
Every command is answered, in order, with one line: the keep's object (see `keep.KeepInfo.to_wire`), or
`{"error": {"kind": …, "message": …, "evidence": […]}}`.
"""

from __future__ import annotations

import json
from enum import Enum

from keep_protocol import strict_json
from keep_protocol.constants import MAX_CONTROL_FRAME
from keep_protocol.errors import ErrorKind, KeepfleetError, error_from_wire
from keep_protocol.fields import Record
from keep_protocol.keep import KeepInfo, keep_from_wire, outcome_from_wire
from keep_protocol.outcome import Outcome


class CommandType(Enum):
    """What the manager may ask of a loader.

    ADDR, PORT and NAMES say what the certificate is for and what `keep-info` shows: contents are the address, the
    decimal port, and comma-separated further names and addresses. DESCRIBE, contents a JSON object with `name`,
    `labels` and `owner`, is kept for `keep-info`. START carries, as SCM_RIGHTS, the descriptors START_DESCRIPTORS in
    that order, then perhaps WORKLOAD_DESCRIPTOR and what that grants; it is answered when the app-loader listens.
    INFO is answered at once. STOP, contents who asked, ends the app-loader or the workload. WAIT, contents a state's
    decimal number or a phase's word, is answered when the keep's state, or its phase, is another one. DROPPED without
    contents makes the loader say a line, with which the journal tells what it dropped; with a decimal number that is
    how many lines, to be kept with the outcome.
    """

    ADDR = "apploader-addr"
    PORT = "apploader-port"
    NAMES = "apploader-names"
    START = "apploader-start"
    INFO = "keep-info"
    DESCRIBE = "keep-describe"
    STOP = "apploader-stop"
    WAIT = "keep-wait"
    DROPPED = "keep-dropped"


START_DESCRIPTORS = ("listener", "client-ca", "revoked")
"""What START hands over: the listening TCP socket, the client CA's PEM, and the list of revoked serial numbers
(one hexadecimal number a line), which is only ever appended to and is read anew for each connection."""
WORKLOAD_DESCRIPTOR = "workload"
"""A file with `workload.Workload.to_json`, open for reading alone; after it come the descriptors of `grant_names`."""


class Command(Record):
    """One control command: its type and its contents, always a string."""

    type: CommandType
    contents: str = ""


def encode_command(command: Command) -> bytes:
    """The command as one line."""
    return strict_json.dumps({"commandtype": command.type.value, "commandcontents": command.contents}) + b"\n"


def decode_command(frame: bytes) -> Command:
    """The command in one frame. Raises KeepfleetError: BAD_REQUEST for its shape, UNKNOWN_COMMAND for its type."""
    value = strict_json.loads_object(frame, MAX_CONTROL_FRAME, "the command")
    word, contents = value.get("commandtype"), value.get("commandcontents", "")
    if not isinstance(word, str) or not isinstance(contents, str):
        raise KeepfleetError(
            ErrorKind.BAD_REQUEST, "cannot read the command: 'commandtype' and 'commandcontents' must be strings"
        )
    for kind in CommandType:
        if kind.value == word:
            return Command(kind, contents)
    raise KeepfleetError(ErrorKind.UNKNOWN_COMMAND, f"cannot obey {word[:40]!r}: it is no command of the loader's")


def encode_reply(reply: KeepInfo | KeepfleetError) -> bytes:
    """The answer to a command as one line."""
    if isinstance(reply, KeepfleetError):
        return strict_json.dumps({"error": reply.to_wire()}) + b"\n"
    return strict_json.dumps(reply.to_wire()) + b"\n"


def decode_reply(frame: bytes) -> KeepInfo:
    """The keep in a loader's answer. Raises the error the loader reported, or BAD_REQUEST for a foreign shape."""
    value = strict_json.loads_object(frame, MAX_CONTROL_FRAME, "the loader's answer")
    if "error" in value:
        raise error_from_wire(value["error"])
    return keep_from_wire(value)


class FrameDecoder:
    """Cuts a stream of JSON objects into frames of at most MAX_CONTROL_FRAME bytes, whatever stands between them.

    Feed bytes as they come; each call returns the complete frames so far. After it has raised
    KeepfleetError(BAD_REQUEST or TOO_LARGE) the stream cannot be trusted again and must be closed.
    """

    def __init__(self, limit: int = MAX_CONTROL_FRAME) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._scanned = 0
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def __repr__(self) -> str:
        return f"FrameDecoder({len(self._buffer)} bytes waiting)"

    @property
    def waiting(self) -> bool:
        """Whether a frame has begun and not ended."""
        return self._depth > 0

    def feed(self, data: bytes) -> list[bytes]:
        """The frames completed by `data`."""
        self._buffer += data
        frames: list[bytes] = []
        while self._scanned < len(self._buffer):
            byte = self._buffer[self._scanned]
            self._scanned += 1
            if self._scanned > self._limit:
                raise KeepfleetError(ErrorKind.TOO_LARGE, f"cannot read a control message of over {self._limit} bytes")
            if self._depth == 0:
                self._begin(byte)
            elif self._ends(byte):
                frames.append(bytes(self._buffer[: self._scanned]))
                del self._buffer[: self._scanned]
                self._scanned = 0
        return frames

    def _begin(self, byte: int) -> None:
        if byte in b" \t\r\n":
            del self._buffer[: self._scanned]
            self._scanned = 0
        elif byte == ord("{"):
            self._depth = 1
        else:
            raise KeepfleetError(ErrorKind.BAD_REQUEST, "cannot read a control message: it must be a JSON object")

    def _ends(self, byte: int) -> bool:
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif byte == ord("\\"):
                self._escaped = True
            elif byte == ord('"'):
                self._in_string = False
        elif byte == ord('"'):
            self._in_string = True
        elif byte in b"{[":
            self._depth += 1
        elif byte in b"}]":
            self._depth -= 1
        return self._depth == 0


class ReportType(Enum):
    """What an app-loader tells its loader, over a SOCK_SEQPACKET pair, one JSON object a packet.

    LISTENING (carries, as SCM_RIGHTS, the identity file: certificate and key), RECEIVING, AWAITING (an upload was
    refused or lost; the door waits again), ACCEPTED (the workload is whole, valid and compiled; the answer goes out
    next), FAILED (the app-loader cannot serve), and from the runner RUNNING and ENDED.
    """

    LISTENING = "listening"
    RECEIVING = "receiving"
    AWAITING = "awaiting"
    ACCEPTED = "accepted"
    FAILED = "failed"
    RUNNING = "running"
    ENDED = "ended"


class Report(Record):
    """One report. text: a sentence for `detail`; certificate and fingerprint with LISTENING; outcome with ENDED;
    error with FAILED."""

    type: ReportType
    text: str = ""
    fingerprint: str = ""
    certificate: str = ""
    outcome: Outcome | None = None
    error: KeepfleetError | None = None


def encode_report(report: Report) -> bytes:
    """The report as one packet, shortened to fit MAX_CONTROL_FRAME by dropping the outcome's backtrace if it must."""
    value: dict[str, object] = {
        "report": report.type.value,
        "text": report.text,
        "fingerprint": report.fingerprint,
        "certificate": report.certificate,
    }
    if report.error is not None:
        value["error"] = report.error.to_wire()
    if report.outcome is not None:
        value["outcome"] = report.outcome.to_wire()
    packet = strict_json.dumps(value)
    if len(packet) > MAX_CONTROL_FRAME and report.outcome is not None:
        value["outcome"] = {**report.outcome.to_wire(), "text": report.outcome.text[:1000], "backtrace": []}
        packet = strict_json.dumps(value)
    return packet


def decode_report(packet: bytes) -> Report:
    """The report in one packet. Raises KeepfleetError(BAD_REQUEST or TOO_LARGE): the sender runs foreign code."""
    value = strict_json.loads_object(packet, MAX_CONTROL_FRAME, "the app-loader's report")
    words = {kind.value: kind for kind in ReportType}
    texts = [value.get(name, "") for name in ("report", "text", "fingerprint", "certificate")]
    if not all(isinstance(text, str) for text in texts) or texts[0] not in words:
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read the app-loader's report: {json.dumps(texts)[:80]}")
    outcome = value.get("outcome")
    return Report(
        type=words[str(texts[0])],
        text=str(texts[1]),
        fingerprint=str(texts[2]),
        certificate=str(texts[3]),
        outcome=outcome_from_wire(outcome) if isinstance(outcome, dict) else None,
        error=error_from_wire(value["error"]) if "error" in value else None,
    )
