"""One client's exchange: TLS handshake, one request, perhaps a body, one answer, the end. No decisions are taken here.

`Channel` is its TLS connection, never blocking; it knows no HTTP. `Exchange.advance` reads and returns the events of
`http1`; the endpoint decides and calls `answer`. Whatever error a broken connection gives (OpenSSL 3.5 raises
BrokenPipeError where 3.0 gave an end of file), it is Gone.
"""

from __future__ import annotations

import _ssl
import select
from _collections_abc import Callable

from app_loader.limits import (
    ANSWER_SECONDS,
    HEADERS_SECONDS,
    LINGER_SECONDS,
    STALL_SECONDS,
    TLS_RECORD_BYTES,
)
from app_loader.receive.http1 import CONTINUE, Event, Head, RequestReader
from app_loader.receive.requests import Answer
from keep_protocol import sockets as socket
from keep_protocol.certificate import CertificateFields, read_certificate
from keep_protocol.enumeration import Enum
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.tls_server import HANDSHAKE_SECONDS

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module `typing` would be 4 ms
    from typing import Protocol

    class Session(Protocol):
        """What `ssl` wraps: one TLS connection of OpenSSL's."""

        def do_handshake(self) -> None: ...
        def read(self, length: int, buffer: memoryview, /) -> int: ...
        def write(self, data: bytes, /) -> int: ...
        def shutdown(self) -> object: ...
        def getpeercert(self, binary_form: bool, /) -> bytes | None: ...


class Gone(Exception):
    """The peer has ended the connection, or broken it; nothing more can be sent or received."""


class Channel:
    """The server's side of one connection. `interest` is what to poll for after a call has said "not yet"."""

    def __init__(self, connection: socket.socket, context: _ssl._SSLContext) -> None:
        connection.setblocking(False)
        self._connection = connection
        try:
            self._session: Session | None = context._wrap_socket(connection, True)  # type: ignore[attr-defined]
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
        return self._connection.fileno()

    @property
    def _tls(self) -> Session:
        """OpenSSL's side, which holds the number of the descriptor: once closed that may be another connection's."""
        if self._session is None:
            raise Gone("the connection is closed")
        return self._session

    @property
    def peer_certificate(self) -> bytes | None:
        """The client's, in DER, once the handshake is complete."""
        return self._tls.getpeercert(True)

    def _attempt(self, call: Callable[[], int]) -> int | None:
        """What `call` returns; None when it must be made again after a poll for `interest`. Raises Gone."""
        try:
            return call()
        except _ssl.SSLWantReadError:
            self.interest = select.POLLIN
        except _ssl.SSLWantWriteError:
            self.interest = select.POLLOUT
        except _ssl.SSLEOFError:
            return 0  # the stream has ended without TLS's own end
        except (OSError, ValueError) as error:
            raise Gone(str(error)) from error
        return None

    def handshake(self) -> bool:
        """Goes on with the handshake; True when it is complete. Raises Gone when it failed; the alert is sent."""
        done = self._attempt(self._shake_hands)
        if done is None:
            return False
        if not done:
            raise Gone("the client has ended the connection")
        self.interest = select.POLLIN
        return True

    def _shake_hands(self) -> int:
        self._tls.do_handshake()
        return 1

    def read_into(self, buffer: memoryview) -> int:
        """Fills `buffer` as far as bytes have come; 0 when none have. Raises Gone at the end of the stream."""
        filled = 0
        self.interest = select.POLLIN
        while len(rest := buffer[filled:]) >= TLS_RECORD_BYTES:
            count = self._attempt(lambda: self._tls.read(len(rest), rest))
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
            count = self._attempt(lambda: self._tls.write(bytes(self._unsent[:TLS_RECORD_BYTES])))
            if count is None:
                return False
            if count == 0:
                raise Gone("the client has ended the connection")
            del self._unsent[:count]
        self.interest = select.POLLIN
        return True

    def end_output(self) -> None:
        """Ends our side: TLS close_notify, then TCP FIN. The peer's own bytes still arrive."""
        if self._ended_output:
            return
        self._ended_output = True
        # TLS's own end would wait for the peer's; `discard` sees how that ends.
        for end in (self._tls.shutdown, lambda: self._connection.shutdown(socket.SHUT_WR)):
            try:
                end()
            except (OSError, ValueError):
                continue
        self.interest = select.POLLIN

    def discard(self, buffer: memoryview) -> bool:
        """Throws away what has come since `end_output`; True once the peer has ended the connection too."""
        try:
            return self._connection.recv_into(buffer) == 0  # encrypted: what a refused client still sends is of no use
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        """Closes the connection immediately. May be called twice."""
        self._session = None
        self._connection.close()


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
        der = self._channel.peer_certificate
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
