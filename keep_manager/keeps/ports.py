"""Binds the TCP socket a keep will accept on, so that a taken port is an error here and not a race later."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable

from keep_protocol.errors import ErrorKind, KeepfleetError

BACKLOG = 16
"""A keep takes one workload; a few connections may queue behind it, not a flood."""
_TAKEN = {errno.EADDRINUSE, errno.EACCES}
"""What one port can have against it; anything else, such as an address of another host, is true of all ports."""


def bind_listener(address: str, ports: Iterable[int]) -> socket.socket:
    """A socket that listens on `address` and the first of `ports` that is free.

    Two sockets can be bound to one port with SO_REUSEADDR before either listens, so a port counts as free only once
    listen() has succeeded. Raises KeepfleetError(PORT_UNAVAILABLE) with the last port's reason.
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
    return sock
