"""What the endpoint, the runner and the checker say of themselves, such as a traceback: through a pipe to the loader,
which logs it as its own lines. None of them holds a descriptor of journald's, by which it could write in the unit's
name.

Both speak for strangers sooner or later, so what they say is bounded in time and in all, and printable.
Import rule: that of keep_loader.
"""

from __future__ import annotations

import os

from keep_loader.log import log, plain
from keep_loader.loop import READABLE, Loop

IN_A_TURN = 4096
"""Bytes of one turn, before the next pause: a traceback is 2 KiB."""
LINES_IN_A_TURN = 24
PAUSE_SECONDS = 0.1
IN_ALL = 1024 * 1024
"""Bytes that are logged of one keep's processes; what comes after them is read, and forgotten."""
MAX_LINE = 1000
_PREFIX = "app-loader: "
_LAST_TURNS = 16
"""A pipe holds 64 KiB: what a process said before it ended."""
_NEXT = "words"


class Words:
    """Owns the pipe. theirs: the end for the forks, as their standard output and error."""

    def __init__(self, loop: Loop) -> None:
        """Raises OSError."""
        self._loop = loop
        self._ours, self.theirs = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._ours, False)
        self._rest, self._taken = b"", 0
        loop.watch(self._ours, READABLE, self._readable)

    def __repr__(self) -> str:
        return f"Words({self._taken} bytes)"

    def read_all(self) -> None:
        """Logs what is there: one of the forks has ended, and why comes before that."""
        for _ in range(_LAST_TURNS):
            if not self._read():
                break
        self._log([self._rest])
        self._rest = b""

    def close(self) -> None:
        """Closes both ends."""
        self._loop.forget(self._ours)
        self._loop.cancel(_NEXT)
        os.close(self._ours)
        os.close(self.theirs)

    def _readable(self, _events: int) -> None:
        self._read()
        self._loop.forget(self._ours)
        self._loop.after(_NEXT, PAUSE_SECONDS, lambda: self._loop.watch(self._ours, READABLE, self._readable))

    def _read(self) -> bool:
        try:
            data = os.read(self._ours, IN_A_TURN)
        except BlockingIOError:
            return False
        before, self._taken = self._taken, self._taken + len(data)
        if before > IN_ALL:
            return True
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-IN_A_TURN:]
        self._log(lines)
        if self._taken > IN_ALL:
            log(f"{_PREFIX}says too much of itself: no more of it is logged")
            self._rest = b""
        return True

    def _log(self, lines: list[bytes]) -> None:
        for line in lines[:LINES_IN_A_TURN]:
            text = plain(line.decode("utf-8", "replace"), MAX_LINE)
            if text:
                log(text if text.startswith(_PREFIX) else _PREFIX + text)
        if len(lines) > LINES_IN_A_TURN:
            log(f"{_PREFIX}{len(lines) - LINES_IN_A_TURN} more lines")
