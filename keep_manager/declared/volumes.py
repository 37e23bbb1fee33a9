"""The volumes of this host, below the manager's state directory.

    volumes/NAME/image         an ext4 file system of the volume's size, its blocks reserved
    volumes/NAME/volume.json   whose it is, and how large

A folder is made next to its place, filled, synced and renamed, and removed the other way round: of a manager that was
killed there is a whole volume or none. One that grows does so in a copy of its image, which then takes its place: there
is the old one or the new one, and its record may say the smaller size until the larger one is asked for again.

Here files are made; the grants helper mounts them (keep_grants/volumes.py), and locks the image for as long as a keep
has it. Methods but `Volumes.lock` are for threads.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from keep_manager.declared.images import format_image, grow_image, inodes_of
from keep_manager.declared.volume_record import MAX_RECORD, Stored, decode, encode
from keep_manager.failpoints import Failpoint, reach
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.volumes import INODES, NAME_PATTERN, SIZES, Volume, usual_inodes
from module_store.disk import (
    NEW,
    OPEN_DIRECTORY,
    OPEN_FILE,
    Disk,
    ensure_folder,
    explained,
    lock_now,
    opened_folder,
)

IMAGE, RECORD = "image", "volume.json"
MAX_VOLUMES = 2000
"""As many as there may be declared keeps."""
_NAME = re.compile(NAME_PATTERN)
_UNFINISHED, _GONE = ".new-", ".gone-"
COPY_BYTES = 1 << 26
"""Copied by one call: it cannot be interrupted meanwhile."""
_PRIVATE = 0o077


class Volumes:
    """The volumes in `directory`. allowed: how many bytes the volumes of an owner may have together; mounts: whether
    this manager's keeps can have any, which a user's own cannot."""

    def __init__(
        self, directory: str, allowed: Callable[[str], int], disk: Disk | None = None, *, mounts: bool = True
    ) -> None:
        self._directory, self._allowed, self._disk, self._mounts = directory, allowed, disk or Disk(), mounts
        self._looking = threading.Lock()  # a look locks images, too
        self.lock = asyncio.Lock()
        """Held by who makes or removes one."""

    def __repr__(self) -> str:
        return f"Volumes({self._directory!r})"

    def open(self) -> None:
        """Makes the directory, and removes what a manager that was killed had half made or half removed. Raises
        KeepfleetError."""
        with explained(f"keep volumes in {self._directory}"):
            ensure_folder(self._disk, self._directory)
            with opened_folder(self._directory) as base:
                for name in os.listdir(base):
                    if name.startswith((_UNFINISHED, _GONE)):
                        self._discard(base, name)
                for name in self._names(base):
                    with suppress(OSError, KeepfleetError), self._folder(base, name) as folder:  # which a look says
                        for left in {IMAGE + NEW, RECORD + NEW} & set(os.listdir(folder)):
                            self._disk.remove(folder, left)

    def listed(self) -> list[Volume]:
        """All, by name; what cannot be used says why."""
        with explained(f"list the volumes in {self._directory}"), self._looking, opened_folder(self._directory) as base:
            return [self._look(base, name) for name in self._names(base)]

    def find(self, name: str) -> Volume:
        """One. Raises KeepfleetError(NOT_FOUND)."""
        with explained(f"look at volume {name[:63]}"), self._looking, opened_folder(self._directory) as base:
            if not _NAME.fullmatch(name) or name not in self._names(base):
                raise no_volume(name)
            return self._look(base, name)

    def ensure(self, name: str, owner: str, size: int, inodes: int) -> None:
        """Has there be a volume of `owner`'s of at least that size; `lock` is held. Raises KeepfleetError: FORBIDDEN
        for another's, BAD_REQUEST for inodes that it cannot have, CONFLICT for one that is to grow and that a keep has,
        TOO_MANY, NO_SPACE, UNSUPPORTED where the host cannot make it."""
        if not self._mounts:
            why = "no user may mount a file system; declare it to the system's manager"
            raise KeepfleetError(ErrorKind.UNSUPPORTED, f"cannot have volume {name}: {why}")
        with explained(f"make volume {name}"), opened_folder(self._directory) as base:
            names = self._names(base)
            there = self._stored(base, name) if name in names else None
            wanted = Stored(owner, size, inodes, round(time.time(), 3))
            if there is not None and not self._grows(name, there, wanted):
                return
            others = [found for found in map(self._known(base), names) if found is not None and found.owner == owner]
            total = size + sum(each.size_bytes for each in others) - (there.size_bytes if there is not None else 0)
            allowed = self._allowed(owner)
            if total > allowed or (there is None and len(names) >= MAX_VOLUMES):
                why = f"{owner} would have {total} bytes in volumes, and the quota volume_bytes is {allowed}"
                why = why if total > allowed else f"there are {len(names)} already"
                raise KeepfleetError(ErrorKind.TOO_MANY, f"cannot make volume {name}: {why}")
            if there is None:
                self._make(base, name, wanted)
            else:
                self._grow(base, name, there, wanted)

    def remove(self, name: str) -> None:
        """Removes one and all that is in it; `lock` is held. Raises KeepfleetError: NOT_FOUND, CONFLICT while a keep
        has it."""
        with (
            explained(f"remove volume {name[:63]}"),
            self._looking,
            opened_folder(self._directory) as base,
            ExitStack() as held,
        ):
            if not _NAME.fullmatch(name) or name not in self._names(base):
                raise no_volume(name)
            image = self._image(base, name)
            if image is not None:
                held.callback(os.close, image)
                if not lock_now(image):  # else it is ours until we close it, and no keep gets it meanwhile
                    why = "a keep has it; have that declared no more first"
                    raise KeepfleetError(ErrorKind.CONFLICT, f"cannot remove volume {name}: {why}")
            self._discard(base, _GONE + name)
            self._disk.rename(base, name, base, _GONE + name)
            self._disk.sync(base)
            reach(Failpoint.VOLUME_AFTER_GONE)
            self._discard(base, _GONE + name)

    def _make(self, base: int, name: str, stored: Stored) -> None:
        new = _UNFINISHED + name
        self._discard(base, new)
        try:
            self._disk.make_directory(base, new)
            with self._folder(base, new) as folder:
                image = self._disk.create(folder, IMAGE)
                try:
                    self._disk.reserve(image, stored.size_bytes)
                    reach(Failpoint.VOLUME_AFTER_RESERVE)
                    format_image(f"{self._directory}/{new}/{IMAGE}", stored.size_bytes, stored.inodes)
                    self._disk.sync(image)
                finally:
                    os.close(image)
                record = self._disk.create(folder, RECORD)
                try:
                    self._disk.write(record, encode(stored))
                    self._disk.sync(record)
                finally:
                    os.close(record)
                self._disk.sync(folder)
            reach(Failpoint.VOLUME_AFTER_FORMAT)
            self._disk.rename(base, new, base, name)
            self._disk.sync(base)
            reach(Failpoint.VOLUME_AFTER_RENAME)
        except BaseException:
            with suppress(OSError):  # the next start does it
                self._discard(base, new)
            raise

    def _grow(self, base: int, name: str, there: Stored, wanted: Stored) -> None:
        """Has a larger copy of its image take the image's place, and then its record say so."""
        with self._folder(base, name) as folder, ExitStack() as held:
            image = os.open(IMAGE, OPEN_FILE, dir_fd=folder)
            held.callback(os.close, image)
            with self._looking:
                has = not lock_now(image)  # else it is ours until we close it
            if has:
                raise KeepfleetError(ErrorKind.CONFLICT, f"cannot have volume {name} grow: a keep has it")
            if os.fstat(image).st_size < wanted.size_bytes:  # else a manager was killed before the record said so
                held.callback(self._remove_leftover, folder, IMAGE + NEW)
                larger = self._disk.create(folder, IMAGE + NEW)
                held.callback(os.close, larger)
                self._disk.reserve(larger, wanted.size_bytes)
                _copied(image, larger)
                grow_image(f"{self._directory}/{name}/{IMAGE}{NEW}", wanted.size_bytes)
                _check_inodes(name, inodes_of(larger), wanted)
                self._disk.sync(larger)
                self._disk.rename(folder, IMAGE + NEW, folder, IMAGE)
                self._disk.sync(folder)
            grown = there.replace(size_bytes=wanted.size_bytes, inodes=max(there.inodes, _inodes_in(folder)))
            held.callback(self._remove_leftover, folder, RECORD + NEW)
            record = self._disk.create(folder, RECORD + NEW)
            held.callback(os.close, record)
            self._disk.write(record, encode(grown))
            self._disk.sync(record)
            self._disk.rename(folder, RECORD + NEW, folder, RECORD)
            self._disk.sync(folder)

    def _remove_leftover(self, folder: int, name: str) -> None:
        with suppress(FileNotFoundError):
            self._disk.remove(folder, name)

    def _discard(self, base: int, name: str) -> None:
        """Removes a folder that is no volume, where there is one; a link there, and not what it points to."""
        with suppress(FileNotFoundError):
            if stat.S_ISDIR(os.stat(name, dir_fd=base, follow_symlinks=False).st_mode):
                shutil.rmtree(name, dir_fd=base)
            else:
                os.unlink(name, dir_fd=base)

    def _look(self, base: int, name: str) -> Volume:
        try:
            with explained(f"use volume {name}"):
                stored = self._stored(base, name)
                with self._folder(base, name) as folder:
                    image = os.open(IMAGE, OPEN_FILE, dir_fd=folder)
                try:
                    in_use = not lock_now(image)
                finally:
                    os.close(image)
        except KeepfleetError as error:
            return Volume(name, "", SIZES[0], INODES[0], 0.0, detail=error.message)
        return Volume(name, stored.owner, stored.size_bytes, stored.inodes, stored.created_at, in_use=in_use)

    def _image(self, base: int, name: str) -> int | None:
        """Its image, open; None where a damaged volume has none. Raises OSError."""
        try:
            with self._folder(base, name) as folder:
                return os.open(IMAGE, OPEN_FILE, dir_fd=folder)
        except (FileNotFoundError, KeepfleetError):
            return None

    def _known(self, base: int) -> Callable[[str], Stored | None]:
        def known(name: str) -> Stored | None:
            with suppress(KeepfleetError, OSError):
                return self._stored(base, name)
            return None

        return known

    def _stored(self, base: int, name: str) -> Stored:
        """What its record says. Raises OSError, KeepfleetError for one that is damaged, or not the manager's alone."""
        with self._folder(base, name) as folder:
            status = os.fstat(folder)
            if status.st_uid != os.geteuid() or status.st_mode & _PRIVATE:
                whose = f"it is user {status.st_uid}'s, with mode {status.st_mode & 0o7777:o}"
                raise KeepfleetError(ErrorKind.FORBIDDEN, f"cannot use volume {name}: {whose}, not the manager's alone")
            with open(os.open(RECORD, OPEN_FILE, dir_fd=folder), "rb") as file:
                data = file.read(MAX_RECORD + 1)
        return decode(name, data)

    def _grows(self, name: str, there: Stored, wanted: Stored) -> bool:
        """Whether it is to grow; one that is larger than what is asked for is had as it is: an older version of a keep
        finds it so. Raises KeepfleetError where it cannot be had."""
        if there.owner != wanted.owner:
            raise KeepfleetError(ErrorKind.FORBIDDEN, f"cannot have volume {name}: it is another's")
        if there.size_bytes < wanted.size_bytes:
            return True
        _check_inodes(name, there.inodes, wanted)
        return False

    def _names(self, base: int) -> list[str]:
        return sorted(filter(_NAME.fullmatch, os.listdir(base)))

    @contextmanager
    def _folder(self, base: int, name: str) -> Iterator[int]:
        """A volume's folder; a link in its place is none. Raises OSError, KeepfleetError(FORBIDDEN)."""
        try:
            folder = os.open(name, OPEN_DIRECTORY, dir_fd=base)
        except NotADirectoryError as error:  # what O_NOFOLLOW with O_DIRECTORY says of a link, too
            why = "a link, or something else that is no directory, stands in its place"
            raise KeepfleetError(ErrorKind.FORBIDDEN, f"cannot use volume {name}: {why}") from error
        try:
            yield folder
        finally:
            os.close(folder)


def _check_inodes(name: str, has: int, wanted: Stored) -> None:
    """Raises KeepfleetError(BAD_REQUEST) where more are asked for, by more than their usual number for a size."""
    if has < wanted.inodes and wanted.inodes != usual_inodes(wanted.size_bytes):
        why = f"it has {has} inodes, or would, and {wanted.inodes} are asked for; they were set when it was made"
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot have volume {name}: {why}")


def _copied(source: int, target: int) -> None:
    """Copies a whole file into another one, by its blocks where the file system can. Raises OSError."""
    left, offset = os.fstat(source).st_size, 0
    while left:
        count = os.copy_file_range(source, target, min(left, COPY_BYTES), offset, offset)
        if not count:
            raise OSError(errno.EIO, "the image ends early")
        left, offset = left - count, offset + count


def _inodes_in(folder: int) -> int:
    image = os.open(IMAGE, OPEN_FILE, dir_fd=folder)
    try:
        return inodes_of(image)
    finally:
        os.close(image)


def no_volume(name: str) -> KeepfleetError:
    """The error for a name that no volume has, or none that the caller may see."""
    return KeepfleetError(ErrorKind.NOT_FOUND, f"cannot find volume {name[:63]!r}: there is none of this name")
