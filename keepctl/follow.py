"""A workload's output, shown until it ends; Ctrl-C stops the workload, a second one leaves it."""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import Protocol

from keep_protocol.keep import KeepInfo
from keep_protocol.sse import KEEP_SOURCE, LogLine

MAX_LAST = 100_000
"""The most the manager is asked for at once."""
_OWN_LINES = 32
"""Of a keep, from its start to its end, and room for a few runs more."""


class Manager(Protocol):
    """What is needed of the manager."""

    def lines(
        self,
        kuuid: int,
        follow: bool = False,
        last: int | None = None,
        after: str = "",
        patient: bool = False,
        reader: int | None = None,
    ) -> Generator[LogLine, None, None]:
        """The lines of a keep's journal."""

    def ended(self, kuuid: int) -> KeepInfo:
        """The keep, once it has ended."""

    def stop(self, kuuid: int) -> KeepInfo:
        """Ends what the keep runs."""


class Left(Exception):
    """The person has gone, and the workload runs on."""


@contextmanager
def ending_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP are Ctrl-C inside; but for one that was ignored before, as nohup has it: that stays so."""
    asked = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, signal.default_int_handler) for number in asked}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def output_reader() -> int | None:
    """Standard output's descriptor where it shows that its reader has gone, as a pipe and a socket do; else None.

    A terminal that goes away sends SIGHUP, and a file has no reader. tail(1) -f ends by the same sign.
    """
    try:
        descriptor = sys.stdout.fileno()
        mode = os.fstat(descriptor).st_mode
    except (AttributeError, OSError, ValueError):  # there is none, or it is closed, or no file at all
        return None
    return descriptor if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else None


def last_lines(manager: Manager, kuuid: int, count: int) -> tuple[list[LogLine], str]:
    """The last `count` lines of the guest's, or of its that were dropped, and the cursor to go on after.

    The manager counts the keep's own lines too, and a keep that is started again says a few at each start.
    """
    asked = count + _OWN_LINES
    while True:
        with closing(manager.lines(kuuid, last=min(asked, MAX_LAST))) as lines:
            found = list(lines)
        said = [line for line in found if line.source != KEEP_SOURCE]
        if len(said) >= count or len(found) < asked or asked >= MAX_LAST:
            return said[-count:], found[-1].cursor if found else ""
        asked *= 4


def until_the_end(
    manager: Manager, kuuid: int, show: Callable[[LogLine], None], stopping: Callable[[], None]
) -> tuple[KeepInfo, bool]:
    """Shows the keep's lines until it has ended; the keep then, and whether Ctrl-C ended it.

    At the first Ctrl-C `stopping` is called and the workload stopped; its last lines are still shown. Raises Left at
    the second, KeepfleetError when the manager cannot be reached any more, and BrokenPipeError when nobody reads on.
    """
    cursor, stopped, reader = "", False, output_reader()
    while True:
        try:
            with closing(manager.lines(kuuid, follow=True, after=cursor, patient=True, reader=reader)) as lines:
                for line in lines:
                    cursor = line.cursor or cursor
                    show(line)
            return manager.ended(kuuid), stopped
        except KeyboardInterrupt:
            if stopped:
                raise Left from None
            stopped = True
            try:
                stopping()
                manager.stop(kuuid)
            except KeyboardInterrupt:
                raise Left from None
