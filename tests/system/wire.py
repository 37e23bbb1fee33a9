"""Requests as bytes, just as a test wants them, and whatever comes back."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any

SECONDS = 30.0
"""The servers' own deadlines are 5 to 15 s; a test that waits longer than this has failed."""


@dataclass(frozen=True)
class Answer:
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def object(self) -> dict[str, Any]:
        """The body as a JSON object."""
        value: dict[str, Any] = json.loads(self.body)
        return value

    @property
    def kind(self) -> str:
        """The kind of the error it reports."""
        return str(self.object["error"]["kind"])


class NoAnswer(Exception):
    """The peer closed the connection, or never finished the handshake, without one byte of an answer."""


def connect(port: int, context: ssl.SSLContext, address: str = "127.0.0.1", name: str | None = None) -> ssl.SSLSocket:
    """A TLS connection, its handshake done. With TLS 1.3 a refused client certificate shows only when reading."""
    plain = socket.create_connection((address, port), SECONDS)
    try:
        return context.wrap_socket(plain, server_hostname=name or address)
    except BaseException:
        plain.close()
        raise


def read_answer(connection: socket.socket) -> Answer:
    """The next answer on a connection. Raises NoAnswer where there is none."""
    response = HTTPResponse(connection)
    try:
        response.begin()
        body = response.read()
    except (OSError, ValueError) as error:  # http.client's RemoteDisconnected is a ConnectionResetError
        raise NoAnswer(repr(error)) from error
    return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, body)


def request(method: str, path: str, body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    """One request; `length` instead of the body's own."""
    count = len(body) if length is None else length
    lines = [f"{method} {path} HTTP/1.1", "Host: test", f"Content-Length: {count}", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def ask(port: int, context: ssl.SSLContext, data: bytes, address: str = "127.0.0.1") -> Answer:
    """The answer to `data` on a connection of its own. Raises NoAnswer."""
    try:
        with connect(port, context, address) as connection:
            send(connection, data)
            return read_answer(connection)
    except OSError as error:
        raise NoAnswer(repr(error)) from error


def ask_each(port: int, context: ssl.SSLContext, requests: Iterable[bytes]) -> Iterator[tuple[bytes, Answer]]:
    """Each request with its answer, on one connection as long as the server keeps it: a handshake costs both sides
    several times what a request does. Raises NoAnswer."""
    connection: ssl.SSLSocket | None = None
    try:
        for data in requests:
            connection = connection or connect(port, context)
            send(connection, data)
            answer = read_answer(connection)
            yield data, answer
            if answer.headers.get("connection", "").lower() == "close":
                connection.close()
                connection = None
    finally:
        if connection is not None:
            connection.close()


def send(connection: socket.socket, data: bytes) -> bool:
    """Sends all of `data`; False where the peer closed meanwhile, as it may: its answer can still be read."""
    try:
        connection.sendall(data)
    except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
        return False
    return True
