"""Every change a store makes to its file system, one method each.

A test takes another Disk: one that refuses the n-th change, ends the process at it, or records them all. Names are
single components below an open directory, so that no link is followed on the way. Import rule: that of module_store.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from keep_protocol.errors import ErrorKind, KeepfleetError

DIRECTORY_MODE = 0o700
OBJECT_MODE = 0o400
"""An object is never opened for writing, by its owner neither."""
OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
"""Of a pipe or a device in a file's place it does not wait for the other end."""
NEW = ".new"
"""Behind the name of a file that `replace_file` is writing."""
_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Disk:
    """The changes, as they are made. Each raises OSError."""

    def make_directory(self, directory: int, name: str, mode: int = DIRECTORY_MODE) -> None:
        """A new directory."""
        os.mkdir(name, mode, dir_fd=directory)

    def create(self, directory: int, name: str) -> int:
        """A new file, its owner's alone, for reading and writing."""
        return os.open(name, _NEW_FILE, 0o600, dir_fd=directory)

    def write(self, file: int, data: bytes | memoryview) -> None:
        """All of `data`, at the file's position."""
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]

    def reserve(self, file: int, size: int) -> None:
        """Makes the file `size` bytes long, with room for all of them on the disk."""
        os.posix_fallocate(file, 0, size)

    def protect(self, file: int) -> None:
        """Makes the file one that is only read."""
        os.fchmod(file, OBJECT_MODE)

    def renew(self, file: int) -> None:
        """Makes the file's time now: it counts as young again."""
        os.utime(file)

    def sync(self, descriptor: int) -> None:
        """A file's bytes and mode, or a directory's names, are on disk when this returns."""
        os.fsync(descriptor)

    def rename(self, source: int, name: str, target: int, new_name: str) -> None:
        """Moves a file, replacing what has the new name."""
        os.rename(name, new_name, src_dir_fd=source, dst_dir_fd=target)

    def remove(self, directory: int, name: str) -> None:
        """Removes a file."""
        os.unlink(name, dir_fd=directory)


def ensure_folder(disk: Disk, path: str) -> None:
    """Has there be the folder `path`, its owner's alone, with those above it; what is new of them is on disk when this
    returns. Raises OSError."""
    parent, name = os.path.split(path)
    if not os.path.isdir(parent):
        ensure_folder(disk, parent)
    above = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # which an operator may have as a link
    try:
        with suppress(FileExistsError):
            disk.make_directory(above, name)
        disk.sync(above)  # in any case: who made it may have been killed before this
    finally:
        os.close(above)


@contextmanager
def opened_folder(path: str, within: int | None = None) -> Iterator[int]:
    """The folder's descriptor, for as long as it is needed; a link in its place is none. Raises OSError."""
    directory = os.open(path, OPEN_DIRECTORY, dir_fd=within)
    try:
        yield directory
    finally:
        os.close(directory)


def replace_file(disk: Disk, directory: int, name: str, data: bytes) -> None:
    """Has a file hold `data`, whole or as it was before; on disk when this returns. Raises OSError."""
    with suppress(FileNotFoundError):
        disk.remove(directory, name + NEW)  # of a process that was killed
    file = disk.create(directory, name + NEW)
    try:
        disk.write(file, data)
        disk.sync(file)
    except OSError:
        with suppress(OSError):
            disk.remove(directory, name + NEW)  # what could not be kept whole
        raise
    finally:
        os.close(file)
    disk.rename(directory, name + NEW, directory, name)
    disk.sync(directory)


def lock_now(descriptor: int) -> bool:
    """Locks a file or a folder until it is closed; False where another has it locked. Raises OSError."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns an OSError inside into KeepfleetError, "cannot WHAT: why": NO_SPACE where the disk is full."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        if error.errno in _NO_SPACE:
            raise KeepfleetError(ErrorKind.NO_SPACE, f"cannot {what}: {why}; `keepctl store gc` may help") from error
        kind = ErrorKind.FORBIDDEN if error.errno in (errno.EACCES, errno.EPERM) else ErrorKind.UNAVAILABLE
        raise KeepfleetError(kind, f"cannot {what}: {why}") from error
