"""Builds a set apart from what runs: verified modules, memories, linked maps, instances. Nothing is published here.

Import rule: keep_protocol, module_store, codelets.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Protocol

from codelets import wasi
from codelets.artifacts import Compiled
from codelets.calling import Guard, Hook, Run, Target, prepared, prepared_in_c
from codelets.descriptor import CodeletDescriptor, CodeletSet, read_descriptor
from codelets.engine import Engine, EngineFault, HostFunction, Trap, World
from codelets.faults import CodeletError, Failure, loading
from codelets.interface import HelperType, HookType, Interface
from codelets.storage import PAGE_BYTES, THREADS, Data, Declaration, Kind, function_of
from codelets.verification import ENTRY, HELPERS, MAX_BYTES, MEMORY, Examined, examine
from keep_protocol.errors import ErrorKind, KeepfleetError
from module_store.verify.verification import refuse

MAX_VERIFIED = 256
"""Reports that are remembered, so that a set that comes back loads at once."""
_WARMING = b"""
codeletset_id: warm
codelet_descriptor:
- {codelet_name: one, codelet_path: "warm:1", hook_name: warm, priority: 1, runtime_threshold: 1,
   out_io_channel: [{name: out, stream_id: "00000000000000000000000000000000", serde: none}],
   linked_maps: [{map_name: a, linked_codelet_name: two, linked_map_name: b}]}
