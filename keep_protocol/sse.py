"""What the manager sends as server-sent events: the lines of a keep's journal, and the events of keeps.

`GET /v1/keeps/ID/logs[?follow=true][&lines=N]` sends one `line` event for each line; with `follow` a last `end` event
after the last line of a keep that has ended, then it closes.
`GET /v1/events[?keep=ID][&lines=N][&follow=true]` sends one `keep` event for each event; with `follow`
for each that happens after its answer has begun, for ever.
Every event has an id to resume after (`Last-Event-ID`); a comment line keeps a silent stream alive. Pure.
"""

from __future__ import annotations

import re
from enum import Enum

from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.keep import KeepInfo, keep_from_wire

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
_ID = re.compile(r"[\x21-\x7e]{0,512}")


WORKLOAD_SOURCE, KEEP_SOURCE, JOURNAL_SOURCE = "workload", "keep", "journal"
SOURCES = (WORKLOAD_SOURCE, KEEP_SOURCE, JOURNAL_SOURCE)
"""Who says a line: the guest; the loader or the app-loader; or journald, of lines of either that it dropped there."""


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
    """One line of a keep's journal.

    at: seconds of the epoch; source: one of the sources above; text: the line, control characters and all; cursor: its
    id, to resume after.
    """

    at: float
    source: str
    text: str
    cursor: str = ""

    def to_wire(self) -> dict[str, object]:
        """The data of a `line` event; the cursor is the event's id."""
        return {"at": self.at, "source": self.source, "text": self.text}


class KeepEvent(Record):
    """One thing that happened to a keep.

    at: when, in seconds of the epoch; happening: what; keep: as it was then; by: who asked for it, "" where nobody did
    or nobody knows; cursor: its id, to resume after.
    """

    at: float
    type: EventType
    keep: KeepInfo
    by: str = ""
    cursor: str = ""

    def to_wire(self) -> dict[str, object]:
        """The data of a `keep` event; the cursor is the event's id."""
        return {"at": self.at, "event": self.type.value, "by": self.by, "keep": self.keep.to_wire()}


def _refuse(what: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read {what}: it has another shape")


def _text(value: dict[str, object], name: str, what: str) -> str:
    text = value.get(name)
    if not isinstance(text, str):
        raise _refuse(what)
    return text


def _at(value: dict[str, object], what: str) -> float:
    at = value.get("at")
    if isinstance(at, bool) or not isinstance(at, (int, float)) or not 0 <= at < 1e12:
        raise _refuse(what)
    return float(at)


def line_from_wire(value: dict[str, object], cursor: str = "") -> LogLine:
    """The line in a `line` event's data. Raises KeepfleetError(BAD_REQUEST) on another shape."""
    what = "a line of the log"
    return LogLine(_at(value, what), _text(value, "source", what), _text(value, "text", what), cursor)


def event_from_wire(value: dict[str, object], cursor: str = "") -> KeepEvent:
    """What happened, in a `keep` event's data. Raises KeepfleetError(BAD_REQUEST) on another shape."""
    what, keep = "an event", value.get("keep")
    words = {type_.value: type_ for type_ in EventType}
    word = _text(value, "event", what)
    if word not in words or not isinstance(keep, dict):
        raise _refuse(what)
    return KeepEvent(_at(value, what), words[word], keep_from_wire(keep), _text(value, "by", what), cursor)


def encode(name: str, data: dict[str, object], event_id: str = "") -> bytes:
    """One server-sent event. Raises KeepfleetError(BAD_REQUEST) for an id that would break out of its line."""
    if not _ID.fullmatch(event_id):
        raise KeepfleetError(
            ErrorKind.BAD_REQUEST, "cannot resume there: an event's id is at most 512 plain characters"
        )
    identified = f"id: {event_id}\n" if event_id else ""
    return f"{identified}event: {name}\ndata: ".encode("ascii") + strict_json.dumps(data) + b"\n\n"
