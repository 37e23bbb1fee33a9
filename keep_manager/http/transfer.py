"""Long bodies between the event loop and the thread that works with them, a few pieces ahead and no more.

The loop drives: whatever ends a request, the thread gets an end or an error, and never waits for what cannot come.
"""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Protocol, TypeVar

from aiohttp import web

from keep_protocol.errors import ErrorKind, KeepfleetError

PIECE_BYTES = 1 << 18
AHEAD = 4
"""Pieces that wait for the slower side: a megabyte."""
SILENT_SECONDS = 30.0
"""Without a byte a transfer is given up: it holds one of few places, and a file."""
MIN_BYTES_PER_SECOND = 16 * 1024
"""On average, after that time: who sends a byte now and then is given up too."""
Answer = TypeVar("Answer")


class Readable(Protocol):
    """What a thread reads."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes, none at the end."""


class Writable(Protocol):
    """What a thread writes."""

    def write(self, data: bytes, /) -> object:
        """Writes all of `data`."""


class Incoming:
    """A request's body as a thread reads it. what: for messages, "add the module"."""

    def __init__(self, loop: asyncio.AbstractEventLoop, what: str) -> None:
        self._loop, self._what = loop, what
        self._pieces: queue.SimpleQueue[bytes | KeepfleetError] = queue.SimpleQueue()
        self._room = asyncio.Semaphore(AHEAD)
        self._rest, self._ended = b"", False

    def __repr__(self) -> str:
        return f"Incoming({self._what}, {'ended' if self._ended else 'coming'})"

    def read(self, size: int, /) -> bytes:
        """The next piece, for the thread. Raises what the body ended with."""
        if not self._rest and not self._ended:
            piece = self._pieces.get()
            if isinstance(piece, KeepfleetError):
                self._pieces.put(piece)  # for the one who reads on
                raise piece
            self._rest, self._ended = piece, not piece
            if piece:
                self._loop.call_soon_threadsafe(self._room.release)
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def end(self, error: KeepfleetError | None = None) -> None:
        """Nothing comes any more."""
        self._pieces.put(error or b"")

    async def feed(self, request: web.Request) -> None:
        """Passes the whole body on. Raises KeepfleetError: TOO_SLOW, BAD_REQUEST for one that broke off."""
        began, size = time.monotonic(), 0
        while True:
            await self._room.acquire()
            try:
                async with asyncio.timeout(SILENT_SECONDS):
                    piece = await request.content.read(PIECE_BYTES)
            except TimeoutError:
                raise self._slow(f"nothing came for {SILENT_SECONDS:g} s") from None
            except (web.RequestPayloadError, ConnectionError) as error:
                raise self.broken_off() from error
            if not piece:
                return
            size += len(piece)
            seconds = time.monotonic() - began
            if seconds > SILENT_SECONDS and size < seconds * MIN_BYTES_PER_SECOND:
                raise self._slow(f"it came slower than {MIN_BYTES_PER_SECOND} bytes a second")
            self._pieces.put(piece)

    def broken_off(self) -> KeepfleetError:
        """The error of a body whose sender has gone."""
        return KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot {self._what}: it broke off")

    def _slow(self, why: str) -> KeepfleetError:
        return KeepfleetError(ErrorKind.TOO_SLOW, f"cannot {self._what}: {why}")


async def fed(request: web.Request, incoming: Incoming, threads: Executor, work: Callable[[], Answer]) -> Answer:
    """What `work` makes of the request's body in a thread, which has ended when this returns or raises KeepfleetError;
    when this is cancelled it ends soon."""
    working = asyncio.get_running_loop().run_in_executor(threads, work)
    feeding = asyncio.ensure_future(incoming.feed(request))
    try:
        await asyncio.wait((working, feeding), return_when=asyncio.FIRST_COMPLETED)
        if feeding.done():
            error = feeding.exception()
            if error is not None and not isinstance(error, KeepfleetError):
                raise error
            incoming.end(error)
        return await asyncio.shield(working)
    finally:
        feeding.cancel()
        incoming.end(incoming.broken_off())
        working.add_done_callback(_looked_at)


class Outgoing:
    """What a thread writes, as the answer of a request."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pieces: asyncio.Queue[bytes] = asyncio.Queue(AHEAD)
        self._begun, self._gone = asyncio.Event(), False

    def __repr__(self) -> str:
        return f"Outgoing({'gone' if self._gone else 'going'})"

    def write(self, data: bytes, /) -> None:
        """Waits, in the thread, until there is room. Raises KeepfleetError where it is not read any more."""
        if self._gone:
            raise _not_taken()
        asyncio.run_coroutine_threadsafe(self._put(bytes(data)), self._loop).result()

    async def _put(self, data: bytes) -> None:
        self._begun.set()
        try:
            async with asyncio.timeout(SILENT_SECONDS):
                await self._pieces.put(data)
        except TimeoutError:
            self._gone = True
            raise _not_taken() from None

    async def sent(
        self, request: web.Request, media_type: str, threads: Executor, work: Callable[[], object]
    ) -> web.StreamResponse:
        """The answer, all that `work` writes in a thread. What fails before the first byte is the answer's error;
        afterwards the answer breaks off, without its last chunk."""
        working = asyncio.get_running_loop().run_in_executor(threads, work)
        beginning = asyncio.ensure_future(self._begun.wait())
        response = web.StreamResponse(headers={"Content-Type": media_type})
        try:
            await asyncio.wait((working, beginning), return_when=asyncio.FIRST_COMPLETED)
            if not self._begun.is_set():
                await working  # which raises: an export has a first byte
            await response.prepare(request)
            while not (working.done() and self._pieces.empty()):
                await self._pass_on(response, working)
            await working
            await response.write_eof()
            return response
        except KeepfleetError:
            if response.prepared and request.transport is not None:
                request.transport.abort()
            raise
        finally:
            self._gone = True
            beginning.cancel()
            working.add_done_callback(_looked_at)
            while not self._pieces.empty():  # the thread may wait for room: it has some, and then sees that we are gone
                self._pieces.get_nowait()

    async def _pass_on(self, response: web.StreamResponse, working: asyncio.Future[object]) -> None:
        """Writes the next piece, or returns when there is none any more."""
        getting = asyncio.ensure_future(self._pieces.get())
        try:
            await asyncio.wait((getting, working), return_when=asyncio.FIRST_COMPLETED)
            if not getting.done():
                return
            async with asyncio.timeout(SILENT_SECONDS):
                await response.write(getting.result())
        except (TimeoutError, ConnectionError) as error:
            raise _not_taken() from error
        finally:
            getting.cancel()


def _not_taken() -> KeepfleetError:
    return KeepfleetError(ErrorKind.TOO_SLOW, f"cannot export: no one took it for {SILENT_SECONDS:g} s, or at all")


def _looked_at(done: asyncio.Future[Answer]) -> None:
    """Or asyncio logs that an error was not."""
    if not done.cancelled():
        done.exception()
