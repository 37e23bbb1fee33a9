"""One tree on disk: what it was made of, and whether it is still that.

Import rule: that of keep_root.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable
from typing import Any

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_root.contents import MOUNT_POINTS, Contents, Target

FORMAT = 1
"""Of the records; part of the digest, so that trees of another format are not taken for ours."""
NAME = re.compile(r"root-[0-9a-f]{16}")
TREE, RECORD, FILES = "tree", "record.json", "files.json"
MAX_RECORD_BYTES = 4 * 1024 * 1024
"""A thousand files take 150 KB."""
Stamp = tuple[int, int, int, int]
"""Device, inode, length and time of change of a file's content in ns: a file that was replaced has another one."""


def stamp_of(path: str) -> Stamp | None:
    """What distinguishes a file, or what a link names, from another; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


class Watched(Record):
    """A file that each creation looks at: where it came from, and what both were when the tree was made."""

    place: str
    source: str
    of_source: Stamp
    of_place: Stamp


class Tree(Record):
    """A tree that was finished: `directory` is DIRECTORY/root-DIGEST."""

    directory: str
    target: Target
    watched: tuple[Watched, ...]

    @property
    def path(self) -> str:
        """What RootDirectory= names."""
        return os.path.join(self.directory, TREE)

    def change(self) -> str | None:
        """Why the tree is not what new keeps should get, as far as its few programs and libraries say; None where it
        is.

        Two looks at each of some forty files: 0.1 to 0.2 ms.
        """
        for each in self.watched:
            if stamp_of(each.source) != each.of_source:
                return f"{each.source} has changed since"
        return self.damage()

    def damage(self) -> str | None:
        """What of its programs and libraries is not as it was made; None where all are."""
        for each in self.watched:
            if stamp_of(f"{self.path}/{each.place}") != each.of_place:
                return f"{self.path}/{each.place} is {'not as it was made' if os.path.exists(self.path) else 'gone'}"
        return None


def is_trusted(tree: Tree) -> bool:
    """Whether only root and ourselves can have made the tree, or can change it."""
    try:
        found = [os.stat(path) for path in (os.path.dirname(tree.directory), tree.directory, tree.path)]
    except OSError:
        return False
    return all(status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o022 for status in found)


def is_in_use(directory: str) -> bool:
    """Whether a loader runs in the tree in `directory`: each holds a lock on its root."""
    return is_locked(os.path.join(directory, TREE)) is True


def is_locked(directory: str) -> bool | None:
    """Whether another process holds a lock on `directory`; None where it cannot be opened."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def digest_of(contents: Contents, target: Target) -> str:
    """What distinguishes a tree of these files from every other. Raises KeepfleetError where one is missing."""
    text = hashlib.sha256(f"{FORMAT} {target.python} {target.packages}\n".encode())
    for entry in contents.entries:
        text.update(f"{entry.place} {entry.mode:o} {needed_stamp(entry.source)}\n".encode())
    return text.hexdigest()[:16]


def needed_stamp(source: str) -> Stamp:
    """The stamp of what a tree is made of. Raises KeepfleetError(CONFIGURATION) where it is not there."""
    found = stamp_of(source)
    if found is None:
        raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot build the keeps' root: {source} is gone; try again")
    return found


def read_tree(directory: str) -> Tree | None:
    """The tree in `directory`; None where none was finished there, or its record cannot be read."""
    try:
        value = _read_json(os.path.join(directory, RECORD))
        if value["format"] != FORMAT:
            return None
        watched = tuple(
            Watched(str(place), str(source), _stamp(of_source), _stamp(of_place))
            for place, source, of_source, of_place in value["watched"]
        )
        return Tree(directory, Target(str(value["python"]), str(value["packages"])), watched)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_records(directory: str, target: Target, contents: Contents) -> None:
    """Writes down what the finished tree in `directory` is. Raises OSError, KeepfleetError."""
    tree = os.path.join(directory, TREE)
    stamps = {entry.place: (entry.source, needed_stamp(entry.source)) for entry in contents.entries}
    watched = [
        [entry.place, *stamps[entry.place], needed_stamp(f"{tree}/{entry.place}")]
        for entry in contents.entries
        if entry.watched
    ]
    record = {"format": FORMAT, "python": target.python, "packages": target.packages, "watched": watched}
    _write_json(os.path.join(directory, FILES), {"sources": stamps, "files": _files(tree)})
    _write_json(os.path.join(directory, RECORD), record)


def findings(tree: Tree) -> list[str]:
    """Everything that is not as it should be, one sentence each; empty where all is well. Looks at every file."""
    return [*damages_of(tree), *changes_of(tree)]


def damages_of(tree: Tree) -> list[str]:
    """What in the tree is not as it was made, one sentence each.

    What systemd makes there for an operator's own drop-in, an empty file or directory to mount over, is no fault.
    """
    try:
        made: dict[str, list[int]] = _read_json(os.path.join(tree.directory, FILES))["files"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        return [f"{tree.directory}/{FILES} cannot be read: {error}"]
    found = [f"{tree.path}/{point} is missing" for point in MOUNT_POINTS if not os.path.isdir(f"{tree.path}/{point}")]
    now = _files(tree.path)
    for place, described in made.items():
        if place not in now:
            found.append(f"{tree.path}/{place} is missing")
        elif now[place] != described:
            found.append(f"{tree.path}/{place} is not as it was made")
    others = [place for place in sorted(now.keys() - made.keys()) if now[place][0]]
    return [*found, *(f"{tree.path}/{place} is none of the tree's files" for place in others)]


def changes_of(tree: Tree) -> list[str]:
    """What of the host's files the tree was made of is another one now, one sentence each."""
    try:
        sources: dict[str, tuple[str, list[int]]] = _read_json(os.path.join(tree.directory, FILES))["sources"]
    except (OSError, ValueError, TypeError, KeyError):
        return []  # `damages_of` says so
    changed = [source for source, stamp in sources.values() if stamp_of(source) != _stamp(stamp)]
    return [f"{source} has changed since the tree was made" for source in changed]


def _files(tree: str) -> dict[str, list[int]]:
    """Each file of a tree: its length, time of change and mode."""
    found: dict[str, list[int]] = {}
    for directory, _, names in os.walk(tree):
        for name in names:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            found[path[len(tree) + 1 :]] = [status.st_size, status.st_mtime_ns, stat.S_IMODE(status.st_mode)]
    return found


def _stamp(value: Iterable[int]) -> Stamp:
    device, inode, size, time = (int(number) for number in value)
    return device, inode, size, time


def _read_json(path: str) -> dict[str, Any]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(MAX_RECORD_BYTES + 1)
    if len(data) > MAX_RECORD_BYTES:
        raise ValueError(f"it is over {MAX_RECORD_BYTES} bytes")
    value = json.loads(data)
    if not isinstance(value, dict):
        raise TypeError("it is no record")
    return value


def _write_json(path: str, value: object) -> None:
    with open(path, "x", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
