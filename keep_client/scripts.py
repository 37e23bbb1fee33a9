"""A script pool as its clients speak to it: lines of JSON each way, over a Unix socket, or to a keep over mutual TLS.

The keep's certificate is compared with the pin before anything is sent. Many requests may be under way: each has an id,
which its answer begins with.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from _collections_abc import Mapping
from io import BufferedReader
from typing import Protocol

from keep_client.channel import CONNECT_SECONDS, notice_a_peer_that_is_gone
from keep_client.credentials import Credentials, ask_passphrase
from keep_client.keep import UploadEndpoint
from keep_client.peer import ConnectionFailed, handshake_failed, translate
from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.tls import HANDSHAKE_SECONDS, check_pin, pinned_client_context

SCRIPTS_PATH = "/scripts"
LINES_TYPE = "application/json-lines"
"""Of a body that is a stream of requests, or of answers, each ended by CRLF."""
MAX_ANSWER = 64 * 1024 * 1024
"""One line: an output of 5 MiB, or what the pool's owner has set."""
ANSWER_SECONDS = 120.0
"""A run may take 60 seconds, and wait as long."""
_MAX_HEAD = 64 * 1024


class Stream(Protocol):
    """A connection to a pool."""

    def send(self, line: bytes) -> None:
        """Sends one request, with its CRLF. Raises KeepfleetError."""

    def receive(self) -> bytes:
        """The next answer, with its CRLF. Raises KeepfleetError."""

    def close(self) -> None:
        """Ends it."""


def ask(stream: Stream, request: Mapping[str, object]) -> dict[str, object]:
    """The answer to one request, where none other is under way. Raises KeepfleetError."""
    stream.send(strict_json.dumps({"id": 1, **request}) + b"\r\n")
    return strict_json.loads_object(stream.receive(), MAX_ANSWER, "the pool's answer")


class SocketStream:
    """To a pool that serves a Unix socket."""

    def __init__(self, path: str) -> None:
        """Raises KeepfleetError."""
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise ConnectionFailed(
                ErrorKind.UNAVAILABLE, f"cannot reach the pool at {path}: {error.strerror}; does script-pool serve it?"
            ) from error
        self._socket.settimeout(ANSWER_SECONDS)
        self._reader = self._socket.makefile("rb")

    def __repr__(self) -> str:
        return f"SocketStream({self._socket!r})"

    def send(self, line: bytes) -> None:
        """See `Stream`."""
        try:
            self._socket.sendall(line)
        except OSError as error:
            raise _gone("the pool", error) from error

    def receive(self) -> bytes:
        """See `Stream`."""
        return _line(self._reader, "the pool")

    def close(self) -> None:
        """See `Stream`."""
        self._reader.close()
        self._socket.close()


class KeepStream:
    """To a pool in a keep: one request of HTTP, whose body and whose answer's body are streams of lines."""

    def __init__(self, endpoint: UploadEndpoint, credentials: Credentials) -> None:
        """credentials: those with which the manager was asked where the keep is, when their files were looked at.
        Raises KeepfleetError."""
        self._peer = peer = endpoint.endpoint
        key = credentials.key
        self._socket = _connected(
            endpoint, pinned_client_context(credentials.certificate, key, lambda: ask_passphrase(key))
        )
        self._reader = self._socket.makefile("rb")
        self._answered = False
        self.send_raw(
            f"POST {SCRIPTS_PATH} HTTP/1.1\r\nHost: {peer.authority}\r\nContent-Type: {LINES_TYPE}\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode("ascii")
        )

    def __repr__(self) -> str:
        return f"KeepStream({self._peer})"

    def send_raw(self, data: bytes) -> None:
        """Sends bytes as they are. Raises KeepfleetError."""
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise translate(error, self._peer) from error

    def send(self, line: bytes) -> None:
        """See `Stream`."""
        self.send_raw(b"%x\r\n%b\r\n" % (len(line), line))

    def receive(self) -> bytes:
        """See `Stream`; the server writes each answer as a chunk of its own."""
        if not self._answered:
            self._read_head()
            self._answered = True
        try:
            size = int(self._reader.readline(32), 16)
            if not 0 < size <= MAX_ANSWER:
                raise ValueError("it has ended its answers")
            data = self._reader.read(size + 2)
        except (OSError, ValueError) as error:
            raise translate(error, self._peer) from error
        return data[:size]

    def _read_head(self) -> None:
        try:
            status = self._reader.readline(_MAX_HEAD)
            length, taken = 0, len(status)
            while (line := self._reader.readline(_MAX_HEAD)) not in (b"\r\n", b""):
                taken += len(line)
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
                if taken > _MAX_HEAD:
                    raise ValueError("its headers are too long")
            words = status.split(None, 2)
            if len(words) < 2 or not words[0].startswith(b"HTTP/1.1"):
                raise ValueError(f"it begins {status[:40]!r}")
            if words[1] != b"200":
                raise _refusal(self._reader.read(min(length, _MAX_HEAD)))
        except (OSError, ValueError) as error:
            raise translate(error, self._peer) from error

    def close(self) -> None:
        """See `Stream`."""
        with contextlib.suppress(OSError):
            self._socket.sendall(b"0\r\n\r\n")
        self._reader.close()
        self._socket.close()


def _connected(endpoint: UploadEndpoint, context: ssl.SSLContext) -> ssl.SSLSocket:
    peer = endpoint.endpoint
    try:
        plain = socket.create_connection((peer.host, peer.port), CONNECT_SECONDS)
    except OSError as error:
        raise translate(error, peer) from error
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    notice_a_peer_that_is_gone(plain)
    plain.settimeout(HANDSHAKE_SECONDS)
    try:
        made = context.wrap_socket(plain, server_hostname=peer.host)
    except OSError as error:
        plain.close()
        raise handshake_failed(error, peer) from error
    try:
        check_pin(made.getpeercert(binary_form=True), endpoint.fingerprint)
    except KeepfleetError:
        made.close()
        raise
    made.settimeout(ANSWER_SECONDS)
    return made


def _refusal(body: bytes) -> KeepfleetError:
    from keep_protocol.errors import error_from_wire

    return error_from_wire(strict_json.loads_object(body, _MAX_HEAD, "the keep's answer").get("error"))


def _line(reader: BufferedReader, who: str) -> bytes:
    try:
        line = reader.readline(MAX_ANSWER)
    except OSError as error:
        raise _gone(who, error) from error
    if not line.endswith(b"\r\n"):
        raise ConnectionFailed(ErrorKind.UNAVAILABLE, f"cannot have {who}'s answer: it has ended the connection")
    return line


def _gone(who: str, error: OSError) -> ConnectionFailed:
    return ConnectionFailed(ErrorKind.UNAVAILABLE, f"cannot ask {who}: {error.strerror or error}")
