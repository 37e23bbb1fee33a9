"""Looking for what no event tells of: again and again, after pauses that grow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.2
"""What takes milliseconds is seen after milliseconds; what takes seconds is not looked for all the time: a look costs
up to twenty milliseconds of processor time, of which what is waited for may be in need."""


SECONDS = 60
"""What a change may take that takes milliseconds; what a test waits for is the change, not this."""


def looks(seconds: float = SECONDS) -> Iterator[None]:
    """Once for each look, until that time is over."""
    deadline, pause = time.monotonic() + seconds, FIRST_PAUSE
    while True:
        yield
        if time.monotonic() > deadline:
            return
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def eventually(holds: Callable[[], bool], what: str, seconds: float = SECONDS) -> None:
    """Waits until it does; fails with `what` where that takes longer."""
    for _ in looks(seconds):
        if holds():
            return
    raise AssertionError(what)
