"""What the loader says of itself: lines on standard error, which is the journal's, and messages to systemd.

Import rule: that of keep_loader.
"""

from __future__ import annotations

import sys
from _collections_abc import Callable

from keep_loader.loop import Loop
from keep_protocol.sdnotify import Notifier

Say = Callable[[str], None]
STATUS_SECONDS = 0.2
"""At most five status lines a second: a hostile app-loader must not keep systemd busy."""
RETRY_SECONDS = 1.0
"""From a message that systemd could not take to the next attempt; a full queue is empty again in milliseconds."""
_STATUS, _WATCHDOG, _RETRY = "status", "watchdog", "notify again"


def plain(text: str, limit: int) -> str:
    """`text` on one line of at most `limit` printable characters: fit for a log, a terminal and sd_notify."""
    return "".join(character if character.isprintable() else " " for character in text[:limit]).strip()


_also: list[Say] = []


def log(line: str) -> None:
    """Writes one line, to the output of a started keep, too; a journal that has gone away must not take the keep with
    it."""
    for say in _also:
        say(line)
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        return


def log_also_to(say: Say | None) -> None:
    """Lines go to `say` as well from now on; None for nowhere else."""
    _also[:] = [] if say is None else [say]


class Systemd:
    """Sends messages to systemd; one that it cannot take is tried again, and logged once until one is taken."""

    def __init__(self, loop: Loop, notifier: Notifier) -> None:
        self._loop, self._notifier = loop, notifier
        self._unsent: dict[str, str] = {}
        self._failed = False
        self._status = self._newest = ""

    def __repr__(self) -> str:
        return f"Systemd({'fails' if self._failed else 'takes messages'})"

    def notify(self, **assignments: str) -> None:
        """Sends `assignments`, and what could not be sent before."""
        self._unsent |= assignments
        try:
            self._notifier.send(*(f"{name}={text}" for name, text in self._unsent.items()))
        except OSError as error:
            if not self._failed:
                log(f"cannot notify systemd of {', '.join(self._unsent)}, and will try again: {error.strerror}")
            self._failed = True
            self._loop.after(_RETRY, RETRY_SECONDS, self.notify)
        else:
            self._unsent.clear()
            self._failed = False

    def ready(self, status: str) -> None:
        """The loader serves, and `status` is shown."""
        self._status = self._newest = status
        self.notify(READY="1", STATUS=status)

    def show(self, status: str) -> None:
        """Shows `status` in `systemctl status`, immediately or when the last one has stood for STATUS_SECONDS."""
        self._newest = status
        if status != self._status and not self._loop.is_set(_STATUS):
            self._status = status
            self.notify(STATUS=status)
            self._loop.after(_STATUS, STATUS_SECONDS, lambda: self.show(self._newest))

    def feed_watchdog(self, seconds: float) -> None:
        """Says from now on, twice in `seconds`, that the loop goes round."""
        self.notify(WATCHDOG="1")
        self._loop.after(_WATCHDOG, seconds / 2, lambda: self.feed_watchdog(seconds))
