"""Standard inputs that clients send while a workload runs: one socket for each keep that was started with one.

What this sends is data, and at last that it is complete; a loader that sees the socket closed without that knows that
its guest's input was cut, whoever went away.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress

from keep_manager.tasks import Group
from keep_protocol.errors import ErrorKind, KeepfleetError

MAX_DATA = 64 * 1024
"""Bytes of one packet: what a pipe holds."""
DATA, COMPLETE = b"d", b"e"
"""What a packet begins with."""


class _Input:
    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.sending = sock, False


class Inputs:
    """The inputs of one manager's keeps that are still to be sent, or are being sent."""

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
