"""What is received: a module streamed into a file without a name, counted and hashed on its way, never held whole."""

from __future__ import annotations

import errno
import hashlib
import os

from app_loader.payload import PayloadParser
from app_loader.request import Wish, body_limit, too_large
from keep_protocol.errors import ErrorKind, KeepfleetError

STORE_DIRECTORIES = ("/var/tmp", "/tmp")  # noqa: S108 - only files without a name are made there
"""On a disk where there is one: a tmpfs counts as the keep's memory. In its unit both are the keep's own."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def store_error(error: OSError) -> KeepfleetError:
    """The refusal that tells why the module could not be stored."""
    if error.errno in _FULL:
        return KeepfleetError(ErrorKind.NO_SPACE, f"cannot store the module: {error.strerror}")
    return KeepfleetError(ErrorKind.INTERNAL, f"cannot store the module: {error.strerror}")


def unnamed_file(directories: tuple[str, ...] = STORE_DIRECTORIES) -> int:
    """A new file without a name, in the first directory that can hold one: it is gone with its last descriptor.

    Raises KeepfleetError(NO_SPACE, or INTERNAL where no directory will do).
    """
    reason = OSError(errno.ENOENT, "no directory for it")
    for directory in directories:
        try:
            return os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600)
        except OSError as error:
            reason = error
    raise store_error(reason)


class Workload:
    """One upload, from its first byte to its file: `receive` each piece, `finish`, then `close`.

    descriptor: the module's file; size: its bytes so far; both the body and the module are bounded.
    Every method may raise KeepfleetError: TOO_LARGE, BAD_REQUEST for a payload's shape, NO_SPACE.
    """

    def __init__(self, wish: Wish, max_workload: int, descriptor: int | None = None) -> None:
        self._max_workload = max_workload
        self._body_left = body_limit(wish, max_workload)
        self._parser = PayloadParser() if wish is Wish.PAYLOAD else None
        self._hash = hashlib.sha256()
        self.wish = wish
        self.size = 0
        self.descriptor = unnamed_file() if descriptor is None else descriptor

    def __repr__(self) -> str:
        return f"Workload({self.wish.value}, {self.size} bytes)"

    @property
    def sha256(self) -> str:
        """The digest of the module's bytes so far, in hexadecimal."""
        return self._hash.hexdigest()

    def receive(self, data: bytes) -> None:
        """Takes the next piece of the body."""
        self._body_left -= len(data)
        if self._body_left < 0:
            raise too_large(self._max_workload)
        if self._parser is None:
            self._store(data)
            return
        for piece in self._parser.feed(data):
            self._store(piece)

    def _store(self, data: bytes) -> None:
        self.size += len(data)
        if self.size > self._max_workload:
            raise too_large(self._max_workload)
        self._hash.update(data)
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self.descriptor, view) :]
        except OSError as error:
            raise store_error(error) from error

    def finish(self) -> None:
        """The body has ended: returns when it was whole."""
        if self._parser is not None:
            self._parser.finish()

    def close(self) -> None:
        """Drops the file. May be called twice."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
