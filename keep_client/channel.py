"""One TLS connection on which every wait ends at a deadline, and which hears an answer while it still sends.

A server may refuse an upload from its headers, answer, and close: a client that only writes would see a broken
pipe and lose the reason. So before and during each write the channel looks for bytes from the peer.
"""

from __future__ import annotations

import _ssl
import select
import time

from keep_client.peer import Endpoint, handshake_failed, translate
from keep_protocol import sockets as socket
from keep_protocol.tls_client import check_pin
from keep_protocol.tls_server import HANDSHAKE_SECONDS

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module `typing` would be 4 ms of every command
    from typing import Any, Protocol, Self

    class Session(Protocol):
        """What `ssl` wraps: one TLS connection of OpenSSL's."""

        def do_handshake(self) -> None: ...
        def read(self, length: int, buffer: memoryview, /) -> int: ...
        def write(self, data: memoryview, /) -> int: ...
        def getpeercert(self, binary_form: bool, /) -> bytes | None: ...


CONNECT_SECONDS = 5.0
"""Two lost SYN packets on the slowest terrestrial path; after that a person wants to know."""
_KEEP_ALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))
"""Seconds of silence until the kernel asks whether the peer is there, then between two questions, and how many may go
without an answer: a minute, where a keep may take an hour."""
_RECORD = 16 * 1024
"""What one TLS record holds: OpenSSL gives no more at a time."""
_BUFFER = 16 * _RECORD
"""Read before any of it is looked at, where so much has arrived: a long answer costs its readers a sixteenth then."""


_LONGEST_WAIT = 86400.0
"""Seconds of one wait where no deadline is near: poll(2) counts milliseconds in an int."""


class ReaderGone(Exception):
    """What the answer would be written to has no reader any more. No OSError: the connection has not failed."""


