"""Messages to systemd over `$NOTIFY_SOCKET` (man sd_notify), with descriptors for its store.

Import rule: `os` and `socket` alone (the light part of keep_protocol).
"""

from __future__ import annotations

import os

from keep_protocol import sockets as socket


class Notifier:
    """Sends state to the service manager; without `$NOTIFY_SOCKET` every call does nothing and returns False.

    The address is taken from the environment at construction and removed from it, so that no child can use it.
    """

    def __init__(self, environment: dict[str, str] | os._Environ[str] | None = None) -> None:
        address = (os.environ if environment is None else environment).pop("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._sock: socket.socket | None = None

    def __repr__(self) -> str:
        return f"Notifier({self._address!r})"

    def send(self, *assignments: str, descriptors: tuple[int, ...] = ()) -> bool:
        """Sends `assignments` ("READY=1", "STATUS=…") as one message. Raises OSError when systemd cannot take it."""
        if not self._address:
            return False
        text = "\n".join(line.replace("\n", " ") for line in assignments).encode()
        if self._sock is not None:
            _send(self._sock, text, descriptors)
        else:
            with self._connected() as sock:
                _send(sock, text, descriptors)
        return True

    def connect(self) -> None:
        """Connects one socket that all messages from now on go by, until `close`: a process that has given up to make
        sockets goes on sending. Raises OSError where nothing listens at the address."""
        if self._address and self._sock is None:
            self._sock = self._connected()

    def close(self) -> None:
        """Closes that socket."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _connected(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            sock.connect(self._address)
        except OSError:
            sock.close()
            raise
        return sock

    def store(self, name: str, descriptor: int) -> bool:
        """Parks `descriptor` in the unit's descriptor store under `name` (FDSTORE=1); it outlives a crash."""
        return self.send("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", descriptors=(descriptor,))

    def unstore(self, name: str) -> bool:
        """Takes every descriptor called `name` out of the store (FDSTOREREMOVE=1)."""
        return self.send("FDSTOREREMOVE=1", f"FDNAME={name}")


def _send(sock: socket.socket, text: bytes, descriptors: tuple[int, ...]) -> None:
    if descriptors:
        socket.send_fds(sock, [text], list(descriptors))
    else:
        sock.sendall(text)


def take_stored(environment: dict[str, str] | os._Environ[str] | None = None, pid: int | None = None) -> dict[str, int]:
    """The descriptors systemd passed at start (man sd_listen_fds), by name; made close-on-exec, variables removed.

    A name that stands twice keeps its last descriptor and closes the others.
    """
    env = os.environ if environment is None else environment
    owner, count, names = env.pop("LISTEN_PID", ""), env.pop("LISTEN_FDS", "0"), env.pop("LISTEN_FDNAMES", "")
    if owner != str(os.getpid() if pid is None else pid) or not count.isdecimal():
        return {}
    found: dict[str, int] = {}
    for descriptor, name in zip(range(3, 3 + int(count)), names.split(":"), strict=False):
        os.set_inheritable(descriptor, False)
        if name in found:
            os.close(found[name])
        found[name] = descriptor
    return found
