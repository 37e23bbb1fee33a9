"""Objects, by their digests: written once, and verified at each read.

`open_object` is the one way to an object's bytes: it opens the file once, looks at its owner and mode, hashes what that
descriptor reads, and returns that descriptor. What is mapped from it is what was verified: the file's mode is 0400 in a
folder of mode 0700, so that only the store's owner (and root) could change it in between.
Import rule: that of module_store.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.store import Object
from module_store import names
from module_store.disk import OBJECT_MODE, OPEN_FILE, explained
from module_store.place import Damaged, Folder, Place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Readable(Protocol):
        """What an object is read from."""

        def read(self, size: int, /) -> bytes:
            """At most `size` bytes, none at the end."""


CHUNK_BYTES = 1024 * 1024
QUARANTINE_LOCK_SECONDS = 1.0
"""A reader that finds damage refuses it with or without moving it away."""


class Objects:
    """The objects of the store at `place`. What it raises is KeepfleetError where nothing else is said."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def copy(self, source: Readable, file: int, limit: int) -> str:
        """Writes all of `source`, at most `limit` bytes; its digest. Raises OSError where it cannot be written."""
        hashed, size = hashlib.sha256(), 0
        while True:
            try:
                data = source.read(CHUNK_BYTES)
            except OSError as error:
                why = error.strerror or str(error)
                raise KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot read the module: {why}") from error
            if not data:
                return names.ALGORITHM + hashed.hexdigest()
            size += len(data)
            if size > limit:
                raise KeepfleetError(ErrorKind.TOO_LARGE, f"cannot add the module: it is over {limit} bytes")
            hashed.update(data)
            self.place.disk.write(file, data)
            del data  # or two pieces are there while the next one is read

    def keep_new(self, new_name: str, digest: str) -> bool:
        """Gives a new file that is on disk its name, under the lock; one that is there and whole stays, as young as a
        new one. Whether it is new. Raises OSError."""
        try:
            there = self._opened(digest, quarantining=self._put_away)
        except Damaged:
            there = None
        if there is None:
            self.place.put(new_name, Folder.OBJECTS, names.file_of(digest))
            return True
        try:
            self.place.disk.renew(there)
            self.place.disk.sync(there)
        finally:
            os.close(there)
        self.place.disk.sync(self.place.of(Folder.OBJECTS))  # who put it there may have been killed before that
        return False

    def open_object(self, digest: str) -> int:
        """A descriptor of the object's file, whose bytes were verified, at its beginning; the caller closes it.

        Raises Damaged for an object that is not what it must be, after it was moved to the quarantine; NOT_FOUND.
        """
        with explained(f"read {digest} in the module store {self.place.path}"):
            file = self._opened(digest, quarantining=self._quarantine)
        if file is None:
            raise self._missing(digest)
        return file

    def _opened(self, digest: str, quarantining: Callable[[str, os.stat_result], str]) -> int | None:
        """The verified object; None where there is none. Raises Damaged, OSError."""
        name, objects = names.file_of(digest), self.place.of(Folder.OBJECTS)
        self.place.check(Folder.OBJECTS)
        with ExitStack() as held:
            try:
                file = os.open(name, OPEN_FILE, dir_fd=objects)
            except FileNotFoundError:
                return None
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                status, fault = os.stat(name, dir_fd=objects, follow_symlinks=False), "it is a symbolic link"
            else:
                held.callback(os.close, file)
                status = os.fstat(file)
                fault = self.place.fault_of(file)
            if fault and stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
                path = os.path.join(self.place.path, Folder.OBJECTS.value, name)
                raise Damaged(f"cannot use {digest}: {fault}; if you know why, run: chmod {OBJECT_MODE:04o} {path}")
            if not fault and _digest_of(file) != digest:
                fault = "its contents are not those of its digest"
            if fault:
                became = quarantining(name, status)
                raise Damaged(f"cannot use {digest} of the module store {self.place.path}: {fault}; {became}")
            held.pop_all()
            return file

    def _quarantine(self, name: str, status: os.stat_result) -> str:
        """Moves a bad object away, unless another has taken its place; says what became of it."""
        try:
            with self.place.locked(QUARANTINE_LOCK_SECONDS):
                return self._put_away(name, status)
        except (KeepfleetError, OSError) as error:
            return f"it could not be moved away ({error}), and is not used"

    def _put_away(self, name: str, status: os.stat_result) -> str:
        """The same, under the lock. Raises OSError."""
        objects, quarantine = self.place.of(Folder.OBJECTS), self.place.of(Folder.QUARANTINE)
        now = os.stat(name, dir_fd=objects, follow_symlinks=False)
        if not os.path.samestat(now, status):
            return "it has been replaced; try again"
        place = f"{name}.{time.time_ns()}"
        self.place.disk.rename(objects, name, quarantine, place)
        self.place.disk.sync(quarantine)
        self.place.disk.sync(objects)
        return f"it was moved to {self.place.path}/{Folder.QUARANTINE.value}/{place}; add the module again"

    def objects(self) -> tuple[Object, ...]:
        """Every object, by digest; not verified."""
        found = []
        with explained(f"list the module store {self.place.path}"):
            for name in self.place.names(Folder.OBJECTS):
                digest = names.digest_of_file(name)
                if digest is not None and (known := self._status(name)) is not None:
                    found.append(described(digest, known))
        return tuple(found)

    def object(self, digest: str) -> Object:
        """One object; not verified. Raises KeepfleetError(NOT_FOUND)."""
        with explained(f"look at {digest} in the module store {self.place.path}"):
            status = self._status(names.file_of(digest))
        if status is None:
            raise self._missing(digest)
        return described(digest, status)

    def _status(self, name: str) -> os.stat_result | None:
        try:
            return os.stat(name, dir_fd=self.place.of(Folder.OBJECTS), follow_symlinks=False)
        except FileNotFoundError:
            return None

    def _missing(self, digest: str) -> KeepfleetError:
        return KeepfleetError(ErrorKind.NOT_FOUND, f"cannot find {digest} in the module store {self.place.path}")


@contextmanager
def mapped(file: int) -> Iterator[memoryview]:
    """What the descriptor reads, mapped while the block runs. Raises OSError."""
    size = os.fstat(file).st_size
    if not size:
        yield memoryview(b"")
        return
    with mmap.mmap(file, size, access=mmap.ACCESS_READ) as whole, memoryview(whole) as contents:
        yield contents


def described(digest: str, status: os.stat_result) -> Object:
    return Object(digest, status.st_size, status.st_mtime)


def _digest_of(file: int) -> str:
    """The digest of what the descriptor reads, which is at its beginning again afterwards. Raises OSError."""
    hashed, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK_BYTES))
    position = 0
    while count := os.preadv(file, [buffer], position):
        hashed.update(buffer[:count])
        position += count
    return names.ALGORITHM + hashed.hexdigest()
