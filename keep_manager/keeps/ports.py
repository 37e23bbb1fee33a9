"""Binds the TCP socket a keep will accept on, so that a taken port is an error here and not a race later."""

from __future__ import annotations

import array
import errno
import socket
import struct
from collections.abc import Iterable

from keep_protocol.errors import ErrorKind, KeepfleetError

BACKLOG = 16
"""A keep takes one workload; a few connections may queue behind it, not a flood."""
_TAKEN = {errno.EADDRINUSE, errno.EACCES}
"""What one port can have against it; anything else, such as an address of another host, is true of all ports."""
_SO_ATTACH_FILTER, _SO_LOCK_FILTER = 26, 44
_TCP_FLAGS, _SYN_ACK, _TAKE, _DROP = 13, 0x12, 0x7FFFFFFF, 0
_NO_ANSWERS = (
    (0x30, 0, 0, _TCP_FLAGS),  # load the flags' byte of the TCP header
    (0x54, 0, 0, _SYN_ACK),  # keep these two
    (0x15, 0, 1, _SYN_ACK),  # both set: the answer to a connection that we opened
    (0x06, 0, 0, _DROP),
    (0x06, 0, 0, _TAKE),
)
"""Classic BPF (man 7 socket, SO_ATTACH_FILTER) for what arrives; nothing a client sends has both SYN and ACK set."""


def bind_listener(address: str, ports: Iterable[int]) -> socket.socket:
    """A socket that listens on `address` and the first of `ports` that is free.

    Two sockets can be bound to one port with SO_REUSEADDR before either listens, so a port counts as free only once
    listen() has succeeded. The socket can only ever accept, see `_seal`. Raises KeepfleetError(PORT_UNAVAILABLE) with
    the last port's reason.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    tried, reason = 0, "no port was left to try"
    sock: socket.socket | None = None
    for port in ports:
        sock = sock or _new(family)
        tried += 1
        bound = False
        try:
            sock.bind((address, port))
            bound = True
            sock.listen(BACKLOG)
            return sock
        except OSError as error:
            reason = f"port {port}: {error.strerror}"
            if bound or error.errno not in _TAKEN:
                sock.close()
                sock = None
            if error.errno not in _TAKEN:
                break
    if sock is not None:
        sock.close()
    many = f" (the last of {tried} tried)" if tried > 1 else ""
    raise KeepfleetError(ErrorKind.PORT_UNAVAILABLE, f"cannot listen on {address}: {reason}{many}")


def _new(family: socket.AddressFamily) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family is socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    _seal(sock)
    return sock


def _seal(sock: socket.socket) -> None:
    """Lets the socket, and what it accepts, never get the answer to a connection of its own making.

    It belongs to the host's network wherever it is handed to: a keep could shut it down as a listener and connect
    with it to anywhere (measured on Linux 6.18, also by TCP fast open). The filter cannot be taken off again.
    """
    code = array.array("Q", b"".join(struct.pack("HBBI", *step) for step in _NO_ANSWERS))
    address, count = code.buffer_info()
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HxxxxxxQ", count, address))
    sock.setsockopt(socket.SOL_SOCKET, _SO_LOCK_FILTER, 1)
