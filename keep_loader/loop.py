"""The loader's one thread: what to do when a descriptor is ready or a deadline has passed, its lines on standard error,
which is the journal's, and its messages to systemd.

Import rule: that of keep_loader.
"""

from __future__ import annotations

import select
import sys
import time
from _collections_abc import Callable

from keep_protocol.sdnotify import Notifier

Handler = Callable[[int], None]
Action = Callable[[], None]
READABLE = select.POLLIN
WRITABLE = select.POLLOUT
HANG_UP = 0
"""poll(2) always reports POLLHUP and POLLERR; asking for nothing leaves just these."""
_LONGEST_SECONDS = 86400.0
"""poll(2) counts milliseconds in an int, 24 days; a deadline may lie years ahead."""
Say = Callable[[str], None]
STATUS_SECONDS = 0.2
"""At most five status lines a second: a hostile app-loader must not keep systemd busy."""
RETRY_SECONDS = 1.0
"""From a message that systemd could not take to the next attempt; a full queue is empty again in milliseconds."""
_STATUS, _WATCHDOG, _RETRY = "status", "watchdog", "notify again"


class Loop:
    """Calls one handler per ready descriptor and one action per passed deadline, until stopped.

    The owner of a descriptor must `forget` it before closing it.
    """

    def __init__(self) -> None:
        self._poll = select.poll()
        self._handlers: dict[int, Handler] = {}
        self._deadlines: dict[str, tuple[float, Action]] = {}
        self._running = True

    def __repr__(self) -> str:
        return f"Loop({len(self._handlers)} descriptors, {len(self._deadlines)} deadlines)"

    def watch(self, descriptor: int, events: int, handler: Handler) -> None:
        """Calls `handler(what happened)` whenever `descriptor` is ready for `events`, as asked last."""
        self._handlers[descriptor] = handler
        self._poll.register(descriptor, events)

    def forget(self, descriptor: int) -> None:
        """Watches `descriptor` no more; one that is not watched is no error."""
        if self._handlers.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)

    def after(self, name: str, seconds: float, action: Action) -> None:
        """Calls `action` once in `seconds`; an earlier deadline of that name is replaced."""
        self._deadlines[name] = (time.monotonic() + seconds, action)

    def cancel(self, name: str) -> None:
        """Drops the deadline `name`; one that is not there is no error."""
        self._deadlines.pop(name, None)

    def is_set(self, name: str) -> bool:
        """Whether the deadline `name` still lies ahead."""
        return name in self._deadlines

    def stop(self) -> None:
        """Lets `run` return after the handler that is running now."""
        self._running = False

    def run(self) -> None:
        """Serves descriptors and deadlines until `stop`."""
        while self._running:
            # Looked up before the first call: a handler may close descriptors, and their numbers may be taken again.
            ready = [(fd, events, self._handlers[fd]) for fd, events in self._poll.poll(self._milliseconds())]
            for descriptor, events, handler in ready:
                if self._running and self._handlers.get(descriptor) is handler:
                    handler(events)
            self._expire()

    def _milliseconds(self) -> int | None:
        if not self._deadlines:
            return None
        first = min(moment for moment, _ in self._deadlines.values())
        return max(0, -int(min(first - time.monotonic(), _LONGEST_SECONDS) * -1000 // 1))  # rounded up

    def _expire(self) -> None:
        """In the order of their moments: for a loader that got no processor for a while several have passed, and the
        earlier one may show that there is no reason for the later one any more."""
        now = time.monotonic()
        passed = [(moment, name, action) for name, (moment, action) in self._deadlines.items() if moment <= now]
        for _, name, action in sorted(passed, key=lambda each: each[0]):
            standing = self._deadlines.get(name)
            if self._running and standing is not None and standing[1] is action:
                del self._deadlines[name]
                action()


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
