"""The embedding: an application's hooks, helpers and channels, and the codelet sets that are loaded into it.

What it offers is offer.py, what is loaded sets.py, what passes through channels delivery.py; this is how they are used.
Import rule: keep_protocol, module_store, codelets.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, cast

from codelets import fast
from codelets.artifacts import DEFAULT, Compiled, open_cache
from codelets.calling import ControlHook, Hook
from codelets.channels import Receiver, Serializer, as_bytes
from codelets.collector_ring import RING_BYTES
from codelets.collector_server import CollectorServer
from codelets.delivery import Delivery
from codelets.descriptor import CodeletSet, read_descriptor
from codelets.engine import shared_engine
from codelets.faults import CodeletError, Failure
from codelets.interface import DEFAULT_FUEL, DEFAULT_MEMORY, Interface
from codelets.lcm import Server
from codelets.loading import Loader, Modules
from codelets.offer import Context, Offer
from codelets.reporting import REPORT_STATS, statistics_of
from codelets.sets import Sets
from codelets.states import CollectorState, HookState, SetState
from codelets.stored import StoredModules
from keep_protocol.errors import ErrorKind, KeepfleetError

Items = list[tuple[bytes, bytes]]
MAX_FAULTS = 16
"""Of a set, before it is unloaded: each costs its hook's caller a new instance, some 50 µs."""


