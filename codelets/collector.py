"""The data collector: another process that reads what an application's codelets send, and sends them input.

    with Collector("/run/forwarder/collector.sock") as collector:
        for stream, message in collector:
            …

It survives the application: what was written before that ended is read, and the next one on the same socket is
attached to. Import rule: the standard library, keep_protocol, codelets.
"""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from time import monotonic
from typing import Any

from codelets.channels import as_bytes, pack
from codelets.collector_ring import Reader, RingFault
from codelets.collector_server import MAX_ANSWER, Role, receive_packet
from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError, error_from_wire

CALL_SECONDS = 10.0
"""What the application may take for an answer."""
FIRST_DELAY, MAX_DELAY = 0.05, 1.0
"""Seconds between two tries to reach an application that is not there: twice as long each time."""


class Collector:
    """Messages of codelets, with their streams, as they come: `for stream, message in collector`.

    wait_seconds: how long it waits for an application that is not there, or has ended, before it raises
    KeepfleetError(UNAVAILABLE). Of any other refusal it raises the application's reason: CONFLICT where another
    collector is attached. One thread iterates; `send` and `close` may be called by any.
    """

    def __init__(self, path: str, wait_seconds: float = math.inf) -> None:
        self._path, self._wait_seconds = path, wait_seconds
        self._ended = threading.Event()
        self._lock, self._input_lock = threading.Lock(), threading.Lock()
        self._output: socket.socket | None = None
        self._input: socket.socket | None = None
        self._reader: Reader | None = None
        self._lost_before = 0

    def __repr__(self) -> str:
        return f"Collector({self._path})"

    def __enter__(self) -> Collector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the iteration, in whichever thread it is."""
        self._ended.set()
        with self._lock, suppress(OSError):
            if self._output is not None:
                self._output.shutdown(socket.SHUT_RDWR)
        with self._input_lock:
            self._drop_input()

    @property
    def lost(self) -> int:
        """Messages that found no room in the rings of this collector."""
        return self._lost_before + (self._reader.lost if self._reader else 0)

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        while (connection := self._reached()) is not None:
            try:
                reader = self._reader = self._attached(connection)
                if reader is None:
                    self._ended.wait(FIRST_DELAY)
                else:
                    yield from self._messages(connection, reader)
            finally:
                with self._lock:
                    self._output = None
                connection.close()
                if self._reader is not None:
                    self._lost_before, reader, self._reader = self.lost, self._reader, None
                    reader.close()

    def _messages(self, connection: socket.socket, reader: Reader) -> Iterator[tuple[bytes, bytes]]:
        """Until the application has ended, and its ring is empty. Raises KeepfleetError for what cannot be in it."""
        goes_on = True
        while goes_on and not self._ended.is_set():
            try:
                if reader.must_wait():
                    goes_on = self._woken(connection)
                found = reader.take()
            except RingFault as fault:
                raise KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot read what {self._path} writes: {fault}") from None
            yield from found

    def _woken(self, connection: socket.socket) -> bool:
        """Waits; False where the application, or this, has ended."""
        with suppress(ConnectionResetError):
            return bool(connection.recv(1))
        return False

    # --- reaching the application ------------------------------------------------------------------------------------

    def _reached(self) -> socket.socket | None:
        """A connection for output; None where this has ended. Raises KeepfleetError(UNAVAILABLE)."""
        until, delay = monotonic() + self._wait_seconds, FIRST_DELAY
        while not self._ended.is_set():
            try:
                connection = self._connected()
            except KeepfleetError:
                left = until - monotonic()
                if left <= 0:
                    raise
                self._ended.wait(min(delay, left))
                delay = min(delay * 2, MAX_DELAY)
                continue
            with self._lock:
                if not self._ended.is_set():
                    self._output = connection
                    return connection
            connection.close()
        return None

    def _connected(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(CALL_SECONDS)
        try:
            connection.connect(self._path)
        except OSError as error:
            connection.close()
            raise self._unreachable(error.strerror or str(error)) from error
        return connection

    def _attached(self, connection: socket.socket) -> Reader | None:
        """The ring; None where the application ended meanwhile. Raises KeepfleetError where it refuses."""
        descriptors: list[int] = []
        try:
            answer, descriptors = _begun(connection, Role.OUTPUT)
        except (ConnectionError, TimeoutError):
            answer = b""
        if not answer:
            return None
        try:
            _checked(answer)
            if not descriptors:
                raise KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot attach to {self._path}: it gave no ring")
        except BaseException:
            for each in descriptors:
                socket.close(each)
            raise
        connection.settimeout(None)
        return Reader(descriptors[0])

    # --- input -------------------------------------------------------------------------------------------------------

    def send(self, stream: bytes | str, message: bytes) -> bool:
        """Sends a message to the codelet of a stream; False where its channel is full, which is counted.

        Raises KeepfleetError: NOT_FOUND for an unknown stream, BAD_REQUEST for a message that is too long, UNAVAILABLE
        where the application is not there: it waits for none.
        """
        packet = pack(as_bytes(stream), message)
        with self._input_lock:
            try:
                answer = self._asked(packet)
            except OSError as error:
                self._drop_input()
                raise self._unreachable(error.strerror or str(error)) from error
            if not answer:
                self._drop_input()
                raise self._unreachable("it has closed the connection")
            return _checked(answer).get("taken") is True

    def _asked(self, packet: bytes) -> bytes:
        if self._input is not None:
            try:
                self._input.send(packet)
                return receive_packet(self._input, MAX_ANSWER)
            except BrokenPipeError:  # that application had ended before: the packet goes to the next
                self._drop_input()
        self._input = self._connected()
        answer, _ = _begun(self._input, Role.INPUT)
        if answer:
            _checked(answer)
            self._input.send(packet)
            answer = receive_packet(self._input, MAX_ANSWER)
        return answer

    def _drop_input(self) -> None:
        if self._input is not None:
            self._input.close()
            self._input = None

    def _unreachable(self, why: str) -> KeepfleetError:
        return KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot reach the application at {self._path}: {why}")


def _begun(connection: socket.socket, role: Role) -> tuple[bytes, list[int]]:
    """The answer to a connection's first packet, with its descriptors. Raises OSError."""
    with suppress(BrokenPipeError):  # why it was refused can be read all the same
        connection.send(strict_json.dumps({"role": role.value}))
    try:
        answer, descriptors, _, _ = socket.recv_fds(connection, MAX_ANSWER, 1)
    except ConnectionResetError:  # where the packet was not read it comes before the reason
        answer, descriptors, _, _ = socket.recv_fds(connection, MAX_ANSWER, 1)
    return answer, list(descriptors)


def _checked(answer: bytes) -> dict[str, Any]:
    """An answer's members. Raises the error that it holds."""
    found = strict_json.loads_object(answer, MAX_ANSWER, "the answer")
    if found.get("ok") is not True:
        raise error_from_wire(found.get("error"))
    return found
