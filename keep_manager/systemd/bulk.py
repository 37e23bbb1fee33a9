"""Reads one property of many units, on a connection of its own that lives for that read.

A manager's start asks for every keep's spec. By dbus-next a call costs 0.3 ms of processor time, half a second for a
thousand keeps; written and read here, by two shapes of message that are known beforehand, it is a tenth of that
(D-Bus Specification, "Message Protocol"). Calls are pipelined, so that systemd need not wait for the manager either.
What is not read here, for whatever reason, is left out: `units` asks for it again, one by one.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

LOG = logging.getLogger("keepfleet.bus")
IN_FLIGHT = 64
"""Half of what the system bus allows one connection to have pending."""
MAX_MESSAGE = 1 << 20
"""A spec has at most 120 KiB, and the environment of a unit little beside."""
RECEIVED = 1 << 16
ORDER, ENDIAN = ("<", b"l") if sys.byteorder == "little" else (">", b"B")
"""The bus passes a message on in the byte order of its sender, which is on this host."""
CALL, REPLY, ERROR = 1, 2, 3
NO_AUTO_START = 2
PATH, INTERFACE, MEMBER, REPLY_SERIAL, DESTINATION, SIGNATURE = 1, 2, 3, 5, 6, 8
_WORD = struct.Struct(ORDER + "I")
_HEAD = struct.Struct(ORDER + "cBBBIII")
"""Byte order, type, flags, version of the protocol, length of the body, serial number, length of the header fields."""


def _padded(data: bytes, to: int) -> bytes:
    return data + bytes(-len(data) % to)


def _string(text: str) -> bytes:
    data = text.encode()
    return _WORD.pack(len(data)) + data + b"\0"


def _field(code: int, kind: bytes, text: str) -> bytes:
    """One header field. Each begins at a multiple of 8, and so does the value's length at one of 4."""
    value = bytes([len(text)]) + text.encode() + b"\0" if kind == b"g" else _string(text)
    return bytes([code, 1]) + kind + b"\0" + value


def _message(serial: int, fields: Sequence[bytes], body: bytes = b"") -> bytes:
    header = b"".join(_padded(field, 8) for field in fields[:-1]) + fields[-1]
    head = _HEAD.pack(ENDIAN, CALL, NO_AUTO_START, 1, len(body), serial, len(header))
    return _padded(head + header, 8) + body


def _hello() -> bytes:
    bus = "org.freedesktop.DBus"
    names = ((PATH, b"o", "/org/freedesktop/DBus"), (INTERFACE, b"s", bus), (MEMBER, b"s", "Hello"))
    return _message(1, [_field(DESTINATION, b"s", bus), *(_field(*name) for name in names)])


class PropertyReader:
    """One connection, on a socket that is connected to a bus and becomes its own; to be used by one thread.

    Every method raises OSError or ValueError when the bus goes away or does not speak D-Bus.
    """

    def __init__(self, sock: socket.socket, destination: str, seconds: float) -> None:
        self._sock, self._deadline = sock, time.monotonic() + seconds
        self._fields = [
            _field(DESTINATION, b"s", destination),
            _field(INTERFACE, b"s", "org.freedesktop.DBus.Properties"),
            _field(MEMBER, b"s", "Get"),
            _field(SIGNATURE, b"g", "ss"),
        ]
        self._rest = bytearray()

    def __repr__(self) -> str:
        return f"PropertyReader({self._sock!r})"

    def open(self) -> None:
        """Says who we are (D-Bus Specification, "Authentication Protocol"), and gets a name from the bus."""
        self._send(b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n")
        while b"\r\n" not in self._rest:
            self._receive()
        line, _, self._rest = self._rest.partition(b"\r\n")
        if not line.startswith(b"OK "):
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"the bus does not let us in: {bytes(line[:80])!r}")
        self._send(b"BEGIN\r\n" + _hello())
        next(self._replies())

    def string_lists(self, paths: Sequence[str], interface: str, name: str) -> Mapping[str, list[str]]:
        """The property `interface`.`name` of the objects at `paths`, of those of which it is a list of strings."""
        body = _padded(_string(interface), 4) + _string(name)
        calls = enumerate(paths, 2)
        asked: dict[int, str] = {}
        found: dict[str, list[str]] = {}

        def ask_more() -> None:
            data = b""
            while len(asked) < IN_FLIGHT and (following := next(calls, None)) is not None:
                serial, path = following
                asked[serial] = path
                data += _message(serial, [*self._fields, _field(PATH, b"o", path)], body)
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
            while (size := _size(self._rest)) > len(self._rest):
                self._receive()
            message = bytes(memoryview(self._rest)[:size])
            del self._rest[:size]
            if message[1] in (REPLY, ERROR):
                yield _reply(message)

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


def _size(data: bytearray) -> int:
    """How long the message is that begins `data`, as far as it can be known. Raises ValueError for what is none."""
    if len(data) < _HEAD.size:
        return _HEAD.size
    order, _, _, _, body, _, fields = _HEAD.unpack_from(data)
    size = int(_HEAD.size + fields + -fields % 8 + body)
    if order != ENDIAN or size > MAX_MESSAGE:
        raise ValueError("what the bus sent is no message of this host")
    return size


def _reply(message: bytes) -> tuple[int, list[str] | None]:
    """To which call a message replies, 0 for none, and the strings in it."""
    try:
        fields = int(_HEAD.unpack_from(message)[6])
        serial = _reply_serial(message, _HEAD.size, _HEAD.size + fields)
        return serial, _strings(message, _HEAD.size + fields + -fields % 8) if message[1] == REPLY else None
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise ValueError("what the bus sent is cut off") from error


def _reply_serial(message: bytes, at: int, end: int) -> int:
    while at < end:
        code, kind = message[at], message[at + 2 : at + 3]
        at += 4
        if code == REPLY_SERIAL and kind == b"u":
            return int(_WORD.unpack_from(message, at)[0])
        at += 4 if kind == b"u" else message[at] + 2 if kind == b"g" else _WORD.unpack_from(message, at)[0] + 5
        at += -at % 8
    return 0


def _strings(message: bytes, body: int) -> list[str] | None:
    """The list of strings in the variant that begins at `body`, or None where it is another one."""
    if message[body : body + 4] != b"\2as\0":
        return None
    at, end = body + 8, body + 8 + _WORD.unpack_from(message, body + 4)[0]
    found: list[str] = []
    while at < end:
        length = _WORD.unpack_from(message, at)[0]
        found.append(message[at + 4 : at + 4 + length].decode())
        at += 4 + length + 1
        at += -at % 4
    return found