- {codelet_name: two, codelet_path: "warm:1", hook_name: warm}
"""
MAX_SET_BYTES = 256 * 1024 * 1024
"""Of all memories of a set."""

HELPER_FUEL = 100
"""What calling a helper takes of its codelet's fuel: it takes some 2 µs in Python, and an instruction 1 ns. On the
default fuel a call makes two hundred such calls at most, and not thousands."""
BYTES_OF_FUEL = 16
"""Bytes that are copied for a helper on one unit of fuel."""

Helper = tuple[HelperType, Callable[..., Any]]


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


class Codelet:
    """One loaded codelet. faults, overruns: how often it ended early, and how often it took too long."""

    def __init__(self, descriptor: CodeletDescriptor, digest: str, examined: Examined, owner: Loaded) -> None:
        self.descriptor, self.digest, self.examined = descriptor, digest, examined
        self.faults = self.overruns = 0
        self.last_fault = ""
        self.target: Target  # set by begin
        self.data: dict[str, Data] = {}
        self._set, self._instantiate = weakref.ref(owner), list[Callable[[], Any]]()
        self._repairs: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"Codelet({self.descriptor.codelet_name}, {self.faults} faults)"

    def begin(self, target: Target, instantiate: Callable[[], Any], repairs: list[Callable[[], None]]) -> None:
        """Its first instance, how another one is made, and what makes its maps whole before that."""
        self.target, self._instantiate, self._repairs = target, [instantiate], repairs

    def faulted(self, end: Trap) -> None:
        """Its memory, globals and stack begin again; maps stay, as whole as before the call."""
        self.faults += 1
        self.last_fault = end.message
        try:
            for repair in self._repairs:
                repair()
            for instantiate in self._instantiate:
                self.target.memory[:] = bytes(len(self.target.memory))
                self.target.enter(instantiate())
        except (Trap, EngineFault) as fault:
            self._failed(f"codelet {self.descriptor.codelet_name} cannot begin again: {fault}", certain=True)
            return
        self._failed(f"codelet {self.descriptor.codelet_name}: {end.message}")

    def overran(self, nanoseconds: int) -> None:
        self.overruns += 1
        threshold = self.descriptor.runtime_threshold
        self.last_fault = f"it took {nanoseconds} ns; its threshold is {threshold} ns"
        self._failed(f"codelet {self.descriptor.codelet_name}: {self.last_fault}")

    def refused(self, why: str) -> None:
        self.faults += 1
        self.last_fault = why
        self._failed(f"codelet {self.descriptor.codelet_name}: {self.last_fault}")

    def _failed(self, why: str, *, certain: bool = False) -> None:
        owner = self._set()
        if owner is not None:  # else it was unloaded while this call ran
            owner.failed(why, certain=certain)

    def close(self) -> None:
        """Lets go of what refers back to it."""
        if self._instantiate:
            self.target.count_in(None)
        self._instantiate.clear()
        self._repairs.clear()


class Loaded:
    """A set with its instances. failed: what reports a fault of one of its codelets; it may unload the set."""

    def __init__(self, descriptor: CodeletSet, report: Callable[[Loaded, str, bool], None]) -> None:
        self.descriptor = descriptor
        self.codelets: dict[str, Codelet] = {}
        self.runs: list[tuple[str, int, Run]] = []  # hook, priority, what runs
        self.outputs: dict[bytes, Data] = {}
        self.inputs: dict[bytes, Data] = {}
        self.faults = 0
        self._report = report

    def __repr__(self) -> str:
        return f"Loaded({self.descriptor.codeletset_id}, {len(self.codelets)} codelets)"

    def failed(self, why: str, *, certain: bool = False) -> None:
        """One more fault; certain: it cannot go on."""
        self.faults += 1
        self._report(self, why, certain)

    def close(self) -> None:
        """Lets go of its instances; a call that runs keeps them until it has ended. Its codelets refer to it, and it
        not to them any more: their memories go now, and not when cycles are collected."""
        self.runs.clear()
        codelets, self.codelets = self.codelets, {}
        for codelet in codelets.values():
            codelet.close()


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
        owners = _owners(loaded)
        try:
            _Building(self._engine, loaded, owners, hooks, helpers, self._thread, self._fast).build(modules)
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


_Place = tuple[str, str]
"""A codelet and what it calls a map or channel."""


def _owners(loaded: Loaded) -> dict[_Place, _Place]:
    """For each map and channel, where it is made: in its own codelet, or where its links end. Raises CodeletError."""
    links: dict[_Place, _Place] = {}
    declarations = {name: dict(codelet.examined.declarations) for name, codelet in loaded.codelets.items()}
    name = loaded.descriptor.codeletset_id
    for codelet in loaded.codelets.values():
        own = codelet.descriptor.codelet_name
        for link in codelet.descriptor.linked_maps:
            ends = ((own, link.map_name), (link.linked_codelet_name, link.linked_map_name))
            found = [declarations[where].get(what) for where, what in ends]
            for (where, what), each in zip(ends, found, strict=True):
                if each is None or not each.kind.is_map:
                    raise loading(Failure.INVALID_PARAMETER, name, f"codelet {where} declares no map {what}")
            if found[0] != found[1]:
                words = " and ".join(
                    f"{where}.{what} is {each}" for (where, what), each in zip(ends, found, strict=True)
                )
                raise loading(Failure.INVALID_PARAMETER, name, f"linked maps differ: {words}")
            links[ends[0]] = ends[1]
    owners = {}
    for place in ((own, what) for own, known in declarations.items() for what in known):
        seen = [place]
        while seen[-1] in links:
            following = links[seen[-1]]
            if following in seen:
                words = " → ".join(".".join(each) for each in (*seen, following))
                raise loading(Failure.INVALID_PARAMETER, name, f"linked maps form a cycle: {words}")
            seen.append(following)
        owners[place] = seen[-1]
    return owners


class _Building:
    """The memories and instances of one set, in the making."""

    def __init__(
        self,
        engine: Engine,
        loaded: Loaded,
        owners: Mapping[_Place, _Place],
        hooks: Mapping[str, Hook],
        helpers: Mapping[str, Helper],
        thread: Callable[[], int],
        fast: Any,
    ) -> None:
        self._engine, self._loaded, self._owners = engine, loaded, owners
        self._hooks, self._helpers, self._thread, self._fast = hooks, helpers, thread, fast
        self._world = World(engine, MAX_SET_BYTES)
        self._stored: dict[_Place, tuple[Any, Data]] = {}
        self._guard: Guard | None = None

    def build(self, modules: Mapping[str, Any]) -> None:
        """Raises Trap, EngineFault."""
        uses = [
            name
            for codelet in self._loaded.codelets.values()
            for module, name in codelet.examined.imports
            if module in (HELPERS, wasi.MODULE)
        ]
        parted = any(
            declaration.kind.threads > 1
            for codelet in self._loaded.codelets.values()
            for _, declaration in codelet.examined.declarations
        )
        self._guard = Guard() if uses or parted else None
        for name, codelet in self._loaded.codelets.items():
            self._instance(codelet, modules[name])
        for codelet in self._loaded.codelets.values():
            self._publishable(codelet)

    def _instance(self, codelet: Codelet, module: Any) -> None:
        hook, name = self._hooks[codelet.descriptor.hook_name].type, codelet.descriptor.codelet_name
        own_pages = codelet.examined.memory_pages
        memory, _, view = self._world.memory(own_pages + max(1, -(-hook.region_bytes // PAGE_BYTES)))
        functions, repairs = {}, list[Callable[[], None]]()
        for what, declaration in codelet.examined.declarations:
            stored, codelet.data[what] = self._storage((name, what), declaration)
            wanted = [
                each for owner, each in map(function_of, codelet.examined.names_of(str(declaration))) if owner == what
            ]
            exports = [f"{declaration.prefix}.{each}" for each in wanted]
            constants = [self._world.constant(number) for number in declaration.numbers]
            repair = [declaration.repair] if declaration.repair else []
            made = self._world.instantiate(self._engine.storage, [memory, stored, *constants], [*exports, *repair])
            repairs += [partial(self._world.run, each) for each in made[len(exports) :]]
            functions.update({(str(declaration), f"{what}.{each}"): f for each, f in zip(wanted, made, strict=False)})
        for imported, each in codelet.examined.imports:
            if imported == HELPERS:
                functions[imported, each] = self._helper(each, view)
            elif imported == wasi.MODULE:
                functions[imported, each] = self._world.function(*wasi.signature(each), wasi.host_function(each, view))
        order = [
            memory if (each.module, each.name) == MEMORY else functions[each.module, each.name or ""]
            for each in module.imports
        ]
        world = self._world

        def instantiate() -> Any:
            return world.instantiate(module, order, [ENTRY])[0]

        codelet.begin(Target(world, view, own_pages * PAGE_BYTES, instantiate()), instantiate, repairs)

    def _storage(self, place: _Place, declaration: Declaration) -> tuple[Any, Data]:
        owner = self._owners[place]
        if owner not in self._stored:
            memory, _, view = self._world.memory(declaration.pages)
            self._stored[owner] = memory, Data(declaration, view, self._world)
        return self._stored[owner]

    def _helper(self, name: str, view: memoryview) -> Any:
        kind, function = self._helpers[name]
        return self._world.function(*kind.signature, _host_function(kind, function, view))

    def _publishable(self, codelet: Codelet) -> None:
        descriptor = codelet.descriptor
        hook = self._hooks[descriptor.hook_name].type
        parted = [each for each in codelet.data.values() if each.declaration.kind.threads > 1]

        def choose() -> None:
            thread = self._thread()
            for data in parted:
                data.choose_thread(thread)

        threshold = descriptor.runtime_threshold
        before = choose if parted else None
        if self._fast is None:
            run = prepared(codelet.target, hook, codelet, threshold, before)
        else:
            run = prepared_in_c(self._fast, codelet.target, hook, codelet, threshold, before)
        if self._guard is not None:
            run = self._guard.around(run, codelet)
        self._loaded.runs.append((descriptor.hook_name, descriptor.priority, run))
        self._loaded.outputs.update({each.stream: codelet.data[each.name] for each in descriptor.out_io_channel})
        self._loaded.inputs.update({each.stream: codelet.data[each.name] for each in descriptor.in_io_channel})


_FIELDS = {"i32": "i32", "i64": "i64", "f32": "f32", "f64": "f64"}


def _host_function(kind: HelperType, function: Callable[..., Any], view: memoryview) -> HostFunction:
    """The application's function as the engine calls it; bytes that do not lie in the codelet's memory are a trap."""
    members = [_FIELDS.get(each) for each in kind.parameters]
    size = len(view)

    def host(values: Any, use: Callable[[int], None]) -> None:
        use(HELPER_FUEL)
        at, arguments = 0, list[Any]()
        for member in members:
            if member is not None:
                arguments.append(getattr(values[at], member))
                at += 1
                continue
            begin, length = values[at].i32 & 0xFFFFFFFF, values[at + 1].i32 & 0xFFFFFFFF
            if begin + length > size:
                raise ValueError(f"{kind.name}: {length} bytes at {begin} are not in the codelet's memory")
            use(length // BYTES_OF_FUEL)
            arguments.append(bytes(view[begin : begin + length]))
            at += 2
        found = function(*arguments)
        if kind.result:
            setattr(values[0], kind.result, found)

    return host
