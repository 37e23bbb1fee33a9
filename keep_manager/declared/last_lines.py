"""The last lines of what a keep wrote, from its ring: what a job's history shows of a run. For threads."""

from __future__ import annotations

import os
from typing import Protocol

from keep_protocol.errors import KeepfleetError
from keep_protocol.ring import MARK, RingReader
from keep_protocol.runs import MAX_LINE, MAX_LINES

MOST_BYTES = 8 * MAX_LINES * MAX_LINE
"""What is looked at of a ring, its end: enough for the lines, of four bytes a character, and as much again."""


class Folders(Protocol):
    """What is needed of the keeps' files."""

    def open_output(self, kuuid: int) -> int | None:
        """The keep's ring, for reading, and the caller's; None where it was not started."""


def printable(line: bytes) -> str:
    """A line as people can be shown it: what would steer a terminal is replaced. Pure."""
    text = line.decode("utf-8", "replace")
    return "".join(each if each.isprintable() or each == "\t" else "\N{REPLACEMENT CHARACTER}" for each in text)[
        :MAX_LINE
    ]


class LastLines:
    """Reads them in `folders`."""

    def __init__(self, folders: Folders) -> None:
        self._folders = folders

    def __repr__(self) -> str:
        return f"LastLines({self._folders!r})"

    def of(self, kuuid: int) -> tuple[str, ...]:
        """The last lines, standard output and error as they came; none where there are none that can be read."""
        try:
            descriptor = self._folders.open_output(kuuid)
        except (KeepfleetError, OSError):
            return ()
        if descriptor is None:
            return ()
        try:
            data = _end(RingReader(descriptor))
        except (KeepfleetError, OSError):
            return ()
        finally:
            os.close(descriptor)
        return tuple(printable(line) for line in data.splitlines()[-MAX_LINES:])


def _end(reader: RingReader) -> bytes:
    position, end = reader.bounds()
    data = b""
    while position < end:
        frames, after = reader.read(position)
        if after <= position:
            break
        data = (data + b"".join(bytes(frame.data) for frame in frames if frame.stream != MARK))[-MOST_BYTES:]
        position = after
    return data
