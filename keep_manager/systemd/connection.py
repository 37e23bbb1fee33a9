"""One connection to a bus: messages out and in, without waiting, until it ends. `bus` makes it again."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from urllib.parse import unquote

from keep_manager.systemd.message import ERROR, HEAD, REPLY, SIGNAL, Message, decode, encode_call, size_of

RECEIVED = 1 << 16
MAX_LINE = 1024
"""Bytes of a line of the handshake; they have about forty."""
BUS, BUS_PATH = "org.freedesktop.DBus", "/org/freedesktop/DBus"


class BusLost(Exception):
    """The connection went away while a call was under way; it may have been carried out or not."""


def dial(address: str, flags: int = 0) -> socket.socket:
    """A socket that is connected to the first of these addresses that is a Unix socket's (D-Bus Specification, "Server
    Addresses"). Raises OSError."""
    for transport, _, text in (part.partition(":") for part in address.split(";")):
        options = {name: unquote(value) for name, _, value in (word.partition("=") for word in text.split(","))}
        place = options.get("path") or "\0" + options.get("abstract", "")
        if transport != "unix" or place == "\0":
            continue
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | flags)
        try:
            sock.connect(place)
        except BaseException:
            sock.close()
            raise
        return sock
    raise OSError(errno.EAFNOSUPPORT, "the address names no Unix socket")


def greeting() -> bytes:
    """Says who we are (D-Bus Specification, "Authentication Protocol")."""
    return b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n"


class Connection:
    """`on_signal` gets each signal that comes, from whomever. `lost` completes when the connection ends.

    files: whether descriptors can be passed.
    """

    def __init__(self, address: str, on_signal: Callable[[Message], None], *, files: bool = False) -> None:
        """Raises OSError."""
        self._loop = asyncio.get_running_loop()
        self._sock = dial(address, socket.SOCK_NONBLOCK)
        self._on_signal, self._files = on_signal, files
        self._unsent: deque[tuple[memoryview, list[int]]] = deque()
        self._received = bytearray()
        self._calls: dict[int, asyncio.Future[Message]] = {}
        self._serial = 0
        self.name = ""  # what the bus calls us
        self.lost: asyncio.Future[None] = self._loop.create_future()

    def __repr__(self) -> str:
        return f"Connection({'lost' if self.lost.done() else f'{len(self._calls)} calls'})"

    async def open(self) -> None:
        """Shakes hands, and gets a name from the bus. Raises OSError, EOFError, BusLost."""
        await self._loop.sock_sendall(self._sock, greeting())
        await self._agreement(b"OK ")
        if self._files:
            await self._loop.sock_sendall(self._sock, b"NEGOTIATE_UNIX_FD\r\n")
            await self._agreement(b"AGREE_UNIX_FD")
        await self._loop.sock_sendall(self._sock, b"BEGIN\r\n")
        self._loop.add_reader(self._sock, self._readable)
        self.name = str((await self.call(BUS, BUS_PATH, BUS, "Hello")).body()[0])

    async def _agreement(self, begins: bytes) -> None:
        line = b""
        while not line.endswith(b"\r\n"):
            byte = await self._loop.sock_recv(self._sock, 1)  # what follows the line is no part of it
            if not byte:
                raise EOFError("the bus closed the connection during the handshake")
            line += byte
            if len(line) > MAX_LINE:
                break
        if not line.startswith(begins):
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"the bus does not let us in: {line[:80]!r}")

    async def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: Sequence[object] = (),
        files: Sequence[int] = (),
    ) -> Message:
        """The reply, or the error. Raises BusLost; ValueError for arguments that do not have the signature."""
        if self.lost.done():
            raise BusLost(member)
        self._serial += 1
        serial = self._serial
        data = encode_call(serial, destination, path, interface, member, signature, body, len(files))
        reply: asyncio.Future[Message] = self._loop.create_future()
        self._calls[serial] = reply
        try:
            self._send(memoryview(data), files)
            return await reply
        except BusLost:
            raise BusLost(member) from None
        finally:
            del self._calls[serial]

    def end(self) -> None:
        """Closes the connection; calls under way raise BusLost."""
        if self.lost.done():
            return
        self.lost.set_result(None)
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        while self._unsent:
            _close(self._unsent.popleft()[1])
        for reply in self._calls.values():
            if not reply.done():
                reply.set_exception(BusLost())

    def _send(self, data: memoryview, files: Sequence[int]) -> None:
        """Keeps `files` open until they have gone: a caller that is cancelled before closes its own."""
        self._unsent.append((data, [os.dup(file) for file in files]))
        if len(self._unsent) == 1:
            self._writable()

    def _writable(self) -> None:
        """Sends what the socket takes now; the rest when it takes more."""
        try:
            while self._unsent:
                data, files = self._unsent[0]
                sent = socket.send_fds(self._sock, [data], files) if files else self._sock.send(data)
                _close(files)  # they went with the first byte
                self._unsent[0] = data[sent:], []
                if sent == len(data):
                    self._unsent.popleft()
        except BlockingIOError:
            self._loop.add_writer(self._sock, self._writable)
            return
        except OSError:
            self.end()
            return
        self._loop.remove_writer(self._sock)

    def _readable(self) -> None:
        try:
            data = self._sock.recv(RECEIVED)  # of descriptors, which no peer is to send us, the kernel closes each
            if not data:
                self.end()
                return
            self._received += data
            self._take_messages()
        except BlockingIOError:
            return
        except (OSError, ValueError):  # ValueError: it does not speak D-Bus
            self.end()

    def _take_messages(self) -> None:
        while len(self._received) >= HEAD.size and (size := size_of(self._received)) <= len(self._received):
            data = bytes(memoryview(self._received)[:size])
            del self._received[:size]
            message = decode(data)
            if message.type in (REPLY, ERROR):
                reply = self._calls.get(message.reply_serial)
                if reply is not None and not reply.done():
                    reply.set_result(message)
            elif message.type == SIGNAL:
                self._on_signal(message)
            if self.lost.done():
                return


def _close(files: Sequence[int]) -> None:
    for file in files:
        os.close(file)
