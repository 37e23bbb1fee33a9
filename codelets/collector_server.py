"""The application's side of the data collector: its socket, and the ring of the collector that is attached.

A Unix socket of packets (SOCK_SEQPACKET). The first is JSON, `{"role": "output"}` or `{"role": "input"}`, and is
answered by `{"ok": true}` or `{"ok": false, "error": {…}}`. With the answer to `output` comes the descriptor of a ring
(SCM_RIGHTS); from then on the application sends packets of one byte to wake a collector that waits, and the collector
none. After `input` each packet is a stream's ID and a message for a codelet, answered by `{"ok": true, "taken": …}`.

An eventfd would wake as well, but its flags and count are both processes': a collector could make the application
wait for ever on it. A packet that does not fit into the socket is not sent, as one that wakes is there already.
Import rule: the standard library, keep_protocol, codelets.
"""

from __future__ import annotations

import logging
import socket
import struct
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

from codelets.channels import STREAM_BYTES, unpack
from codelets.collector_ring import (
    MAX_MESSAGE_BYTES,
    MAX_RING_BYTES,
    MIN_RING_BYTES,
    RECORD_BYTES,
    RING_BYTES,
    RingFault,
    Writer,
)
from codelets.listening import Listener
from codelets.states import CollectorState
from keep_protocol import strict_json
from keep_protocol.enumeration import Enum
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record, Word, field, parse

LOG = logging.getLogger("keepfleet.codelets.collector")
MAX_PACKET = STREAM_BYTES + MAX_MESSAGE_BYTES
MAX_ANSWER = 16 * 1024
"""Bytes of an answer: an error of 1,024 characters, each six bytes of JSON at most, fits."""
BEGIN_SECONDS = 10.0
"""What a client may take for its first packet, and for taking an answer."""
WAKE = b"\1"


class Role(Enum):
    """What a connection is for."""

    OUTPUT = "output"
    INPUT = "input"


class Begin(Record):
    """A connection's first packet."""

    role: Role = field(Word(Role), about="what the connection is for")


def receive_packet(connection: socket.socket, limit: int) -> bytes:
    """The next packet; b"" where the other end has closed. Raises OSError, KeepfleetError(TOO_LARGE)."""
    data, _, flags, _ = connection.recvmsg(limit)
    if flags & socket.MSG_TRUNC:
        raise KeepfleetError(ErrorKind.TOO_LARGE, f"cannot read a packet of over {limit} bytes")
    return data


