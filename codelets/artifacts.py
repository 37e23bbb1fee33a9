"""Compiled codelets: kept in memory, and on disk, so that a new process need not compile what an earlier one did.

What is on disk lies in a cache of the application's user, sealed with a secret of that user's
(`module_store.artifacts`): native code that another user has put there, or changed, is removed and compiled again.
Import rule: keep_protocol, module_store, codelets.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from typing import Any

from codelets.engine import Engine, EngineFault
from keep_protocol.errors import KeepfleetError
from module_store.artifacts import Artifacts
from module_store.disk import explained
from module_store.sealing import Key

LOG = logging.getLogger("keepfleet.codelets.artifacts")
MAX_COMPILED = 256
"""Compiled modules that are kept, so that a set that comes back loads immediately; each is some tens of kilobytes."""
CACHE_BYTES = 256 * 1024 * 1024
"""Of all compiled codelets on disk: several thousand."""
DEFAULT = ""
"""As a cache's directory: the user's own."""


def open_cache(directory: str | None) -> Artifacts | None:
    """The cache in `directory`; DEFAULT: the user's own, or none where that cannot be used; None: none.

    Raises KeepfleetError where `directory` cannot be used.
    """
    if directory is None:
        return None
    if directory:
        return Artifacts(os.path.abspath(directory), limit=CACHE_BYTES)
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    try:
        return Artifacts(os.path.join(home, "keepfleet/codelets"), limit=CACHE_BYTES)
    except KeepfleetError as error:
        LOG.info("codelets are compiled in each process: %s", error.message)
        return None


class Compiled:
    """Compiled modules by digest. In memory the least recently used goes first; `cache` is closed with this."""

    def __init__(self, engine: Engine, cache: Artifacts | None) -> None:
        self._engine, self._cache, self._lock = engine, cache, threading.Lock()
        self._name = engine.name  # takes milliseconds the first time, which no load is to wait for
        self._modules: OrderedDict[str, Any] = OrderedDict()

    def __repr__(self) -> str:
        return f"Compiled({len(self._modules)} modules, {self._cache or 'no cache'})"

    def close(self) -> None:
        """What is on disk stays."""
        cache, self._cache = self._cache, None
        if cache is not None:
            cache.close()

    def module(self, digest: str, wasm: bytes) -> Any:
        """The module with these bytes. Raises EngineFault for one that is not valid."""
        with self._lock:
            if digest in self._modules:
                self._modules.move_to_end(digest)
                return self._modules[digest]
        made = self._stored(digest) or self._new(digest, wasm)
        with self._lock:
            self._modules[digest] = made
            while len(self._modules) > MAX_COMPILED:
                self._modules.popitem(last=False)
        return made

    def _stored(self, digest: str) -> Any:
        """What is on disk for this engine; None where there is nothing that can be used."""
        cache = self._cache
        if cache is None:
            return None
        key = Key(digest, self._name)
        try:
            artifact = cache.open(key)
            if artifact is None:
                return None
            try:
                with explained(f"read compiled code in {cache.path}"):
                    code = os.pread(artifact.descriptor, artifact.size, 0)
                return self._engine.load(code)
            except EngineFault as fault:
                cache.discard(key, f"the engine does not take it: {fault}")
            finally:
                os.close(artifact.descriptor)
        except KeepfleetError as error:
            LOG.warning("a codelet is compiled again: %s", error.message)
        return None

    def _new(self, digest: str, wasm: bytes) -> Any:
        made, cache = self._engine.compile(wasm), self._cache
        if cache is not None:
            try:
                with cache.scratch() as file, explained(f"keep compiled code in {cache.path}"):
                    _write(file, bytes(made.serialize()))
                    os.close(cache.put(Key(digest, self._name), file).descriptor)
            except KeepfleetError as error:  # it runs all the same
                LOG.warning("a codelet will be compiled again by the next process: %s", error.message)
        return made


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
