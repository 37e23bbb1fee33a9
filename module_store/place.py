"""A store's directory, opened: each folder by a descriptor, its lock, and the sealed records that lie in it.

Import rule: that of module_store.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from enum import Enum

from keep_protocol.errors import ErrorKind, KeepfleetError
from module_store.disk import OPEN_DIRECTORY, OPEN_FILE, Disk, explained, lock_now
from module_store.opening import check_own, no_directory, no_store, open_path, refused

FORMAT = b"keepfleet module store 1\n"
VERSION = "version"
SYSTEM = "/var/lib/keepfleet/store"
"""The system's store; a user's is below the XDG data home."""
_NEIGHBOURS = {"keys"}
"""What may be in a store's directory before it is a store: its keys, which are no business of this file's."""
LOCK_SECONDS = 10.0
"""What is done under the lock takes milliseconds, or as long as a folder takes to be flushed on a busy disk."""
_FIRST_WAIT, _LONGEST_WAIT = 0.002, 0.05
"""flock waits for ever or not at all, and a signal to end it would be the whole process's: it is asked again."""
ABANDONED_SECONDS = 60.0
"""Who writes a new file holds a lock on it from its first moment on; this is that moment, on a host that hangs."""
MAX_RECORD_BYTES = 1024 * 1024
"""A verification report of a large component is 100 KB."""
_SEAL_BYTES = 65
"""The digest in hexadecimal, and the end of its line."""


class Folder(Enum):
    """What a store's directory has in it."""

    OBJECTS = "objects"
    ATTACHMENTS = "attachments"
    REFERENCES = "references"
    USES = "uses"
    QUARANTINE = "quarantine"
    NEW = "new"


