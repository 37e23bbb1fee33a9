"""Small files that last, in one folder of the manager's: each is written next to its place, synced, renamed, and the
folder synced. What was acknowledged is there after a power cut, and it is there whole.

The folder and the files are their owner's alone, and are not read otherwise: what another user could write is not ours.
Methods read and write a disk: they are for threads. Each raises KeepfleetError alone.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from keep_protocol.errors import ErrorKind, KeepfleetError
from module_store.disk import NEW, OPEN_DIRECTORY, OPEN_FILE, Disk, ensure_folder, explained, replace_file


class Kept:
    """The files in `directory`, which are called `what` in messages."""

    def __init__(self, directory: str, what: str, disk: Disk | None = None) -> None:
        self.directory, self._what, self._disk = directory, what, disk or Disk()

    def __repr__(self) -> str:
        return f"Kept({self.directory!r})"

    def open(self) -> None:
        """Makes the folder where it is not there, and looks whose it is."""
        with explained(f"keep {self._what} in {self.directory}"):
            ensure_folder(self._disk, self.directory)
        with self._base():
            return

    def names(self) -> list[str]:
        """Every file's name."""
        with self._base() as base, explained(f"list {self._what} in {self.directory}"):
            return sorted(name for name in os.listdir(base) if not name.endswith(NEW))

    def read(self, name: str, limit: int) -> bytes | None:
        """A file's bytes, at most one over `limit`; None where there is none. FORBIDDEN for one of another owner, for
        one that others may read, for a link, and for what is no regular file."""
        with self._base() as base, explained(f"read {self._what} {name}"):
            try:
                file = os.open(name, OPEN_FILE, dir_fd=base)
            except FileNotFoundError:
                return None
            with open(file, "rb") as opened:
                self._check(name, os.fstat(file), stat.S_ISREG)
                return opened.read(limit + 1)

    def there(self, name: str) -> bool:
        """Whether there is anything of that name, whatever it is."""
        with self._base() as base, explained(f"look at {self._what} {name}"):
            return name in os.listdir(base)

    def written_at(self, name: str) -> float | None:
        """When a file was written, in seconds of the epoch; None where there is none. FORBIDDEN as for `read`."""
        with self._base() as base, explained(f"look at {self._what} {name}"):
            try:
                status = os.stat(name, dir_fd=base, follow_symlinks=False)
            except FileNotFoundError:
                return None
            self._check(name, status, stat.S_ISREG)
            return status.st_mtime

    def write(self, name: str, data: bytes) -> None:
        """Has a file hold `data`; on disk when this returns."""
        with self._base() as base, explained(f"keep {self._what} {name}"):
            replace_file(self._disk, base, name, data)

    def set_aside(self, name: str, as_name: str) -> None:
        """Gives a file another name, where people find it."""
        with self._base() as base, explained(f"set aside {self._what} {name}"):
            self._disk.rename(base, name, base, as_name)
            self._disk.sync(base)

    def remove(self, *names: str) -> None:
        """Removes files, those that there are, in this order; gone from the disk when this returns."""
        with self._base() as base, explained(f"remove {self._what} {names[0]}"):
            for name in names:
                with suppress(FileNotFoundError):
                    self._disk.remove(base, name)
                with suppress(FileNotFoundError):
                    self._disk.remove(base, name + NEW)
            self._disk.sync(base)

    @contextmanager
    def _base(self) -> Iterator[int]:
        with explained(f"open the folder of {self._what}, {self.directory}"):
            directory = os.open(self.directory, OPEN_DIRECTORY)
        try:
            self._check(self.directory, os.fstat(directory), stat.S_ISDIR)
            yield directory
        finally:
            os.close(directory)

    def _check(self, name: str, status: os.stat_result, is_kind: Callable[[int], bool]) -> None:
        if not is_kind(status.st_mode):
            why = "it is no regular file"
        elif status.st_uid != os.geteuid():
            why = f"it belongs to user {status.st_uid}; give it back: chown {os.geteuid()}"
        elif status.st_mode & 0o077:
            why = "others may read or write it; run: chmod go= on it"
        else:
            return
        raise KeepfleetError(ErrorKind.FORBIDDEN, f"cannot use {self._what} {name}: {why}")
