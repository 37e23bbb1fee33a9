"""The versions of one installation: which is current, which are used, and how they come and go.

A version stays while a manager or another program of it runs. Keeps need none: each has what it runs in its own root.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from keep_protocol.errors import ErrorKind, KeepfleetError
from keepctl import files
from keepctl.prefix import OURS, Prefix

PROGRAMS = ("keepctl", "keep-manager", "keep-manager-tester", "app-loader-tester")
"""What an operator types; keep-loader and app-loader are started by systemd and by each other."""
UNFINISHED = (".new", ".removed")
"""How the names of folders end that `./run install` has not finished, or that were not removed completely."""


@dataclass(frozen=True)
class Change:
    """What became of one `unit`, `version`, `program` or `root`: "written", "unchanged", "current", "linked", "built"
    or "removed"."""

    kind: str
    path: str
    what: str


@contextmanager
def locked(prefix: Prefix) -> Iterator[None]:
    """Only one process at a time adds, switches or removes versions. Raises KeepfleetError(CONFLICT) for the second."""
    if not prefix.is_managed:
        yield
        return
    with files.locked(prefix.versions):
        yield


def check_programs(prefix: Prefix, directory: str) -> None:
    """Raises KeepfleetError(CONFLICT) where a program in `directory` would be replaced that is not ours."""
    for path in (os.path.join(directory, name) for name in PROGRAMS):
        if os.path.lexists(path) and not _links_here(prefix, path):
            raise KeepfleetError(
                ErrorKind.CONFLICT, f"cannot replace {path}: `keepctl install` did not make it; move it away first"
            )


def make_current(prefix: Prefix, directory: str) -> list[Change]:
    """Points `current` to this version, with one rename, and the programs in `directory` to `current`."""
    target = os.path.relpath(prefix.directory, prefix.root)
    changes = [Change("version", prefix.directory, "current" if _link(prefix.current, target) else "unchanged")]
    files.make_directories(directory, files.PUBLIC_DIRECTORY)
    for name in PROGRAMS:
        path = os.path.join(directory, name)
        linked = _link(path, os.path.join(prefix.current, "bin", name))
        changes.append(Change("program", path, "linked" if linked else "unchanged"))
    return changes


def remove_programs(prefix: Prefix, directory: str) -> list[Change]:
    """Removes the links that `make_current` made in `directory`."""
    paths = [path for path in (os.path.join(directory, name) for name in PROGRAMS) if _links_here(prefix, path)]
    for path in paths:
        os.unlink(path)
    return [Change("program", path, "removed") for path in paths]


def remove_unused(prefix: Prefix) -> list[Change]:
    """Removes each version that is not current and of which no process runs."""
    used = {*_running(prefix), os.path.basename(os.path.realpath(prefix.current))}
    return [_remove_version(path) for path in _ours(prefix) if os.path.basename(path) not in used]


def remove_all(prefix: Prefix) -> list[Change]:
    """Removes `current`, every version (this program's own files, too), and the directories that are empty then."""
    if os.path.islink(prefix.current):
        os.unlink(prefix.current)
    changes = [_remove_version(path) for path in _ours(prefix)]
    for directory in (prefix.versions, prefix.root):
        if not os.listdir(directory):
            os.rmdir(directory)
    return changes


def _ours(prefix: Prefix) -> list[str]:
    """The versions, and what is left of unfinished ones. A folder called `versions` may be one that others use, too."""
    paths = [os.path.join(prefix.versions, name) for name in sorted(os.listdir(prefix.versions))]
    return [path for path in paths if path.endswith(UNFINISHED) or _is_version(path)]


def _is_version(path: str) -> bool:
    """Whether keepfleet is installed in the virtual environment `path`."""
    library = os.path.join(path, "lib")
    interpreters = os.listdir(library) if os.path.isdir(library) else []
    return any(os.path.isdir(os.path.join(library, name, "site-packages", OURS)) for name in interpreters)


def _running(prefix: Prefix) -> set[str]:
    """The versions that processes of this machine were started from, as the path of their interpreter says."""
    programs = (_program(int(name)) for name in os.listdir("/proc") if name.isdecimal())
    inside = f"{prefix.versions}/"
    return {word[len(inside) :].partition("/")[0] for word in programs if word.startswith(inside)}


def _program(pid: int) -> str:
    """The first word of a process's command line; none of one that has ended meanwhile."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return os.fsdecode(file.read().partition(b"\0")[0])
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _links_here(prefix: Prefix, path: str) -> bool:
    """Whether `path` is a link into the installation of `prefix`."""
    return os.path.islink(path) and os.readlink(path).startswith(f"{prefix.root}/")


def _link(path: str, target: str) -> bool:
    """Makes `path` a link to `target`, atomically; returns whether that changed anything."""
    if os.path.islink(path) and os.readlink(path) == target:
        return False
    temporary = files.temporary_path(path)
    os.symlink(target, temporary)
    os.rename(temporary, path)
    files.sync_directory(os.path.dirname(path))
    return True


def _remove_version(path: str) -> Change:
    """Removes a version under another name, so that what is left after a crash is not taken for a version."""
    away = path if path.endswith(UNFINISHED) else path + UNFINISHED[1]
    if away != path:
        os.rename(path, away)
    shutil.rmtree(away)
    return Change("version", path, "removed")
