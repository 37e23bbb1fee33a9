"""One poll(2) loop: what to do when a descriptor is ready, and when a deadline has passed.

Import rule: `select` and `time` (and `collections.abc`, which `socket` brings anyway).
"""

from __future__ import annotations

import select
import time
from _collections_abc import Callable

Handler = Callable[[int], None]
Action = Callable[[], None]
READABLE = select.POLLIN
WRITABLE = select.POLLOUT
HANG_UP = 0
"""poll(2) always reports POLLHUP and POLLERR; asking for nothing leaves just these."""
_LONGEST_SECONDS = 86400.0
"""poll(2) counts milliseconds in an int, 24 days; a deadline may lie years ahead."""


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
        now = time.monotonic()
        passed = [(name, action) for name, (moment, action) in self._deadlines.items() if moment <= now]
        for name, action in passed:
            standing = self._deadlines.get(name)
            if self._running and standing is not None and standing[1] is action:
                del self._deadlines[name]
                action()
