"""Keeps' output for those who read it: one ring for each keep, read once for a token, by as many readers as there are;
and the standard inputs that clients send while a workload runs.

A reader that holds makes the guest wait for it, unless it stalls. No process and no copy in memory is kept for any of
them; what a reader was too slow for, the frames' own offsets show.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from keep_manager.tasks import Group
from keep_protocol.constants import unit_name
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.ring import LONGEST, NOT_KEPT, Acknowledgement, Block, RingReader
from keep_protocol.workload import COMPLETE, DATA, MAX_DATA

LOG = logging.getLogger("keepfleet.output")
STALL_SECONDS = 10.0
"""How long the guest waits for a reader that takes nothing; after that the reader has gaps instead."""
MAX_READERS = 64
"""Of one keep's output: each wakes up for each token."""
BLOCK_BYTES = LONGEST
"""Read in one turn for one reader: what one that stalls holds in memory, and little enough to stay in a core's cache on
its way through TLS."""
RELEASES = 16
"""Parts of the ring: the loader hears of each that no reader is waited for in any more, also while there is more."""
MAX_TOKENS = 16
"""Bytes taken from a loader in one turn: an honest one sends one, and waits."""
TOKENS_PAUSE_SECONDS = 0.05
"""A loader that sends more of them than it may is not listened to for so long."""


Push = Callable[[], bool]
"""Sends a reader what there is, where that is little; false where its task has to go on."""


class Reader:
    """One reader's place in one keep's ring.

    position: of what it gets next; stdout and stderr: where it is in each; stalled: whether it is waited for no more;
    push: see `Reading.more`.
    """

    def __init__(self, position: int, *, holds: bool) -> None:
        self.position, self.holds = position, holds
        self.push: Push | None = None
        self.stalled = False
        self.stdout = self.stderr = 0

    def __repr__(self) -> str:
        return f"Reader(at {self.position}{', holds' if self.holds else ''}{', stalled' if self.stalled else ''})"


