"""One client's connection: aiohttp's, with the peer's certificate read once. Only this file knows aiohttp's insides.

aiohttp closes a connection on which no whole request header has arrived in `keepalive_timeout`, from the first byte
on; it has no deadline for a client that does not read its answer, and it logs a traceback for a malformed request.
"""

from __future__ import annotations

import asyncio
import logging
import secrets

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from keep_manager.http.acceptor import Hook
from keep_manager.http.access import Certificates, Peer
from keep_manager.http.errors import KIND_OF, v1_body
from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError

LOG = logging.getLogger("keepfleet.http")
HEADER_SECONDS = 10.0
"""From a connection's start, or from the last answer, to the next whole header; also how long it may idle."""
SEND_SECONDS = 15.0
"""The longest answer, a list of 2,000 keeps, is 4 MB: 3 Mbit/s are enough."""
LINGER_SECONDS = 2.0
"""How long the rest of a refused body is read and dropped, so that the client sees the answer and not a reset."""
MAX_HEADER_LINE = 8190
MAX_HEADERS = 64


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
        error = KeepfleetError(KIND_OF.get(status, ErrorKind.INTERNAL), text)
        response = web.Response(status=status, body=strict_json.dumps(v1_body(error)), content_type="application/json")
        response.force_close()
        return response
