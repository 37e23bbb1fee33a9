"""Forks made before the start that they are for: they import what they will need, make what belongs to no one yet, and
wait to learn what to be. A spare has both of its; a start then finds them ready, and costs a few milliseconds.

One that has died, or that a start cannot use, is done without: a fork is made at the start, as for any other keep.
Import rule: that of keep_loader.
"""

from __future__ import annotations

import os
from _collections_abc import Mapping

from keep_loader.log import log
from keep_loader.loop import READABLE, Handler, Loop
from keep_loader.process import Child, fork
from keep_loader.settings import Entries
from keep_protocol import sockets as socket
from keep_protocol.forking import PREPARED_NAME
from keep_protocol.reports import encode_begin


class Prepared:
    """The forks that wait, by what they will call."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._waiting: dict[str, Child] = {}

    def __repr__(self) -> str:
        return f"Prepared({', '.join(self._waiting) or 'none'})"

    def fork(self, entries: Entries) -> None:
        """Forks what a start of this kind of keep will need. What cannot be forked now is by the start, which says
        why."""
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)  # until a start says where their words go
        try:
            for entry in filter(None, (entries.endpoint, entries.runner)):
                child = fork(entry, PREPARED_NAME, {}, {}, null, prepared=True)
                self._waiting[entry] = child
                self._loop.watch(child.pidfd, READABLE, self._dropping(entry))
        except OSError as error:
            log(f"cannot prepare for a start: {error.strerror}")
        finally:
            os.close(null)

    def begin(
        self, entry: str, name: str, environment: dict[str, str], passed: Mapping[str, int], words: int
    ) -> Child | None:
        """The fork for `entry`, from now on as one that was forked with all of this; None where there is none."""
        child = self._waiting.pop(entry, None)
        if child is None:
            return None
        self._loop.forget(child.pidfd)
        try:
            packet = encode_begin(name, environment, tuple(passed))
            socket.send_fds(child.reports, [packet], [words, *passed.values()])
        except OSError:  # it has died
            child.reap()
            return None
        return child

    def drop_all(self) -> None:
        """Ends those that wait."""
        for entry in list(self._waiting):
            self._drop(entry)

    def _dropping(self, entry: str) -> Handler:
        return lambda _: self._drop(entry)

    def _drop(self, entry: str) -> None:
        child = self._waiting.pop(entry)
        self._loop.forget(child.pidfd)
        end = child.reap()
        if end.signal is None and end.code:
            log(f"what was prepared for a start {end.words}")
