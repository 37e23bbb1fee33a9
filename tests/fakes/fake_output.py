"""What a fake loader does with output, record, journal and input of its start: writes, announces, and takes."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from contextlib import suppress

from keep_protocol.constants import JOURNAL, OUTPUT, RECORD
from keep_protocol.errors import KeepfleetError
from keep_protocol.keep import KeepReport
from keep_protocol.record import KeepRecord, write_record
from keep_protocol.ring import MARK, STDERR, TOKEN, Acknowledgement, Mark, RingWriter, decode_acknowledgement

INPUT = "input"
"""The name of the loader's end of a workload's streamed input."""
_PACKET = 128 * 1024


class FakeOutput:
    """The output, record, journal socket and input of one keep.

    acknowledged: what the manager answered last, and `answered` is set with each; input: what came so far, `complete`
    whether its end was said, `broken_off` whether the manager hung up without saying it.
    """

    def __init__(self, passed: dict[str, int]) -> None:
        """Takes copies of what it needs of START's descriptors."""
        self._held = {name: os.dup(passed[name]) for name in (OUTPUT, RECORD)}
        self.ring = RingWriter.resume(self._held[OUTPUT])
        self.journal = socket.socket(fileno=os.dup(passed[JOURNAL]))
        self.channel: socket.socket | None = None
        self.acknowledged = Acknowledgement()
        self.answered = asyncio.Event()
        self.input = b""
        self.complete = self.broken_off = False
        self.input_changed = asyncio.Event()
        self._input: socket.socket | None = None
        self._token_out = False
        self._records = 0
        if INPUT in passed:
            self._input = socket.socket(fileno=os.dup(passed[INPUT]))
            self.read_input()

    def __repr__(self) -> str:
        return f"FakeOutput({self.ring!r}, {'' if self.channel else 'no '}channel)"

    def write(self, stream: int, data: bytes) -> None:
        """The guest has written."""
        self.ring.append(stream, data, time.monotonic_ns())
        self._announce()

    def say(self, line: str = "") -> None:
        """A mark, with a line of the loader's own or none."""
        self.write(MARK, Mark(time.time_ns(), line).encode())

    @property
    def written(self) -> int:
        """Bytes of both of the guest's streams."""
        return sum(self.ring.totals[:STDERR])

    def note(self, report: KeepReport) -> None:
        """Writes the record."""
        self._records += 1
        write_record(self._held[RECORD], KeepRecord(report), self._records)

    def follow(self, channel: int) -> None:
        """Announces over `channel`, which it takes over, from now on."""
        self._hang_up()
        self.channel, self._token_out = socket.socket(fileno=channel), False
        self.channel.setblocking(False)
        self.acknowledged = Acknowledgement(stdout=self.acknowledged.stdout, stderr=self.acknowledged.stderr)
        asyncio.get_running_loop().add_reader(self.channel, self._answered)
        self._announce()

    def take_journal(self, journal: int) -> None:
        """Another socket to journald, which it takes over."""
        self.journal.close()
        self.journal = socket.socket(fileno=journal)

    def read_input(self) -> None:
        """Takes input, from the start on."""
        if self._input is not None:
            self._input.setblocking(False)
            asyncio.get_running_loop().add_reader(self._input, self._more_input)

    def pause_input(self) -> None:
        """Takes no more of it: the guest is slow."""
        if self._input is not None:
            asyncio.get_running_loop().remove_reader(self._input)

    def refuse_input(self) -> None:
        """The guest has closed its standard input."""
        if self._input is not None:
            with suppress(OSError):
                self._input.send(b"n", socket.MSG_NOSIGNAL)
            self._close_input()

    def close(self) -> None:
        """Closes everything, as a loader that has ended."""
        self._hang_up()
        self._close_input()
        self.journal.close()
        while self._held:
            os.close(self._held.popitem()[1])

    def _announce(self) -> None:
        if self.channel is not None and not self._token_out and self.acknowledged.seen < self.ring.head:
            with suppress(OSError):
                self.channel.send(TOKEN, socket.MSG_NOSIGNAL)
                self._token_out = True

    def _answered(self) -> None:
        if self.channel is None:
            return
        try:
            packet = self.channel.recv(64)
        except OSError:
            packet = b""
        try:
            self.acknowledged = decode_acknowledgement(packet)
        except KeepfleetError:
            self._hang_up()
        else:
            self._token_out = False
            self._announce()
        self.answered.set()

    def _hang_up(self) -> None:
        if self.channel is not None:
            asyncio.get_running_loop().remove_reader(self.channel)
            self.channel.close()
            self.channel = None

    def _more_input(self) -> None:
        if self._input is None:
            return
        try:
            packet = self._input.recv(_PACKET)
        except OSError:
            packet = b""
        if packet[:1] == b"d":
            self.input += packet[1:]
        else:
            self.complete, self.broken_off = packet == b"e", packet != b"e"
            self._close_input()
        self.input_changed.set()

    def _close_input(self) -> None:
        if self._input is not None:
            asyncio.get_running_loop().remove_reader(self._input)
            self._input.close()
            self._input = None
