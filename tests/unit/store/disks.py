"""Disks on which something happens at a chosen change, and one that knows what a power cut would leave."""

from __future__ import annotations

import errno
import os
import random
import signal
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from module_store.disk import Disk


class Watched(Disk):
    """Calls `before` with the number of each change, from 1, and its name, before it is made."""

    def __init__(self, before: Callable[[int, str], None]) -> None:
        self.count = 0
        self._before = before

    def _step(self, name: str) -> None:
        self.count += 1
        self._before(self.count, name)

    def make_directory(self, directory: int, name: str, mode: int = 0o700) -> None:
        self._step("make_directory")
        super().make_directory(directory, name, mode)

    def create(self, directory: int, name: str) -> int:
        self._step("create")
        return super().create(directory, name)

    def write(self, file: int, data: bytes | memoryview) -> None:
        self._step("write")
        super().write(file, data)

    def reserve(self, file: int, size: int) -> None:
        self._step("reserve")
        super().reserve(file, size)

    def protect(self, file: int) -> None:
        self._step("protect")
        super().protect(file)

    def renew(self, file: int) -> None:
        self._step("renew")
        super().renew(file)

    def sync(self, descriptor: int) -> None:
        self._step("sync")
        super().sync(descriptor)

    def rename(self, source: int, name: str, target: int, new_name: str) -> None:
        self._step("rename")
        super().rename(source, name, target, new_name)

    def remove(self, directory: int, name: str) -> None:
        self._step("remove")
        super().remove(directory, name)


class Full(Watched):
    """A disk that is full at its change `number` alone, unless that only removes something. refused: what that was."""

    def __init__(self, number: int) -> None:
        super().__init__(self._refuse)
        self.refused = ""
        self._number = number

    def _refuse(self, number: int, name: str) -> None:
        if number == self._number and name != "remove":
            self.refused = name
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def deadly_at(number: int) -> Watched:
    """A disk whose process is killed before its change `number`."""

    def kill(count: int, name: str) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return Watched(kill)


@dataclass
class _File:
    data: bytes = b""
    mode: int = 0o600
    synced: tuple[bytes, int] = (b"", 0o600)


@dataclass
class _Directory:
    mode: int = 0o700
    names: dict[str, _File | _Directory] = field(default_factory=dict)
    synced: dict[str, _File | _Directory] = field(default_factory=dict)
    since: list[tuple[str, _File | _Directory | None]] = field(default_factory=list)
    """The changes to its names since they were flushed, in order; None removes one."""

    def set(self, name: str, node: _File | _Directory | None) -> None:
        self.since.append((name, node))
        if node is None:
            self.names.pop(name, None)
        else:
            self.names[name] = node


class Recorded(Disk):
    """A disk that also keeps, of everything made below `base`, what has been flushed and what has not.

    `after_power_cut` writes down what is left, by one of three models: DROPPED, where all that was not flushed is gone;
    EMPTY, where names are all there and bytes that were not flushed are gone; or, with a random generator, of each
    directory the first few of its changes, and of each file its new bytes or its old ones. In the last a rename may be
    half there, as no file system in use would leave it. What it does not model: a disk that reorders or loses what was
    flushed, and a file of which single blocks were written.
    """

    def __init__(self, base: Path) -> None:
        self._base = _Directory()
        self._nodes: dict[int, _File | _Directory] = {os.stat(base).st_ino: self._base}

    def _node(self, descriptor: int) -> _File | _Directory:
        return self._nodes[os.fstat(descriptor).st_ino]

    def _directory(self, descriptor: int) -> _Directory:
        node = self._node(descriptor)
        assert isinstance(node, _Directory)
        return node

    def _file(self, descriptor: int) -> _File:
        node = self._node(descriptor)
        assert isinstance(node, _File)
        return node

    def make_directory(self, directory: int, name: str, mode: int = 0o700) -> None:
        super().make_directory(directory, name, mode)
        node = _Directory(mode)
        self._nodes[os.stat(name, dir_fd=directory).st_ino] = node
        self._directory(directory).set(name, node)

    def create(self, directory: int, name: str) -> int:
        file = super().create(directory, name)
        node = _File()
        self._nodes[os.fstat(file).st_ino] = node
        self._directory(directory).set(name, node)
        return file

    def write(self, file: int, data: bytes | memoryview) -> None:
        super().write(file, data)
        self._file(file).data += bytes(data)

    def protect(self, file: int) -> None:
        super().protect(file)
        self._file(file).mode = stat.S_IMODE(os.fstat(file).st_mode)

    def sync(self, descriptor: int) -> None:
        super().sync(descriptor)
        node = self._node(descriptor)
        if isinstance(node, _File):
            node.mode = stat.S_IMODE(os.fstat(descriptor).st_mode)  # also where no method of a disk has changed it
            node.synced = (node.data, node.mode)
        else:
            node.synced, node.since = dict(node.names), []

    def rename(self, source: int, name: str, target: int, new_name: str) -> None:
        super().rename(source, name, target, new_name)
        node = self._directory(source).names[name]
        self._directory(source).set(name, None)
        self._directory(target).set(new_name, node)

    def remove(self, directory: int, name: str) -> None:
        super().remove(directory, name)
        self._directory(directory).set(name, None)

    def after_power_cut(self, target: Path, chance: random.Random | None = None, *, names_kept: bool = False) -> None:
        """Makes `target` what would be found in `base` if the power went now."""
        target.mkdir(mode=0o700)
        _leave(self._base, target, chance, names_kept)


POWER_CUTS = ("dropped", "empty", "random")
"""The models of `Recorded.after_power_cut`."""


class Cutting(Recorded):
    """A recorded disk in `place`, of which a power cut before each of its changes leaves a folder: in `left`, in their
    order, by one of POWER_CUTS."""

    def __init__(self, place: Path, model: str, seed: int) -> None:
        self.base = place / "disk"
        self.base.mkdir(mode=0o700)
        super().__init__(self.base)
        self._place, self._names_kept = place, model == "empty"
        self._chance = random.Random(seed) if model == "random" else None
        self.left: list[Path] = []
        self.cuts = 0

    def cut(self) -> None:
        self.left.append(self._place / f"left-{self.cuts}")
        self.cuts += 1
        self.after_power_cut(self.left[-1], self._chance, names_kept=self._names_kept)

    def sync(self, descriptor: int) -> None:
        self.cut()
        super().sync(descriptor)
        self.cut()

    def rename(self, source: int, name: str, target: int, new_name: str) -> None:
        super().rename(source, name, target, new_name)
        self.cut()

    def remove(self, directory: int, name: str) -> None:
        super().remove(directory, name)
        self.cut()


def _leave(directory: _Directory, target: Path, chance: random.Random | None, names_kept: bool) -> None:
    names = dict(directory.names if names_kept else directory.synced)
    if chance is not None:
        names = dict(directory.synced)
        for name, node in directory.since[: chance.randint(0, len(directory.since))]:
            if node is None:
                names.pop(name, None)
            else:
                names[name] = node
    for name, node in names.items():
        path = target / name
        if isinstance(node, _Directory):
            path.mkdir(mode=node.mode)
            _leave(node, path, chance, names_kept)
        else:
            data, mode = (node.data, node.mode) if chance is not None and chance.random() < 0.5 else node.synced
            path.write_bytes(data)
            path.chmod(mode)
