"""systemd's end of `$NOTIFY_SOCKET`, for tests that take its place."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

_MARK, _END = "MARK", "END"
"""Messages of our own: everything said before one is in front of it."""


@dataclass
class Systemd:
    """The other end of `$NOTIFY_SOCKET`: what the loader said, and the descriptors it parked."""

    path: str
    sock: socket.socket
    stored: dict[str, int] = field(default_factory=dict)
    unstored: list[str] = field(default_factory=list)
    statuses: list[str] = field(default_factory=list)
    messages: int = 0

    def receive(self) -> dict[str, str]:
        """The loader's next message, obeyed as systemd would."""
        data, descriptors, _, _ = socket.recv_fds(self.sock, 65536, 8)
        said = dict(line.split("=", 1) for line in data.decode().splitlines())
        self.messages += 1
        if "FDSTORE" in said:
            (self.stored[said["FDNAME"]],) = descriptors
        elif "FDSTOREREMOVE" in said:
            os.close(self.stored.pop(said["FDNAME"]))
            self.unstored.append(said["FDNAME"])
        if "STATUS" in said:
            self.statuses.append(said["STATUS"])
        return said

    def wait_for(self, key: str, value: str | None = None) -> str:
        """The value of the next `key` the loader says; with `value`, of the next one that begins with it."""
        while True:
            said = self.receive().get(key)
            if said is not None and (value is None or said.startswith(value)):
                return said

    @property
    def parked(self) -> set[str]:
        """The names of what is parked, without the keep's record and what its output needs."""
        return set(self.stored) - {"record", "output", "journal", "stdout", "stderr"}

    def drain(self) -> None:
        """Takes what has been said already."""
        _send(self.path, f"{_MARK}=1")
        self.wait_for(_MARK)

    def close(self) -> None:
        """Lets go of what is stored."""
        for descriptor in self.stored.values():
            os.close(descriptor)


def _send(path: str, message: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(message.encode(), path)


def _pass_on(notify: socket.socket, into: socket.socket) -> None:
    """Takes every message immediately, as systemd does.

    The kernel queues ten (net.unix.max_dgram_qlen) where no systemd has raised that at boot, and then the loader waits.
    """
    while (taken := socket.recv_fds(notify, 65536, 8))[0] != _END.encode():
        data, descriptors = taken[:2]
        socket.send_fds(into, [data], descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


@contextlib.contextmanager
def listening(path: str, seconds: float) -> Iterator[Systemd]:
    """What a loader says at `path`; a test waits `seconds` for it."""
    ours, into = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, into, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        ours.settimeout(seconds)
        notify.bind(path)
        thread = threading.Thread(target=_pass_on, args=(notify, into))
        thread.start()
        systemd = Systemd(path, ours)
        try:
            yield systemd
        finally:
            _send(path, _END)
            thread.join()
            systemd.close()
