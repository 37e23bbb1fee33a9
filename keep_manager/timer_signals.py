"""Hears that a job's timer has fired: keep-job@NAME.service says so with a datagram, as systemd-notify(1) sends it.

It is a hint and no more: what is due stands in the calendar and in the job's record, so that one that is lost, made up
or comes without a listener changes nothing but the moment.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
from collections.abc import Callable
from contextlib import suppress

from keep_protocol.errors import ErrorKind, KeepfleetError

LOG = logging.getLogger("keepfleet.declared")
FOLDER, NAME = "keep-manager", "jobs"
"""Below the directory for runtime directories: what systemd makes for the manager alone (RuntimeDirectory=)."""
MAX_DATAGRAM = 1024
READ_TOGETHER = 64
"""Datagrams read before others have their turn."""
_FIRED = re.compile(r"STATUS=([a-z0-9-]{1,63})")


def fired(data: bytes) -> str | None:
    """The job that a datagram is about; None for anything else. Pure."""
    for line in data.decode("utf-8", "replace").splitlines():
        if match := _FIRED.fullmatch(line):
            return match[1]
    return None


class TimerSignals:
    """The socket below `runtime`, read while this is open; `due` is called with each job's name."""

    def __init__(self, runtime: str, due: Callable[[str], None]) -> None:
        self._path, self._due = os.path.join(runtime, FOLDER, NAME), due
        self._socket: socket.socket | None = None

    def __repr__(self) -> str:
        return f"TimerSignals({self._path!r})"

    def open(self) -> None:
        """Listens. Raises KeepfleetError(CONFIGURATION)."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
            with suppress(FileNotFoundError):
                os.unlink(self._path)  # of a manager that was killed; the name is bound by one of us at a time
            sock.bind(self._path)
        except OSError as error:
            sock.close()
            why = f"{error.strerror}; its unit has RuntimeDirectory={FOLDER}; run: keepctl install"
            raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot listen for timers at {self._path}: {why}") from error
        self._socket = sock
        asyncio.get_running_loop().add_reader(sock.fileno(), self._read)

    def close(self) -> None:
        """Listens no more."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
            with suppress(OSError):
                os.unlink(self._path)

    def _read(self) -> None:
        for _ in range(READ_TOGETHER):
            try:
                data = self._socket.recv(MAX_DATAGRAM) if self._socket is not None else b""
            except BlockingIOError:
                return
            except OSError as error:
                LOG.warning("cannot read what timers say: %s", error.strerror)
                return
            if name := fired(data):
                self._due(name)
