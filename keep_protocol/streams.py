"""What the manager tells as server-sent events: the lines of a keep's journal.

`GET /v1/keeps/ID/logs[?follow=true][&lines=N]` sends one `line` event for each line; with `follow` a last `end` event
after the last line of a keep that has ended, then it closes.
Every line has an id to resume after (`Last-Event-ID`); a comment line keeps a silent stream alive. Pure.
"""

from __future__ import annotations

import re

from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.record import Record

CONTENT_TYPE = "text/event-stream"
LINE = "line"
END = "end"
ALIVE_SECONDS = 15.0
"""A comment is sent after this much silence, so that each side notices when the other has gone."""
MAX_EVENT_BYTES = 512 * 1024
"""The longest event: a journal line (journald cuts them at 48 KiB) with each byte escaped."""
MAX_ID = 512
"""A journal cursor has about 150 characters."""
_ID = re.compile(r"[\x21-\x7e]{0,512}")


class LogLine(Record):
    """One line of a keep's journal.

    at: seconds of the epoch; source: "workload" for what the guest wrote, "keep" for what the loader and the
    app-loader say; text: the line, control characters and all; cursor: its id, to resume after.
    """

    __slots__ = ("at", "cursor", "source", "text")
    at: float
    cursor: str
    source: str
    text: str

    def __init__(self, at: float, source: str, text: str, cursor: str = "") -> None:
        self._freeze(at=at, source=source, text=text, cursor=cursor)

    def to_wire(self) -> dict[str, object]:
        """The data of a `line` event; the cursor is the event's id."""
        return {"at": self.at, "source": self.source, "text": self.text}


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


def encode(name: str, data: dict[str, object], event_id: str = "") -> bytes:
    """One server-sent event. Raises KeepfleetError(BAD_REQUEST) for an id that would break out of its line."""
    if not _ID.fullmatch(event_id):
        raise KeepfleetError(
            ErrorKind.BAD_REQUEST, "cannot resume there: an event's id is at most 512 plain characters"
        )
    identified = f"id: {event_id}\n" if event_id else ""
    return f"{identified}event: {name}\ndata: ".encode("ascii") + strict_json.dumps(data) + b"\n\n"