def notice_a_peer_that_is_gone(sock: socket.socket) -> None:
    """Has a wait on this connection fail when the peer's host does not answer any more."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEP_ALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


class Channel:
    """A TLS connection, one request and its answer after the other; use it as a context manager.

    Reading and writing raise OSError (TimeoutError at the deadline); `peer.translate` words it. With `reader`, the
    descriptor of a pipe or socket our own output goes to, a wait raises ReaderGone as soon as its other end is closed.
    """

    def __init__(
        self, sock: socket.socket, session: Session, deadline: float, reader: int | None = None, address: str = ""
    ) -> None:
        """address: the IP address that was connected to; answers: how many came whole on this connection."""
        self._sock, self._session, self._deadline, self.reader, self.address = sock, session, deadline, reader, address
        self._since = time.monotonic()
        self._bytes = bytearray(_BUFFER)
        self._buffer = memoryview(self._bytes)
        self._start = self._end = 0  # of what has arrived and was not read yet
        self._at_end = False
        self._failed: OSError | None = None
        self.answers = 0
        sock.setblocking(False)

    def __repr__(self) -> str:
        return f"Channel({self.address}, {self.answers} answers)"

    @classmethod
    def open(
        cls,
        endpoint: Endpoint,
        context: _ssl._SSLContext,
        seconds: float,
        pin: str | None = None,
        reader: int | None = None,
    ) -> Self:
        """Connects and shakes hands; with `pin`, checks the peer's fingerprint before anything can be sent.

        `seconds` is for all that follows. Raises ConnectionFailed, or KeepfleetError(CERTIFICATE) for another pin.
        """
        host = endpoint.host
        sock: socket.socket | None = None
        try:
            if not host.isascii():
                host = host.encode("idna").decode("ascii")
            # A host's name as text would have the codec of international names imported for it: 3 ms.
            place: Any = host.encode("ascii")
            sock = socket.create_connection((place, endpoint.port), CONNECT_SECONDS)
            address = str(sock.getpeername()[0])
            sock.settimeout(HANDSHAKE_SECONDS)
            # Or a request's body waits for the acknowledgement of its head, which the peer delays by 40 ms.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            notice_a_peer_that_is_gone(sock)
            session = cls._shake_hands(sock, host, endpoint, context)
            if pin is not None:
                check_pin(session.getpeercert(True), pin)
        except BaseException as error:
            if sock is not None:
                sock.close()
            if isinstance(error, (OSError, ValueError)):
                raise translate(error, endpoint) from error
            raise
        return cls(sock, session, time.monotonic() + seconds, reader, address)

    @staticmethod
    def _shake_hands(sock: socket.socket, host: str, endpoint: Endpoint, context: _ssl._SSLContext) -> Session:
        wrap: Any = context
        try:
            session: Session = wrap._wrap_socket(sock, False, host)
            session.do_handshake()
        except OSError as error:
            raise handshake_failed(error, endpoint) from error
        return session

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection without TLS's farewell: the peer has none to wait for."""
        self._sock.close()

    def seconds(self) -> float:
        """How long ago the handshake, or the last answer, ended."""
        return time.monotonic() - self._since

    def extend(self, seconds: float) -> None:
        """The deadline is `seconds` from now."""
        self._deadline = time.monotonic() + seconds

    def answered(self) -> None:
        """An answer has been read to its end; the next request may be sent."""
        self.answers += 1
        self._since = time.monotonic()

    def is_quiet(self) -> bool:
        """Whether the peer has neither hung up nor said anything unasked, as far as has arrived."""
        try:
            return not self.heard()
        except OSError:
            return False

    def heard(self) -> bool:
        """Whether the peer has answered, or hung up; what has arrived is kept for `read`."""
        if self._start == self._end and not self._at_end:
            try:
                self._take()
            except (_ssl.SSLWantReadError, _ssl.SSLWantWriteError):
                return False
        return True

    def _take(self) -> None:
        """Takes what has arrived, as far as there is room. Raises SSLWantReadError or SSLWantWriteError for nothing."""
        if self._failed is not None:
            raise self._failed
        if self._start:
            left = self._end - self._start
            self._buffer[:left] = self._buffer[self._start : self._end]
            self._start, self._end = 0, left
        before = self._end
        try:
            while not self._at_end and _BUFFER - self._end >= _RECORD:
                room = self._buffer[self._end :]
                size = self._session.read(len(room), room)
                self._end += size
                self._at_end = not size
                if self._end - before < _RECORD:
                    break  # one that is not full is the only one: to ask for another costs a line a twentieth of a ms
        except (BrokenPipeError, _ssl.SSLEOFError):
            # The stream has ended without TLS's own end; OpenSSL 3.5 reports a write that failed before.
            self._at_end = True
        except (_ssl.SSLWantReadError, _ssl.SSLWantWriteError):
            if self._end == before:
                raise
        except OSError as error:
            self._failed = error  # raised after what had arrived before it
            if self._end == before:
                raise

    def _wait(self, events: int) -> None:
        poll = select.poll()
        poll.register(self._sock, events)
        if self.reader is not None:
            poll.register(self.reader, 0)  # no event asked for: poll(2) reports POLLERR and POLLHUP all the same
        left = self._deadline - time.monotonic()
        ready = poll.poll(min(left, _LONGEST_WAIT) * 1000) if left > 0 else []
        if not ready and left <= _LONGEST_WAIT:
            raise TimeoutError("the deadline has passed")
        if any(descriptor == self.reader for descriptor, _ in ready):
            raise ReaderGone

    def send(self, data: bytes) -> bool:
        """Sends all of `data`; False, and the rest unsent, when the peer answered or hung up meanwhile."""
        view = memoryview(data)
        while view:
            try:
                if self.heard():
                    return False
                view = view[self._session.write(view) :]
            except _ssl.SSLWantReadError:
                self._wait(select.POLLIN)
            except _ssl.SSLWantWriteError:
                self._wait(select.POLLIN | select.POLLOUT)
            except (BrokenPipeError, ConnectionResetError, _ssl.SSLEOFError):
                return False
        return True

    def _fill(self) -> bool:
        """Waits until more has arrived; False at the end of the stream."""
        before = self._end - self._start
        while not self._at_end:
            try:
                self._take()
                break
            except _ssl.SSLWantReadError:
                self._wait(select.POLLIN)
            except _ssl.SSLWantWriteError:
                self._wait(select.POLLOUT)
        return self._end - self._start > before

    def starts(self) -> bool:
        """Waits for the first byte of an answer; False where the stream ends before it."""
        return self._start < self._end or self._fill()

    def view(self, most: int) -> memoryview:
        """What has arrived, at most `most` bytes, waiting for the first one; nothing at the end of the stream. It is
        valid until the next call."""
        if not self.starts():
            return self._buffer[:0]
        start = self._start
        self._start = min(self._end, start + most)
        return self._buffer[start : self._start]

    def read(self, most: int) -> bytes:
        """The same, to keep."""
        return bytes(self.view(most))

    def line(self, longest: int) -> bytes:
        """A line without its end, "\\n" or "\\r\\n". Raises EOFError where the stream ends before one, ValueError for a
        longer one."""
        searched = 0
        while (end := self._find_end(searched, longest)) < 0:
            searched = self._end - self._start
            if searched >= longest:
                raise ValueError(f"a line of over {longest} bytes")
            if not self._fill():
                raise EOFError("it ends in the midst of a line")
        data = bytes(self._buffer[self._start : end])
        self._start = end + 1
        return data.removesuffix(b"\r")

    def _find_end(self, searched: int, longest: int) -> int:
        """Where the line that comes next ends; -1 where that has not arrived, or it is over `longest` bytes."""
        return self._bytes.find(b"\n", self._start + searched, min(self._end, self._start + longest))
