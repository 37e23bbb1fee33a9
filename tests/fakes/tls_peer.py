"""A TLS server on loopback that does with each connection whatever the test says."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

Handler = Callable[[ssl.SSLSocket], object]
ACCEPT_SECONDS = 60.0
"""No test waits this long; a thread that does is reported by its join."""


class TlsPeer:
    """Serves each connection in a thread of its own, or one after another, from `with` to its end.

    `refused` counts handshakes that failed, and `accepted` the others; an OSError in the handler means the client went
    away.
    """

    def __init__(
        self, context: ssl.SSLContext | None, handler: Handler, concurrent: bool = False, address: str = "127.0.0.1"
    ) -> None:
        self._context, self._handler, self._concurrent = context, handler, concurrent
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server((address, 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.refused = self.accepted = 0

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            if not self._concurrent:
                self._serve_one(plain)
                continue
            thread = threading.Thread(target=self._serve_one, args=(plain,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve_one(self, plain: socket.socket) -> None:
        with plain:
            plain.settimeout(ACCEPT_SECONDS)
            self._serve_plain(plain)

    def _serve_plain(self, plain: socket.socket) -> None:
        if self._context is None:
            plain.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            return
        try:
            connection = self._context.wrap_socket(plain, server_side=True)
        except OSError:
            self.refused += 1
            return
        self.accepted += 1
        with connection:
            try:
                self._handler(connection)
            except OSError:
                return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._joined(self._thread)  # first: it may still add one for a connection that it has just accepted
        for thread in self._threads:
            self._joined(thread)

    @staticmethod
    def _joined(thread: threading.Thread) -> None:
        thread.join(ACCEPT_SECONDS)
        assert not thread.is_alive(), "the peer's handler did not end"


@contextmanager
def refusing_port() -> Iterator[int]:
    """A port of 127.0.0.1 on which no process listens: it is taken, so that none begins to meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield int(bound.getsockname()[1])


def read_head(connection: ssl.SSLSocket) -> bytes:
    """A request up to its empty line, and whatever came with it."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(4096)
        if not more:
            raise ConnectionResetError("the client hung up")
        data += more
    return data


def read_head_of_request(connection: ssl.SSLSocket) -> tuple[str, dict[str, str], bytes]:
    """The request line, the headers by their lower-case names, and what came of the body with them."""
    head, _, body = read_head(connection).partition(b"\r\n\r\n")
    line, *fields = head.decode("utf-8").split("\r\n")
    return line, {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}, body


def read_rest_of_body(connection: ssl.SSLSocket, headers: dict[str, str], body: bytes) -> bytes:
    """The whole body, of which `body` came with the head."""
    while len(body) < int(headers.get("content-length", "0")):
        body += _more(connection)
    return body


def _more(connection: ssl.SSLSocket) -> bytes:
    more = connection.recv(65536)
    if not more:
        raise ConnectionResetError("the client hung up")
    return more


def read_chunks(connection: ssl.SSLSocket, rest: bytes) -> Iterator[bytes]:
    """The chunks of a body, of which `rest` came with the head."""
    while True:
        while b"\r\n" not in rest:
            rest += _more(connection)
        digits, _, rest = rest.partition(b"\r\n")
        size = int(digits, 16)
        while len(rest) < size + 2:
            rest += _more(connection)
        if not size:
            return
        yield rest[:size]
        rest = rest[size + 2 :]


def read_whole_request(connection: ssl.SSLSocket) -> tuple[str, dict[str, str], bytes]:
    """The request line, the headers by their lower-case names, and the whole body."""
    line, headers, body = read_head_of_request(connection)
    return line, headers, read_rest_of_body(connection, headers, body)


def read_request(connection: ssl.SSLSocket) -> tuple[str, bytes]:
    """The request line and the whole body."""
    line, _, body = read_whole_request(connection)
    return line, body


def answer(status: int, body: bytes, keep: bool = False) -> bytes:
    """A whole HTTP answer; keep: the connection stays for another request."""
    closing = b"" if keep else b"Connection: close\r\n"
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n%s\r\n%s" % (status, len(body), closing, body)
