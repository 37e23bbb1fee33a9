"""Who reads which keep's output: opens a ring when its first reader comes, and closes it with the last.

A keep whose output no one reads costs nothing here; one that is followed two descriptors, the ring's and the channel's,
over which its loader announces what is new. A reader may come before its keep is started: then it is there when the
workload begins. A loader that comes after another one is given a channel of its own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)

from keep_manager.keeps.decide import ENDED, refuse_output
from keep_manager.keeps.interfaces import Folders, Loaders
from keep_manager.keeps.streams import MAX_READERS, KeepOutput, Push, Reader
from keep_manager.keeps.view import View
from keep_manager.model import KEEPS_OUTPUT, LoaderGone, exhaustion_explained
from keep_protocol.constants import unit_name
from keep_protocol.control import Command, CommandType
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.ring import Block
from keep_protocol.states import State

LOG = logging.getLogger("keepfleet.output")


class Reading:
    """One client's reading of one keep's output, which may not have begun."""

    def __init__(self, position: int, *, holds: bool, follows: bool) -> None:
        self.position, self.holds, self.follows = position, holds, follows
        self._output: KeepOutput | None = None
        self._reader: Reader | None = None
        self._woken = asyncio.Event()

    def __repr__(self) -> str:
        return f"Reading({self._reader or f'from {self.position}'})"

    def begin(self, output: KeepOutput) -> None:
        """Reads this output from now on, in place of another. Raises KeepfleetError as KeepOutput.add does."""
        self._reader = output.add(min(self.position, output.bounds()[1]), holds=self.holds)
        self._output = output
        self._woken.set()

    def end(self) -> None:
        """Reads no more."""
        if self._output is not None and self._reader is not None:
            self._output.remove(self._reader)
        self._output = self._reader = None

    def wake(self) -> None:
        """All that wait for more look again."""
        self._woken.set()
        if self._output is not None:
            self._output.wake()

    def take(self, room: memoryview | None = None) -> Block | None:
        """What comes next, in `room` of output.BLOCK_BYTES where that is given; None where there is nothing yet.
        Raises KeepfleetError(KEEP_FAILED)."""
        return None if self._output is None or self._reader is None else self._output.take(self._reader, room)

    def has_all(self) -> bool:
        """Whether there is nothing more by now, of which the loader hears. Raises KeepfleetError(KEEP_FAILED)."""
        return self._output is None or self._reader is None or self._output.has_all(self._reader)

    def sent(self, block: Block) -> None:
        """The client has been sent the block."""
        if self._output is not None and self._reader is not None:
            self._output.sent(self._reader, block)

    async def more(self, push: Push | None = None) -> None:
        """Waits until there may be more; nothing may have been awaited since `take`. push: called meanwhile with each
        token, and the wait goes on where it returns true."""
        if self._output is None or self._reader is None:
            await self._woken.wait()
            self._woken.clear()
            return
        reader = self._reader
        reader.push = push
        try:
            await self._output.more()
        finally:
            reader.push = None

    def sending(self) -> AbstractContextManager[None]:
        """For the time in which the client is sent something: one that takes too long is waited for no more."""
        if self._output is None or self._reader is None:
            return nullcontext()
        return self._output.sending(self._reader)

    @property
    def output(self) -> KeepOutput | None:
        """What is read; None where it has not begun."""
        return self._output

    def skip_to(self, position: int) -> None:
        """Goes on from a later position."""
        if self._reader is not None:
            self._reader.position = max(self._reader.position, position)


class _Followed:
    """One keep's output and those who read it."""

    def __init__(self) -> None:
        self.output: KeepOutput | None = None
        self.readings: list[Reading] = []
        self.attaching = asyncio.Lock()
        self.channel: socket.socket | None = None  # to a loader that was given its end with the start

    def drop_channel(self) -> None:
        """Nothing is read over it."""
        if self.channel is not None:
            self.channel.close()
            self.channel = None


