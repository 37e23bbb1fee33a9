"""What flows into and out of a started keep, from its start to its end: its standard input where that is streamed, the
recording of its output, and the channel over which that is announced.

Imported with the first start. Import rule: that of keep_loader.
"""

from __future__ import annotations

from keep_loader.descriptors import INPUT, PIPE_NAMES, DescriptorStore, check_socket, close_all
from keep_loader.input import Input
from keep_loader.loop import Action, Loop
from keep_loader.output import FINISH_SECONDS, STOPPED_SECONDS
from keep_loader.recording import Recording
from keep_loader.settings import Settings
from keep_loader.state import Keep
from keep_protocol import sockets as socket
from keep_protocol.control import FOLLOW
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.outcome import Outcome


class Streams:
    """Owns a keep's input and its recording.

    recording: what takes the output, from `record` to `end`; None before and after.
    """

    def __init__(self, keep: Keep, loop: Loop, store: DescriptorStore, settings: Settings) -> None:
        self._keep, self._loop, self._store, self._settings = keep, loop, store, settings
        self.recording: Recording | None = None
        self._input_socket: list[int] = []  # of a streamed input, until the run
        self._channel: list[int] = []  # over which output is announced from the first byte on, until `record`
        self._input: Input | None = None

    def __repr__(self) -> str:
        return f"Streams({self.recording}, {self._input})"

    def own(self, name: str, descriptor: int) -> bool:
        """Takes over one of a start's descriptors; false, and nothing, where it is none of these."""
        place = {INPUT: self._input_socket, FOLLOW: self._channel}.get(name)
        if place is None:
            return False
        place.append(descriptor)
        return True

    def record(self) -> Recording:
        """What takes the output from now on. Raises KeepfleetError, OSError."""
        settings = self._settings.replace(spec=self._keep.spec)  # which of a spare became another's
        self.recording = Recording(self._loop, self._store, settings, self._journal_gone)
        if self._channel:
            self.recording.follow(self._channel.pop())
        return self.recording

    @property
    def words(self) -> int:
        """Where a fork's own words go. Raises KeepfleetError(CONFLICT) where there is no start."""
        if self.recording is None:
            raise KeepfleetError(ErrorKind.CONFLICT, "cannot start a process of a keep that was not started")
        return self.recording.words.theirs

    def follow(self, descriptors: list[int]) -> None:
        """Announces output over the channel that has come, which it takes. Raises KeepfleetError."""
        recording = self._recorded(descriptors)
        check_socket(descriptors[0], socket.SOCK_SEQPACKET)
        recording.follow(descriptors.pop())

    def take_journal(self, descriptors: list[int]) -> None:
        """Takes another socket to journald. Raises KeepfleetError."""
        recording = self._recorded(descriptors)
        check_socket(descriptors[0], socket.SOCK_DGRAM)
        if self._keep.report.journal_gone:
            self._keep.change(journal_gone=False)
            self._keep.set_detail("")
        recording.take_journal(descriptors.pop())

    def _recorded(self, descriptors: list[int]) -> Recording:
        if self.recording is None:
            raise KeepfleetError(ErrorKind.CONFLICT, "cannot take over a socket: the keep does not run")
        if len(descriptors) != 1:
            raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot take over {len(descriptors)} sockets: it is one")
        return self.recording

    def _journal_gone(self) -> None:
        if not self._keep.report.journal_gone:
            self._keep.change(journal_gone=True)
            self._keep.set_detail("the journal gets no output: journald's socket is gone")

    def open(self, cut: Action) -> dict[str, int]:
        """A run begins: the guest's ends of its pipes by name, which the caller closes. cut: called where the input
        breaks off. Raises KeepfleetError, OSError."""
        found: dict[str, int] = {}
        if self.recording is not None:
            found |= dict(zip(PIPE_NAMES, self.recording.open(), strict=True))
        if self._input_socket:
            try:
                self._input = Input(self._loop, self._input_socket.pop(), cut)
            except BaseException:
                close_all(list(found.values()))
                raise
            found[INPUT] = self._input.theirs
        return found

    def finish(self, done: Action, *, stopped: bool = False) -> None:
        """The workload has ended: `done` is called when all it wrote is kept. One that was `stopped` is waited for by
        someone."""
        if self.recording is None:
            done()
        else:
            self.recording.finish(done, STOPPED_SECONDS if stopped else FINISH_SECONDS)

    def hurry(self) -> None:
        """No reader is waited for any more."""
        if self.recording is not None:
            self.recording.hurry()

    def measured(self, outcome: Outcome) -> Outcome:
        """The outcome with what became of the output, where there is any."""
        if self.recording is None:
            return outcome
        return self.recording.measured(outcome, stored=not self._keep.private.unstored)

    def close_input(self) -> None:
        """The run has no input any more, nor is any channel of before it needed."""
        close_all(self._input_socket)
        close_all(self._channel)
        if self._input is not None:
            self._input.close()
            self._input = None

    def end(self) -> None:
        """Nothing is recorded any more."""
        recording, self.recording = self.recording, None
        if recording is not None:
            recording.close()