class CollectorServer(Listener):
    """The socket at `path`, and what is written for the collector that is attached: one at a time.

    send_input: hands a message on to a codelet, as `Runtime.send_input`.
    """

    def __init__(
        self,
        path: str,
        send_input: Callable[[bytes, bytes], bool],
        users: Collection[int] = (),
        ring_bytes: int = RING_BYTES,
    ) -> None:
        if not MIN_RING_BYTES <= ring_bytes <= MAX_RING_BYTES or ring_bytes % MIN_RING_BYTES:
            allowed = f"it must be a multiple of {MIN_RING_BYTES} up to {MAX_RING_BYTES}"
            raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot make a ring of {ring_bytes} bytes: {allowed}")
        self._send_input, self._ring_bytes = send_input, ring_bytes
        self._ring_lock = threading.Lock()
        self._attached: tuple[socket.socket, Writer] | None = None
        self._sent = self._lost = 0  # of the rings before
        super().__init__(path, "codelets-collector", users, socket.SOCK_SEQPACKET)

    @property
    def attached(self) -> bool:
        """Whether there is a collector."""
        return self._attached is not None

    def state(self) -> CollectorState:
        """What was sent and lost."""
        with self._ring_lock:
            writer = self._attached[1] if self._attached else None
            sent, lost = (writer.sent, writer.lost) if writer else (0, 0)
            return CollectorState(self.attached, self._sent + sent, self._lost + lost)

    def fitting(self, message_bytes: int) -> int:
        """How many messages of that size, or shorter, find room now."""
        with self._ring_lock:
            if self._attached is None:
                return 0
            connection, writer = self._attached
            try:
                if RECORD_BYTES + message_bytes > writer.capacity:
                    return 1  # one that fits at no time is lost, and one that is shorter than it may be is not
                return writer.room() // (RECORD_BYTES + message_bytes)
            except RingFault as fault:
                self._detach_for(connection, fault)
                return 0

    def write(self, stream: bytes, messages: Sequence[bytes]) -> None:
        """Writes messages into the collector's ring; those that find no room there, or no collector, are lost. Never
        waits for the collector."""
        with self._ring_lock:
            if self._attached is None:
                self._lost += len(messages)
                return
            connection, writer = self._attached
            try:
                if writer.write(stream, messages):
                    connection.send(WAKE, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                pass  # no wake-up is lost: a packet that it has not taken is one
            except RingFault as fault:
                self._lost += len(messages)
                self._detach_for(connection, fault)
            except OSError:  # it has gone
                self._detach(connection)

    def serve(self, connection: socket.socket) -> None:
        """Serves an attached collector, or one that sends input, until it goes."""
        connection.settimeout(BEGIN_SECONDS)
        try:
            first = receive_packet(connection, MAX_ANSWER)
            if not first:
                return
            begin = parse(Begin, strict_json.loads_object(first, MAX_ANSWER, "the packet"), "packet", strict=True)
            if begin.role is Role.INPUT:
                connection.sendall(strict_json.dumps({"ok": True}))
                self._serve_input(connection)
                return
            connection.settimeout(None)  # from now on others write to it, which never wait
            self._attach(connection)
            try:
                if receive_packet(connection, 1):
                    raise KeepfleetError(ErrorKind.BAD_REQUEST, "cannot go on: output takes no packets")
            finally:
                with self._ring_lock:
                    self._detach(connection)
        except KeepfleetError as error:
            self.refuse(connection, error)

    def refuse(self, connection: socket.socket, error: KeepfleetError) -> None:
        """An answer that is an error."""
        connection.sendall(strict_json.dumps({"ok": False, "error": error.to_wire()}))

    def close(self) -> None:
        """Ends every connection; what is in the ring the collector can still read."""
        if not self.forked:
            with self._ring_lock:
                self._closed = True  # nobody attaches from now on
                if self._attached is not None:
                    connection = self._attached[0]
                    self._detach(connection, reads_on=not _has_gone(connection))
        super().close()

    def _attach(self, connection: socket.socket) -> None:
        """Raises KeepfleetError: CONFLICT where another collector is attached, UNAVAILABLE for want of memory."""
        with self._ring_lock:
            if self._attached is not None and not _has_gone(self._attached[0]):
                process = _process(self._attached[0])
                why = f"process {process} collects its output; end that first"
                raise KeepfleetError(ErrorKind.CONFLICT, f"cannot attach to {self.path}: {why}")
            if self._attached is not None:
                self._detach(self._attached[0])
            if self._closed:
                raise KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot attach to {self.path}: the application ends")
            try:
                writer = Writer(self._ring_bytes)
            except OSError as error:
                raise KeepfleetError(
                    ErrorKind.UNAVAILABLE, f"cannot attach to {self.path}: there is no memory: {error.strerror}"
                ) from error
            try:
                socket.send_fds(connection, [strict_json.dumps({"ok": True})], [writer.file])
            except OSError:
                writer.close()
                raise
            self._attached = connection, writer
        LOG.info("process %d collects the output of codelets", _process(connection))

    def _detach(self, connection: socket.socket, *, reads_on: bool = False) -> None:
        """Gives up the ring of this connection, if it is the one. Under the ring's lock. What its collector has not
        taken is lost, unless it reads on."""
        if self._attached is None or self._attached[0] is not connection:
            return
        _, writer = self._attached
        self._attached = None
        unread = 0 if reads_on else writer.unread()
        self._sent, self._lost = self._sent + writer.sent, self._lost + writer.lost + unread
        if not reads_on:
            LOG.info("the data collector has gone; it left %d messages unread", unread)
        writer.close()
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    def _detach_for(self, connection: socket.socket, fault: RingFault) -> None:
        LOG.warning("the data collector is detached: %s", fault)
        self._detach(connection)

    def _serve_input(self, connection: socket.socket) -> None:
        while True:
            connection.settimeout(None)
            packet = receive_packet(connection, MAX_PACKET)
            if not packet:
                return
            connection.settimeout(BEGIN_SECONDS)
            try:
                taken = self._send_input(*unpack(packet))
                connection.sendall(strict_json.dumps({"ok": True, "taken": taken}))
            except KeepfleetError as error:
                self.refuse(connection, error)


def _has_gone(connection: socket.socket) -> bool:
    """Whether the other end was closed, which its thread may not have seen yet."""
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _process(connection: socket.socket) -> int:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])