class Readers:
    """Everyone who reads the output of a keep."""

    def __init__(self, loaders: Loaders, folders: Folders, view: View) -> None:
        self._loaders, self._folders, self._view = loaders, folders, view
        self._followed: dict[int, _Followed] = {}
        self.on_unattached: Callable[[int], None] = lambda _: None
        """Called with a keep that is followed, and whose loader could not be reached now: `tend` tries it again."""

    def __repr__(self) -> str:
        return f"Readers({sum(len(one.readings) for one in self._followed.values())} of {len(self._followed)} keeps)"

    @property
    def followed(self) -> int:
        """How many keeps have readers."""
        return len(self._followed)

    @asynccontextmanager
    async def reading(
        self, kuuid: int, position: int = 0, *, holds: bool = False, follows: bool = False
    ) -> AsyncIterator[Reading]:
        """A reading from `position` on, for the block: when it begins, what the workload writes from then on is not
        missed, and with `holds` it waits for this reader.

        Raises KeepfleetError: NOT_FOUND, CONFLICT for a keep that keeps no output, TOO_MANY, BAD_REQUEST for a position
        that there is not, KEEP_FAILED where its output cannot be read.
        """
        refuse_output(self._view.entry(kuuid).report, kuuid)
        reading = Reading(position, holds=holds, follows=follows)
        followed = self._followed.setdefault(kuuid, _Followed())
        try:
            if len(followed.readings) >= MAX_READERS:
                raise KeepfleetError(
                    ErrorKind.TOO_MANY, f"cannot read the output of keep {kuuid}: {MAX_READERS} readers do already"
                )
            self._open(kuuid, followed)
            if followed.output is not None:
                _check_position(kuuid, followed.output, reading.position)
                reading.begin(followed.output)
            followed.readings.append(reading)
            await self.tend(kuuid)
            yield reading
        finally:
            reading.end()
            if reading in followed.readings:
                followed.readings.remove(reading)
            if not followed.readings and self._followed.get(kuuid) is followed:
                del self._followed[kuuid]
                followed.drop_channel()
                if followed.output is not None:
                    followed.output.close()

    async def tend(self, kuuid: int) -> None:
        """A keep is there, was started, or has another loader: those who wait for its output begin, and where one
        follows it the loader gets a channel. Nothing is to be done where no one reads it."""
        followed = self._followed.get(kuuid)
        if followed is None:
            return
        try:
            self._open(kuuid, followed)
        except KeepfleetError as error:
            LOG.warning("%s", error.message)
            return
        async with followed.attaching:
            output = followed.output
            if output is not None and followed.channel is not None:
                output.attach(followed.channel)
                followed.channel = None
            if output is None or output.attached or not any(reading.follows for reading in followed.readings):
                return
            if kuuid in self._view and self._loader_keeps(kuuid):
                await self._attach(kuuid, output)

    @contextmanager
    def channel(self, kuuid: int) -> Iterator[int | None]:
        """The loader's end of a channel that it is to be given with its start, so that its workload waits for those who
        follow it already; None where no one does."""
        followed = self._followed.get(kuuid)
        if followed is None or not any(reading.follows for reading in followed.readings):
            yield None
            return
        followed.drop_channel()
        with exhaustion_explained(f"follow keep {kuuid}"):
            followed.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                yield theirs.fileno()
            except BaseException:
                followed.drop_channel()
                raise

    def _loader_keeps(self, kuuid: int) -> bool:
        """Whether the keep has a loader that announces output."""
        entry = self._view.entry(kuuid)
        version = 0 if entry.report is None else entry.report.control_version
        return entry.info.state not in ENDED and version >= KEEPS_OUTPUT

    async def _attach(self, kuuid: int, output: KeepOutput) -> None:
        try:
            with exhaustion_explained(f"follow keep {kuuid}"):
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            output.attach(ours)
            with theirs:
                async with self._loaders.session(kuuid) as session:
                    await session.ask(Command(CommandType.FOLLOW), descriptors=(theirs.fileno(),))
        except KeepfleetError as error:
            LOG.info("%s announces no output: %s", unit_name(kuuid), error.message)
            if error.kind is ErrorKind.UNAVAILABLE and not isinstance(error, LoaderGone):
                output.detach()
                self.on_unattached(kuuid)
            # Else it has ended, or another one comes: then the watch has us look again.

    def _open(self, kuuid: int, followed: _Followed) -> None:
        """Opens the ring of a keep that was started, and has those who wait begin. Raises KeepfleetError."""
        if followed.output is not None or kuuid not in self._view or not self._started(kuuid):
            return
        ring = self._folders.open_output(kuuid)
        if ring is None:
            return
        try:
            followed.output = KeepOutput(kuuid, ring)
        except BaseException as error:
            os.close(ring)
            if isinstance(error, OSError):
                raise KeepfleetError(
                    ErrorKind.KEEP_FAILED, f"cannot read the output of keep {kuuid}: {error.strerror}"
                ) from error
            raise
        for reading in followed.readings:
            reading.begin(followed.output)

    def _started(self, kuuid: int) -> bool:
        """Not while its start is under way, which may fail: the next one makes another ring."""
        return self._view.entry(kuuid).info.state is not State.LISTENING


def _check_position(kuuid: int, output: KeepOutput, position: int) -> None:
    if position > output.bounds()[1]:
        raise KeepfleetError(
            ErrorKind.BAD_REQUEST, f"cannot read the output of keep {kuuid}: it has no position {position}"
        )
