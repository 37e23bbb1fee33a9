"""One client's connection: aiohttp's, with the peer's certificate read once, and closed when that is revoked. Only this
file knows aiohttp's insides.

aiohttp closes a connection on which no whole request header has arrived in `keepalive_timeout`, from the first byte
on; it has no deadline for a client that does not read its answer, and it logs a traceback for a malformed request.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterable
from typing import Protocol

from aiohttp import web
from aiohttp.http_writer import StreamWriter
from aiohttp.web_protocol import RequestHandler

from keep_manager.http.acceptor import Hook
from keep_manager.model import Caller, ClientIdentity
from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record

LOG = logging.getLogger("keepfleet.http")
HEADER_SECONDS = 10.0
"""From a connection's start, or from the last answer, to the next whole header; also how long it may idle."""
SEND_SECONDS = 15.0
"""The longest answer, a list of 2,000 keeps, is 4 MB: 3 Mbit/s are enough."""
LINGER_SECONDS = 2.0
"""How long the rest of a refused body is read and dropped, so that the client sees the answer and not a reset."""
MAX_HEADER_LINE = 8190
MAX_HEADERS = 64
_CHUNK_HEAD = b"%08x\r\n"
_CHUNK_END = b"\r\n"
_HEAD_SIZE = len(_CHUNK_HEAD % 0)
SECURITY = logging.getLogger("keepfleet.security")
RECHECK_SECONDS = 0.4
"""Two looks are under a second: the longest a connection lives that was opened just before the revocation."""


class Certificates(Protocol):
    """What decides about the certificates clients show."""

    def identify(self, der: bytes) -> ClientIdentity:
        """Who a certificate belongs to, and what is wrong with it permanently."""

    def check(self, identity: ClientIdentity) -> None:
        """Raises KeepfleetError when the certificate may not be used now."""


class Peer(Record):
    """The other end of one connection: its address, and who its certificate says it is."""

    address: str
    identity: ClientIdentity | None

    def __str__(self) -> str:
        return f"{self.identity or 'a client without a certificate'} at {self.address}"


def v1_body(error: KeepfleetError) -> dict[str, object]:
    """An error as /v1 has it."""
    return {"error": error.to_wire()}


class Flood:
    """The body of an answer that may be gigabytes, written from where it was read: the writer of aiohttp copies each
    part to put the head and the end of its chunk around it. Other parts may be written by `response.write` in between.

    room: what the next part is put into.
    """

    def __init__(self, request: web.BaseRequest, size: int) -> None:
        """size: of the room."""
        self._request, self._writer = request, StreamWriter(request.protocol, asyncio.get_running_loop())
        data = bytearray(_HEAD_SIZE + size + len(_CHUNK_END))
        self._data, self.room = memoryview(data), memoryview(data)[_HEAD_SIZE : _HEAD_SIZE + size]
        # TLS has made its records of a part when `write` returns; a plain transport may hold on to it.
        self._copies = request.get_extra_info("ssl_object") is None

    def __repr__(self) -> str:
        return f"Flood(of {self._request!r})"

    def begin(self, writer: object) -> None:
        """Sends the head. writer: what `prepare` of the answer has returned. Raises ConnectionResetError."""
        if not isinstance(writer, StreamWriter):
            raise ConnectionResetError("the client has gone")
        self._writer = writer
        writer.send_headers()

    def write(self, size: int) -> None:
        """Sends the first `size` bytes of `room`, or has the connection do so. Raises ConnectionResetError."""
        transport = self._request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has gone")
        start, end = _HEAD_SIZE, _HEAD_SIZE + size
        if self._writer.chunked:
            self._data[:start] = _CHUNK_HEAD % size
            start = 0
            self._data[end : end + len(_CHUNK_END)] = _CHUNK_END
            end += len(_CHUNK_END)
        part = self._data[start:end]
        transport.write(bytes(part) if self._copies else part)

    @property
    def is_full(self) -> bool:
        """Whether the client has to take some of it before there is more."""
        return self._request.protocol.writing_paused

    async def drain(self) -> None:
        """Waits until it is full no more. Raises ConnectionResetError."""
        await self._writer.drain()


