"""The module store as the manager uses it: what references mean, verified descriptors, and what living keeps need.

Every call opens the store and closes it: it may be made, moved or restored meanwhile. Those that block are for threads.
What keeps need is declared in the store, so that no collection there, by any user, removes it: before the keep is
made, and given up some time after the keep has gone. Import rule: the manager's model and failpoints, module_store and
keep_protocol.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack

from keep_manager.model import StoredModule
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.spec import MAX_MODULE_NAME
from keep_protocol.store import InUse
from module_store import collect
from module_store.additions import Adder
from module_store.keys import Keys
from module_store.names import parse_wanted
from module_store.operations import Operations
from module_store.place import default_directory
from module_store.store import Store
from module_store.verified import check_start

LOG = logging.getLogger("keepfleet.modules")
USER, DECLARED_USER = "keep-manager", "keep-manager-declared"
"""What the manager is called among the users of a store, for what keeps need and for what specifications name."""
TEND_SECONDS = 600.0
"""Between two looks at what keeps need; also how long what was taken stays declared without a keep: a creation takes a
minute at most."""


class Modules:
    """The modules in the store at `directory`."""

    def __init__(self, directory: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self._directory, self._clock = directory or default_directory(), clock
        self._lock = threading.Lock()
        self._declared: dict[str, float] = {}  # when each was taken last
        self._fault, self._looked = "", False  # not before, one before us may have declared what no keep needs

    def __repr__(self) -> str:
        return f"Modules({self._directory}, {len(self._declared)} declared)"

    @property
    def directory(self) -> str:
        """Where the store is, or would be."""
        return self._directory

    def take(self, wanted: str) -> StoredModule:
        """What `NAME:TAG`, `NAME:TAG@sha256:…` or `sha256:…` means now; from then on it is not collected.

        Raises KeepfleetError: BAD_REQUEST for another shape, NOT_FOUND.
        """
        asked = parse_wanted(wanted)
        with self._opened() as store:
            found = store.object(store.resolve(wanted))
            with self._lock:
                new = found.digest not in self._declared
                self._declared[found.digest] = self._clock()
                if new:
                    self._declare(store)
        return StoredModule(found.digest, asked.reference[:MAX_MODULE_NAME], found.size)

    def open(self, digest: str) -> int:
        """A descriptor of the module, verified, read-only, which the caller closes.

        Raises KeepfleetError: FORBIDDEN for a module that is not signed as the store requires, INVALID_MODULE for one
        that does not pass its policy, NOT_FOUND and others for one that is not there, or not whole.
        """
        with self._opened() as store, ExitStack() as held:
            file = store.open_object(digest)
            held.callback(os.close, file)
            check_start(store, digest, file)
            held.pop_all()
            return file

    def trust(self) -> str:
        """What the store's modules must be to start, in words. Raises KeepfleetError where that cannot be read."""
        keys = Keys(self._directory)
        passing = "" if keys.policy() is None else "; modules must pass the store's policy"
        return keys.trust().text() + passing

    def operations(self, who: str, name: str, objects: int, size: int, in_use: Sequence[InUse]) -> Operations:
        """What can be asked of the store over the API, as `who` asks, called `name`, whose objects may be so many and
        have so many bytes; in_use: the living keeps' modules."""
        return Operations(self._directory, who, Adder(name, objects, size), in_use)

    def _opened(self) -> Store:
        try:
            return Store.open(self._directory)
        except KeepfleetError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
            why = "this host has no module store yet; add a module: keepctl store add FILE NAME:TAG"
            raise KeepfleetError(ErrorKind.NOT_FOUND, f"cannot open {self._directory}: {why}") from error

    def _declare(self, store: Store) -> None:
        """Under the lock. A store that cannot be written is used all the same: what a keep has open it keeps."""
        try:
            collect.declare(store, USER, tuple(self._declared))
        except KeepfleetError as error:
            if error.message != self._fault:
                LOG.warning("what keeps need can be collected: %s", error.message)
            self._fault = error.message
        else:
            self._fault = ""

    def needs(self, digests: Iterable[str]) -> None:
        """Living keeps need these; what was taken long ago and is not among them is given up."""
        used, now = set(digests), self._clock()
        with self._lock:
            recent = {digest: at for digest, at in self._declared.items() if now - at < TEND_SECONDS}
            wanted = {**dict.fromkeys(used, now), **recent}
            if not self._looked or set(wanted) != set(self._declared):
                self._declared, self._looked = wanted, True
                try:
                    with self._opened() as store:
                        self._declare(store)
                except KeepfleetError as error:
                    if error.kind is not ErrorKind.NOT_FOUND:
                        LOG.warning("cannot say what keeps need: %s", error.message)

    def declared(self, digests: Iterable[str]) -> None:
        """Specifications, and those before them, name these and no others any more. Raises KeepfleetError."""
        named = tuple(digests)
        if not named and not os.path.exists(self._directory):
            return
        with self._opened() as store:
            collect.declare(store, DECLARED_USER, named)

    async def tend(self, living: Callable[[], Iterable[str]]) -> None:
        """Says what must be signed, and declares what living keeps need, now and then. For ever."""
        try:
            LOG.info("module store %s: %s", self._directory, await asyncio.to_thread(self.trust))
        except KeepfleetError as error:
            LOG.warning("no module of the store can start: %s", error.message)
        while True:
            await asyncio.to_thread(self.needs, tuple(living()))
            await asyncio.sleep(TEND_SECONDS)
