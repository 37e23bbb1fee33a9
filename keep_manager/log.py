"""The one place that writes log lines: stderr, one line an event, with a priority when journald reads it.

Text from others is escaped here, so that no client and no keep can forge a line or drive a terminal.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable

LOG = logging.getLogger("keepfleet")
SECURITY = logging.getLogger("keepfleet.security")
"""Refusals: who was turned away, with the certificate's serial number where there is one."""

_PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}
LINES_PER_SECOND = 50
"""A flood of refusals stays far under journald's own limit; what is left out is counted and said."""


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


class FloodFilter(logging.Filter):
    """Lets LINES_PER_SECOND records through each second; the next one after says how many were left out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._second, self._passed, self._dropped = 0, 0, 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written."""
        now = int(self._clock())
        if now != self._second:
            self._second, self._passed = now, 0
        if self._passed >= LINES_PER_SECOND:
            self._dropped += 1
            return False
        self._passed += 1
        if self._dropped:
            record.msg, record.args = f"{record.getMessage()} (after {self._dropped} lines left out)", ()
            self._dropped = 0
        return True


def set_up(level: str) -> None:
    """Sends every logger of the process to stderr. `level` is one of config.LOG_LEVELS."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(priorities="JOURNAL_STREAM" in os.environ))
    handler.addFilter(FloodFilter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