class Runtime:
    """Codelets of one application. Its methods may be called by any thread, also while others call hooks.

    store: the module store's directory, or what reads modules; without it the system's, of root, or the user's own.
    max_faults: faults of a set before it is unloaded; 0: any number. in_c: whether hooks are called by the module in C,
    which `python -m codelets build` makes; without it where there is one. cache: the directory where compiled codelets
    are kept for the next process, "" for the user's own cache, None for none. lcm_socket: where the life-cycle socket
    is made, and lcm_users: who else may connect to it, by user ID; without it sets are loaded by this object alone.
    collector_socket, collector_users: the same for a data collector, which gets what `deliver` delivers;
    collector_bytes: of its ring, a multiple of 4096.
    Raises KeepfleetError: NOT_FOUND where there is no store, CONFIGURATION where the module in C is asked for and not
    there, CONFLICT where another application has the socket, BAD_REQUEST for a ring that cannot be.
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
        collector_bytes: int = RING_BYTES,
    ) -> None:
        modules = StoredModules(store) if store is None or isinstance(store, str) else store
        in_c_module = None if in_c is False else fast.load()
        if in_c and in_c_module is None:
            why = "it was not built; run: python -m codelets build"
            raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot call hooks in C: {why}")
        lock = threading.RLock()  # a set may be unloaded by a fault while the thread that loads calls a hook
        self._compiled = Compiled(shared_engine(), open_cache(cache))
        self._offer = Offer(lock, in_c_module)
        loader = Loader(shared_engine(), modules, self._compiled, in_c_module)
        loader.warm()
        self._sets = Sets(lock, self._offer, loader, modules, max_faults)
        self._delivery = Delivery(lock, self._offer, self._sets)
        self._server: Server | None = None
        try:
            if lcm_socket is not None:
                self._server = Server(lcm_socket, self, lcm_users)
            if collector_socket is not None:
                self._delivery.collector = CollectorServer(
                    collector_socket, self._send_raw, collector_users, collector_bytes
                )
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"Runtime({self._offer}, {self._sets})"

    def close(self) -> None:
        """Unloads every set, and delivers no more output."""
        if self._server is not None:
            self._server.close()
        self._delivery.stop()
        if self._delivery.collector is not None:
            self._delivery.collector.close()
        self._sets.close()
        self._compiled.close()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- what the application offers ---------------------------------------------------------------------------------

    def hook(
        self,
        name: str,
        context: Context,
        *,
        data_bytes: int = 0,
        writable: bool = False,
        memory_bytes: int = DEFAULT_MEMORY,
        fuel: int = DEFAULT_FUEL,
        wasi: tuple[str, ...] = (),
    ) -> Hook:
        """Declares a hook. context: its fields, as a `ctypes.Structure`, a format of `struct`, or a size in bytes;
        data_bytes: of its data region, at most; memory_bytes: of a codelet; fuel: instructions of one call; wasi:
        functions of WASI that its codelets may import, of interface.WASI.

        Raises KeepfleetError: CONFLICT for a name that is taken, BAD_REQUEST for a value out of bounds.
        """
        bounds = {"data_bytes": data_bytes, "memory_bytes": memory_bytes, "fuel": fuel, "wasi": list(wasi)}
        return self._offer.hook(name, context, None, writable=writable, **bounds)

    def control_hook(
        self,
        name: str,
        context: Context,
        *,
        default: int,
        data_bytes: int = 0,
        writable: bool = False,
        memory_bytes: int = DEFAULT_MEMORY,
        fuel: int = DEFAULT_FUEL,
        wasi: tuple[str, ...] = (),
    ) -> ControlHook:
        """The same, with a value for its caller: the last codelet's, or `default`."""
        bounds = {"data_bytes": data_bytes, "memory_bytes": memory_bytes, "fuel": fuel, "wasi": list(wasi)}
        return cast(ControlHook, self._offer.hook(name, context, default, writable=writable, **bounds))

    def helper(
        self, name: str, function: Callable[..., Any], parameters: tuple[str, ...] = (), result: str = ""
    ) -> None:
        """Offers a function to codelets: they import it from the module `helper`.

        parameters: each of i32, i64, f32, f64, or bytes, which is an address and a length to a codelet; result: a
        number's type, or "". What the function raises ends the codelet's call. Raises KeepfleetError as `hook` does.
        """
        self._offer.helper(name, function, parameters, result)

    def serializer(self, name: str, serializer: Serializer) -> None:
        """What descriptors call `serde: NAME`."""
        self._offer.serializers[name] = serializer

    @property
    def interface(self) -> Interface:
        """What codelets are verified against; `interface.to_wire()` is JSON for `codelets verify --interface`."""
        return self._offer.interface

    # --- sets --------------------------------------------------------------------------------------------------------

    def load(self, wanted: CodeletSet | bytes | str, variables: Mapping[str, str] | None = None) -> str:
        """Loads a set: all of its codelets run from the next call of their hooks on, or none does. Its ID.

        wanted: a descriptor, read or as YAML or JSON; variables: what `${NAME}` in it stands for.
        Raises CodeletError, which has jbpf's number and, of a module that was refused, the verifier's findings.
        """
        descriptor = _read(wanted, variables)
        self._sets.load(descriptor)
        return descriptor.codeletset_id

    def unload(self, name: str) -> None:
        """Unloads a set: no call of a hook that begins later runs it. Raises CodeletError(NOT_FOUND)."""
        self._sets.unload(name)

    def sets(self) -> tuple[SetState, ...]:
        """Every set that is loaded, and those that their faults have unloaded."""
        return self._sets.states()

    def list(self) -> tuple[SetState, ...]:
        """The same, by the name that the command line has for it."""
        return self._sets.states()

    def wait_for_change(self, seen: int, seconds: float) -> int | None:
        """Waits until a set was loaded or unloaded after change number `seen`, 0 for any, but `seconds` at most; the
        number of the last change, None when this was closed."""
        return self._sets.wait(seen, seconds)

    def stats(self) -> tuple[HookState, ...]:
        """Every hook: how often it was called since it was declared, by whom it is used."""
        return self._sets.stats()

    def report(self) -> int:
        """Calls the hook `report_stats` with the HookStatistics of every hook, in the order of `stats`; how many.
        0 where no codelet is on it. Threads may call it; `start_delivering` does where it is asked for."""
        if not self._sets.on(REPORT_STATS):
            return 0
        hook, found = self._offer.hooks[REPORT_STATS], self.stats()
        for number, state in enumerate(found):
            hook(statistics_of(number, state))
        return len(found)

    def map_items(self, codelet_set: str, codelet: str, name: str) -> Items:
        """Keys and values of a map of a loaded set. Raises KeepfleetError(NOT_FOUND)."""
        return self._sets.data(codelet_set, codelet, name).items()

    # --- channels ----------------------------------------------------------------------------------------------------

    def on_output(self, stream: bytes | str | None, receive: Receiver) -> None:
        """Calls `receive(stream, message)` for what codelets send to a stream, or to any without one of its own.

        A message is bytes, or what the stream's serialiser makes of them. It is called by the thread that delivers.
        """
        self._delivery.receivers[None if stream is None else as_bytes(stream)] = receive

    def send_input(self, stream: bytes | str, message: Any) -> bool:
        """Sends a message to the codelet of a stream; False where its channel is full, which is counted.

        Raises KeepfleetError: NOT_FOUND for an unknown stream, BAD_REQUEST for a message that is too long.
        """
        return self._delivery.send(as_bytes(stream), message)

    def _send_raw(self, stream: bytes, message: bytes) -> bool:
        """What a data collector sends is what the codelet reads, as it gets what a codelet sends."""
        return self._delivery.send(stream, message, raw=True)

    def deliver(self) -> int:
        """Gives what codelets have sent to receivers, and to the data collector; how many messages that were. By one
        thread at a time.

        The collector gets every message, as the codelet sent it. Messages of streams without a receiver stay in their
        channel while there is no collector, or no room in its ring; a channel that is full counts what it loses. A
        receiver does not wait for the collector, which then loses what finds no room. A receiver that raises is logged,
        and gets the next message.
        """
        return self._delivery.deliver()

    def collector(self) -> CollectorState:
        """Whether a data collector is attached, and what it was sent."""
        return self._delivery.state()

    def start_delivering(self, seconds: float = 0.01, report_seconds: float | None = None) -> None:
        """Delivers in a thread of its own, looking for output every `seconds`, and calls `report` every
        `report_seconds`."""
        self._delivery.start(self.report, seconds, report_seconds)

    def stop_delivering(self) -> None:
        """Ends that thread, once it has delivered what is there."""
        self._delivery.stop()


def _read(wanted: CodeletSet | bytes | str, variables: Mapping[str, str] | None) -> CodeletSet:
    if isinstance(wanted, CodeletSet):
        return wanted
    try:
        return read_descriptor(wanted.encode() if isinstance(wanted, str) else wanted, variables=variables)
    except KeepfleetError as error:
        raise CodeletError(Failure.INVALID_PARAMETER, error.kind, error.message, error.evidence) from None
