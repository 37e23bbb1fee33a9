"""One client's exchange: TLS handshake, one request, perhaps a body, one answer, the end. No decisions are taken here.

`Channel` is its TLS connection, never blocking; it knows no HTTP. `Exchange.advance` reads and returns the events of
`http1`; the endpoint decides and calls `answer`. Whatever error a broken connection gives (OpenSSL 3.5 raises
BrokenPipeError where 3.0 gave an end of file), it is Gone.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from collections.abc import Callable
from enum import Enum
from functools import partial

from app_loader.limits import (
    ANSWER_SECONDS,
    HEADERS_SECONDS,
    LINGER_SECONDS,
    STALL_SECONDS,
    TLS_RECORD_BYTES,
)
from app_loader.receive.http1 import CONTINUE, Event, Head, RequestReader
from app_loader.receive.requests import Answer
from keep_protocol.certificate import CertificateFields, read_certificate
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.tls import HANDSHAKE_SECONDS


class Gone(Exception):
    """The peer has ended the connection, or broken it; nothing more can be sent or received."""


class Channel:
    """The server's side of one connection. `interest` is what to poll for after a call has said "not yet"."""

    def __init__(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        connection.setblocking(False)
        try:
            self._tls = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        except OSError as error:
            connection.close()
            raise Gone(str(error)) from error
        self._unsent = bytearray()
        self._ended_output = False
        self.interest = select.POLLIN

    def __repr__(self) -> str:
        return f"Channel({self.fileno()}, {len(self._unsent)} bytes unsent)"

    def fileno(self) -> int:
        """The descriptor to poll."""
        return self._tls.fileno()

    @property
    def connection(self) -> ssl.SSLSocket:
        """The TLS socket, to ask it for the peer's certificate."""
        return self._tls

    def _attempt(self, call: Callable[[], int]) -> int | None:
        """What `call` returns; None when it must be made again after a poll for `interest`. Raises Gone."""
        try:
            return call()
        except ssl.SSLWantReadError:
            self.interest = select.POLLIN
        except ssl.SSLWantWriteError:
            self.interest = select.POLLOUT
        except (OSError, ValueError) as error:
            raise Gone(str(error)) from error
        return None

    def handshake(self) -> bool:
        """Goes on with the handshake; True when it is complete. Raises Gone when it failed; the alert is sent."""
        if self._attempt(self._shake_hands) is None:
            return False
        self.interest = select.POLLIN
        return True

    def _shake_hands(self) -> int:
        self._tls.do_handshake()
        return 0

    def read_into(self, buffer: memoryview) -> int:
        """Fills `buffer` as far as bytes have come; 0 when none have. Raises Gone at the end of the stream."""
        filled = 0
        self.interest = select.POLLIN
        while len(rest := buffer[filled:]) >= TLS_RECORD_BYTES:
            count = self._attempt(partial(self._tls.recv_into, rest))
            if count is None:
                break
            if count == 0:
                if filled:
                    break
                raise Gone("the client has ended the connection")
            filled += count
        return filled

    def write(self, data: bytes) -> bool:
        """Queues `data` and sends what fits; True when all is sent. Raises Gone."""
        self._unsent += data
        return self.flush()

    def flush(self) -> bool:
        """Sends what is queued and fits; True when nothing is left. Raises Gone."""
        while self._unsent:
            count = self._attempt(partial(self._tls.send, bytes(self._unsent[:TLS_RECORD_BYTES])))
            if count is None:
                return False
            del self._unsent[:count]
        self.interest = select.POLLIN
        return True

    def end_output(self) -> None:
        """Ends our side: TLS close_notify, then TCP FIN. The peer's own bytes still arrive."""
        if self._ended_output:
            return
        self._ended_output = True
        with contextlib.suppress(OSError, ValueError):
            self._tls.unwrap()  # it would wait for the peer's own close_notify; `discard` sees how that ends
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._tls, socket.SHUT_WR)
        self.interest = select.POLLIN

    def discard(self, buffer: memoryview) -> bool:
        """Throws away what has come since `end_output`; True once the peer has ended the connection too."""
        try:
            return self._tls_raw_receive(buffer) == 0
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _tls_raw_receive(self, buffer: memoryview) -> int:
        """Encrypted bytes from the socket itself: what a refused client still sends is of no use."""
        return socket.socket.recv_into(self._tls, buffer)

    def close(self) -> None:
        """Closes the connection immediately. May be called twice."""
        self._tls.close()


