"""Secrets as files: copied out of the granted descriptors into a directory of the keep's own, in memory and for no one
else, which the guest gets to see and nothing beside it."""

from __future__ import annotations

import contextlib
import os

from app_loader.limits import MAX_SECRET_BYTES
from keep_protocol.errors import ErrorKind, KeepfleetError

DIRECTORY = "secrets"
"""Below the keep's runtime directory, a tmpfs: what is there is never on a disk, and goes with the keep."""


def _cannot(name: str, why: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.CONFIGURATION, f"cannot give the workload its secret {name}: {why}")


def _read(name: str, source: int) -> bytes:
    data = b""
    try:
        while len(data) <= MAX_SECRET_BYTES and (piece := os.pread(source, MAX_SECRET_BYTES + 1, len(data))):
            data += piece
    except OSError as error:
        raise _cannot(name, error.strerror or "it cannot be read") from error
    if len(data) > MAX_SECRET_BYTES:
        raise _cannot(name, f"it is over {MAX_SECRET_BYTES >> 20} MiB")
    return data


class SecretFiles:
    """The directory of one run's secrets, made anew. descriptor: the open directory."""

    def __init__(self, runtime_directory: str, secrets: list[tuple[str, int]]) -> None:
        """Writes each (name, descriptor), bounded. Raises KeepfleetError(CONFIGURATION) naming the secret, never it."""
        self._names = [name for name, _ in secrets]
        path = os.path.join(runtime_directory, DIRECTORY)
        try:
            with contextlib.suppress(FileExistsError):  # a former run's, which could not clean up
                os.mkdir(path, 0o700)
            self.descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            for left in os.listdir(self.descriptor):
                os.unlink(left, dir_fd=self.descriptor)
        except OSError as error:
            raise _cannot("files", f"{path}: {error.strerror}") from error
        for name, source in secrets:
            self._write(name, _read(name, source))

    def __repr__(self) -> str:
        return f"SecretFiles({len(self._names)})"

    def _write(self, name: str, data: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            file = os.open(name, flags, 0o400, dir_fd=self.descriptor)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(file, view) :]
            finally:
                os.close(file)
        except OSError as error:
            raise _cannot(name, error.strerror or "it cannot be written") from error

    def wipe(self) -> None:
        """Removes the files; a locked process still can."""
        for name in self._names:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=self.descriptor)
