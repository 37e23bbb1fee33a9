"""What passes between an application and its codelets' channels: output to receivers and the collector, and input.

Import rule: the standard library, keep_protocol, codelets.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any

from codelets.channels import Receiver, Serializer
from codelets.collector_server import CollectorServer
from codelets.loaded import Loaded
from codelets.offer import Offer
from codelets.sets import Sets
from codelets.states import CollectorState
from keep_protocol.errors import ErrorKind, KeepfleetError

LOG = logging.getLogger("keepfleet.codelets")
MAX_LEFT = 16 * 1024
"""Messages of sets that were unloaded, which wait to be delivered."""
BATCH = 1024
"""Messages that are taken of one channel before others have their turn."""


class Delivery:
    """The channels of an application's sets. lock: of its codelets; collector: is attached or not, None for none."""

    def __init__(self, lock: threading.RLock, offer: Offer, sets: Sets) -> None:
        self._lock, self._offer, self._sets = lock, offer, sets
        self.collector: CollectorServer | None = None
        self.receivers: dict[bytes | None, Receiver] = {}
        self._thread: _Thread | None = None
        self._taking = threading.Lock()  # out of channels
        self._left: deque[tuple[bytes, Serializer | None, list[bytes]]] = deque()
        sets.leaving = self._leaving

    def __repr__(self) -> str:
        return f"Delivery({len(self.receivers)} receivers, {self._thread or 'no thread'})"

    def send(self, stream: bytes, message: Any, *, raw: bool = False) -> bool:
        """Sends input; raw: as the codelet reads it. Raises KeepfleetError."""
        serializer = None if raw else self._serializer_of(self._reader(stream), stream)
        try:
            data = serializer.encode(message) if serializer else message  # the application's: without the lock
            with self._lock:
                return self._reader(stream).inputs[stream].send(data)
        except ValueError as error:
            raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot send to {stream.hex()}: {error}") from None

    def _reader(self, stream: bytes) -> Loaded:
        with self._lock:
            for loaded in self._sets.loaded.values():
                if stream in loaded.inputs:
                    return loaded
        raise KeepfleetError(ErrorKind.NOT_FOUND, f"cannot send to {stream.hex()}: no codelet reads it")

    def deliver(self) -> int:
        """Takes what is in output channels; how many messages."""
        delivered = 0
        with self._lock:
            loaded = tuple(self._sets.loaded.values())
            channels = [(each, stream, data) for each in loaded for stream, data in each.outputs.items()]
        while self._left:
            stream, serializer, messages = self._left.popleft()
            delivered += self._hand_on(stream, serializer, messages)
        for one, stream, data in channels:
            receive, collector = self._takers(stream)
            if receive is None and collector is None:
                continue
            most = BATCH
            if collector is not None and receive is None:
                most = min(most, collector.fitting(data.declaration.value))
            with self._taking:
                messages = data.receive(most)
            delivered += self._hand_on(stream, self._serializer_of(one, stream), messages)
        return delivered

    def _takers(self, stream: bytes) -> tuple[Receiver | None, CollectorServer | None]:
        collector = self.collector if self.collector is not None and self.collector.attached else None
        return self.receivers.get(stream) or self.receivers.get(None), collector

    def _hand_on(self, stream: bytes, serializer: Serializer | None, messages: list[bytes]) -> int:
        receive, attached = self._takers(stream)
        collector = self.collector if receive is None else attached
        if collector is not None and messages:  # taken for a collector: where that has gone meanwhile, it counts them
            collector.write(stream, messages)
        if receive is not None:
            _receive(receive, stream, messages, serializer)
        return len(messages)

    def _leaving(self, loaded: Loaded) -> None:
        """A set was unloaded: what is unread in its channels is delivered with the next that is, where anybody takes it
        and so many do not wait already; otherwise it is counted as lost."""
        for stream, data in loaded.outputs.items():
            with self._taking:
                room = MAX_LEFT - sum(len(messages) for _, _, messages in self._left)
                if any(self._takers(stream)) and (messages := data.receive(max(0, room))):
                    self._left.append((stream, self._serializer_of(loaded, stream), messages))
                data.give_up()

    def _serializer_of(self, loaded: Loaded, stream: bytes) -> Serializer | None:
        for codelet in loaded.descriptor.codelet_descriptor:
            for channel in (*codelet.in_io_channel, *codelet.out_io_channel):
                if channel.stream == stream and channel.serde:
                    return self._offer.serializers[channel.serde]
        return None

    def state(self) -> CollectorState:
        """Of the collector."""
        return self.collector.state() if self.collector is not None else CollectorState(False, 0, 0)

    def start(self, report: Callable[[], object], seconds: float, report_seconds: float | None) -> None:
        """Delivers, and calls `report`, in a thread of its own."""
        with self._lock:
            if self._thread is None:
                self._thread = _Thread(self.deliver, report, seconds, report_seconds)
                self._thread.start()

    def stop(self) -> None:
        """Ends that thread, once it has delivered what is there."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.finish()


def _receive(receive: Receiver, stream: bytes, messages: list[bytes], serializer: Serializer | None) -> None:
    for message in messages:
        try:
            receive(stream, serializer.decode(message) if serializer else message)
        except Exception:  # the application's own code: the messages after it are delivered all the same
            LOG.exception("cannot deliver a message of stream %s", stream.hex())


class _Thread(threading.Thread):
    """Delivers output until it is finished, and reports."""

    def __init__(
        self, deliver: Callable[[], int], report: Callable[[], object], seconds: float, report_seconds: float | None
    ) -> None:
        super().__init__(name="codelets-output", daemon=True)
        self._deliver, self._report, self._seconds, self._end = deliver, report, seconds, threading.Event()
        self._report_seconds = float("inf") if report_seconds is None else report_seconds

    def run(self) -> None:
        due = monotonic() + self._report_seconds
        while not self._end.is_set():
            if not self._deliver():
                self._end.wait(min(self._seconds, max(0, due - monotonic())))
            if monotonic() >= due:
                self._report()
                due = monotonic() + self._report_seconds
        while self._deliver():
            pass

    def finish(self) -> None:
        """Returns when all that is there was delivered."""
        self._end.set()
        if threading.current_thread() is not self:  # a receiver may end the delivery
            self.join()
