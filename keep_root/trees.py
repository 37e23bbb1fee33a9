"""All trees of one service manager: the one that new keeps get, and those that no keep has any more.

Import rule: that of keep_root.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Set

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_root.build import REMOVED, UNFINISHED, build, remove
from keep_root.contents import Target, contents
from keep_root.tree import (
    NAME,
    TREE,
    Tree,
    changes_of,
    damages_of,
    digest_of,
    is_in_use,
    is_locked,
    is_trusted,
    read_tree,
)

SYSTEM = "/var/lib/keepfleet"
"""The trees of the system's manager (man 7 file-hierarchy). A user's manager takes one of these where it fits."""
VARIABLE = "KEEPFLEET_TREES"
"""Set in the manager's unit: the directory of its trees."""
FRESH_SECONDS = 3600.0
"""An installation makes a tree some time before the manager is started that uses it."""
ABANDONED_SECONDS = 60.0
"""Who makes a tree holds a lock on it from the first moment on; this is that moment."""


def user_directory(home: str | None = None) -> str:
    """Where the trees of a user's own manager are."""
    data = os.environ.get("XDG_DATA_HOME") if home is None else None
    return os.path.join(data or os.path.join(home or os.path.expanduser("~"), ".local/share"), "keepfleet")


class Trees:
    """The trees in `directory`, for keeps that run `target`."""

    def __init__(self, directory: str, target: Target) -> None:
        self.directory, self.target = directory, target
        self._current: Tree | None = None
        self._building = threading.Lock()

    def __repr__(self) -> str:
        return f"Trees({self.directory}, current {self._current and os.path.basename(self._current.directory)})"

    @property
    def ready(self) -> Tree | None:
        """The tree that new keeps get, as long as nothing about it has changed; else `current` makes one."""
        tree = self._current
        return tree if tree is not None and tree.change() is None else None

    def current(self) -> Tree:
        """The tree that new keeps get: what is there and fits, or a new one, which takes a second.

        Raises KeepfleetError."""
        with self._building:
            tree = self.ready or self._found()
            if tree is None:
                tree = self.make()
            self._current = tree
            return tree

    def make(self) -> Tree:
        """The tree of everything as it is now, whether its few programs say so or not. Raises KeepfleetError."""
        wanted = contents(self.target)
        name = f"root-{digest_of(wanted, self.target)}"
        for directory in self._directories():
            tree = read_tree(os.path.join(directory, name))
            if tree is not None and is_trusted(tree) and tree.damage() is None:
                return tree
        return build(self.directory, name, self.target, wanted)

    def repaired(self) -> list[str]:
        """What was wrong with the tree that new keeps get, after a look at each of its files; another one has been made
        then. Raises KeepfleetError."""
        tree = self.current()
        damages = damages_of(tree)
        found = [*damages, *changes_of(tree)]
        if found:
            with self._building:
                self._current = None
                if damages and os.path.dirname(tree.directory) == self.directory:
                    _explained_removal(tree.directory)
                self._current = self.make()
        return found

    def all(self) -> list[Tree]:
        """Every finished tree in the directory."""
        trees = (read_tree(os.path.join(self.directory, name)) for name in self.names())
        return [tree for tree in trees if tree is not None]

    def names(self) -> list[str]:
        """The names of what is there as a tree."""
        return _names(self.directory)

    def unused(self, used: Set[str]) -> list[str]:
        """The names that neither new keeps nor `used`, the paths of all units' trees, nor any loader need; fresh ones
        are spared."""
        current = self._current
        found = []
        for name in self.names():
            directory = os.path.join(self.directory, name)
            is_used = os.path.join(directory, TREE) in used or is_in_use(directory)
            if (
                not is_used
                and (current is None or current.directory != directory)
                and not _is_younger(directory, FRESH_SECONDS)
            ):
                found.append(name)
        return found

    def remove_unused(self, used: Set[str]) -> list[str]:
        """Removes what `unused` names, and what crashes left half made or half removed. Raises KeepfleetError."""
        names = self.unused(used)
        for name in names:
            _explained_removal(os.path.join(self.directory, name))
        _clear(self.directory, ABANDONED_SECONDS)
        return names

    def _directories(self) -> tuple[str, ...]:
        return (self.directory,) if self.directory == SYSTEM else (self.directory, SYSTEM)

    def _found(self) -> Tree | None:
        """A tree for the target of which nothing has changed since it was made."""
        for directory in self._directories():
            for tree in Trees(directory, self.target).all():
                if tree.target == self.target and is_trusted(tree) and tree.change() is None:
                    return tree
        return None


def _names(directory: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(directory) if NAME.fullmatch(name))
    except FileNotFoundError:
        return []


def trees_in_use(directory: str) -> list[str]:
    """The trees in `directory` in which a loader runs, of whichever service manager."""
    paths = [os.path.join(directory, name) for name in _names(directory)]
    return [path for path in paths if is_in_use(path)]


def remove_trees(directory: str) -> list[str]:
    """Removes every tree in `directory`, and it too where nothing else is in it; returns the trees. Raises
    KeepfleetError."""
    paths = [os.path.join(directory, name) for name in _names(directory)]
    for path in paths:
        _explained_removal(path)
    _clear(directory, 0.0)
    try:
        os.rmdir(directory)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EACCES, errno.EPERM, errno.EBUSY):
            raise
    return paths


def _clear(directory: str, spared_seconds: float) -> None:
    """Removes what crashes left half made, unless it is younger than `spared_seconds`, or half removed."""
    for name in os.listdir(directory) if os.path.isdir(directory) else ():
        path = os.path.join(directory, name)
        # The process that makes a tree holds a lock on it: one without a holder was abandoned.
        abandoned = name.startswith(UNFINISHED) and is_locked(path) is False and not _is_younger(path, spared_seconds)
        if abandoned or (name.startswith(REMOVED) and not is_in_use(path)):
            shutil.rmtree(path, ignore_errors=True)  # another process may be at it, too


def _is_younger(path: str, seconds: float) -> bool:
    try:
        return time.time() - os.stat(path).st_mtime < seconds
    except OSError:
        return False


def _explained_removal(directory: str) -> None:
    try:
        remove(directory)
    except FileNotFoundError:
        return  # another process was faster
    except OSError as error:
        why = error.strerror or error
        raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot remove {directory}: {why}") from error
