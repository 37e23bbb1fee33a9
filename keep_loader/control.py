"""The control socket: who may speak, what one peer may cost, and every command answered in its order.

Import rule: that of keep_loader.
"""

from __future__ import annotations

import os
import struct
from _collections_abc import Callable

from keep_loader.loop import HANG_UP, READABLE, WRITABLE, Action, Loop, log, plain
from keep_loader.state import close_all, descriptors_in
from keep_protocol import sockets as socket
from keep_protocol.constants import MAX_CONTROL_CONNECTIONS, MAX_CONTROL_FDS
from keep_protocol.control import Command, FrameDecoder, decode_command, encode_reply
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepReport
from keep_protocol.states import Phase, State

IDLE_SECONDS = 30.0
"""A peer that is owed nothing and says nothing, or does not read its answer, is closed: the manager connects again."""
CHUNK = 16 * 1024
"""Bytes taken in one turn; below the largest frame, so that cutting one peer's bytes never holds the others up."""
MAX_QUEUED = 32
"""Commands sent ahead by one peer; a manager of version 1 sends five to start a keep."""
MAX_WAITERS = MAX_CONTROL_CONNECTIONS - 2
"""Peers waiting for a change; two connections always stay for commands."""
DETAIL_SECONDS = 0.2
_DETAIL = "detail"
_CREDENTIALS = struct.Struct("3i")
_DESCRIPTOR_SPACE = socket.CMSG_SPACE(4 * MAX_CONTROL_FDS)

Obey = Callable[[Command, list[int], "Connection"], None]


