"""Reads, verifies and compiles the modules of a set, and has it built apart from what runs.

Import rule: keep_protocol, module_store, codelets.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from codelets.artifacts import Compiled
from codelets.building import Building, Helper, owners_of
from codelets.calling import Hook
from codelets.descriptor import CodeletDescriptor, CodeletSet, read_descriptor
from codelets.engine import Engine, EngineFault, Trap
from codelets.faults import CodeletError, Failure, loading
from codelets.interface import HelperType, HookType, Interface
from codelets.loaded import Codelet, Loaded
from codelets.storage import THREADS, Declaration, Kind
from codelets.verification import MAX_BYTES, Examined, examine
from keep_protocol.errors import ErrorKind, KeepfleetError
from module_store.verify.verification import refuse

MAX_VERIFIED = 256
"""Reports that are cached, so that a set that comes back loads immediately."""
_WARMING = b"""
codeletset_id: warm
codelet_descriptor:
- {codelet_name: one, codelet_path: "warm:1", hook_name: warm, priority: 1, runtime_threshold: 1,
   out_io_channel: [{name: out, stream_id: "00000000000000000000000000000000", serde: none}],
   linked_maps: [{map_name: a, linked_codelet_name: two, linked_map_name: b}]}
- {codelet_name: two, codelet_path: "warm:1", hook_name: warm}
"""


class Modules(Protocol):
    """Where modules come from: the store."""

    def read(self, wanted: str, limit: int) -> tuple[str, bytes]:
        """The digest and the verified bytes of NAME:TAG, NAME:TAG@DIGEST or DIGEST. Raises KeepfleetError."""

    def use(self, digests: Collection[str]) -> None:
        """These modules are needed; others need not be kept. Raises KeepfleetError."""

    def close(self) -> None:
        """None is needed any more."""


class Verified:
    """What verification has found here: the least recently used goes first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._examined: OrderedDict[tuple[str, HookType, tuple[HelperType, ...]], Examined] = OrderedDict()

    def __repr__(self) -> str:
        return f"Verified({len(self._examined)} modules)"

    def examined(self, digest: str, wasm: bytes, hook: HookType, interface: Interface) -> Examined:
        """What verification finds, or found of the same bytes for the same hook and helpers."""
        key = (digest, hook, interface.helpers)
        with self._lock:
            if key in self._examined:
                self._examined.move_to_end(key)
                return self._examined[key]
        found = examine(wasm, hook, interface)
        with self._lock:
            self._examined[key] = found
            while len(self._examined) > MAX_VERIFIED:
                self._examined.popitem(last=False)
        return found


class Loader:
    """Builds sets of what the store has, for the hooks and helpers of one application."""

    def __init__(self, engine: Engine, modules: Modules, compiled: Compiled, fast: Any) -> None:
        """fast: the module of calls in C, or None."""
        self._engine, self._modules, self._compiled, self._fast = engine, modules, compiled, fast
        self._verified_before = Verified()
        self._threads = threading.local()
        self._numbers = iter(range(1 << 62))

    def __repr__(self) -> str:
        return f"Loader({self._compiled})"

    def build(
        self,
        wanted: CodeletSet,
        hooks: Mapping[str, Hook],
        helpers: Mapping[str, Helper],
        report: Callable[[Loaded, str, bool], None],
    ) -> Loaded:
        """A set that could run; the interpreter's lock is let go while modules are compiled. Raises CodeletError."""
        interface = Interface(tuple(hook.type for hook in hooks.values()), tuple(each for each, _ in helpers.values()))
        loaded = Loaded(wanted, report)
        modules: dict[str, Any] = {}
        for descriptor in wanted.codelet_descriptor:
            codelet, module = self._verified(loaded, descriptor, interface)
            loaded.codelets[descriptor.codelet_name], modules[descriptor.codelet_name] = codelet, module
        owners = owners_of(loaded)
        try:
            Building(self._engine, loaded, owners, hooks, helpers, self._thread, self._fast).build(modules)
        except (Trap, EngineFault) as fault:
            loaded.close()
            raise loading(Failure.CREATION_FAILED, wanted.codeletset_id, str(fault)) from None
        return loaded

    def warm(self) -> None:
        """Does once what reads and verifies a set, of which nothing is kept: patterns are compiled and code is read
        then, which takes milliseconds of the first load of a process."""
        read_descriptor(_WARMING)
        hook = HookType("warm", 4)
        examine(self._engine.storage_wasm, hook, Interface((hook,)))

    def _thread(self) -> int:
        """The number of this thread, for maps with a part for each."""
        found: int | None = getattr(self._threads, "number", None)
        if found is None:
            found = self._threads.number = min(next(self._numbers), THREADS - 1)
        return found

    def _verified(self, loaded: Loaded, descriptor: CodeletDescriptor, interface: Interface) -> tuple[Codelet, Any]:
        name = loaded.descriptor.codeletset_id
        try:
            hook = interface.hook(descriptor.hook_name)
        except KeepfleetError as error:
            why = error.message.replace("cannot find the hook", "there is no hook", 1)
            raise loading(Failure.HOOK_MISSING, name, why, error.kind) from None
        try:
            digest, wasm = self._modules.read(descriptor.codelet_path, MAX_BYTES)
            examined = self._verified_before.examined(digest, wasm, hook, interface)
            refuse(examined.report)
            module = self._compiled.module(digest, wasm)
        except EngineFault as fault:
            raise loading(
                Failure.LOAD_FAILED, name, f"{descriptor.codelet_path}: {fault}", ErrorKind.INVALID_MODULE
            ) from None
        except KeepfleetError as error:
            message = f"cannot load the codelet set {name}: codelet {descriptor.codelet_name}: {error.message}"
            raise CodeletError(Failure.LOAD_FAILED, error.kind, message, error.evidence) from error
        codelet = Codelet(descriptor, digest, examined, loaded)
        _check_channels(name, descriptor, dict(examined.declarations))
        return codelet, module


def _check_channels(name: str, descriptor: CodeletDescriptor, declarations: Mapping[str, Declaration]) -> None:
    """Raises CodeletError unless the descriptor names just the channels that the module declares."""
    for kind, channels in ((Kind.OUTPUT, descriptor.out_io_channel), (Kind.INPUT, descriptor.in_io_channel)):
        declared = {each for each, what in declarations.items() if what.kind is kind}
        named = {each.name for each in channels}
        if declared != named:
            words = f"declares the {kind.value} channels {', '.join(sorted(declared)) or 'none'}"
            why = f"codelet {descriptor.codelet_name} {words}; its descriptor has {', '.join(sorted(named)) or 'none'}"
            raise loading(Failure.INVALID_PARAMETER, name, why)