class Connection(RequestHandler):
    """One connection of one client; `established` is called when its handshake is done, `ended` when it is closed."""

    def __init__(self, server: web.Server, certificates: Certificates, established: Hook, ended: Hook) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=HEADER_SECONDS,
            lingering_time=LINGER_SECONDS,
            max_line_size=MAX_HEADER_LINE,
            max_field_size=MAX_HEADER_LINE,
            max_headers=MAX_HEADERS,
            auto_decompress=False,
            access_log=None,  # type: ignore[arg-type] # None is how aiohttp itself turns it off
            logger=LOG,
        )
        self._certificates = certificates
        self._established = established
        self._ended = ended
        self.peer = Peer("nowhere", None)
        self.caller: tuple[object, Caller] | None = None  # see middleware.caller_of

    def __repr__(self) -> str:
        return f"Connection({self.peer})"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called when the handshake is done."""
        address = transport.get_extra_info("peername")
        tls = transport.get_extra_info("ssl_object")
        der = None if tls is None else tls.getpeercert(binary_form=True)
        self.peer = Peer(
            str(address[0]) if isinstance(address, tuple) else "nowhere",
            None if der is None else self._certificates.identify(der),
        )
        super().connection_made(transport)
        self._established(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Called when the connection is closed, by either side."""
        super().connection_lost(exc)
        self._ended(self)

    @property
    def idle_since(self) -> float | None:
        """Since when no request is under way, by the loop's clock; None while one is, or waits for its turn."""
        if self._request_in_progress or self._messages:
            return None
        return self._next_keepalive_close_time - HEADER_SECONDS

    def cut_off(self) -> None:
        """Closes the connection without waiting for anything; a request under way is cancelled."""
        if isinstance(self.transport, asyncio.Transport):
            self.transport.abort()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Sends the answer; a client that does not take it in SEND_SECONDS is cut off."""
        try:
            async with asyncio.timeout(SEND_SECONDS):
                return await super().finish_response(request, resp, start_time)
        except TimeoutError:
            LOG.warning("%s does not read its answer; cut off", self.peer)
            self.cut_off()
            return resp, True

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to a request that is not HTTP (`status` 400), or to a defect of ours (500), whose traceback
        goes to the log under a reference that the client gets."""
        if request.writer.output_size > 0:
            raise ConnectionResetError("an answer was begun already")
        if status == 500:
            reference = secrets.token_hex(4)
            LOG.error("defect %s in %s %s", reference, request.method, request.path, exc_info=exc)
            text = f"cannot answer: a defect of the manager's; its log has it under {reference}"
        else:
            LOG.info("%s sent a malformed request: %s", self.peer, message or exc)
            text = f"cannot read the request: {(message or 'it is not HTTP').splitlines()[0][:200]}"
        error = KeepfleetError(ErrorKind.BAD_REQUEST if status == 400 else ErrorKind.INTERNAL, text)
        response = web.Response(status=status, body=strict_json.dumps(v1_body(error)), content_type="application/json")
        response.force_close()
        return response


class Recheck:
    """Closes the connections of clients whose certificate was revoked, or has expired, since they were opened: looks at
    `connections()` again and again.

    Every request is checked on its own (middleware.py), but a stream or a long wait is one request that goes on. One
    look at the list of the revoked every 0.4 s serves all connections. It is a look and not a watch (inotify), because
    expiry sends no signal, the list may lie on a file system that sends none, and a watch that overflows would fail
    open.
    """

    def __init__(self, connections: Callable[[], Iterable[object]], certificates: Certificates) -> None:
        self._connections = connections
        self._certificates = certificates
        self._known: frozenset[Connection] = frozenset()

    def __repr__(self) -> str:
        return f"Recheck({len(self._known)} connections)"

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(RECHECK_SECONDS)
            self.look()

    def look(self) -> None:
        """Cuts off whose certificate may not be used any more; each certificate is checked once for all connections.

        A connection that was not there at the last look is spared until the next: its first request hears why.
        """
        now = frozenset(one for one in self._connections() if isinstance(one, Connection))
        held: dict[ClientIdentity, list[Connection]] = {}
        for connection in now & self._known:
            if connection.peer.identity is not None:
                held.setdefault(connection.peer.identity, []).append(connection)
        self._known = now
        for identity, connections in held.items():
            try:
                self._certificates.check(identity)
            except KeepfleetError as error:
                SECURITY.warning("cut off %d connections of %s: %s", len(connections), identity, error.message)
                for connection in connections:
                    connection.cut_off()
