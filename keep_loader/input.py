"""A standard input that is streamed: from the manager's socket into the guest's pipe.

The socket is read only while the pipe has room, so that a client sends no faster than its guest reads. A manager that
dies closes the socket, too, and the guest must not take that for the end: the end is said, by a packet.
Import rule: that of keep_loader.
"""

from __future__ import annotations

import os
import socket

from keep_loader.loop import HANG_UP, READABLE, WRITABLE, Action, Loop

DATA, COMPLETE, NO_MORE = b"d", b"e", b"n"
"""How a packet of the manager's begins that has data, and the one that ends them; and ours, when the guest takes no
more."""
MAX_PACKET = 1 + 64 * 1024

MAX_THROWN_AWAY = 64
"""Packets; a socket's queue holds a few."""


class Input:
    """One run's standard input. Owns the socket and our end of the pipe, until everything is done or `close`."""

    def __init__(self, loop: Loop, descriptor: int, cut: Action) -> None:
        """Takes `descriptor` over; `cut` is called when the manager has gone before the end. Raises OSError."""
        self._loop, self._cut = loop, cut
        self._sock: socket.socket | None = socket.socket(fileno=descriptor)
        self._sock.setblocking(False)
        self.theirs, self._ours = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._ours, False)
        self._waiting = b""
        self._complete = False
        self._settle()

    def __repr__(self) -> str:
        return f"Input({'closed' if self._sock is None else f'{len(self._waiting)} bytes waiting'})"

    def close(self) -> None:
        """The guest takes no more, or has all."""
        if self._sock is None:
            return
        if not self._complete:
            self._say_no_more(self._sock)
        for descriptor in (self._sock.fileno(), self._ours):
            self._loop.forget(descriptor)
        os.close(self._ours)
        self._sock.close()
        self._sock = None

    def _say_no_more(self, sock: socket.socket) -> None:
        """Says it, and throws away what waits: closed with that, the socket would be a reset to the manager."""
        try:
            sock.send(NO_MORE, socket.MSG_NOSIGNAL)
            for _ in range(MAX_THROWN_AWAY):
                if not sock.recv(MAX_PACKET):
                    return
        except OSError:
            return  # nothing waits, or the manager has gone, too

    def _settle(self) -> None:
        """Watches the pipe for room while something waits, else the socket; the pipe's own hang-up at any time."""
        if self._sock is not None:
            self._loop.watch(self._ours, WRITABLE if self._waiting else HANG_UP, self._writable)
            if self._waiting:
                self._loop.forget(self._sock.fileno())
            else:
                self._loop.watch(self._sock.fileno(), READABLE, self._readable)

    def _readable(self, _events: int) -> None:
        if self._sock is None:
            return
        try:
            packet = self._sock.recv(MAX_PACKET)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if packet[:1] == DATA and len(packet) > 1:
            self._waiting = packet[1:]
            self._write()
        elif packet == COMPLETE:
            self._complete = True
            self.close()
        elif packet != DATA:
            self._cut()  # which ends the guest before it can see the end of its pipe
            self._complete = True
            self.close()

    def _writable(self, events: int) -> None:
        if self._waiting and events & WRITABLE:
            self._write()
        else:
            self.close()

    def _write(self) -> None:
        try:
            written = os.write(self._ours, self._waiting)
        except BlockingIOError:
            written = 0
        except OSError:
            self.close()
            return
        self._waiting = self._waiting[written:]
        self._settle()
