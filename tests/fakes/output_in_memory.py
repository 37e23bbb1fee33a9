"""Keeps' output and input over a blocking connection, as the manager serves them; the rings are in memory."""

from __future__ import annotations

import os
import select
import ssl
import threading
from collections.abc import Callable
from urllib.parse import parse_qsl

from keep_protocol import strict_json
from keep_protocol.keep import KeepInfo
from keep_protocol.output import CONTENT_TYPE, END, encode_frame
from keep_protocol.ring import MARK, MIN_CAPACITY, Mark, RingReader, RingWriter
from keep_protocol.states import State

OVER = (State.COMPLETE, State.ERROR)
START_NS = 1_000_000_000
"""The monotonic time at which the clock showed 0."""


class Followers:
    """Those who wait for something to happen to a keep. Each has a descriptor of its own, to be polled."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: set[int] = set()

    def notify(self) -> None:
        """Something has happened."""
        with self._lock:
            for descriptor in self._waiting:
                os.eventfd_write(descriptor, 1)

    def until(self, connection: ssl.SSLSocket | None, is_done: Callable[[], bool]) -> None:
        """Waits until `is_done`. Raises ConnectionResetError where the client hangs up before."""
        ends = [] if connection is None else [connection.fileno()]
        own = os.eventfd(0)
        with self._lock:
            self._waiting.add(own)
        try:
            while not is_done():
                ready, _, _ = select.select([own, *ends], [], [])
                if own not in ready:
                    raise ConnectionResetError("the client hung up")
                os.eventfd_read(own)
        finally:
            with self._lock:
                self._waiting.discard(own)
            os.close(own)


class OutputInMemory:
    """One keep's: what was written so far. asked: the queries of those who read it; readers_hold: how many of them were
    waited for."""

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("output")
        self._writer = RingWriter.create(self._descriptor, MIN_CAPACITY)
        self._reader = RingReader(self._descriptor)
        self._lock = threading.Lock()
        self.asked: list[dict[str, str]] = []
        self.write(MARK, Mark(0).encode(), 0.0)

    def __del__(self) -> None:
        os.close(self._descriptor)

    def write(self, stream: int, data: bytes, at: float = 0.0) -> None:
        """One frame, read at `at` seconds of the epoch."""
        with self._lock:
            self._writer.append(stream, data, START_NS + int(at * 1e9))

    def after(self, position: int) -> tuple[bytes, int]:
        """The frames from `position` on, and where they end."""
        with self._lock:
            block = self._reader.block(position, MIN_CAPACITY)
        return bytes(block.data), block.end


class Serving:
    """One client's reading of one keep's output.

    break_off_after: how many bytes it is sent before its connection breaks off; None for all.
    """

    def __init__(
        self,
        connection: ssl.SSLSocket,
        output: OutputInMemory,
        followers: Followers,
        break_off_after: int | None = None,
    ) -> None:
        self._connection, self._output, self._followers = connection, output, followers
        self._left = break_off_after
        self._position = 0

    def begin(self, query: str) -> bool:
        """Answers, and sends what is there; whether to go on."""
        asked = dict(parse_qsl(query.removeprefix("?")))
        self._output.asked.append(asked)
        self._position = int(asked.get("from", "0"))
        self._connection.sendall(
            f"HTTP/1.1 200 OK\r\nContent-Type: {CONTENT_TYPE}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        return self.send()

    def send(self) -> bool:
        """Sends what there is and was not sent; False where it broke off."""
        data, self._position = self._output.after(self._position)
        return self._sent(data)

    def _sent(self, data: bytes) -> bool:
        if self._left is not None and len(data) > self._left:
            self._connection.sendall(b"%x\r\n%s" % (len(data), data[: self._left]))
            return False
        if self._left is not None:
            self._left -= len(data)
        if data:
            self._connection.sendall(b"%x\r\n%s\r\n" % (len(data), data))
        return True

    def follow(self, keep: Callable[[], KeepInfo | None]) -> bool:
        """Sends what comes until the keep has ended or is gone; False where it broke off."""

        def is_over() -> bool:
            now = keep()
            return now is None or now.state in OVER

        def has_more() -> bool:
            return is_over() or bool(self._output.after(self._position)[0])

        while not is_over():
            self._followers.until(self._connection, has_more)
            if not self.send():
                return False
        return self.send()

    def end(self, keep: KeepInfo) -> bool:
        """The last frame, and of the answer."""
        if not self._sent(encode_frame(END, strict_json.dumps(keep.to_wire()))):
            return False
        self._connection.sendall(b"0\r\n\r\n")
        return True