class Connection:
    """One peer. Commands are obeyed one at a time: the next when the last is answered and the answer is written.

    begun: whether its last answer said that the keep's guest runs; None before one.
    """

    def __init__(self, server: ControlServer, sock: socket.socket, number: int) -> None:
        self._server, self._sock, self._number = server, sock, number
        self._decoder = FrameDecoder()
        self._queue: list[tuple[bytes, list[int]]] = []
        self._descriptors: list[int] = []
        self._outbox = b""
        self._owed = self._obeying = self._last = False
        self.closed = False
        self.begun: bool | None = None
        sock.setblocking(False)
        self._settle()

    def __repr__(self) -> str:
        return f"Connection({self._number}, {len(self._queue)} queued{', closed' if self.closed else ''})"

    def reply(self, answer: bytes) -> None:
        """Answers the command that is being obeyed by an encoded reply; a peer that has gone away is no error."""
        if self.closed:
            return
        self._owed = False
        self._outbox += answer
        self._write()
        if not self._obeying:
            self._obey_queue()

    def close(self) -> None:
        """Forgets the peer and closes whatever it sent."""
        if self.closed:
            return
        self.closed = True
        self._server.loop.forget(self._sock.fileno())
        self._server.loop.cancel(self._deadline)
        self._sock.close()
        close_all(self._descriptors)
        for _, descriptors in self._queue:
            close_all(descriptors)
        self._server.left(self)

    @property
    def _deadline(self) -> str:
        return f"control connection {self._number}"

    def _settle(self) -> None:
        """Asks the loop for what this connection can use now: to write, to know of a hang-up, or to read."""
        if self.closed:
            return
        if self._last and not (self._outbox or self._owed or self._queue):
            self.close()
            return
        events = WRITABLE if self._outbox else HANG_UP if self._owed else READABLE
        self._server.loop.watch(self._sock.fileno(), events, self._ready)
        if self._owed:
            self._server.loop.cancel(self._deadline)
        elif not self._server.loop.is_set(self._deadline):
            self._server.loop.after(self._deadline, IDLE_SECONDS, self.close)

    def _ready(self, events: int) -> None:
        if events & ~(READABLE | WRITABLE) and (self._owed or self._outbox):
            self.close()  # the peer hung up before its answer
        elif self._outbox:
            self._write()
            self._obey_queue()
        else:
            self._read()

    def _write(self) -> None:
        try:
            sent = self._sock.send(self._outbox, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._outbox = self._outbox[sent:]

    def _read(self) -> None:
        try:
            data, ancillary, flags, _ = self._sock.recvmsg(CHUNK, _DESCRIPTOR_SPACE, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._descriptors += descriptors_in(ancillary)
        try:
            if flags & socket.MSG_CTRUNC or len(self._descriptors) > MAX_CONTROL_FDS:
                raise KeepfleetError(
                    ErrorKind.BAD_REQUEST, f"cannot take over {MAX_CONTROL_FDS} descriptors in one command"
                )
            self._last = not data
            self._enqueue(self._decoder.feed(data))
        except KeepfleetError as error:
            self._last = True
            close_all(self._descriptors)
            self.reply(encode_reply(error))
        self._obey_queue()

    def _enqueue(self, frames: list[bytes]) -> None:
        """Queues `frames`; what descriptors came with them belongs to the first start among them."""
        if len(frames) > MAX_QUEUED:
            raise KeepfleetError(ErrorKind.TOO_MANY, f"cannot queue over {MAX_QUEUED} commands of one connection")
        for frame in frames:
            descriptors: list[int] = []
            if self._descriptors and _takes_descriptors(frame):
                descriptors, self._descriptors = self._descriptors, []
            self._queue.append((frame, descriptors))
        if frames and not self._decoder.waiting:
            close_all(self._descriptors)

    def _obey_queue(self) -> None:
        while self._queue and not (self._owed or self._outbox or self.closed):
            frame, descriptors = self._queue.pop(0)
            self._owed = self._obeying = True
            self._server.loop.cancel(self._deadline)
            try:
                self._server.obey(decode_command(frame), descriptors, self)
            except KeepfleetError as error:
                close_all(descriptors)  # before the answer: the port of a start that is refused is free with it
                self.reply(encode_reply(error))
            finally:
                self._obeying = False
                close_all(descriptors)
        self._settle()


def _takes_descriptors(frame: bytes) -> bool:
    try:
        return decode_command(frame).takes_descriptors
    except KeepfleetError:
        return False


def _send_once(sock: socket.socket, line: bytes) -> None:
    """Tries to send `line` and closes."""
    with sock:
        sock.setblocking(False)
        try:
            sock.send(line, socket.MSG_NOSIGNAL)
        except OSError:
            return  # the peer was gone before we came


class ControlServer:
    """Listens at `path` (mode 0600) and passes each command to `obey`, which answers by `Connection.reply`.

    `obey` raises KeepfleetError for a refusal, and takes the descriptors it keeps out of the list it is given.
    """

    def __init__(self, loop: Loop, path: str, obey: Obey) -> None:
        self.loop, self.obey = loop, obey
        self._path = path
        self._connections: list[Connection] = []
        self._count = 0
        if os.path.lexists(path):
            os.unlink(path)  # of a loader before us, which has ended: the directory is the keep's own
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        old = os.umask(0o177)
        self._listener.bind(path)
        os.umask(old)
        self._listener.listen(MAX_CONTROL_CONNECTIONS)
        loop.watch(self._listener.fileno(), READABLE, self._accept)

    def __repr__(self) -> str:
        return f"ControlServer({self._path}, {len(self._connections)} connections)"

    def close(self) -> None:
        """Closes every connection and the socket."""
        for connection in list(self._connections):
            connection.close()
        self.loop.forget(self._listener.fileno())
        self._listener.close()

    def left(self, connection: Connection) -> None:
        """A connection has closed."""
        if connection in self._connections:
            self._connections.remove(connection)

    def _accept(self, _events: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return  # the peer was gone before we came
        pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if uid not in (0, os.geteuid()):
            log(f"refused a control connection of uid {uid}, process {pid}: only root and the keep's own uid may")
            sock.close()
            return
        if len(self._connections) >= MAX_CONTROL_CONNECTIONS:
            full = KeepfleetError(ErrorKind.TOO_MANY, "cannot take another control connection: close one first")
            _send_once(sock, encode_reply(full))
            return
        self._count += 1
        self._connections.append(Connection(self, sock, self._count))


class Waiters:
    """Peers that wait until the keep's state or phase is another one, and perhaps its detail, or whether its guest
    runs: that may change in words that are the same, and between a peer's last answer and its next command.

    A change of the detail alone is answered at most five times a second: a hostile app-loader could change it without
    end, and must not keep the manager busy.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._waiting: list[tuple[State | Phase, str | None, Connection]] = []

    def __repr__(self) -> str:
        return f"Waiters({len(self._waiting)})"

    def add(self, contents: str, report: KeepReport, connection: Connection) -> bool:
        """Lets a peer wait by what its command says; false where the state or phase is another one already.

        Raises KeepfleetError: BAD_REQUEST for other contents, TOO_MANY where others take the room.
        """
        known = {str(int(state)): state for state in State} | {phase.value: phase for phase in Phase}
        word, with_detail, detail = contents.partition(" ")
        if word not in known:
            raise KeepfleetError(
                ErrorKind.BAD_REQUEST,
                f"cannot wait for a change from {plain(contents, 20)!r}: it is no state's number and no phase",
            )
        self._waiting = [waiter for waiter in self._waiting if not waiter[2].closed]
        if not _is_in(known[word], report):
            return False
        if len(self._waiting) >= MAX_WAITERS:
            raise KeepfleetError(ErrorKind.TOO_MANY, f"cannot wait: {MAX_WAITERS} peers wait for this keep already")
        self._waiting.append((known[word], detail if with_detail else None, connection))
        return True

    def changed(self, report: KeepReport, again: Action) -> list[Connection]:
        """The peers to be answered now, which then wait no more; `again` is called when others may be."""
        done = [waiter for waiter in self._waiting if not _is_in(waiter[0], report)]
        other_detail = [waiter for waiter in self._waiting if _is_other(waiter[1], waiter[2], report)]
        if other_detail and not self._loop.is_set(_DETAIL):
            self._loop.after(_DETAIL, DETAIL_SECONDS, again)
            done += [waiter for waiter in other_detail if waiter not in done]
        self._waiting = [waiter for waiter in self._waiting if waiter not in done]
        return [connection for _, _, connection in done]


def _is_other(detail: str | None, connection: Connection, report: KeepReport) -> bool:
    return detail is not None and (detail != report.detail or connection.begun not in (None, report.begun))


def _is_in(place: State | Phase, report: KeepReport) -> bool:
    return place is (report.state if isinstance(place, State) else Phase(report.phase))
