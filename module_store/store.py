"""The store as its users have it: objects by digest, references to them, and what is attached to them.

`open_object` is the one way to an object's bytes: it opens the file once, looks at its owner and mode, hashes what that
descriptor reads, and returns that descriptor. What is mapped from it is what was verified: the file's mode is 0400 in a
folder of mode 0700, so that nobody but the store's owner (and root) could change it in between.
Import rule: that of module_store.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType

from keep_protocol.constants import MAX_WORKLOAD_BYTES
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record, Seconds, Text, Whole, field
from module_store import names, references
from module_store.disk import OBJECT_MODE, OPEN_FILE, Disk, explained
from module_store.place import Damaged, Folder, Place, default_directory
from module_store.references import Reference

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol, Self

    class Readable(Protocol):
        """What an object is read from."""

        def read(self, size: int, /) -> bytes:
            """At most `size` bytes, none at the end."""


MAX_OBJECT_BYTES = 4 * MAX_WORKLOAD_BYTES
"""A module may be larger here than one that is uploaded."""
CHUNK_BYTES = 1024 * 1024
MAX_ATTACHMENTS = 64
"""Of one object: signatures of several keys, and a report for each policy."""
QUARANTINE_LOCK_SECONDS = 1.0
"""A reader that finds damage refuses it with or without moving it away."""


class Object(Record):
    """A module in the store. added: when it was, in seconds of the epoch."""

    digest: str = field(Text(71, names.DIGEST, "a digest"), about="The SHA-256 of its bytes, after sha256:.")
    size: int = field(Whole(0, MAX_OBJECT_BYTES), about="Its length in bytes.")
    added: float = field(Seconds(), about="When it was added last, in seconds of the epoch.")


class Store:
    """A store, open. What it raises is KeepfleetError; threads and processes may use one at the same time."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def __repr__(self) -> str:
        return f"Store({self.place.path})"

    @classmethod
    def open(cls, directory: str | None = None, disk: Disk | None = None) -> Self:
        """The store in `directory`. Raises KeepfleetError(NOT_FOUND) where there is none."""
        return cls(Place(directory or default_directory(), disk or Disk(), create=False))

    @classmethod
    def create(cls, directory: str | None = None, disk: Disk | None = None) -> Self:
        """The same; an empty one is made where there is none."""
        return cls(Place(directory or default_directory(), disk or Disk(), create=True))

    def close(self) -> None:
        """Closes it; descriptors of objects go on."""
        self.place.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- objects -----------------------------------------------------------------------------------------------------

    def add(
        self, source: Readable, *, reference: str = "", who: str = "", digest: str = "", limit: int = MAX_OBJECT_BYTES
    ) -> Object:
        """Keeps what `source` reads, and names it where `reference` is given; on disk when this returns.

        digest: what it must have; limit: the most bytes. Nothing is left of what fails.
        """
        if reference:
            names.check_reference(reference)
        with explained(f"add to the module store {self.place.path}"), self.place.new_file() as (file, new_name):
            found = self._copy(source, file, limit)
            if digest and found != names.check_digest(digest):
                why = f"its digest is {found} and not {digest}"
                raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot add the module: {why}")
            self.place.disk.protect(file)
            self.place.disk.sync(file)
            with self.place.locked():
                self.keep_new(new_name, found)
                if reference:
                    self.move(reference, found, who)
            return _described(found, os.fstat(file))

    def _copy(self, source: Readable, file: int, limit: int) -> str:
        """Writes all of `source`; its digest."""
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

    def keep_new(self, new_name: str, digest: str) -> None:
        """Gives a new file that is on disk its name, under the lock; one that is there and whole stays, as young as a
        new one. Raises OSError."""
        try:
            there = self._opened(digest, quarantining=self._put_away)
        except Damaged:
            there = None
        if there is None:
            self.place.put(new_name, Folder.OBJECTS, names.file_of(digest))
            return
        try:
            self.place.disk.renew(there)
            self.place.disk.sync(there)
        finally:
            os.close(there)
        self.place.disk.sync(self.place.of(Folder.OBJECTS))  # who put it there may have been killed before that

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
                    found.append(_described(digest, known))
        return tuple(found)

    def object(self, digest: str) -> Object:
        """One object; not verified. Raises KeepfleetError(NOT_FOUND)."""
        with explained(f"look at {digest} in the module store {self.place.path}"):
            status = self._status(names.file_of(digest))
        if status is None:
            raise self._missing(digest)
        return _described(digest, status)

    def _status(self, name: str) -> os.stat_result | None:
        try:
            return os.stat(name, dir_fd=self.place.of(Folder.OBJECTS), follow_symlinks=False)
        except FileNotFoundError:
            return None

    def _missing(self, digest: str) -> KeepfleetError:
        return KeepfleetError(ErrorKind.NOT_FOUND, f"cannot find {digest} in the module store {self.place.path}")

    # --- references --------------------------------------------------------------------------------------------------

    def resolve(self, wanted: str) -> str:
        """The digest that `NAME:TAG`, `NAME:TAG@sha256:…` or `sha256:…` means, of an object that is there.

        With a digest the reference is for people: the digest decides, wherever the reference points by now.
        """
        asked = names.parse_wanted(wanted)
        return self.object(asked.digest or self.reference(asked.reference).digest).digest

    def reference(self, name: str) -> Reference:
        """One reference. Raises Damaged, KeepfleetError(NOT_FOUND)."""
        found = self._reference(names.check_reference(name))
        if found is None:
            why = f"the module store {self.place.path} has none of that name; `keepctl store ls` lists what is there"
            raise KeepfleetError(ErrorKind.NOT_FOUND, f"cannot find the reference {name}: {why}")
        return found

    def _reference(self, name: str) -> Reference | None:
        body = self.place.read_record(Folder.REFERENCES, name)
        return None if body is None else references.decode(body)

    def references(self) -> tuple[Reference, ...]:
        """Every reference, by name. Raises Damaged where one is; `reference_names` and `reference` go around it."""
        found = (self._reference(name) for name in self.reference_names())
        return tuple(reference for reference in found if reference is not None)

    def reference_names(self) -> list[str]:
        """The names of all references."""
        with explained(f"list the module store {self.place.path}"):
            return [name for name in self.place.names(Folder.REFERENCES) if names.REFERENCE.fullmatch(name)]

    def tag(self, name: str, digest: str, who: str = "") -> Reference:
        """Has `name` name an object that is there; on disk when this returns. A damaged reference is begun anew."""
        names.check_reference(name)
        with explained(f"tag {name} in the module store {self.place.path}"), self.place.locked():
            self.object(digest)
            return self.move(name, digest, who)

    def move(self, name: str, digest: str, who: str) -> Reference:
        """The same under the lock, which the caller holds, of an object that is there. Raises OSError."""
        try:
            before = self._reference(name)
        except Damaged:
            before = None
        after = references.moved(before, name, digest, who, time.time())
        self.place.write_record(Folder.REFERENCES, name, references.encode(after))
        return after

    def untag(self, name: str) -> None:
        """Removes a reference and its history; the objects stay until they are collected."""
        names.check_reference(name)
        with explained(f"remove {name} from the module store {self.place.path}"), self.place.locked():
            try:
                self.place.disk.remove(self.place.of(Folder.REFERENCES), name)
            except FileNotFoundError:
                self.reference(name)  # says that there is none
            self.place.disk.sync(self.place.of(Folder.REFERENCES))

    # --- attachments -------------------------------------------------------------------------------------------------

    def attach(self, digest: str, kind: str, data: bytes) -> None:
        """Keeps `data` with an object that is there, in the place of what is attached as `kind`."""
        place = names.attachment_file(digest, kind)
        with explained(f"attach {kind} to {digest}"), self.place.locked():
            self.object(digest)
            if kind not in (there := self.attachments(digest)) and len(there) >= MAX_ATTACHMENTS:
                why = f"it has {MAX_ATTACHMENTS} attachments already"
                raise KeepfleetError(ErrorKind.TOO_MANY, f"cannot attach {kind} to {digest}: {why}")
            self.place.write_record(Folder.ATTACHMENTS, place, data)

    def attached(self, digest: str, kind: str) -> bytes | None:
        """What is attached to an object as `kind`, as it was; None where nothing is. Raises Damaged."""
        return self.place.read_record(Folder.ATTACHMENTS, names.attachment_file(digest, kind))

    def attachments(self, digest: str) -> tuple[str, ...]:
        """The kinds of what is attached to an object."""
        prefix = names.file_of(digest) + "."
        found = [name for name in self.place.names(Folder.ATTACHMENTS) if name.startswith(prefix)]
        return tuple(known[1] for known in map(names.attachment_of_file, found) if known is not None)

    def detach(self, digest: str, kind: str) -> None:
        """Removes what is attached as `kind`, if anything is."""
        place = names.attachment_file(digest, kind)
        with explained(f"detach {kind} from {digest}"), self.place.locked():
            try:
                self.place.disk.remove(self.place.of(Folder.ATTACHMENTS), place)
            except FileNotFoundError:
                return
            self.place.disk.sync(self.place.of(Folder.ATTACHMENTS))


def _described(digest: str, status: os.stat_result) -> Object:
    return Object(digest, status.st_size, status.st_mtime)


def _digest_of(file: int) -> str:
    """The digest of what the descriptor reads, which stands at its beginning again afterwards. Raises OSError."""
    hashed, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK_BYTES))
    position = 0
    while count := os.preadv(file, [buffer], position):
        hashed.update(buffer[:count])
        position += count
    return names.ALGORITHM + hashed.hexdigest()
