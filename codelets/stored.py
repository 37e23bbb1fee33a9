"""Modules of the store, as codelets are read: by reference or digest, verified at each read, and nothing else.

Import rule: keep_protocol, module_store.
"""

from __future__ import annotations

import os

from keep_protocol.errors import ErrorKind, KeepfleetError
from module_store import names
from module_store.store import Store


class StoredModules:
    """Reads modules of the store in `directory`."""

    def __init__(self, directory: str | None = None) -> None:
        """Raises KeepfleetError(NOT_FOUND) where there is no store, FORBIDDEN where it is another's."""
        self._store = Store.open(directory)

    def __repr__(self) -> str:
        return f"StoredModules({self._store})"

    def read(self, wanted: str, limit: int) -> tuple[str, bytes]:
        """The digest and the bytes. Raises KeepfleetError."""
        asked = names.parse_wanted(wanted)
        digest = asked.digest
        if asked.reference:
            found = self._store.resolve(asked.reference)
            if digest and found != digest:
                raise KeepfleetError(ErrorKind.CONFLICT, f"cannot use {wanted}: {asked.reference} is {found} now")
            digest = found
        file = self._store.open_object(digest)
        try:
            size = os.fstat(file).st_size
            if size > limit:
                raise KeepfleetError(
                    ErrorKind.TOO_LARGE, f"cannot use {wanted}: it has {size} bytes of at most {limit}"
                )
            with os.fdopen(os.dup(file), "rb") as stream:
                return digest, stream.read(limit)
        finally:
            os.close(file)
