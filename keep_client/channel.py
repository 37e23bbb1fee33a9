"""One TLS connection on which every wait ends at a deadline, and which hears an answer while it still sends.

A server may refuse an upload from its headers, answer, and close: a client that only writes would see a broken
pipe and lose the reason. So before and during each write the channel looks for bytes from the peer.
"""

from __future__ import annotations

import io
import select
import socket
import ssl
import time
from typing import Any, Self

from keep_client.peer import Endpoint, handshake_failed, translate
from keep_protocol.errors import KeepfleetError
from keep_protocol.tls import HANDSHAKE_SECONDS, check_pin

CONNECT_SECONDS = 5.0
"""Two lost SYN packets on the slowest terrestrial path; after that a person wants to know."""
_EARLY_BYTES = 16 * 1024
"""How much of an early answer is read while sending: one TLS record; the rest waits in the socket."""


class ReaderGone(Exception):
    """What the answer would be written to has no reader any more. No OSError: the connection has not failed."""


class Channel(io.RawIOBase):
    """A TLS connection as a raw stream of bytes; use it as a context manager.

    Reading and writing raise OSError (TimeoutError at the deadline); `peer.translate` words it. With `reader`, the
    descriptor of a pipe or socket our own output goes to, a wait raises ReaderGone as soon as its other end is closed.
    """

    def __init__(self, sock: ssl.SSLSocket, deadline: float, reader: int | None = None, address: str = "") -> None:
        """address: the IP address that was connected to."""
        self._sock, self._deadline, self._reader, self.address = sock, deadline, reader, address
        self._opened = time.monotonic()
        self._early = b""
        self._answered = False
        sock.setblocking(False)

    def __repr__(self) -> str:
        return f"Channel({'closed' if self.closed else 'answered' if self._answered else 'open'})"

    @classmethod
    def open(
        cls,
        endpoint: Endpoint,
        context: ssl.SSLContext,
        seconds: float,
        pin: str | None = None,
        reader: int | None = None,
    ) -> Self:
        """Connects and shakes hands; with `pin`, checks the peer's fingerprint before anything can be sent.

        `seconds` is for all that follows. Raises ConnectionFailed, or KeepfleetError(CERTIFICATE) for another pin.
        """
        try:
            with socket.create_connection((endpoint.host, endpoint.port), CONNECT_SECONDS) as plain:
                address = str(plain.getpeername()[0])
                plain.settimeout(HANDSHAKE_SECONDS)
                # Or a request's body waits for the acknowledgement of its head, which the peer delays by 40 ms.
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock = cls._shake_hands(plain, endpoint, context)
        except (OSError, ValueError) as error:
            raise translate(error, endpoint) from error
        try:
            if pin is not None:
                check_pin(sock.getpeercert(binary_form=True), pin)
        except KeepfleetError:
            sock.close()
            raise
        return cls(sock, time.monotonic() + seconds, reader, address)

    @staticmethod
    def _shake_hands(plain: socket.socket, endpoint: Endpoint, context: ssl.SSLContext) -> ssl.SSLSocket:
        try:
            return context.wrap_socket(plain, server_hostname=endpoint.host)
        except OSError as error:
            raise handshake_failed(error, endpoint) from error

    def seconds(self) -> float:
        """How long ago the handshake ended."""
        return time.monotonic() - self._opened

    def extend(self, seconds: float) -> None:
        """The deadline is `seconds` from now: for a stream, whose end is not known."""
        self._deadline = time.monotonic() + seconds

    def _wait(self, events: int) -> None:
        poll = select.poll()
        poll.register(self._sock, events)
        if self._reader is not None:
            poll.register(self._reader, 0)  # no event asked for: poll(2) reports POLLERR and POLLHUP all the same
        left = self._deadline - time.monotonic()
        ready = poll.poll(left * 1000) if left > 0 else []
        if not ready:
            raise TimeoutError("the deadline has passed")
        if any(descriptor == self._reader for descriptor, _ in ready):
            raise ReaderGone

    def _hear(self) -> bool:
        """Whether the peer has answered, or hung up, before it was asked to."""
        if not self._answered:
            try:
                self._early = self._sock.recv(_EARLY_BYTES)
                self._answered = True
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return False
        return self._answered

    def send(self, data: bytes) -> bool:
        """Sends all of `data`; False, and the rest unsent, when the peer answered or hung up meanwhile."""
        view = memoryview(data)
        while view:
            try:
                if self._hear():
                    return False
                view = view[self._sock.send(view) :]
            except ssl.SSLWantReadError:
                self._wait(select.POLLIN)
            except ssl.SSLWantWriteError:
                self._wait(select.POLLIN | select.POLLOUT)
            except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
                return False
        return True

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # the buffer protocol has no name in Python 3.11's typing
        """Fills `buffer` with what has arrived, waiting for it; 0 at the end of the stream."""
        if self._early:
            taken = self._early[: len(buffer)]
            buffer[: len(taken)] = taken
            self._early = self._early[len(taken) :]
            return len(taken)
        while True:
            try:
                return self._sock.recv_into(buffer)
            except ssl.SSLWantReadError:
                self._wait(select.POLLIN)
            except ssl.SSLWantWriteError:
                self._wait(select.POLLOUT)
            except BrokenPipeError:  # OpenSSL 3.5 reports a write that failed before; 3.0 had the end of the stream
                return 0

    def makefile(self, mode: str) -> io.BufferedReader:
        """What `http.client.HTTPResponse` asks of a socket; closing the file leaves the channel open."""
        return io.BufferedReader(_Borrowed(self))

    def close(self) -> None:
        """Closes the connection without TLS's farewell: the peer has none to wait for."""
        if not self.closed:
            self._sock.close()
        super().close()


class _Borrowed(io.RawIOBase):
    """Reads from a channel it does not own."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # as in Channel.readinto
        return self._channel.readinto(buffer)
