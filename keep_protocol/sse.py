"""What the manager sends as server-sent events: the lines of a keep's journal, and the events of keeps.

`GET /v1/keeps/ID/logs[?follow=true][&lines=N]` sends one `line` event for each line; with `follow` a last `end` event
after the last line of a keep that has ended, then it closes.
`GET /v1/events[?keep=ID][&lines=N][&follow=true]` sends one `keep` event for each event; with `follow`
for each that happens after its answer has begun, without end.
Every event has an id to resume after (`Last-Event-ID`); a comment line keeps a silent stream alive. Pure.
"""

from __future__ import annotations

import re
from enum import Enum
from json.encoder import encode_basestring_ascii

from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Nested, Record, Seconds, Text, Word, field, members
from keep_protocol.keep import KeepInfo

CONTENT_TYPE = "text/event-stream"
LINE = "line"
END = "end"
KEEP = "keep"
ALIVE_SECONDS = 15.0
"""A comment is sent after this much silence, so that each side notices when the other has gone."""
MAX_EVENT_BYTES = 512 * 1024
"""The longest event: a journal line (journald cuts them at 48 KiB) with each byte escaped."""
MAX_ID = 512
"""A journal cursor has about 150 characters."""
_ID = r"[\x21-\x7e]{0,512}"


STDOUT_SOURCE, STDERR_SOURCE, KEEP_SOURCE, GAP_SOURCE = "stdout", "stderr", "keep", "gap"
SOURCES = (STDOUT_SOURCE, STDERR_SOURCE, KEEP_SOURCE, GAP_SOURCE)
"""Who says a line: the guest on one of its two streams; the loader; or the manager, of bytes that are missing there."""


class EventType(Enum):
    """What can happen to a keep. STARTED: it awaits its workload; RUNNING: it has accepted one."""

    CREATED = "created"
    STARTED = "started"
    RUNNING = "running"
    RESTARTING = "restarting"
    ENDED = "ended"
    FAILED = "failed"
    REMOVED = "removed"


class LogLine(Record):
    """One line of a keep's journal, control characters and all; the data of a `line` event. cursor: the event's id, to
    resume after."""

    at: float = field(Seconds(), about="seconds of the epoch")
    source: str = field(Text(20), about=f"who wrote it: {', '.join(SOURCES)}")
    text: str = field(Text(), about="the line")
    cursor: str = ""


class KeepEvent(Record):
    """One thing that happened to a keep; the data of a `keep` event. cursor: the event's id, to resume after."""

    at: float = field(Seconds(), about="seconds of the epoch")
    type: EventType = field(Word(EventType), name="event", about="what happened")
    keep: KeepInfo = field(Nested(KeepInfo, "keep"), about="the keep as it was then")
    by: str = field(Text(200), default="", about="who asked for it; empty where no one did or it is not known")
    cursor: str = ""


def line_from_wire(value: dict[str, object], cursor: str = "") -> LogLine:
    """The line in a `line` event's data. Raises KeepfleetError(BAD_REQUEST) on another shape."""
    return LogLine(cursor=cursor, **members(LogLine, value, "log line"))


def event_from_wire(value: dict[str, object], cursor: str = "") -> KeepEvent:
    """What happened, in a `keep` event's data. Raises KeepfleetError(BAD_REQUEST) on another shape."""
    return KeepEvent(cursor=cursor, **members(KeepEvent, value, "event"))


def encode_line(line: LogLine) -> bytes:
    """A line's event as `encode` writes it, in a third of the time: a stream may have a million. Its cursor is ours."""
    data = f'{{"at":{line.at!r},"source":"{line.source}","text":{encode_basestring_ascii(line.text)}}}'
    return f"id: {line.cursor}\nevent: {LINE}\ndata: {data}\n\n".encode("ascii")


def encode(name: str, data: dict[str, object], event_id: str = "") -> bytes:
    """One server-sent event. Raises KeepfleetError(BAD_REQUEST) for an id that would break out of its line."""
    if not re.fullmatch(_ID, event_id):
        raise KeepfleetError(
            ErrorKind.BAD_REQUEST, "cannot resume there: an event's id is at most 512 plain characters"
        )
    identified = f"id: {event_id}\n" if event_id else ""
    return f"{identified}event: {name}\ndata: ".encode("ascii") + strict_json.dumps(data) + b"\n\n"
