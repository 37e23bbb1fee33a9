"""Builds the memories, linked maps and instances of one set, apart from what runs. Nothing is published here.

Import rule: keep_protocol, codelets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from codelets import wasi
from codelets.calling import Guard, Hook, Target, prepared, prepared_in_c
from codelets.engine import Engine, HostFunction, World
from codelets.faults import Failure, loading
from codelets.interface import HelperType
from codelets.loaded import Codelet, Loaded
from codelets.storage import PAGE_BYTES, Data, Declaration, function_of
from codelets.verification import ENTRY, HELPERS, MEMORY

MAX_SET_BYTES = 256 * 1024 * 1024
"""Of all memories of a set."""
HELPER_FUEL = 100
"""What calling a helper takes of its codelet's fuel: it takes some 2 µs in Python, and an instruction 1 ns. On the
default fuel a call makes two hundred such calls at most, and not thousands."""
BYTES_OF_FUEL = 16
"""Bytes that are copied for a helper on one unit of fuel."""
Helper = tuple[HelperType, Callable[..., Any]]
_Place = tuple[str, str]
"""A codelet and what it calls a map or channel."""


def owners_of(loaded: Loaded) -> dict[_Place, _Place]:
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


class Building:
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
