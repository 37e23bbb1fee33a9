"""Files made with their mode from the first moment, whole on disk or not there at all.

Nothing here follows a symbolic link in the last component of a path; directories are flushed after each change, so
that what was acknowledged survives a power cut.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from keep_protocol.errors import ErrorKind, KeepfleetError

PRIVATE_FILE = 0o600
PRIVATE_DIRECTORY = 0o700
PUBLIC_FILE = 0o644
PUBLIC_DIRECTORY = 0o755
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
MAX_FILE_BYTES = 4 * 1024 * 1024
"""The longest file read back: a revocation list of 100,000 serial numbers."""


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns an OSError inside into KeepfleetError: "cannot WHAT: why", with the path that was meant."""
    try:
        yield
    except OSError as error:
        kind = ErrorKind.NO_SPACE if error.errno in (28, 122) else ErrorKind.CONFIGURATION
        where = f"{error.filename}: " if error.filename else ""
        raise KeepfleetError(kind, f"cannot {what}: {where}{error.strerror or error}") from error


def sync_directory(path: str) -> None:
    """Flushes the names in a directory to disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_and_flush(descriptor: int, data: bytes) -> None:
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_new(path: str, data: bytes, mode: int) -> None:
    """A new file; FileExistsError when there is one, or a link. On any failure there is none."""
    descriptor = os.open(path, _NEW, mode)
    try:
        _write_and_flush(descriptor, data)
        sync_directory(os.path.dirname(path) or ".")
    except BaseException:
        os.unlink(path)
        raise


def temporary_path(path: str) -> str:
    """A name in `path`'s directory that nothing has yet, so that a rename to `path` stays on one file system."""
    import secrets  # here: 3 ms with `random`, and most commands write nothing

    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name}.{secrets.token_hex(8)}.new")


def replace(path: str, data: bytes, mode: int) -> None:
    """`path` holds `data`, before or after any crash wholly the old or wholly the new."""
    temporary = temporary_path(path)
    write_new(temporary, data, mode)
    try:
        os.rename(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise
    sync_directory(os.path.dirname(path) or ".")


def read(path: str) -> bytes:
    """A regular file's bytes, at most MAX_FILE_BYTES."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(22, "it is not a regular file", path)
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise OSError(27, f"it is over {MAX_FILE_BYTES} bytes", path)
    return data


def make_directories(path: str, mode: int) -> None:
    """`path` and what is missing above it; what exists keeps its mode."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    if parent != path:
        make_directories(parent, mode)
    with suppress(FileExistsError):
        os.mkdir(path, mode)
    sync_directory(parent or ".")


@contextmanager
def directory_in_the_making(path: str) -> Iterator[str]:
    """A new private directory next to `path`, which becomes `path` when the block ends without an exception.

    Raises FileExistsError or OSError(ENOTEMPTY) when `path` is anything but absent or an empty directory.
    """
    temporary = temporary_path(path)
    os.mkdir(temporary, PRIVATE_DIRECTORY)
    try:
        yield temporary
        sync_directory(temporary)
        os.rename(temporary, path)
    except BaseException:
        import shutil  # here: as `secrets` above

        shutil.rmtree(temporary)
        raise
    sync_directory(os.path.dirname(path))


@contextmanager
def locked(directory: str) -> Iterator[None]:
    """Only one process at a time changes what is in `directory`. Raises KeepfleetError(CONFLICT) for the second."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise KeepfleetError(
                ErrorKind.CONFLICT, f"cannot change {directory}: another keepctl is at work there; try again"
            ) from None
        yield
    finally:
        os.close(descriptor)
