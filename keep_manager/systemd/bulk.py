"""Reads one property of many units, on a connection of its own that lives for that read.

A manager's start asks for every keep's spec. Here that takes no task for each of a thousand calls, and calls are
pipelined, so that systemd need not wait for the manager either.
What is not read here, for whatever reason, is left out: `units` asks for it again, one by one.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator, Mapping, Sequence

from keep_manager.systemd.connection import BUS, BUS_PATH, greeting
from keep_manager.systemd.message import ERROR, REPLY, Message, Variant, decode, encode_call, size_of

IN_FLIGHT = 64
"""Half of what the system bus allows one connection to have pending."""
MAX_MESSAGE = 1 << 20
"""A spec has at most 120 KiB, and the rest of the environment little."""
RECEIVED = 1 << 16
_PROPERTIES = "org.freedesktop.DBus.Properties"


class PropertyReader:
    """One connection, on a socket that is connected to a bus and becomes its own; to be used by one thread.

    Every method raises OSError or ValueError when the bus goes away or does not speak D-Bus.
    """

    def __init__(self, sock: socket.socket, destination: str, seconds: float) -> None:
        self._sock, self._deadline = sock, time.monotonic() + seconds
        self._destination = destination
        self._rest = bytearray()

    def __repr__(self) -> str:
        return f"PropertyReader({self._sock!r})"

    def open(self) -> None:
        """Says who we are, and gets a name from the bus."""
        self._send(greeting())
        while b"\r\n" not in self._rest:
            self._receive()
        line, _, self._rest = self._rest.partition(b"\r\n")
        if not line.startswith(b"OK "):
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"the bus does not let us in: {bytes(line[:80])!r}")
        self._send(b"BEGIN\r\n" + encode_call(1, BUS, BUS_PATH, BUS, "Hello"))
        next(self._replies())

    def string_lists(self, paths: Sequence[str], interface: str, name: str) -> Mapping[str, list[str]]:
        """The property `interface`.`name` of the objects at `paths`, of those of which it is a list of strings."""
        calls = enumerate(paths, 2)
        asked: dict[int, str] = {}
        found: dict[str, list[str]] = {}

        def ask_more() -> None:
            data = b""
            while len(asked) < IN_FLIGHT and (following := next(calls, None)) is not None:
                serial, path = following
                asked[serial] = path
                data += encode_call(serial, self._destination, path, _PROPERTIES, "Get", "ss", (interface, name))
            if data:
                self._send(data)

        ask_more()
        replies = self._replies()
        while asked:
            serial, value = next(replies)
            path = asked.pop(serial, "")
            if path and value is not None:
                found[path] = value
            if len(asked) <= IN_FLIGHT // 2:
                ask_more()
        return found

    def _replies(self) -> Iterator[tuple[int, list[str] | None]]:
        """The replies as they come: to which call, and the strings in each, None for one of another shape."""
        while True:
            while (size := size_of(self._rest)) > len(self._rest):
                if size > MAX_MESSAGE:
                    raise ValueError("what the bus sent is too long")
                self._receive()
            message = decode(bytes(memoryview(self._rest)[:size]))
            del self._rest[:size]
            if message.type in (REPLY, ERROR):
                yield message.reply_serial, _strings(message)

    def _send(self, data: bytes) -> None:
        self._sock.settimeout(self._left())
        self._sock.sendall(data)

    def _receive(self) -> None:
        self._sock.settimeout(self._left())
        data = self._sock.recv(RECEIVED)
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "the bus closed the connection")
        self._rest += data

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(errno.ETIMEDOUT, "the bus did not answer in time")
        return left


def _strings(message: Message) -> list[str] | None:
    """The list of strings in the variant that a reply has, or None where it is another one. Raises ValueError."""
    if message.type == ERROR:
        return None
    body = message.body()
    value = body[0] if len(body) == 1 else None
    if not isinstance(value, Variant) or value.signature != "as" or not isinstance(value.value, list):
        return None
    return value.value
