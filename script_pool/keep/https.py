"""`POST /scripts`: a pool over HTTP/1.1, to clients that TLS has let in and the keep's list of callers names.

A body of `application/json` is one request, and its answer a body of the same; connections are kept. A body of
`application/json-lines` is a stream of requests, each ended by CRLF, and so is its answer, while the body still comes:
many requests are under way on one connection then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from app_loader.receive.access import UploadAccess
from app_loader.receive.http1 import CONTINUE, End, Event, Head, Refused, RequestReader, response, shown
from app_loader.receive.requests import error_answer
from keep_protocol.certificate import read_certificate
from keep_protocol.errors import ErrorKind, KeepfleetError
from script_pool import protocol
from script_pool.connection import Connection
from script_pool.pool import ScriptPool

PATH = b"/scripts"
ONE, LINES = b"application/json", b"application/json-lines"
IDLE_SECONDS = 60.0
"""Between two requests; a client that is alive connects again in milliseconds."""
HEAD_SECONDS = 10.0
"""From the first byte of a request to the end of its headers, and from there to the end of a body of one request."""
LINGER_SECONDS = 2.0
"""How long a refused client may go on sending before the connection is cut; closing it immediately would reset it and
destroy the answer on its way (RFC 9112, section 9.6)."""
_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: application/json-lines\r\nTransfer-Encoding: chunked\r\n\r\n"


class Exchange(asyncio.Protocol):
    """One client's connection. `left`: called when it is over."""

    def __init__(self, pool: ScriptPool, access: UploadAccess, banner: bytes, left: Callable[[Exchange], None]) -> None:
        self._pool, self._access, self._banner, self._left = pool, access, banner, left
        self._transport: asyncio.Transport | None = None
        self._reader = RequestReader()
        self._work: _Work | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._refused = False

    def __repr__(self) -> str:
        return f"Exchange({self._work or 'no request'})"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - TLS's is one
        self._transport = transport
        try:
            self._check()
        except KeepfleetError:
            self._within(HEAD_SECONDS)  # what it asks is refused, with the reason
        else:
            self._within(IDLE_SECONDS)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        try:
            for event in self._reader.feed(data):
                self._take(event)
            if self._work is None:
                self._within(HEAD_SECONDS)
        except KeepfleetError as error:
            self._refuse(error)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._within(None)
        if self._work is not None:
            self._work.connection.connection_lost(error)
        self._left(self)

    def pause_writing(self) -> None:
        if self._work is not None:
            self._work.connection.pause_writing()

    def resume_writing(self) -> None:
        if self._work is not None:
            self._work.connection.resume_writing()

    def check(self) -> None:
        """Ends the connection of a client that may not call any more, and has something under way."""
        if self._work is None:
            return  # what it asks next is refused, with the reason
        try:
            self._check()
        except KeepfleetError:
            self.abort()

    def finish(self) -> None:
        """No more is read; what has been asked is answered, and the connection ends."""
        if self._work is not None:
            self._work.last = True
            self._work.connection.finish()
        elif self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Ends it without another byte."""
        if self._transport is not None:
            self._transport.abort()

    def answered(self, last: bool) -> None:
        """The answer to the request is written: the next may come."""
        self._work = None
        self._reader = RequestReader()
        if last and self._transport is not None:
            self._transport.close()
        else:
            self._within(IDLE_SECONDS)

    def _check(self) -> str:
        """The client's name. Raises KeepfleetError(FORBIDDEN) for one that may not call this pool."""
        session = None if self._transport is None else self._transport.get_extra_info("ssl_object")
        der = None if session is None else session.getpeercert(True)
        if der is None:
            raise KeepfleetError(ErrorKind.FORBIDDEN, "cannot let the client in: it has shown no certificate")
        return self._access.check(read_certificate(der)).name

    def _take(self, event: Event) -> None:
        if isinstance(event, Head):
            self._begin(event)
        elif self._work is not None and isinstance(event, bytes):
            if self._work.receive(event) > self._room:
                raise self._too_large()
        elif self._work is not None and isinstance(event, End):
            self._within(None)
            self._work.end()

    def _begin(self, head: Head) -> None:
        owner = self._check()
        assert self._transport is not None  # noqa: S101 - data has come
        if (head.method, head.target) == (b"GET", b"/"):
            self._transport.write(response(200, _headers("text/plain; charset=utf-8", self._banner), self._banner))
            self.answered(_is_last(head))
            return
        kind = _kind_of(head)
        if kind == ONE and (head.length or 0) > self._room:
            raise self._too_large()
        work = _Stream if kind == LINES else _One
        self._within(None if kind == LINES else HEAD_SECONDS)
        self._work = work(self, self._transport, Connection(self._pool, _gone, owner), _is_last(head))
        if head.expects_continue:
            self._transport.write(CONTINUE)
        if head.length == 0:
            self._take(End())

    @property
    def _room(self) -> int:
        """The bytes that a body of one request may have."""
        return self._pool.limits.input_bytes + protocol.BESIDE_THE_INPUT

    def _too_large(self) -> KeepfleetError:
        return KeepfleetError(ErrorKind.TOO_LARGE, f"cannot read the request: it is over {self._room} bytes")

    def _refuse(self, error: KeepfleetError) -> None:
        """Answers, and ends the connection: where the next request begins is not certain."""
        if self._transport is None or self._transport.is_closing():
            return
        self._refused = True
        if isinstance(self._work, _Stream):
            self._transport.abort()  # its answer has begun, and is not whole
            return
        self._transport.write(error_answer(error).to_bytes())
        self._within(LINGER_SECONDS)

    def _within(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self.abort)


