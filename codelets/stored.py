"""Modules of the store, as codelets are read: by reference or digest, verified at each read, and nothing else.

Import rule: keep_protocol, module_store.
"""

from __future__ import annotations

import os
from collections.abc import Collection

from keep_protocol.errors import ErrorKind, KeepfleetError
from module_store import collect
from module_store.disk import Disk
from module_store.store import Store
from module_store.verified import check_start

_USER = "codelets-"
"""An application among the users of a store, and behind it its process ID."""


class _Unsynced(Disk):
    """Writes what need not outlive the machine: an application that uses a module has ended with it."""

    def sync(self, descriptor: int) -> None:
        """Does not wait for the disk."""


class StoredModules:
    """Reads modules of the store in `directory`, which belongs to the application's user."""

    def __init__(self, directory: str | None = None) -> None:
        """Raises KeepfleetError(NOT_FOUND) where there is no store, FORBIDDEN where it is another's."""
        self._store = Store.open(directory, _Unsynced())
        for user in collect.declared(self._store):  # applications that were killed need nothing any more
            number = user.removeprefix(_USER)
            if user.startswith(_USER) and number.isdecimal() and not os.path.exists(f"/proc/{number}"):
                collect.declare(self._store, user, ())
        self._declared: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"StoredModules({self._store})"

    def close(self) -> None:
        """Needs nothing any more."""
        if self._declared:
            collect.declare(self._store, self._user, ())
        self._store.close()

    @property
    def _user(self) -> str:
        return f"{_USER}{os.getpid()}"

    def use(self, digests: Collection[str]) -> None:
        """Keeps these modules from being collected. Others are let go with the next that is new, or at the end: a
        declaration waits for the disk twice, and a set that comes back soon, or goes, is not to wait for that."""
        wanted = frozenset(digests)
        if not wanted <= self._declared:
            collect.declare(self._store, self._user, wanted)
            self._declared = wanted

    def read(self, wanted: str, limit: int) -> tuple[str, bytes]:
        """The digest and the bytes of `NAME:TAG`, `NAME:TAG@sha256:…` or `sha256:…`: what was verified is what is read.

        Raises KeepfleetError: NOT_FOUND, TOO_LARGE, FORBIDDEN for a module that is not signed as the store requires,
        and others for one that is not whole.
        """
        digest = self._store.resolve(wanted)
        file = self._store.open_object(digest)
        try:
            size = os.fstat(file).st_size
            if size > limit:
                why = f"it has {size} bytes of at most {limit}"
                raise KeepfleetError(ErrorKind.TOO_LARGE, f"cannot use {wanted}: {why}")
            check_start(self._store, digest, file, by_policy=False)
            return digest, os.pread(file, size, 0)
        finally:
            os.close(file)
