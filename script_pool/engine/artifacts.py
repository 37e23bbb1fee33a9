"""Compiled guests, kept in a directory of the user's own: compiling takes seconds, loading milliseconds.

What is kept is native code, as trusted as this program: only a directory and a file that no one else can write are
used.
Import rule: the standard library alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import tempfile

from script_pool.engine.binding import find_library

_HEAD_BYTES = 4096
"""At most, of the line before the code."""
_SETTINGS = ("stores.py", "instance.py", "guest.py", "booted.py", "glue.py")
"""What decides how a guest is compiled, and booted."""


INSTALLED, FACTS = ".cwasm", ".json"
"""How the names of the two files end that an installation has of each kind."""


class Artifacts:
    """Without a directory, nothing is kept."""

    def __init__(self, directory: str | None) -> None:
        """Makes the directory where there is none. Raises PermissionError for one that another user may write."""
        self._directory = directory
        if directory is not None:
            os.makedirs(directory, 0o700, exist_ok=True)
            _check(os.stat(directory), directory)

    def install(self, directory: str) -> None:
        """Copies all that is kept here to where an installation has it."""
        assert self._directory is not None  # noqa: S101  # who installs has compiled it somewhere
        for name in os.listdir(self._directory):
            if name.endswith(FACTS):
                continue
            with open(os.path.join(self._directory, name), "rb") as file:
                head = b"{}" if name.endswith(INSTALLED) else file.readline(_HEAD_BYTES)
                code = file.read()
            facts = json.loads(head)
            facts.pop("sha256", None)
            kind = os.path.join(directory, name.rpartition("-")[0])
            for ending, data in ((FACTS, json.dumps(facts).encode()), (INSTALLED, code)):
                with open(kind + ending + ".new", "wb") as file:
                    file.write(data)
                    os.fchmod(file.fileno(), 0o644)
                os.replace(kind + ending + ".new", kind + ending)

    def _path(self, kind: str, source: bytes, settings: tuple[str, ...] = _SETTINGS) -> str:
        """Of its source, the library that compiled it, and this package's settings, by their bytes."""
        assert self._directory is not None  # noqa: S101  # both callers have looked
        library = os.stat(find_library())
        digest = hashlib.sha256(source)
        here = os.path.dirname(os.path.abspath(__file__))
        for name in settings:
            with open(os.path.join(here, name), "rb") as file:
                digest.update(file.read())
        digest.update(f"{library.st_size} {library.st_mtime_ns} {os.uname().machine} {processor()}".encode())
        return os.path.join(self._directory, f"{kind}-{digest.hexdigest()[:32]}")

    def load(self, kind: str, source: bytes) -> tuple[dict[str, int], bytes | str] | None:
        """The facts and the code kept with `source`, or None: as bytes, or in an installation the path of a file that
        is mapped, where a process may make no file of its own for a memory's first contents. Raises PermissionError
        for another user's file."""
        if self._directory is None:
            return None
        installed = os.path.join(self._directory, kind)
        if os.path.exists(installed + INSTALLED):
            with open(installed + FACTS, "rb") as facts_file:
                return json.loads(facts_file.read()), installed + INSTALLED
        path = self._path(kind, source)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        with open(descriptor, "rb") as file:
            _check(os.fstat(descriptor), path)
            head, code = file.readline(_HEAD_BYTES), file.read()
        try:
            facts = json.loads(head)
            digest = facts.pop("sha256")
        except (ValueError, KeyError, AttributeError):
            return None
        return (facts, code) if digest == hashlib.sha256(code).hexdigest() else None

    def mapped(self, kind: str, source: bytes) -> str | None:
        """The path of the code kept with `source`, for what is too large to be read: it is mapped. `source`
        says its settings, too. Raises PermissionError for another user's file."""
        if self._directory is None:
            return None
        installed = os.path.join(self._directory, kind + INSTALLED)
        if os.path.exists(installed):
            return installed
        try:
            path = self._path(kind, source, ())  # not in a keep, which sees no processor and has what is installed
            with open(path + FACTS, "rb") as file:
                said = json.loads(file.read(_HEAD_BYTES))
            with open(os.open(path + INSTALLED, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
                _check(os.fstat(file.fileno()), path + INSTALLED)
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except (FileNotFoundError, ValueError):
            return None
        return path + INSTALLED if said == {"sha256": digest} else None

    def keep_mapped(self, kind: str, source: bytes, code: bytes) -> str:
        """Keeps code for `mapped`; its path. Raises ImportError where it cannot."""
        if self._directory is None:
            raise ImportError("cannot keep compiled code: there is no directory for it")
        path = self._path(kind, source, ())
        said = json.dumps({"sha256": hashlib.sha256(code).hexdigest()}).encode()
        try:
            for ending, data in ((INSTALLED, code), (FACTS, said)):
                with tempfile.NamedTemporaryFile(dir=self._directory, delete=False) as file:
                    file.write(data)
                os.replace(file.name, path + ending)
        except OSError as error:
            raise ImportError(f"cannot keep compiled code in {self._directory}: {error.strerror}") from error
        return path + INSTALLED

    def save(self, kind: str, source: bytes, facts: dict[str, int], code: bytes) -> None:
        """Keeps them whole, or nothing; where it cannot, it says so, and the next process compiles again."""
        if self._directory is None:
            return
        head = json.dumps({**facts, "sha256": hashlib.sha256(code).hexdigest()}).encode()
        made = None
        try:
            with tempfile.NamedTemporaryFile(dir=self._directory, delete=False) as file:
                made = file.name
                file.write(head + b"\n" + code)
            os.replace(made, self._path(kind, source))
        except OSError as error:
            if made is not None:
                os.unlink(made)
            print(f"cannot keep compiled code in {self._directory}: {error.strerror}", file=sys.stderr, flush=True)


def _check(found: os.stat_result, path: str) -> None:
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(
            f"cannot keep compiled code at {path}: it must be yours or root's, and no one else may write it"
        )


def processor() -> str:
    """What compiled code depends on: the processor's features."""
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        return next((line for line in file if line.startswith(("flags", "Features"))), "")
