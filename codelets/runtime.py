"""The embedding: an application's hooks, helpers and channels, and the codelet sets that are loaded into it.

Import rule: keep_protocol, module_store, codelets.
"""

from __future__ import annotations

import ctypes
import logging
import struct
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from time import monotonic
from typing import Any, cast

from codelets import fast
from codelets.artifacts import DEFAULT, Compiled, open_cache
from codelets.calling import ControlHook, Hook
from codelets.channels import Receiver, Serializer, as_bytes
from codelets.collector_server import CollectorServer
from codelets.descriptor import CodeletSet, read_descriptor
from codelets.engine import shared_engine
from codelets.faults import CodeletError, Failure, loading
from codelets.interface import DEFAULT_FUEL, DEFAULT_MEMORY, MAX_HELPERS, MAX_HOOKS, HelperType, HookType, Interface
from codelets.lcm import Server
from codelets.loading import Helper, Loaded, Loader, Modules
from codelets.reporting import REPORT_STATS, HookStatistics, Statistics, codelets_of, statistics_of
from codelets.standard import standard_helpers
from codelets.states import CollectorState, HookState, SetState
from codelets.storage import Data
from codelets.stored import StoredModules
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import parse

LOG = logging.getLogger("keepfleet.codelets")
MAX_SETS = 64
"""Of one application: 64 sets of 16 codelets are a thousand on its hooks."""
MAX_FAULTS = 16
"""Of a set, before it is unloaded: each costs its hook's caller a new instance, some 50 µs."""
MAX_ENDED = 64
"""Sets that were unloaded for their faults, whose reasons are remembered."""
BATCH = 1024
"""Messages that are taken of one channel before others have their turn."""


