"""Sockets as the standard library's `socket` has them, as far as a keep and a command need them.

Importing `socket` makes enumerations of all its numbers: 5 ms of a process's start. Here the numbers are what they are
in `_socket`. A type checker sees the standard library's own. What is not here is asked for there: names of hosts.
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
