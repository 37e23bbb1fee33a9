"""The codelet sets of one application: loaded whole or not at all, unloaded, and unloaded for their faults.

Import rule: keep_protocol, codelets.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress

from codelets.descriptor import CodeletSet
from codelets.faults import CodeletError, Failure, loading
from codelets.loaded import Loaded
from codelets.loading import Loader, Modules
from codelets.offer import Offer
from codelets.reporting import Statistics, codelets_of
from codelets.states import HookState, SetState
from codelets.storage import Data
from keep_protocol.errors import ErrorKind, KeepfleetError

LOG = logging.getLogger("keepfleet.codelets")
MAX_SETS = 64
"""Of one application: 64 sets of 16 codelets are a thousand on its hooks."""
MAX_ENDED = 64
"""Sets that were unloaded for their faults, whose reasons are kept."""


class Sets:
    """What is loaded. lock: of the application's codelets; max_faults: of a set before it is unloaded, 0 for any."""

    def __init__(self, lock: threading.RLock, offer: Offer, loader: Loader, modules: Modules, max_faults: int) -> None:
        self._lock, self._offer, self._loader, self._modules = lock, offer, loader, modules
        self._max_faults = max_faults
        self._statistics = Statistics()
        self.loaded: dict[str, Loaded] = {}
        self._ended: dict[str, str] = {}
        self._order = self._version = 0
        self._changes = threading.Condition(lock)
        self._places: list[tuple[int, int, str, Loaded, Callable[..., int | None]]] = []
        self._closed = False
        self.leaving: Callable[[Loaded], None] = lambda loaded: None
        """Called with a set that was unloaded and whose memories are still there."""

    def __repr__(self) -> str:
        return f"Sets({len(self.loaded)} loaded)"

    def close(self) -> None:
        """Unloads all; none is loaded any more."""
        with self._lock:
            for name in tuple(self.loaded):
                self._remove(name)
            if not self._closed:
                self._closed = True
                self._changes.notify_all()
                self._modules.close()

    def load(self, descriptor: CodeletSet) -> None:
        """All of its codelets run from the next call of their hooks on, or none does. Raises CodeletError."""
        name, offer = descriptor.codeletset_id, self._offer
        with self._lock:
            self._check_new(descriptor)
            hooks, helpers = dict(offer.hooks), dict(offer.helpers)
        loaded = self._loader.build(descriptor, hooks, helpers, self._reported)
        with self._lock:  # what was compiled and made apart is now shown to callers, or was overtaken
            try:
                self._check_new(descriptor)
                self._use(loaded)
            except CodeletError:
                loaded.close()
                raise
            self.loaded[name] = loaded
            self._ended.pop(name, None)
            for hook, priority, run in loaded.runs:
                self._order += 1
                self._places.append((-priority, self._order, hook, loaded, run))
            self._places.sort(key=lambda place: place[:2])
            self._publish()
        LOG.info("loaded the codelet set %s: %s", name, ", ".join(loaded.codelets))

    def unload(self, name: str) -> None:
        """No call of a hook that begins later runs it. Raises CodeletError(NOT_FOUND)."""
        with self._lock:
            if name not in self.loaded:
                why = f": it was unloaded: {self._ended[name]}" if name in self._ended else ""
                known = ", ".join(self.loaded) or "none"
                message = f"cannot unload the codelet set {name}: it is not loaded{why or f'; there are: {known}'}"
                raise CodeletError(Failure.UNLOAD_FAILED, ErrorKind.NOT_FOUND, message)
            self._remove(name)
        LOG.info("unloaded the codelet set %s", name)

    def states(self) -> tuple[SetState, ...]:
        """Every set that is loaded, and those that their faults have unloaded."""
        with self._lock:
            found = [SetState(name, True, "", codelets_of(each)) for name, each in self.loaded.items()]
            return (*found, *(SetState(name, False, why) for name, why in self._ended.items()))

    def stats(self) -> tuple[HookState, ...]:
        """Every hook."""
        with self._lock:
            return self._statistics.states(self._offer.hooks.items(), self.loaded.values())

    def on(self, hook: str) -> bool:
        """Whether a codelet is on that hook."""
        return any(each == hook for _, _, each, _, _ in self._places)

    def data(self, codelet_set: str, codelet: str, name: str) -> Data:
        """A map or channel. Raises KeepfleetError(NOT_FOUND)."""
        with self._lock, suppress(KeyError):
            return self.loaded[codelet_set].codelets[codelet].data[name]
        raise KeepfleetError(ErrorKind.NOT_FOUND, f"cannot find the map {name} of {codelet_set}.{codelet}")

    def _check_new(self, descriptor: CodeletSet) -> None:
        name = descriptor.codeletset_id
        if self._closed:
            raise loading(Failure.CREATION_FAILED, name, "the application ends", ErrorKind.UNAVAILABLE)
        if name in self.loaded:
            raise loading(Failure.CREATION_FAILED, name, "it is loaded", ErrorKind.CONFLICT)
        if len(self.loaded) >= MAX_SETS:
            raise loading(Failure.CREATION_FAILED, name, f"there are {MAX_SETS}", ErrorKind.TOO_MANY)
        for codelet in descriptor.codelet_descriptor:
            for channel in (*codelet.in_io_channel, *codelet.out_io_channel):
                if channel.serde and channel.serde not in self._offer.serializers:
                    raise loading(Failure.INVALID_PARAMETER, name, f"there is no serialiser {channel.serde}")
                if any(channel.stream in (each.outputs | each.inputs) for each in self.loaded.values()):
                    why = f"the stream {channel.stream_id} is another set's"
                    raise loading(Failure.INVALID_PARAMETER, name, why, ErrorKind.CONFLICT)

    def _use(self, loaded: Loaded) -> None:
        """Its modules, and those of all that runs, are not collected from now on. A module that was removed since it
        was read is in memory, and is loaded all the same."""
        needed = {each.digest for one in (*self.loaded.values(), loaded) for each in one.codelets.values()}
        try:
            self._modules.use(needed)
        except KeepfleetError as error:
            message = f"cannot load the codelet set {loaded.descriptor.codeletset_id}: {error.message}"
            raise CodeletError(Failure.CREATION_FAILED, error.kind, message) from error

    def wait(self, seen: int, seconds: float) -> int | None:
        """The number of the last change as soon as that is another one than `seen`, or in so many seconds; None when
        this was closed."""
        with self._changes:
            self._changes.wait_for(lambda: self._closed or self._version != seen, seconds)
            return None if self._closed else self._version

    def _publish(self) -> None:
        self._version += 1
        self._changes.notify_all()
        self._offer.publish([(hook, run) for _, _, hook, _, run in self._places])

    def _remove(self, name: str) -> None:
        loaded = self.loaded.pop(name)
        self._places = [place for place in self._places if place[3] is not loaded]
        self._publish()
        self.leaving(loaded)
        self._statistics.unloaded(loaded)
        loaded.close()

    def _reported(self, loaded: Loaded, why: str, certain: bool) -> None:
        """A fault of a set, in the thread that called its hook."""
        name = loaded.descriptor.codeletset_id
        if not certain and (not self._max_faults or loaded.faults < self._max_faults):
            LOG.debug("a fault in the codelet set %s: %s", name, why)
            return
        with self._lock:
            if self.loaded.get(name) is not loaded:
                return
            self._remove(name)
            while len(self._ended) >= MAX_ENDED:
                del self._ended[next(iter(self._ended))]
            self._ended[name] = f"{loaded.faults} faults, the last: {why}"
        LOG.warning("unloaded the codelet set %s after %d faults, the last: %s", name, loaded.faults, why)