class Stage(Enum):
    """CHECKING: the body is whole and nothing is read; LINGERING: see `limits.LINGER_SECONDS`."""

    HANDSHAKE = "handshake"
    HEADERS = "headers"
    BODY = "body"
    CHECKING = "checking"
    ANSWERING = "answering"
    LINGERING = "lingering"
    CLOSED = "closed"


class Exchange:
    """One client's connection and its one request.

    stage: the present one; deadline: the monotonic time at which it has lasted too long; peer: the client's
    certificate, or the refusal that reading it gave, once the handshake is done; heard: whether the client has sent
    anything.
    """

    def __init__(self, channel: Channel, now: float) -> None:
        self._channel = channel
        self._reader = RequestReader()
        self.stage = Stage.HANDSHAKE
        self.opened = now
        self.deadline = now + HANDSHAKE_SECONDS
        self.peer: CertificateFields | KeepfleetError | None = None
        self.heard = False
        self._with_body = True

    def __repr__(self) -> str:
        return f"Exchange({self.stage.value}, {self._channel!r})"

    def fileno(self) -> int:
        """The descriptor to poll."""
        return self._channel.fileno()

    @property
    def interest(self) -> int:
        """What to poll for; 0 for nothing at all."""
        return 0 if self.stage in (Stage.CHECKING, Stage.CLOSED) else self._channel.interest

    def advance(self, now: float, buffer: memoryview) -> list[Event]:
        """Does what can be done without waiting, and returns the HTTP events that this gave.

        Raises Gone when the client has left, KeepfleetError when what it sends is no request.
        """
        self.heard = True
        if self.stage is Stage.ANSWERING:
            self._send(now)
        elif self.stage is Stage.LINGERING:
            if self._channel.discard(buffer):
                self.close()
        elif self.stage is Stage.HANDSHAKE:
            if self._channel.handshake():
                self.stage, self.deadline = Stage.HEADERS, now + HEADERS_SECONDS
                self._identify()
        elif self.stage in (Stage.HEADERS, Stage.BODY):
            count = self._channel.read_into(buffer)
            if count:
                return self._read(buffer[:count], now)
        return []

    def _identify(self) -> None:
        der = self._channel.connection.getpeercert(binary_form=True)
        try:
            if not der:
                raise KeepfleetError(ErrorKind.FORBIDDEN, "cannot let the client in: it showed no certificate")
            self.peer = read_certificate(der)
        except KeepfleetError as refusal:
            self.peer = refusal

    def _read(self, data: memoryview, now: float) -> list[Event]:
        found = self._reader.feed(data)
        for event in found:
            self.deadline = now + STALL_SECONDS
            if isinstance(event, Head):
                self.stage, self._with_body = Stage.BODY, event.method != b"HEAD"
        return found

    def invite_body(self) -> None:
        """Has the client that asked first send its body. Raises Gone."""
        self._channel.write(CONTINUE)

    def hold(self) -> None:
        """Stops reading: the body is whole and being checked."""
        self.stage = Stage.CHECKING

    def answer(self, answer: Answer, now: float) -> None:
        """Sends `answer` and ends our side. A client that has left is no error."""
        if self.stage in (Stage.ANSWERING, Stage.LINGERING, Stage.CLOSED):
            return
        self.stage, self.deadline = Stage.ANSWERING, now + ANSWER_SECONDS
        try:
            self._channel.write(answer.to_bytes(with_body=self._with_body))
            self._send(now)
        except Gone:
            self.close()

    def _send(self, now: float) -> None:
        if self._channel.flush():
            self._channel.end_output()
            self.stage, self.deadline = Stage.LINGERING, now + LINGER_SECONDS

    def close(self) -> None:
        """Ends the exchange immediately. May be called twice."""
        self.stage = Stage.CLOSED
        self._channel.close()