class KeepOutput:
    """One keep's output. Owns the ring's descriptor and the channel; must be closed."""

    def __init__(self, kuuid: int, ring: int) -> None:
        """Takes the ring over. Raises KeepfleetError(KEEP_FAILED) where it is none."""
        self._kuuid, self._descriptor = kuuid, ring
        self._ring = RingReader(ring)
        self._channel: socket.socket | None = None
        self._token_out = False
        self._acknowledged = Acknowledgement()
        self._readers: list[Reader] = []
        self._more = asyncio.Event()

    def __repr__(self) -> str:
        return f"KeepOutput({unit_name(self._kuuid)}, {self._readers})"

    @property
    def attached(self) -> bool:
        """Whether there is a channel to the loader."""
        return self._channel is not None

    @property
    def readers(self) -> int:
        """How many there are."""
        return len(self._readers)

    def attach(self, channel: socket.socket) -> None:
        """Takes over the channel to the loader, in place of that to one before. The loader hears immediately what is
        read and what is to be kept; it may get its end after that."""
        self.detach()
        channel.setblocking(False)
        self._channel, self._token_out = channel, True  # whatever it has written by now, it hears where we are
        asyncio.get_running_loop().add_reader(channel, self._token)
        self._acknowledge(always=True)

    def close(self) -> None:
        """The keep is gone: its readers get what is there, and no more."""
        self.detach()
        self.wake()
        os.close(self._descriptor)
        self._descriptor = -1

    @asynccontextmanager
    async def reading(self, position: int = 0, *, holds: bool = False) -> AsyncIterator[Reader]:
        """A reader from `position` on, for the block. Raises as `add` does."""
        reader = self.add(position, holds=holds)
        try:
            yield reader
        finally:
            self.remove(reader)

    def add(self, position: int = 0, *, holds: bool = False) -> Reader:
        """A reader from `position` on, until it is removed. Raises KeepfleetError: TOO_MANY, BAD_REQUEST for a position
        that there is not, KEEP_FAILED."""
        if len(self._readers) >= MAX_READERS:
            raise KeepfleetError(
                ErrorKind.TOO_MANY, f"cannot read the output of keep {self._kuuid}: {MAX_READERS} readers do already"
            )
        tail, head = self.bounds()
        if position > head:
            raise KeepfleetError(
                ErrorKind.BAD_REQUEST, f"cannot read the output of keep {self._kuuid}: it has no position {position}"
            )
        reader = Reader(max(position, tail), holds=holds)
        self._readers.append(reader)
        self._acknowledge(always=True)
        return reader

    def remove(self, reader: Reader) -> None:
        """`reader` is one no more."""
        self._readers.remove(reader)
        self._acknowledge(always=True)

    def bounds(self) -> tuple[int, int]:
        """The positions of the oldest frame and of the end. Raises KeepfleetError(KEEP_FAILED)."""
        try:
            return self._ring.bounds()
        except OSError as error:
            raise self._unreadable(error) from error

    def take(self, reader: Reader, room: memoryview | None = None) -> Block | None:
        """What comes next for `reader`, in `room` of BLOCK_BYTES where that is given; None where there is nothing yet.
        Raises KeepfleetError(KEEP_FAILED)."""
        block = self.look(reader.position, room)
        if not block.data:
            reader.position = block.position
            self._acknowledge(answers=True)
            return None
        return block

    def has_all(self, reader: Reader) -> bool:
        """Whether `reader` has what there is: then a token is answered. Raises KeepfleetError(KEEP_FAILED)."""
        if reader.position < self.bounds()[1]:
            return False
        self._acknowledge(answers=True)
        return True

    def look(self, position: int, room: memoryview | None = None) -> Block:
        """The frames from `position` on, or from the oldest one; without data where there is nothing yet. No reader is
        concerned, and it may be called in a thread. Raises KeepfleetError(KEEP_FAILED)."""
        try:
            return self._ring.block(position, BLOCK_BYTES) if room is None else self._ring.fill(room, position)
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> KeepfleetError:
        return KeepfleetError(ErrorKind.KEEP_FAILED, f"cannot read the output of keep {self._kuuid}: {error.strerror}")

    def wake(self) -> None:
        """Everyone who waits for more looks again."""
        self._more.set()
        self._more = asyncio.Event()

    def sent(self, reader: Reader, block: Block) -> None:
        """`reader` has been sent the block: it is not kept for it any more."""
        reader.position = block.end
        reader.stdout, reader.stderr = max(reader.stdout, block.stdout), max(reader.stderr, block.stderr)
        self._acknowledge(answers=not reader.holds or reader.stalled)

    async def more(self) -> None:
        """Waits until there may be more."""
        await self._more.wait()

    @contextmanager
    def sending(self, reader: Reader) -> Iterator[None]:
        """For the time in which `reader` is sent something: takes it longer than STALL_SECONDS, it is stalled."""
        timer = asyncio.get_running_loop().call_later(STALL_SECONDS, self._stalled, reader)
        try:
            yield
        finally:
            timer.cancel()

    def _stalled(self, reader: Reader) -> None:
        reader.stalled = True
        LOG.warning("%s: a reader of its output takes nothing: it is waited for no more", unit_name(self._kuuid))
        self._acknowledge(always=True)

    def _token(self) -> None:
        count = self._receive(1)
        self._token_out = True
        # Each that waits is sent what there is here and now: to wake its task first is another turn of the loop.
        pushes = [reader.push for reader in self._readers]
        if not pushes or not all(push is not None and push() for push in pushes):
            self.wake()
        more = self._receive(MAX_TOKENS - count)  # an honest loader's next one, or many
        if more:
            self._token_out = True
            self.wake()
        if self._channel is not None and count + more == MAX_TOKENS:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._channel)
            loop.call_later(TOKENS_PAUSE_SECONDS, self._listen_again, self._channel)

    def _receive(self, most: int) -> int:
        """Takes so many tokens at most; how many there were. From a loader that has gone it detaches."""
        for count in range(most):
            if self._channel is None:
                return count
            try:
                token = self._channel.recv(16)
            except BlockingIOError:
                return count
            except OSError:
                token = b""
            if not token:
                self.detach()
                return count
        return most

    def _listen_again(self, channel: socket.socket) -> None:
        if channel is self._channel:
            asyncio.get_running_loop().add_reader(channel, self._token)

    def _acknowledge(self, *, always: bool = False, answers: bool = False) -> None:
        """Says what is to be kept no more, and with `answers` answers a token: for a reader that has what there was, or
        that is not waited for, of which the loader must know what it has been sent.

        Without readers a token stays unanswered: then nothing wakes the manager for that keep.
        """
        if self._channel is None:
            return
        readers = self._readers
        held = [reader.position for reader in readers if reader.holds and not reader.stalled]
        seen = max([self._acknowledged.seen, *(reader.position for reader in readers)])
        kept = min(held, default=NOT_KEPT)
        further = kept - self._acknowledged.kept
        released = further >= self._ring.capacity // RELEASES or (further and kept >= seen)
        if not (always or released or (answers and self._token_out and readers)):
            return
        now = Acknowledgement(
            seen,
            kept,
            max([self._acknowledged.stdout, *(reader.stdout for reader in readers)]),
            max([self._acknowledged.stderr, *(reader.stderr for reader in readers)]),
        )
        try:
            self._channel.send(now.encode(), socket.MSG_NOSIGNAL)
        except BlockingIOError:  # the loader has not read the last ones: as soon as it has
            asyncio.get_running_loop().add_writer(self._channel, self._writable)
            return
        except OSError:
            self.detach()
            return
        self._acknowledged = now
        self._token_out = self._token_out and not self._readers

    def _writable(self) -> None:
        if self._channel is not None:
            asyncio.get_running_loop().remove_writer(self._channel)
            self._acknowledge(always=True)

    def detach(self) -> None:
        """There is no channel to the loader any more; its readers look."""
        if self._channel is not None:
            asyncio.get_running_loop().remove_reader(self._channel)
            asyncio.get_running_loop().remove_writer(self._channel)
            self._channel.close()
            self._channel = None
            self.wake()


