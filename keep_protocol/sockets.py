"""Sockets as the standard library's `socket` has them, as far as a keep and a command need them.

Importing `socket` makes enumerations of all its numbers: 5 ms of a process's start. Here the numbers are what they are
in `_socket`. A type checker sees the standard library's own.
Import rule: `_socket`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import *  # noqa: F403
else:
    import _socket
    import sys
    from _socket import *  # noqa: F403

    class socket(_socket.socket):  # as it is called there
        """A socket that is closed at the end of a `with`, and accepts sockets of its own kind."""

        __slots__ = ("__weakref__",)  # which TLS needs

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.close()

        def accept(self):
            """The next connection, and its peer's address; blocking as the standard library's is."""
            descriptor, address = self._accept()
            return socket(self.family, self.type, self.proto, fileno=descriptor), address

    def socketpair(family, type=_socket.SOCK_STREAM, proto=0):
        """Two sockets that are connected."""
        return tuple(socket(family, type, proto, one.detach()) for one in _socket.socketpair(family, type, proto))

    def send_fds(sock, buffers, fds, flags=0):
        """Sends `buffers` with the descriptors `fds`; the flags count, which the standard library's drops."""
        numbers = b"".join(number.to_bytes(4, sys.byteorder) for number in fds)
        return sock.sendmsg(buffers, [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, numbers)], flags)

    def create_connection(address, timeout):
        """A connection to a host and port, at the first of the host's addresses that takes one; the last one's error
        where none does. `timeout`, in seconds, is for each, and stays with the socket."""
        failure = OSError("it has no address")
        for family, kind, protocol, _, place in getaddrinfo(*address, 0, SOCK_STREAM):  # noqa: F405
            sock = None
            try:
                sock = socket(family, kind, protocol)
                sock.settimeout(timeout)
                sock.connect(place)
                return sock
            except OSError as error:
                failure = error
                if sock is not None:
                    sock.close()
        raise failure
