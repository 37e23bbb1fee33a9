"""The specifications on disk, below the manager's state directory.

    declared/NAME.yaml              what is wanted
    declared/history/NAME.VERSION   what was wanted before, the last HISTORY of them

A file is written next to its place, synced, renamed, and the directory synced: what was acknowledged is there after a
power cut, and it is there whole. Methods read and write a disk: they are for threads.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress

from keep_manager.declared.specification import MAX_FILE, Specification, decode, encode
from keep_manager.failpoints import Failpoint, reach
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from module_store.disk import OPEN_FILE, Disk, ensure_folder, explained, opened_folder, replace_file

HISTORY = 10
"""Versions before the one that is wanted; a person goes back by one or two."""
MAX_DECLARED = 2000
"""As many as there may be keeps."""
NAME = re.compile("[a-z0-9-]{1,63}")
_FILE = re.compile(rf"({NAME.pattern})\.yaml")
_HISTORY = "history"


class Unreadable(Record):
    """A file that says nothing that could be run, and why; its keep is left as it is."""

    name: str
    why: KeepfleetError


def check_name(name: str) -> str:
    """`name` itself. Raises KeepfleetError(BAD_REQUEST) unless a declared keep may be called so."""
    if not NAME.fullmatch(name):
        raise KeepfleetError(
            ErrorKind.BAD_REQUEST, f"invalid name {name[:63]!r}: a declared keep's is 1 to 63 of a-z, 0-9 and -"
        )
    return name


class Specifications:
    """The files in `directory`."""

    def __init__(self, directory: str, disk: Disk | None = None) -> None:
        self._directory, self._disk = directory, disk or Disk()

    def __repr__(self) -> str:
        return f"Specifications({self._directory!r})"

    def open(self) -> None:
        """Makes the directories where they are not there. Raises KeepfleetError."""
        with explained(f"keep specifications in {self._directory}"):
            ensure_folder(self._disk, self._directory)
            with opened_folder(self._directory) as base, suppress(FileExistsError):
                self._disk.make_directory(base, _HISTORY)
                self._disk.sync(base)

    def load(self) -> dict[str, Specification | Unreadable]:
        """Every specification by its name; one that cannot be read stops no other."""
        with explained(f"list the specifications in {self._directory}"), opened_folder(self._directory) as base:
            names = sorted(found[1] for found in map(_FILE.fullmatch, os.listdir(base)) if found)
        return {name: self.read(name) for name in names}

    def read(self, name: str) -> Specification | Unreadable:
        """One specification, whose file is there."""
        try:
            with explained(f"read the specification {name}"), opened_folder(self._directory) as base:
                return decode(name, _bytes(base, f"{name}.yaml"))
        except KeepfleetError as error:
            return Unreadable(name, error)

    def write(self, specification: Specification, before: Specification | None = None) -> None:
        """Has `specification` be what is wanted, and `before` the latest of its history; on disk when this returns."""
        name = specification.name
        with explained(f"keep the specification {name}"), opened_folder(self._directory) as base:
            if before is not None:
                with opened_folder(_HISTORY, base) as history:
                    replace_file(self._disk, history, f"{name}.{before.header.version}", encode(before))
            reach(Failpoint.DECLARE_AFTER_HISTORY)
            replace_file(self._disk, base, f"{name}.yaml", encode(specification))
            reach(Failpoint.DECLARE_AFTER_WRITE)
            if before is not None:
                with opened_folder(_HISTORY, base) as history:
                    for version in self._versions(history, name)[HISTORY:]:
                        self._disk.remove(history, f"{name}.{version}")

    def history(self, name: str) -> list[Specification]:
        """What was wanted before, the latest first; a file that cannot be read is left out."""
        found: list[Specification] = []
        with (
            explained(f"read the history of {name}"),
            opened_folder(self._directory) as base,
            opened_folder(_HISTORY, base) as history,
        ):
            for version in self._versions(history, name):
                with suppress(KeepfleetError):
                    found.append(decode(name, _bytes(history, f"{name}.{version}")))
        return found

    def remove(self, name: str) -> None:
        """Removes a specification and its history, the specification last: what is half removed is removed again."""
        with explained(f"remove the specification {name}"), opened_folder(self._directory) as base:
            with opened_folder(_HISTORY, base) as history:
                for version in self._versions(history, name):
                    self._disk.remove(history, f"{name}.{version}")
                self._disk.sync(history)
            with suppress(FileNotFoundError):
                self._disk.remove(base, f"{name}.yaml")
            self._disk.sync(base)
            reach(Failpoint.DECLARE_AFTER_REMOVE)

    def _versions(self, history: int, name: str) -> list[int]:
        pattern = re.compile(rf"{name}\.([0-9]{{1,16}})")
        return sorted((int(found[1]) for found in map(pattern.fullmatch, os.listdir(history)) if found), reverse=True)


def _bytes(directory: int, name: str) -> bytes:
    """The file's bytes, one more than may be at most. Raises OSError."""
    with open(os.open(name, OPEN_FILE, dir_fd=directory), "rb") as file:
        return file.read(MAX_FILE + 1)