class _Input:
    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.sending = sock, False


class Inputs:
    """The inputs of one manager's keeps that are still to be sent, or are being sent: one socket for each keep that was
    started with one.

    What this sends is data, and at last that it is complete; a loader that sees the socket closed without that knows
    that its guest's input was cut, whichever side went away.
    """

    def __init__(self) -> None:
        self._inputs: dict[int, _Input] = {}

    def __repr__(self) -> str:
        return f"Inputs({sorted(self._inputs)})"

    @contextmanager
    def made(self, kuuid: int) -> Iterator[int]:
        """The loader's end of a new input, for its start; where the block fails the input is not there."""
        self.close(kuuid)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            try:
                yield theirs.fileno()
            except BaseException:
                ours.close()
                raise
        self._inputs[kuuid] = _Input(ours)

    def close(self, kuuid: int) -> None:
        """The keep takes no input any more."""
        found = self._inputs.pop(kuuid, None)
        if found is not None and not found.sending:
            found.sock.close()

    async def send(self, kuuid: int, data: AsyncIterator[bytes]) -> tuple[int, bool]:
        """Sends all of `data`, as fast as the guest takes it: how many bytes, and whether that was all of it, or the
        guest took no more. Where `data` breaks off, or this is cancelled, the guest's input is cut.

        Raises KeepfleetError(CONFLICT) where there is no input to send, and what `data` raises.
        """
        found = self._inputs.get(kuuid)
        if found is None:
            why = "it was not started with one, or that was sent, or cut off by another start of the manager"
            raise KeepfleetError(ErrorKind.CONFLICT, f"cannot send keep {kuuid} a standard input: {why}")
        if found.sending:
            raise KeepfleetError(ErrorKind.CONFLICT, f"cannot send keep {kuuid} a standard input: one is being sent")
        found.sending = True
        try:
            with found.sock:
                return await _send(found.sock, data)
        finally:
            self._inputs.pop(kuuid, None)


async def _send(sock: socket.socket, data: AsyncIterator[bytes]) -> tuple[int, bool]:
    sent = _Sent(sock)
    async with Group() as tasks:
        copying = tasks.start(sent.copy(data))
        refused = tasks.start(sent.refused())
        await asyncio.wait({copying, refused}, return_when=asyncio.FIRST_COMPLETED)
        return sent.size, copying.done() and copying.result()


class _Sent:
    """What has been sent over one socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self.size = sock, 0

    async def copy(self, data: AsyncIterator[bytes]) -> bool:
        """Sends `data`, and that it is complete: whether all of it was taken."""
        loop = asyncio.get_running_loop()
        try:
            async for chunk in data:
                for start in range(0, len(chunk), MAX_DATA):
                    part = chunk[start : start + MAX_DATA]
                    await loop.sock_sendall(self._sock, DATA + part)
                    self.size += len(part)
            await loop.sock_sendall(self._sock, COMPLETE)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    async def refused(self) -> None:
        """Waits until the guest takes no more: whatever comes from the loader says that, and a hang-up."""
        with suppress(OSError):
            await asyncio.get_running_loop().sock_recv(self._sock, 16)
