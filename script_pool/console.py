"""What scripts print, on the pool's standard error in place of their answers: in a keep that is its journal.

    script-pool: script "discount" run 17: total is 42

A line cannot pass for one of another run, or of the pool: its name is written as JSON has it, a run's number is the
pool's own, what is no printable character stands as an escape, and a long line is cut into pieces of which each has the
mark (journald would cut it itself, man 5 journald.conf, LineMax=, and the rest would have none).
Nothing here blocks: what standard error does not take now is lost, counted, and said.
"""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Callable, Iterator, Sequence

MAX_LINES = 100
"""Of one run; a console of 64 KiB could be as many empty lines."""
PER_SECOND = 250
"""Of all runs: journald takes 10,000 lines of a unit in 30 s, and of what comes then nothing, be it about refused
clients (man 5 journald.conf, RateLimitBurst=)."""
PIECE = 800
"""Characters of a line that stand behind one mark: with it under 4,096 bytes, for which a pipe that polls as writable
has room (man 7 pipe, PIPE_BUF)."""
SHOWN_NAME = 64
"""Characters of a script's name; the run's number distinguishes those that begin alike."""


def marked(name: str, run: int, lines: Sequence[str]) -> Iterator[bytes]:
    """The lines of one run as they are written, each with its end."""
    shown = _printable(json.dumps(name[:SHOWN_NAME]))
    mark = f"script-pool: script {shown}{'…' if len(name) > SHOWN_NAME else ''} run {run}: "
    pieces = (piece for line in lines for piece in _pieces(line))
    for written, piece in enumerate(pieces):
        if written == MAX_LINES:
            yield f"{mark}(the rest of its lines is left out: a run has {MAX_LINES})\n".encode()
            return
        yield f"{mark}{piece}\n".encode()


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _pieces(line: str) -> Iterator[str]:
    shown = _printable(line)
    for at in range(0, max(1, len(shown)), PIECE):
        yield shown[at : at + PIECE]


class Journal:
    """Writes them to `descriptor`, which stays the caller's."""

    def __init__(self, descriptor: int = 2, clock: Callable[[], float] = time.monotonic) -> None:
        self._descriptor, self._clock = descriptor, clock
        self._writable = select.poll()
        self._writable.register(descriptor, select.POLLOUT)
        self._second, self._written, self._lost = 0, 0, 0

    def __repr__(self) -> str:
        return f"Journal({self._lost} lines lost)"

    def write(self, name: str, run: int, lines: Sequence[str]) -> None:
        """The lines of one run, as far as there is room for them."""
        if lines:
            self._say_lost()
        for line in marked(name, run, lines):
            if not self._put(line):
                self._lost += 1

    def close(self) -> None:
        """No more is written: says what was lost."""
        self._say_lost()

    def _say_lost(self) -> None:
        said = f"script-pool: {self._lost} lines of scripts were lost: they came too fast\n"
        if self._lost and self._put(said.encode("ascii")):
            self._lost = 0

    def _put(self, line: bytes) -> bool:
        second = int(self._clock())
        if second != self._second:
            self._second, self._written = second, 0
        if self._written >= PER_SECOND or not self._takes():
            return False
        try:
            os.write(self._descriptor, line)
        except OSError:
            return False  # it has no reader any more: the runs go on, and are answered
        self._written += 1
        return True

    def _takes(self) -> bool:
        return any(event & select.POLLOUT for _, event in self._writable.poll(0))