def _gone(_connection: Connection) -> None:
    """One request is over; the connection of TLS, which has its own end, may go on."""


def _headers(content_type: str, body: bytes) -> tuple[tuple[str, str], ...]:
    return (("Content-Type", content_type), ("Content-Length", str(len(body))))


def _is_last(head: Head) -> bool:
    return any(name == b"connection" and b"close" in value.lower() for name, value in head.headers)


def _kind_of(head: Head) -> bytes:
    """ONE or LINES. Raises KeepfleetError for anything that is not asked of a pool."""
    if head.target != PATH:
        raise KeepfleetError(
            ErrorKind.NOT_FOUND, f"cannot find {shown(head.target)}: a script pool has POST /scripts and GET /"
        )
    if head.method != b"POST":
        raise Refused(
            ErrorKind.BAD_REQUEST, 405, f"cannot {shown(head.method)} /scripts: it takes POST", ("Allow", "POST")
        )
    if head.length is None and not head.chunked:
        raise Refused(ErrorKind.BAD_REQUEST, 411, "cannot read the request: it has neither Content-Length nor chunks")
    given = dict(head.headers).get(b"content-type", ONE).split(b";", 1)[0].strip().lower()
    if given not in (ONE, LINES):
        raise KeepfleetError(
            ErrorKind.UNSUPPORTED_MEDIA,
            f"cannot read the request: its Content-Type is {shown(given)}, and must be {ONE.decode()} for one request "
            f"or {LINES.decode()} for a stream of them",
        )
    return given


class _Work(asyncio.WriteTransport):
    """One request of HTTP: what it asks goes to a connection of the pool's, which writes its answers here."""

    def __init__(self, exchange: Exchange, transport: asyncio.Transport, connection: Connection, last: bool) -> None:
        super().__init__()
        self._exchange, self._transport, self.last = exchange, transport, last
        self._closed = False
        self.connection = connection
        connection.attach(_Reading(transport), self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.connection!r})"

    def receive(self, data: bytes) -> int:
        """Takes the next piece of the body; how many bytes of it are held."""
        self.connection.data_received(data)
        return 0

    def end(self) -> None:
        """The body has ended; what it has asked is answered, and the request with it."""
        self.connection.eof_received()

    def is_closing(self) -> bool:
        return self._closed or self._transport.is_closing()

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size()

    def close(self) -> None:
        """Every answer is written."""
        if not self._closed:
            self._closed = True
            self._finish()
            self._exchange.answered(self.last)

    def abort(self) -> None:
        self._closed = True
        self._transport.abort()

    def _finish(self) -> None:
        """Writes what follows the last answer."""


class _Stream(_Work):
    """Lines each way, as they come."""

    def __init__(self, exchange: Exchange, transport: asyncio.Transport, connection: Connection, last: bool) -> None:
        super().__init__(exchange, transport, connection, last)
        transport.write(_STREAM)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._transport.write(b"".join((b"%x\r\n" % len(data), data, b"\r\n")))

    def _finish(self) -> None:
        self._transport.write(b"0\r\n\r\n")


class _One(_Work):
    """One request, whose JSON may stand on several lines."""

    def __init__(self, exchange: Exchange, transport: asyncio.Transport, connection: Connection, last: bool) -> None:
        super().__init__(exchange, transport, connection, last)
        self._body = bytearray()

    def receive(self, data: bytes) -> int:
        self._body += data
        return len(self._body)

    def end(self) -> None:
        # A line's end can stand between the parts of JSON alone, and means nothing there.
        self.connection.data_received(bytes(self._body).replace(b"\r\n", b"  ") + protocol.END)
        self.connection.eof_received()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        body = bytes(data)[: -len(protocol.END)] + b"\n"
        self._transport.write(response(200, _headers("application/json", body), body))


class _Reading(asyncio.ReadTransport):
    """The connection's side that is read, which goes on behind one request."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport = transport

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        """Nothing: the next request may follow."""

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()
