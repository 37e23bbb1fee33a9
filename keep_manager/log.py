"""The one place that writes log lines: stderr, one line an event, with a priority when journald reads it.

journald closes what it reads when it is stopped, and not only started again: lines go to its own socket from then on.

Text from others is escaped here, so that no client and no keep can forge a line or drive a terminal. What may come in
floods is rationed by kind of line, so that a flood of one kind hides no line of another, and what is left out is
counted and said.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from enum import Enum
from typing import TextIO

LOG = logging.getLogger("keepfleet")
SECURITY = logging.getLogger("keepfleet.security")
"""Refusals: who was turned away, with the certificate's serial number where there is one."""
STRANGERS = logging.getLogger("keepfleet.security.strangers")
"""Refusals of clients that have shown no good certificate, who can be anybody."""

JOURNAL_SOCKET = "/run/systemd/journal/socket"
_PREFIX = re.compile(r"<([0-7])>")
_PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}


class Ration(Enum):
    """The kinds of line that are rationed apart: the records a second that each may write, and its name in words.

    All of them together stay far under journald's own limit (10,000 lines in 30 s, man 5 journald.conf).
    """

    STRANGERS = 20, "lines about clients without a good certificate"
    SECURITY = 50, "lines about refused clients"
    ERRORS = 50, "errors"
    OTHER = 50, "lines"

    def __init__(self, per_second: int, words: str) -> None:
        self.per_second = per_second
        self.words = words


def ration_of(record: logging.LogRecord) -> Ration:
    """Where a record is counted: by what it is about, and the manager's own errors apart from all else."""
    if record.name.startswith(STRANGERS.name):
        return Ration.STRANGERS
    if record.name.startswith(SECURITY.name):
        return Ration.SECURITY
    return Ration.ERRORS if record.levelno >= logging.ERROR else Ration.OTHER


def escape(text: str) -> str:
    """`text` with every control character written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class LineFormatter(logging.Formatter):
    """One record as lines of printable text; `priorities` puts journald's `<N>` before each."""

    def __init__(self, priorities: bool) -> None:
        super().__init__("%(message)s")
        self._priorities = priorities

    def format(self, record: logging.LogRecord) -> str:
        """The message on one line, a traceback's lines after it."""
        text = escape(record.getMessage())
        if record.name.startswith(SECURITY.name):
            text = f"security: {text}"
        lines = [text]
        if record.exc_info:
            lines += [escape(line) for line in self.formatException(record.exc_info).splitlines()]
        prefix = f"<{_PRIORITIES.get(record.levelno, 6)}>" if self._priorities else ""
        return "\n".join(prefix + line for line in lines)


class JournalStream:
    """Standard error that journald reads, and after it has hung up journald's own socket, where each line, with its
    `<N>`, is an entry. What that does not take, while there is no journald, is counted, and said when there is."""

    def __init__(self, descriptor: int, path: str = JOURNAL_SOCKET) -> None:
        """`descriptor` stays the caller's; `path` is that of the socket."""
        self._descriptor, self._path = descriptor, path
        self._hung_up, self._lost = False, 0

    def __repr__(self) -> str:
        return f"JournalStream({f'{self._path}, {self._lost} lines lost' if self._hung_up else self._descriptor})"

    def write(self, text: str) -> int:
        """Writes whole lines."""
        if not self._hung_up:
            data = text.encode("utf-8", "backslashreplace")
            try:
                while data:
                    data = data[os.write(self._descriptor, data) :]
                return len(text)
            except OSError as error:
                if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                    raise
                self._hung_up = True
        for line in text.splitlines():
            if self._lost and self._send(4, f"{self._lost} lines were lost while there was no journald"):
                self._lost = 0
            prefix = _PREFIX.match(line)
            priority = 6 if prefix is None else int(prefix[1])
            self._lost += not self._send(priority, line if prefix is None else line[prefix.end() :])
        return len(text)

    def _send(self, priority: int, message: str) -> bool:
        """One entry; whether journald has taken it, for which nothing waits."""
        entry = f"PRIORITY={priority}\nSYSLOG_IDENTIFIER=keep-manager\nMESSAGE={message}\n"
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.connect(self._path)
                sock.send(entry.encode("utf-8", "backslashreplace"), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            return False
        return True


class RationingHandler(logging.StreamHandler[TextIO | JournalStream]):
    """Writes at most its ration of each kind of line a second, and after it how many were left out, by kind.

    That is said with the next line of any kind, or by the event loop when the second is over, or when the log is
    closed: whichever comes first.
    """

    def __init__(self, stream: TextIO | JournalStream, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self._clock = clock
        self._second = 0
        self._written: Counter[Ration] = Counter()
        self._left_out: Counter[Ration] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        """Writes the record, or counts it."""
        now = int(self._clock())
        if now != self._second:
            self.say_left_out()
            self._second = now
            self._written.clear()
        ration = ration_of(record)
        if self._written[ration] < ration.per_second:
            self._written[ration] += 1
            super().emit(record)
            return
        if not self._left_out:
            self._say_later(now + 1 - self._clock())
        self._left_out[ration] += 1

    def say_left_out(self) -> None:
        """Writes how many lines of each kind were left out since it was said last."""
        for ration, count in self._left_out.items():
            logger = SECURITY if ration in (Ration.STRANGERS, Ration.SECURITY) else LOG
            text = f"left out {count} {ration.words}: more than {ration.per_second} a second"
            super().emit(logger.makeRecord(logger.name, logging.WARNING, "", 0, text, (), None))
        self._left_out.clear()

    def close(self) -> None:
        """Says what is still to be said."""
        self.say_left_out()
        super().close()

    def _say_later(self, seconds: float) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # another thread's line: the next one, or the end, says it
        loop.call_later(max(0.0, seconds), self._say_locked)

    def _say_locked(self) -> None:
        self.acquire()
        try:
            self.say_left_out()
        finally:
            self.release()


def set_up(level: str) -> None:
    """Sends every logger of the process to stderr. `level` is one of config.LOG_LEVELS."""
    journal = "JOURNAL_STREAM" in os.environ
    handler = RationingHandler(JournalStream(sys.stderr.fileno()) if journal else sys.stderr)
    handler.setFormatter(LineFormatter(priorities=journal))
    logging.basicConfig(handlers=[handler], force=True)
    set_level(level)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def set_level(level: str) -> None:
    """Logs nothing less important from now on."""
    logging.getLogger().setLevel(level.upper())
