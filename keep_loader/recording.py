"""A started keep's output: the ring and the journal it goes to, and what its processes say of themselves.

Made at START, and again by each loader after it, of what systemd keeps; with it come output, journal and ring, which an
idle keep does without. Import rule: that of keep_loader.
"""

from __future__ import annotations

import os
import socket
import time

from keep_loader.descriptors import PIPE_NAMES, DescriptorStore
from keep_loader.journal import JournalFollower, Pace
from keep_loader.journald import JournalSocket
from keep_loader.log import log_also_to
from keep_loader.loop import Action, Loop
from keep_loader.output import Output
from keep_loader.settings import Settings
from keep_loader.words import Words
from keep_protocol.control import JOURNAL, OUTPUT
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.outcome import Outcome
from keep_protocol.ring import STDERR, STDOUT, RingWriter
from keep_protocol.spec import OutputPolicy

_STREAMS = dict(zip(PIPE_NAMES, (STDOUT, STDERR), strict=True))


class Recording:
    """Owns a started keep's output from its start on.

    words: the pipe that its processes speak into.
    """

    def __init__(self, loop: Loop, store: DescriptorStore, settings: Settings, journal_gone: Action) -> None:
        """Of the store's descriptors, which stay there. Raises
        KeepfleetError(KEEP_FAILED), OSError."""
        output, journal = store.get(OUTPUT), store.get(JOURNAL)
        if output is None or journal is None:
            raise KeepfleetError(ErrorKind.KEEP_FAILED, "cannot go on with the keep's output: systemd did not keep it")
        self._store = store
        self._ring = RingWriter.resume(output)
        self._journal = JournalSocket(os.dup(journal))
        pace = Pace(settings.journal_entries or settings.spec.limits.log_lines_per_second, time.monotonic())
        self._follower = JournalFollower(
            self._ring, pace, self._journal.send, self._journal.all_read, _fields(settings)
        )
        self._output = Output(
            loop,
            self._ring,
            self._follower,
            drops_oldest=settings.spec.output is OutputPolicy.DROP_OLDEST,
            journal_gone=journal_gone,
        )
        self._before = self._written
        self._exact = True
        self.words = Words(loop)
        if not self._ring.head:
            self._output.say()
        log_also_to(self._output.say)

    def __repr__(self) -> str:
        return f"Recording({self._output!r})"

    @property
    def _written(self) -> int:
        return sum(self._ring.totals[:STDERR])

    def take_up(self) -> None:
        """Goes on after a loader before us: what the guest of a run that it did not see to its end had left in the
        pipes is read. What no one got before that is not known any more."""
        self._before = 0
        for name, descriptor in self._store.select(PIPE_NAMES).items():
            self._exact = False
            self._output.adopt(os.dup(descriptor), _STREAMS[name])

    def open(self) -> tuple[int, int]:
        """A run begins: the ends of its pipes for stdout and stderr, which the caller closes; ours are parked.

        Raises KeepfleetError(SYSTEMD), OSError.
        """
        self._store.drop(PIPE_NAMES)
        self._before = self._written
        theirs = self._output.open()
        names = {stream: name for name, stream in _STREAMS.items()}
        try:
            for descriptor, stream in list(self._output.pipes.items())[-2:]:
                self._store.park(names[stream], os.dup(descriptor))
        except (KeepfleetError, OSError):
            for descriptor in theirs:
                os.close(descriptor)
            raise
        return theirs

    def follow(self, descriptor: int) -> None:
        """Announces output over the channel `descriptor`, which it takes over."""
        self._output.attach(socket.socket(fileno=descriptor))

    def take_journal(self, descriptor: int) -> None:
        """Goes on with another socket to journald, which it takes over. Raises KeepfleetError(SYSTEMD)."""
        self._journal.replace(os.dup(descriptor))
        self._store.park(JOURNAL, descriptor)
        self._output.journal_is_back()

    def finish(self, done: Action, seconds: float) -> None:
        """The workload has ended: `done` is called when all it wrote is kept, and its last words are in the journal.
        A reader is waited for so long."""
        self.words.read_all()
        self._output.finish(done, seconds)

    def hurry(self) -> None:
        """No reader is waited for any more."""
        self._output.hurry()

    def measured(self, outcome: Outcome) -> Outcome:
        """The outcome with what became of the output."""
        exact = self._exact
        return outcome.replace(
            output_bytes=self._written - self._before + self._output.unwritten,
            lost_bytes=sum(self._output.lost) if exact else None,
            journal_skipped_bytes=sum(self._follower.skipped.values()) if exact else None,
        )

    def close(self) -> None:
        """Closes everything but what the store owns."""
        log_also_to(None)
        self._output.close()
        self.words.close()
        self._journal.close()


def _fields(settings: Settings) -> list[tuple[str, bytes]]:
    """What each entry says of the keep; where systemd adds its LogExtraFields= to it, only what is not there. Of a unit
    that was a spare's journald has those of the spare for a second more."""
    spec, fields = settings.spec, [("SYSLOG_IDENTIFIER", f"keep-{settings.kuuid}")]
    if settings.journal_entries or spec.spare:
        own = [("KEEP_ID", str(settings.kuuid)), ("KEEP_NAME", spec.name), ("KEEP_OWNER", spec.owner)]
        fields += [(name, value) for name, value in own if value]
    return [(name, value.encode()) for name, value in fields]