class Runtime:
    """Codelets of one application. Its methods may be called by any thread, also while others call hooks.

    store: the module store's directory, or what reads modules; without it the system's, of root, or the user's own.
    max_faults: faults of a set before it is unloaded; 0: any number. in_c: whether hooks are called by the module in C,
    which `python -m codelets build` makes; without it where there is one. cache: the directory where compiled codelets
    are kept for the next process, "" for the user's own cache, None for none. lcm_socket: where the life-cycle socket
    is made, and lcm_users: who else may connect to it, by user ID; without it sets are loaded by this object alone.
    collector_socket, collector_users: the same for a data collector, which gets what `deliver` delivers.
    Raises KeepfleetError: NOT_FOUND where there is no store, CONFIGURATION where the module in C is asked for and not
    there, CONFLICT where another application has the socket.
    """

    def __init__(
        self,
        store: str | Modules | None = None,
        *,
        max_faults: int = MAX_FAULTS,
        in_c: bool | None = None,
        cache: str | None = DEFAULT,
        lcm_socket: str | None = None,
        lcm_users: tuple[int, ...] = (),
        collector_socket: str | None = None,
        collector_users: tuple[int, ...] = (),
    ) -> None:
        self._modules = StoredModules(store) if store is None or isinstance(store, str) else store
        self._fast = None if in_c is False else fast.load()
        if in_c and self._fast is None:
            why = "it was not built; run: python -m codelets build"
            raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot call hooks in C: {why}")
        self._compiled = Compiled(shared_engine(), open_cache(cache))
        self._loader = Loader(shared_engine(), self._modules, self._compiled, self._fast)
        self._max_faults = max_faults
        self._hooks: dict[str, Hook] = {REPORT_STATS: self._made(REPORT_STATS, HookStatistics)}
        self._statistics = Statistics()
        self._helpers: dict[str, Helper] = {each.name: (each, function) for each, function in standard_helpers()}
        self._serializers: dict[str, Serializer] = {}
        self._receivers: dict[bytes | None, Receiver] = {}
        self._sets: dict[str, Loaded] = {}
        self._ended: dict[str, str] = {}
        self._order = 0
        self._places: list[tuple[int, int, str, Loaded, Callable[..., int | None]]] = []
        self._lock = threading.RLock()  # a set may be unloaded by a fault while the thread that loads calls a hook
        self._delivering: _Delivery | None = None
        self._closed = False
        self._collector: CollectorServer | None = None
        self._server: Server | None = None
        try:
            if lcm_socket is not None:
                self._server = Server(lcm_socket, self, lcm_users)
            if collector_socket is not None:
                self._collector = CollectorServer(collector_socket, self._send_raw, collector_users)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"Runtime({len(self._hooks)} hooks, {len(self._sets)} sets)"

    def close(self) -> None:
        """Unloads every set, and delivers no more output."""
        if self._server is not None:
            self._server.close()
        self.stop_delivering()
        if self._collector is not None:
            self._collector.close()
        with self._lock:
            for name in tuple(self._sets):
                self._remove(name)
            if not self._closed:
                self._closed = True
                self._modules.close()
                self._compiled.close()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- what the application offers ---------------------------------------------------------------------------------

    def hook(
        self,
        name: str,
        context: type[ctypes.Structure] | str | int,
        *,
        data_bytes: int = 0,
        writable: bool = False,
        memory_bytes: int = DEFAULT_MEMORY,
        fuel: int = DEFAULT_FUEL,
    ) -> Hook:
        """Declares a hook. context: its fields, as a `ctypes.Structure`, a format of `struct`, or a size in bytes;
        data_bytes: of its data region, at most; memory_bytes: of a codelet; fuel: instructions of one call.

        Raises KeepfleetError: CONFLICT for a name that is taken, BAD_REQUEST for a value out of bounds.
        """
        return self._declare(name, context, data_bytes, writable, memory_bytes, fuel, None)

    def control_hook(
        self,
        name: str,
        context: type[ctypes.Structure] | str | int,
        *,
        default: int,
        data_bytes: int = 0,
        writable: bool = False,
        memory_bytes: int = DEFAULT_MEMORY,
        fuel: int = DEFAULT_FUEL,
    ) -> ControlHook:
        """The same, with a value for its caller: the last codelet's, or `default`."""
        return cast(ControlHook, self._declare(name, context, data_bytes, writable, memory_bytes, fuel, default))

    def _declare(
        self,
        name: str,
        context: type[ctypes.Structure] | str | int,
        data_bytes: int,
        writable: bool,
        memory_bytes: int,
        fuel: int,
        default: int | None,
    ) -> Hook:
        made = self._made(
            name, context, default, data_bytes=data_bytes, writable=writable, memory_bytes=memory_bytes, fuel=fuel
        )
        with self._lock:
            if name in self._hooks or len(self._hooks) >= MAX_HOOKS:
                why = "there is one" if name in self._hooks else f"there are {MAX_HOOKS}"
                raise KeepfleetError(ErrorKind.CONFLICT, f"cannot declare the hook {name}: {why}")
            report = self._hooks.pop(REPORT_STATS)  # the application's own are shown before it
            self._hooks |= {name: made, REPORT_STATS: report}
        return made

    def _made(
        self, name: str, context: type[ctypes.Structure] | str | int, default: int | None = None, **more: object
    ) -> Hook:
        typed = isinstance(context, type)
        if isinstance(context, str):
            size = struct.calcsize(context)
        else:
            size = ctypes.sizeof(context) if isinstance(context, type) else context
        values = {"name": name, "context_bytes": size, "control": default is not None, **more}
        kind = parse(HookType, values, "hook")
        if self._fast is not None:
            return cast(Hook, self._fast.Hook(self._fast.Call, kind, default or 0, kind.control, kind.writable))
        return Hook(kind, typed=typed) if default is None else ControlHook(kind, default, typed=typed)

    def helper(
        self, name: str, function: Callable[..., Any], parameters: tuple[str, ...] = (), result: str = ""
    ) -> None:
        """Offers a function to codelets: they import it from the module `helper`.

        parameters: each of i32, i64, f32, f64, or bytes, which is an address and a length to a codelet; result: a
        number's type, or "". What the function raises ends the codelet's call. Raises KeepfleetError as `hook` does.
        """
        values: dict[str, object] = {"name": name, "parameters": list(parameters), "result": result}
        kind = parse(HelperType, values, "helper")
        with self._lock:
            if name in self._helpers or len(self._helpers) >= MAX_HELPERS:
                why = "there is one" if name in self._helpers else f"there are {MAX_HELPERS}"
                raise KeepfleetError(ErrorKind.CONFLICT, f"cannot offer the helper {name}: {why}")
            self._helpers[name] = (kind, function)

    def serializer(self, name: str, serializer: Serializer) -> None:
        """What descriptors call `serde: NAME`."""
        with self._lock:
            self._serializers[name] = serializer

    @property
    def interface(self) -> Interface:
        """What codelets are verified against; `interface.to_wire()` is JSON for `codelets verify --interface`."""
        with self._lock:
            hooks = tuple(hook.type for hook in self._hooks.values())
            return Interface(hooks, tuple(kind for kind, _ in self._helpers.values()))

    # --- sets --------------------------------------------------------------------------------------------------------

    def load(self, wanted: CodeletSet | bytes | str, variables: Mapping[str, str] | None = None) -> str:
        """Loads a set: all of its codelets run from the next call of their hooks on, or none does. Its ID.

        wanted: a descriptor, read or as YAML or JSON; variables: what `${NAME}` in it stands for.
        Raises CodeletError, which has jbpf's number and, of a module that was refused, the verifier's findings.
        """
        descriptor = self._read(wanted, variables)
        name = descriptor.codeletset_id
        with self._lock:
            self._check_new(descriptor)
            hooks, helpers = dict(self._hooks), dict(self._helpers)
        loaded = self._loader.build(descriptor, hooks, helpers, self._reported)
        self._use(loaded)
        with self._lock:  # what was compiled and made apart is now shown to callers, or was overtaken
            try:
                self._check_new(descriptor)
            except CodeletError:
                loaded.close()
                raise
            self._sets[name] = loaded
            self._ended.pop(name, None)
            for hook, priority, run in loaded.runs:
                self._order += 1
                self._places.append((-priority, self._order, hook, loaded, run))
            self._places.sort(key=lambda place: place[:2])
            self._publish({hook for hook, _, _ in loaded.runs})
        LOG.info("loaded the codelet set %s: %s", name, ", ".join(loaded.codelets))
        return name

    def unload(self, name: str) -> None:
        """Unloads a set: no call of a hook that begins later runs it. Raises CodeletError(NOT_FOUND)."""
        with self._lock:
            if name not in self._sets:
                why = f": it was unloaded: {self._ended[name]}" if name in self._ended else ""
                known = ", ".join(self._sets) or "none"
                message = f"cannot unload the codelet set {name}: it is not loaded{why or f'; there are: {known}'}"
                raise CodeletError(Failure.UNLOAD_FAILED, ErrorKind.NOT_FOUND, message)
            self._remove(name)
        LOG.info("unloaded the codelet set %s", name)

    def sets(self) -> tuple[SetState, ...]:
        """Every set that is loaded, and those that their faults have unloaded."""
        with self._lock:
            found = [SetState(name, True, "", codelets_of(each)) for name, each in self._sets.items()]
            return (*found, *(SetState(name, False, why) for name, why in self._ended.items()))

    def stats(self) -> tuple[HookState, ...]:
        """Every hook: how often it was called since it was declared, by whom it is used."""
        with self._lock:
            return self._statistics.states(self._hooks.items(), self._sets.values())

    def report(self) -> int:
        """Calls the hook `report_stats` with the HookStatistics of every hook, in the order of `stats`; how many.
        0 where no codelet is on it. Threads may call it; `start_delivering` does where it is asked for."""
        with self._lock:
            if not any(hook == REPORT_STATS for _, _, hook, _, _ in self._places):
                return 0
            hook, found = self._hooks[REPORT_STATS], self.stats()
        for number, state in enumerate(found):
            hook(statistics_of(number, state))
        return len(found)

    def map_items(self, codelet_set: str, codelet: str, name: str) -> list[tuple[bytes, bytes]]:
        """Keys and values of a map of a loaded set. Raises KeepfleetError(NOT_FOUND)."""
        return self._data(codelet_set, codelet, name).items()

    def _data(self, codelet_set: str, codelet: str, name: str) -> Data:
        with self._lock, suppress(KeyError):
            return self._sets[codelet_set].codelets[codelet].data[name]
        raise KeepfleetError(ErrorKind.NOT_FOUND, f"cannot find the map {name} of {codelet_set}.{codelet}")

    def _read(self, wanted: CodeletSet | bytes | str, variables: Mapping[str, str] | None) -> CodeletSet:
        if isinstance(wanted, CodeletSet):
            return wanted
        try:
            return read_descriptor(wanted.encode() if isinstance(wanted, str) else wanted, variables=variables)
        except KeepfleetError as error:
            raise CodeletError(Failure.INVALID_PARAMETER, error.kind, error.message, error.evidence) from None

    def _check_new(self, descriptor: CodeletSet) -> None:
        name = descriptor.codeletset_id
        if name in self._sets:
            raise loading(Failure.CREATION_FAILED, name, "it is loaded", ErrorKind.CONFLICT)
        if len(self._sets) >= MAX_SETS:
            raise loading(Failure.CREATION_FAILED, name, f"there are {MAX_SETS}", ErrorKind.TOO_MANY)
        for codelet in descriptor.codelet_descriptor:
            for channel in (*codelet.in_io_channel, *codelet.out_io_channel):
                if channel.serde and channel.serde not in self._serializers:
                    raise loading(Failure.INVALID_PARAMETER, name, f"there is no serialiser {channel.serde}")
                if any(channel.stream in (each.outputs | each.inputs) for each in self._sets.values()):
                    why = f"the stream {channel.stream_id} is another set's"
                    raise loading(Failure.INVALID_PARAMETER, name, why, ErrorKind.CONFLICT)

    def _needed(self) -> set[str]:
        return {each.digest for one in self._sets.values() for each in one.codelets.values()}

    def _use(self, loaded: Loaded) -> None:
        """Before it runs: its modules, and those of all that runs, are not collected from now on. A module that was
        removed since it was read is in memory, and is loaded all the same."""
        with self._lock:
            try:
                self._modules.use(self._needed() | {each.digest for each in loaded.codelets.values()})
            except KeepfleetError as error:
                loaded.close()
                name = loaded.descriptor.codeletset_id
                raise CodeletError(
                    Failure.CREATION_FAILED, error.kind, f"cannot load the codelet set {name}: {error.message}"
                ) from error

    def _publish(self, names: set[str]) -> None:
        for name in names:
            self._hooks[name].replace(tuple(run for _, _, hook, _, run in self._places if hook == name))

    def _remove(self, name: str) -> None:
        loaded = self._sets.pop(name)
        self._places = [place for place in self._places if place[3] is not loaded]
        self._publish({hook for hook, _, _ in loaded.runs})
        self._statistics.unloaded(loaded)
        loaded.close()

    def _reported(self, loaded: Loaded, why: str, certain: bool) -> None:
        """A fault of a set, in the thread that called its hook."""
        name = loaded.descriptor.codeletset_id
        if not certain and (not self._max_faults or loaded.faults < self._max_faults):
            LOG.debug("a fault in the codelet set %s: %s", name, why)
            return
        with self._lock:
            if self._sets.get(name) is not loaded:
                return
            self._remove(name)
            while len(self._ended) >= MAX_ENDED:
                del self._ended[next(iter(self._ended))]
            self._ended[name] = f"{loaded.faults} faults, the last: {why}"
        LOG.warning("unloaded the codelet set %s after %d faults, the last: %s", name, loaded.faults, why)

    # --- channels ----------------------------------------------------------------------------------------------------

    def on_output(self, stream: bytes | str | None, receive: Receiver) -> None:
        """Calls `receive(stream, message)` for what codelets send to a stream, or to any without one of its own.

        A message is bytes, or what the stream's serialiser makes of them. It is called by the thread that delivers.
        """
        with self._lock:
            self._receivers[None if stream is None else as_bytes(stream)] = receive

    def send_input(self, stream: bytes | str, message: Any) -> bool:
        """Sends a message to the codelet of a stream; False where its channel is full, which is counted.

        Raises KeepfleetError: NOT_FOUND for an unknown stream, BAD_REQUEST for a message that is too long.
        """
        return self._send(as_bytes(stream), message, raw=False)

    def _send_raw(self, stream: bytes, message: bytes) -> bool:
        """What a data collector sends is what the codelet reads, as it gets what a codelet sends."""
        return self._send(stream, message, raw=True)

    def _send(self, stream: bytes, message: Any, *, raw: bool) -> bool:
        with self._lock:
            for loaded in self._sets.values():
                if stream in loaded.inputs:
                    serializer = None if raw else self._serializer_of(loaded, stream)
                    data = serializer.encode(message) if serializer else message
                    try:
                        return loaded.inputs[stream].send(data)
                    except ValueError as error:
                        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot send to {stream.hex()}: {error}") from None
        raise KeepfleetError(ErrorKind.NOT_FOUND, f"cannot send to {stream.hex()}: no codelet reads it")

    def deliver(self) -> int:
        """Gives what codelets have sent to receivers, and to the data collector; how many messages that were. By one
        thread at a time.

        The collector gets every message, as the codelet sent it. Messages of streams that nobody receives stay in their
        channel while there is no collector, or no room in its ring; a channel that is full counts what it loses. A
        receiver does not wait for the collector, which then loses what finds no room. A receiver that raises is logged,
        and gets the next message.
        """
        delivered = 0
        with self._lock:
            channels = [(each, stream, data) for each in self._sets.values() for stream, data in each.outputs.items()]
        collector = self._collector if self._collector is not None and self._collector.attached else None
        for loaded, stream, data in channels:
            receive = self._receivers.get(stream) or self._receivers.get(None)
            if receive is None and collector is None:
                continue
            most = BATCH
            if collector is not None and receive is None:
                most = min(most, collector.fitting(data.declaration.value))
            messages = data.receive(most)
            delivered += len(messages)
            if collector is not None and messages:
                collector.write(stream, messages)
            if receive is not None:
                self._receive(receive, stream, messages, self._serializer_of(loaded, stream))
        return delivered

    def _receive(self, receive: Receiver, stream: bytes, messages: list[bytes], serializer: Serializer | None) -> None:
        for message in messages:
            try:
                receive(stream, serializer.decode(message) if serializer else message)
            except Exception:
                LOG.exception("cannot deliver a message of stream %s", stream.hex())

    def collector(self) -> CollectorState:
        """Whether a data collector is attached, and what it was sent."""
        return self._collector.state() if self._collector is not None else CollectorState(False, 0, 0)

    def start_delivering(self, seconds: float = 0.01, report_seconds: float | None = None) -> None:
        """Delivers in a thread of its own, looking for output every `seconds`, and calls `report` every
        `report_seconds`."""
        with self._lock:
            if self._delivering is None:
                self._delivering = _Delivery(self, seconds, report_seconds)
                self._delivering.start()

    def stop_delivering(self) -> None:
        """Ends that thread, once it has delivered what is there."""
        with self._lock:
            delivering, self._delivering = self._delivering, None
        if delivering is not None:
            delivering.finish()

    def _serializer_of(self, loaded: Loaded, stream: bytes) -> Serializer | None:
        for codelet in loaded.descriptor.codelet_descriptor:
            for channel in (*codelet.in_io_channel, *codelet.out_io_channel):
                if channel.stream == stream and channel.serde:
                    return self._serializers[channel.serde]
        return None


class _Delivery(threading.Thread):
    """Delivers output until it is finished, and reports."""

    def __init__(self, runtime: Runtime, seconds: float, report_seconds: float | None) -> None:
        super().__init__(name="codelets-output", daemon=True)
        self._runtime, self._seconds, self._end = runtime, seconds, threading.Event()
        self._report_seconds = float("inf") if report_seconds is None else report_seconds

    def run(self) -> None:
        due = monotonic() + self._report_seconds
        while not self._end.is_set():
            if not self._runtime.deliver():
                self._end.wait(min(self._seconds, max(0, due - monotonic())))
            if monotonic() >= due:
                self._runtime.report()
                due = monotonic() + self._report_seconds
        while self._runtime.deliver():
            pass

    def finish(self) -> None:
        """Returns when all that is there was delivered."""
        self._end.set()
        self.join()
