"""Opens the directories of a store: no link on the way, and only root and the store's owner can change it.

Import rule: that of module_store.
"""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from contextlib import ExitStack, suppress
from types import TracebackType

from keep_protocol.errors import ErrorKind, KeepfleetError
from module_store.disk import DIRECTORY_MODE, OPEN_DIRECTORY, Disk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

_LINKS = (errno.ELOOP, errno.ENOTDIR)
_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""Of what is above, nothing need be readable."""


class Opened(ABC):
    """What is open until `close`, or until its block ends."""

    @abstractmethod
    def close(self) -> None:
        """Closes it; descriptors that were taken of it go on."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_path(held: ExitStack, path: str, making: Disk | None) -> int:
    """The directory `path`, each component opened by itself and no link among them; made where `making` is given."""
    if not os.path.isabs(path):
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot open the module store {path}: its path must be absolute")
    directory = os.open("/", _PLACE)
    held.callback(os.close, directory)
    names = path.strip("/").split("/")
    for number, name in enumerate(names):
        above, so_far = directory, "/" + "/".join(names[: number + 1])
        try:
            directory = _open_or_make(above, name, making, last=number + 1 == len(names))
        except FileNotFoundError:
            raise no_store(path) from None
        except OSError as error:
            if error.errno not in _LINKS:
                raise
            raise refused(so_far, no_directory(error) + "; name the real path") from error
        held.callback(os.close, directory)
        _check_above(directory, so_far)
    check_own(directory, path)
    opened = os.open(".", OPEN_DIRECTORY, dir_fd=directory)
    held.callback(os.close, opened)
    return opened


def _check_above(directory: int, path: str) -> None:
    """Raises KeepfleetError where a user who is neither root nor this process's could put another store in place."""
    status = os.fstat(directory)
    if status.st_uid not in (0, os.geteuid()):
        raise refused(path, f"it belongs to user {status.st_uid}")
    if status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX:
        raise refused(path, f"other users may change what is in it; run: chmod go-w {path}")


def _open_or_make(above: int, name: str, making: Disk | None, *, last: bool) -> int:
    try:
        return os.open(name, _PLACE, dir_fd=above)
    except FileNotFoundError:
        if making is None:
            raise
    with suppress(FileExistsError):  # another process was faster
        making.make_directory(above, name, DIRECTORY_MODE if last else 0o755)
    readable = os.open(".", OPEN_DIRECTORY, dir_fd=above)
    try:
        making.sync(readable)
    finally:
        os.close(readable)
    return os.open(name, _PLACE, dir_fd=above)


def check_own(directory: int, path: str) -> None:
    """Raises KeepfleetError unless the directory is this process's user's own and no one else may look into it."""
    status, user = os.fstat(directory), os.geteuid()
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != user:
        why = f"it belongs to user {status.st_uid}; go on as that user"
        raise refused(path, why if status.st_uid == 0 else f"{why}, or run: chown -R {user} {path}")
    if mode & 0o077:
        raise refused(path, f"its mode is {mode:04o}, which lets others in; run: chmod {DIRECTORY_MODE:o} {path}")


def no_directory(error: OSError) -> str:
    if error.errno in _LINKS:
        return "it is a symbolic link or no directory, and no link is followed"
    return error.strerror or str(error)


def refused(path: str, why: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.CONFIGURATION, f"cannot use {path} for modules: {why}")


def no_store(path: str) -> KeepfleetError:
    why = "there is no module store; `keepctl store add` makes one"
    return KeepfleetError(ErrorKind.NOT_FOUND, f"cannot open {path}: {why}")
