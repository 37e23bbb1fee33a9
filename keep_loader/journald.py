"""journald's own socket: datagrams of its native protocol, over a socket that the manager has connected.

Import rule: that of keep_loader.
"""

from __future__ import annotations

import errno
import fcntl

from keep_loader.journal import Sent
from keep_protocol import sockets as socket

_SIOCOUTQ = 0x5411
"""Bytes that were sent and are not read yet (man 7 unix)."""
_FULL = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)
_GONE = (errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOTCONN, errno.EPIPE, errno.EDESTADDRREQ)
"""A socket that journald was connected by stays dead once systemd-journald.socket was stopped."""


class JournalSocket:
    """Owns the socket to journald, until it is replaced or closed."""

    def __init__(self, descriptor: int) -> None:
        """Takes `descriptor` over."""
        self._sock = socket.socket(fileno=descriptor)

    def __repr__(self) -> str:
        return f"JournalSocket({self._sock.fileno()})"

    def replace(self, descriptor: int) -> None:
        """Goes on with another one, which it takes over."""
        self._sock.close()
        self._sock = socket.socket(fileno=descriptor)

    def send(self, data: bytes) -> Sent:
        """Sends one entry, and does not wait. Raises OSError for what a datagram cannot be."""
        try:
            self._sock.send(data, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        except OSError as error:
            if error.errno in _FULL:
                return Sent.FULL
            if error.errno in _GONE:
                return Sent.GONE
            raise
        return Sent.TAKEN

    def all_read(self) -> bool:
        """Whether journald has read everything that was sent."""
        return not any(fcntl.ioctl(self._sock.fileno(), _SIOCOUTQ, bytes(4)))

    def close(self) -> None:
        """Closes it."""
        self._sock.close()
