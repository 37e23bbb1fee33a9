"""A Unix socket of an application, for processes of its host: bound, its peers checked, each served by a thread.

Only the application's own user and root may connect (unix(7), SO_PEERCRED), and whom it names.
Import rule: the standard library, keep_protocol.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import struct
import threading
from abc import ABC, abstractmethod
from collections.abc import Collection
from contextlib import suppress

from keep_protocol.errors import ErrorKind, KeepfleetError

LOG = logging.getLogger("keepfleet.codelets.listening")
MAX_CONNECTIONS = 16


class Listener(ABC):
    """The socket at `path`, served by threads of its own until `close`.

    kind: SOCK_STREAM or SOCK_SEQPACKET; name: of its threads; users: who else may connect, by user ID. Raises
    KeepfleetError where the path cannot be bound: a socket that is there is replaced if no process listens on it, and
    nothing else is.
    """

    def __init__(self, path: str, name: str, users: Collection[int] = (), kind: int = socket.SOCK_STREAM) -> None:
        self.path, self._name = path, name
        self._users = frozenset({0, os.geteuid(), *users})
        self._open: set[socket.socket] = set()
        self._lock, self._closed = threading.Lock(), False
        self._listener = _listen(path, kind, group=bool(users))
        self._identity, self._process = os.stat(path).st_ino, os.getpid()
        self._thread = threading.Thread(target=self._accept, name=name, daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path})"

    @property
    def forked(self) -> bool:
        """Whether this is a process that was forked off the one that listens."""
        return os.getpid() != self._process

    @abstractmethod
    def serve(self, connection: socket.socket) -> None:
        """Serves a connection until it ends, in a thread of its own; it is closed afterwards. May raise OSError."""

    @abstractmethod
    def refuse(self, connection: socket.socket, error: KeepfleetError) -> None:
        """Says why a client may not connect, without waiting for it. May raise OSError."""

    def close(self) -> None:
        """Ends every connection, and removes the socket unless another has taken its place. In a process that was
        forked off it lets its copies go, and the socket is still the first one's."""
        self._closed = True
        if self.forked:
            for copy in (self._listener, *self._open):
                copy.close()
            return
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        with suppress(FileNotFoundError):
            if os.stat(self.path).st_ino == self._identity:
                os.unlink(self.path)

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if self._closed:
                    return
                LOG.warning("cannot accept on %s: %s", self.path, error.strerror)
                threading.Event().wait(0.1)  # for want of descriptors, say: it would be asked for again immediately
                continue
            refusal = self._refusal(connection)
            if refusal is not None:
                LOG.warning("refused a connection: %s", refusal.message)
                with connection, suppress(OSError):
                    connection.setblocking(False)
                    self.refuse(connection, refusal)
                continue
            name = f"{self._name}-client"
            threading.Thread(target=self._serve, args=(connection,), name=name, daemon=True).start()

    def _refusal(self, connection: socket.socket) -> KeepfleetError | None:
        """Why a client may not connect; None where it may, and it is then one of the open connections."""
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, user, _ = struct.unpack("3i", credentials)
        if user not in self._users:
            why = f"user {user} may not; only the application's own user, root and whom it names may"
            return KeepfleetError(ErrorKind.FORBIDDEN, f"cannot connect to {self.path}: {why}")
        with self._lock:
            if len(self._open) >= MAX_CONNECTIONS:
                why = f"there are {MAX_CONNECTIONS} connections"
                return KeepfleetError(ErrorKind.TOO_MANY, f"cannot connect to {self.path}: {why}")
            self._open.add(connection)
        return None

    def _serve(self, connection: socket.socket) -> None:
        try:
            self.serve(connection)
        except OSError as error:
            LOG.debug("a connection to %s ended: %s", self.path, error)
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()


def _listen(path: str, kind: int, *, group: bool) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, kind)
    try:
        _clear(path, kind)
        os.fchmod(listener.fileno(), 0o600)  # before bind: between that and chmod anybody could connect otherwise
        listener.bind(path)
        if group:
            os.chmod(path, 0o666)  # noqa: S103  # who connects is checked
        listener.listen(MAX_CONNECTIONS)
    except (OSError, KeepfleetError) as error:
        listener.close()
        if isinstance(error, KeepfleetError):
            raise
        why = error.strerror or str(error)
        raise KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot listen on {path}: {why}") from error
    return listener


def _clear(path: str, kind: int) -> None:
    """Removes the socket of an application that has ended. Raises KeepfleetError(CONFLICT) for anything else there."""
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(there.st_mode):
        raise KeepfleetError(ErrorKind.CONFLICT, f"cannot listen on {path}: there is something that is no socket")
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)  # an application that is stopped, with all places taken, listens there, too
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError as error:
            if error.errno not in (
                errno.EAGAIN,
                errno.EPROTOTYPE,
            ):  # the latter is a socket of the other kind, which has a listener
                raise
    raise KeepfleetError(ErrorKind.CONFLICT, f"cannot listen on {path}: an application listens there")