class Damaged(KeepfleetError):
    """A file of the store is not what was written there, or not the store's own."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorKind.INTERNAL, message)


def default_directory() -> str:
    """The system's store for root, else the user's own."""
    if os.geteuid() == 0:
        return SYSTEM
    home = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local/share")
    return os.path.join(home, "keepfleet/store")


class Place:
    """The directory `path` and its folders, open until `close`. Threads may share one; forks may not lock by it."""

    def __init__(self, path: str, disk: Disk, *, create: bool) -> None:
        """Raises KeepfleetError: NOT_FOUND where there is no store, CONFIGURATION where it cannot be used."""
        self.path, self.disk = os.path.normpath(path), disk
        with ExitStack() as held, explained(f"open the module store {self.path}"):
            self._root = open_path(held, self.path, disk if create else None)
            self._owner = os.fstat(self._root).st_uid
            self._check_version(create)
            self._folders = {folder: self._open_folder(held, folder) for folder in Folder}
            self._held = held.pop_all()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path})"

    def close(self) -> None:
        """Closes the folders."""
        self._held.close()

    def of(self, folder: Folder) -> int:
        """The descriptor of a folder."""
        return self._folders[folder]

    def check(self, folder: Folder) -> None:
        """Raises KeepfleetError where by now others may enter the folder or the store: before each read."""
        check_own(self._root, self.path)
        check_own(self.of(folder), os.path.join(self.path, folder.value))

    def names(self, folder: Folder) -> list[str]:
        """The names in a folder, sorted."""
        return sorted(os.listdir(self.of(folder)))

    def _check_version(self, create: bool) -> None:
        try:
            file = os.open(VERSION, OPEN_FILE, dir_fd=self._root)
        except FileNotFoundError:
            if not create:
                raise no_store(self.path) from None
            self._make()
            return
        try:
            found = os.read(file, 4 * len(FORMAT))
        finally:
            os.close(file)
        if found != FORMAT:
            shown = found.decode("ascii", "backslashreplace").strip()
            raise KeepfleetError(
                ErrorKind.CONFIGURATION,
                f"cannot open the module store {self.path}: its layout is {shown!r}, and this version of keepfleet "
                f"knows {FORMAT.decode().strip()!r}; nothing was changed",
            )

    def _make(self) -> None:
        """The folders, and at last the version, by which it is a store."""
        with self.locked():
            names = set(os.listdir(self._root))
            if VERSION in names:  # another process was faster
                return
            if names - {folder.value for folder in Folder} - _NEIGHBOURS:
                why = "it has other files, and is no store; name an empty directory, or one that is not there"
                raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot make a module store of {self.path}: {why}")
            for folder in Folder:
                if folder.value not in names:
                    self.disk.make_directory(self._root, folder.value)
            with ExitStack() as held:
                new = self._open_folder(held, Folder.NEW)
                for name in os.listdir(new):  # an earlier attempt, which ended here
                    self.disk.remove(new, name)
                file = self.disk.create(new, VERSION)
                held.callback(os.close, file)
                self.disk.write(file, FORMAT)
                self.disk.sync(file)
                self.disk.rename(new, VERSION, self._root, VERSION)
            self.disk.sync(self._root)

    def _open_folder(self, held: ExitStack, folder: Folder) -> int:
        path = os.path.join(self.path, folder.value)
        try:
            descriptor = os.open(folder.value, OPEN_DIRECTORY, dir_fd=self._root)
        except OSError as error:
            raise refused(path, no_directory(error)) from error
        held.callback(os.close, descriptor)
        check_own(descriptor, path)
        return descriptor

    @contextmanager
    def locked(self, seconds: float = LOCK_SECONDS) -> Iterator[None]:
        """Only one thread of one process changes the store. Raises KeepfleetError(UNAVAILABLE) after `seconds`."""
        lock = os.open(".", OPEN_DIRECTORY, dir_fd=self._root)  # of its own, so that threads exclude each other too
        try:
            deadline, wait = time.monotonic() + seconds, _FIRST_WAIT
            while not lock_now(lock):
                if time.monotonic() > deadline:
                    why = f"another process is changing it for over {seconds:g} s; try again"
                    raise KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot change the module store {self.path}: {why}")
                time.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT)
            yield
        finally:
            os.close(lock)

    @contextmanager
    def new_file(self) -> Iterator[tuple[int, str]]:
        """A new file in `new`, and its name; it is removed at the end unless it was renamed. Raises OSError."""
        self.clear_abandoned()
        name = secrets.token_hex(8)
        file = self.disk.create(self.of(Folder.NEW), name)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file, name
        finally:
            try:
                self.discard(name)
            finally:
                os.close(file)

    def discard(self, name: str) -> None:
        """Removes a new file, unless it has got its place. Raises OSError."""
        with suppress(FileNotFoundError):
            self.disk.remove(self.of(Folder.NEW), name)

    def put(self, name: str, folder: Folder, place: str) -> None:
        """Gives a new file, whose bytes are written, its place; it is there after a power cut, too. Raises OSError."""
        self.disk.rename(self.of(Folder.NEW), name, self.of(folder), place)
        self.disk.sync(self.of(folder))

    def clear_abandoned(self) -> None:
        """Removes what processes that were killed left in `new`: NAME, or NAME.N, of which NAME has the lock. Raises
        OSError."""
        new = self.of(Folder.NEW)
        for name in sorted(os.listdir(new), reverse=True):
            with suppress(FileNotFoundError):  # another process was faster, or has finished
                status = os.stat(name, dir_fd=new, follow_symlinks=False)
                old = not stat.S_ISDIR(status.st_mode) and time.time() - status.st_mtime > ABANDONED_SECONDS
                if old and not self._is_held(name.partition(".")[0]):
                    self.disk.remove(new, name)

    def _is_held(self, name: str) -> bool:
        try:
            file = os.open(name, OPEN_FILE, dir_fd=self.of(Folder.NEW))
        except OSError:
            return False  # there is none, or it is a link: in any case it is not held
        try:
            return not lock_now(file)
        finally:
            os.close(file)

    def write_record(self, folder: Folder, name: str, body: bytes) -> None:
        """Puts a sealed record in the place of what has its name. Raises OSError."""
        if len(body) > MAX_RECORD_BYTES:
            what = f"{folder.value}/{name}"
            raise KeepfleetError(ErrorKind.TOO_LARGE, f"cannot keep {what}: it is over {MAX_RECORD_BYTES} bytes")
        with self.new_file() as (file, new_name):
            self.disk.write(file, _seal(folder, name, body))
            self.disk.protect(file)
            self.disk.sync(file)
            self.put(new_name, folder, name)

    def read_record(self, folder: Folder, name: str) -> bytes | None:
        """What is in a record; None where there is none. Raises Damaged where it is not as it was written."""
        path = os.path.join(self.path, folder.value, name)
        self.check(folder)
        with explained(f"read {path}"):
            try:
                file = os.open(name, OPEN_FILE, dir_fd=self.of(folder))
            except FileNotFoundError:
                return None
            except OSError as error:
                if error.errno == errno.ELOOP:
                    raise Damaged(f"cannot use {path}: it is a symbolic link, and none is followed") from error
                raise
            try:
                fault = self.fault_of(file)
                data = b"" if fault else _read(file, _SEAL_BYTES + MAX_RECORD_BYTES + 1)
            finally:
                os.close(file)
        if not fault and data[:_SEAL_BYTES] != _seal(folder, name, data[_SEAL_BYTES:])[:_SEAL_BYTES]:
            fault = "its contents are not those that were written"
        if fault:
            raise Damaged(f"cannot use {path}: {fault}")
        return data[_SEAL_BYTES:]

    def fault_of(self, file: int) -> str:
        """Why an open file cannot be one of the store's, "" where it can: its type, its owner, its mode."""
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            return "it is no regular file"
        if status.st_uid != self._owner:
            return f"it belongs to user {status.st_uid}, and the store to user {self._owner}"
        mode = stat.S_IMODE(status.st_mode)
        return f"its mode is {mode:04o}, which lets it be changed" if mode & 0o222 else ""


def _seal(folder: Folder, name: str, body: bytes) -> bytes:
    """The record: the digest is of its place, too, so that two that were exchanged are found."""
    digest = hashlib.sha256(f"{folder.value}/{name}\n".encode())
    digest.update(body)
    return digest.hexdigest().encode() + b"\n" + body


def _read(file: int, limit: int) -> bytes:
    data = b""
    while len(data) < limit and (part := os.read(file, limit - len(data))):
        data += part
    return data
