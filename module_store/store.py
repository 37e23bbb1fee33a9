"""The store as its users have it: objects, references to them, and what is attached to them.

Import rule: that of module_store.
"""

from __future__ import annotations

import os
import time

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.store import MAX_OBJECT_BYTES, Object, Reference
from module_store import names, references
from module_store.disk import Disk, explained
from module_store.objects import Objects, described
from module_store.opening import Opened
from module_store.place import Damaged, Folder, Place, default_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

    from module_store.objects import Readable

    Admit = Callable[[str, int, bool], Mapping[str, bytes]]
    """Asked under the lock, before a module is kept, of its digest, of the file with its bytes, and whether it is new
    here: what is to be attached to it, by its kind. What it raises keeps the module out."""

MAX_ATTACHMENTS = 64
"""Of one object: signatures of several keys, and a report for each policy."""


class Store(Objects, Opened):
    """A store, open. What it raises is KeepfleetError; threads and processes may use one at the same time."""

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

    def add(
        self,
        source: Readable,
        *,
        reference: str = "",
        who: str = "",
        digest: str = "",
        limit: int = MAX_OBJECT_BYTES,
        admit: Admit | None = None,
    ) -> Object:
        """Keeps what `source` reads, and names it where `reference` is given; on disk when this returns.

        digest: what it must have; limit: the most bytes; admit: see there. Nothing is left of what fails.
        """
        if reference:
            names.check_reference(reference)
        with explained(f"add to the module store {self.place.path}"), self.place.new_file() as (file, new_name):
            found = self.copy(source, file, limit)
            if digest and found != names.check_digest(digest):
                why = f"its digest is {found} and not {digest}"
                raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot add the module: {why}")
            self.place.disk.protect(file)
            self.place.disk.sync(file)
            with self.place.locked():
                attached = admit(found, file, self._status(names.file_of(found)) is None) if admit else {}
                fresh = self.keep_new(new_name, found)
                self._complete(found, attached, reference, who, fresh)
            return described(found, os.fstat(file))

    def _complete(self, digest: str, attached: Mapping[str, bytes], reference: str, who: str, fresh: bool) -> None:
        """Attaches to what was added and names it, or has it not be there: all of it happens or nothing. OSError."""
        kept: list[str] = []
        try:
            for kind, data in attached.items():
                self.attach_locked(digest, kind, data)
                kept.append(kind)
            if reference:
                self.move(reference, digest, who)
        except BaseException:
            if fresh and not (reference and self._names(reference, digest)):
                self.place.disk.remove(self.place.of(Folder.OBJECTS), names.file_of(digest))
                for kind in kept:
                    self.place.disk.remove(self.place.of(Folder.ATTACHMENTS), names.attachment_file(digest, kind))
            raise

    def _names(self, reference: str, digest: str) -> bool:
        """Whether it does, as after a move of which only the folder could not be flushed."""
        try:
            found = self._reference(reference)
        except KeepfleetError:
            return False
        return found is not None and found.digest == digest

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
        """Has `name` name an object that is there; on disk when this returns. A damaged reference begins again."""
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
        names.attachment_file(digest, kind)
        with explained(f"attach {kind} to {digest}"), self.place.locked():
            self.object(digest)
            self.attach_locked(digest, kind, data)

    def attach_locked(self, digest: str, kind: str, data: bytes) -> None:
        """The same under the lock, which the caller holds, of an object that is there. Raises OSError."""
        if kind not in (there := self.attachments(digest)) and len(there) >= MAX_ATTACHMENTS:
            why = f"it has {MAX_ATTACHMENTS} attachments already"
            raise KeepfleetError(ErrorKind.TOO_MANY, f"cannot attach {kind} to {digest}: {why}")
        self.place.write_record(Folder.ATTACHMENTS, names.attachment_file(digest, kind), data)

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
