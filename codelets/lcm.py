"""The life-cycle socket: what it says, and both of its ends.

A Unix socket of frames, each 4 bytes of length, big-endian, and so many of JSON:
`{"command": "load", "descriptor": …}`, `{"command": "unload", "codeletset_id": …}`, and `list`, `stats`, `interface`.
An answer is `{"ok": true, …}`, or `{"ok": false, "error": {…}}` with jbpf's number in it. One connection may ask any
number of times. Only the application's own user and root may connect (unix(7), SO_PEERCRED), and whom it names.

Import rule: the standard library, keep_protocol, codelets.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import struct
import threading
from collections.abc import Collection
from contextlib import suppress
from typing import Any, Protocol

from codelets.faults import CodeletError, Failure
from codelets.interface import NAME, Interface
from codelets.states import HookState, SetState
from keep_protocol import strict_json
from keep_protocol.enumeration import Enum
from keep_protocol.errors import ErrorKind, KeepfleetError, error_from_wire
from keep_protocol.fields import Maybe, Pairs, Record, Text, Word, field, parse

LOG = logging.getLogger("keepfleet.codelets.lcm")
MAX_FRAME = 1024 * 1024
"""Bytes: a descriptor of 256 KiB as a string of JSON, and an answer with 64 sets."""
MAX_CONNECTIONS = 16
IDLE_SECONDS = 30.0
"""What a client may take for one frame, and between two."""
CALL_SECONDS = 60.0
"""What a client waits for an answer: sixteen modules are verified and compiled in two seconds."""
_LENGTH = struct.Struct(">I")
HEAD_BYTES = _LENGTH.size
"""What stands before a frame's body: its length."""


class Command(Enum):
    """What a request asks for."""

    LOAD = "load"
    UNLOAD = "unload"
    LIST = "list"
    STATS = "stats"
    INTERFACE = "interface"


class Request(Record):
    """One request."""

    command: Command = field(Word(Command), about="what to do")
    descriptor: str | None = field(Maybe(Text(256 * 1024)), default=None, about="of `load`: YAML or JSON")
    variables: tuple[tuple[str, str], ...] = field(
        Pairs(Text(64), Text(4096), 64), default=(), about="of `load`: what `${NAME}` in it stands for"
    )
    codeletset_id: str | None = field(Maybe(NAME), default=None, about="of `unload`")


class LifeCycle(Protocol):
    """What the socket hands on to: a Runtime."""

    def load(self, wanted: str, variables: dict[str, str]) -> str: ...
    def unload(self, name: str) -> None: ...
    def sets(self) -> tuple[SetState, ...]: ...
    def stats(self) -> tuple[HookState, ...]: ...
    @property
    def interface(self) -> Interface: ...


def answer(life_cycle: LifeCycle, body: bytes) -> dict[str, object]:
    """The answer to one frame. Never raises for what is in it."""
    try:
        request = parse(Request, strict_json.loads_object(body, MAX_FRAME, "the request"), "request", strict=True)
        return {"ok": True, **_done(life_cycle, request)}
    except KeepfleetError as error:
        return {"ok": False, "error": error.to_wire()}
    except Exception as error:
        LOG.exception("a request on the life-cycle socket failed")
        internal = KeepfleetError(ErrorKind.INTERNAL, f"cannot answer: {type(error).__name__}")
        return {"ok": False, "error": internal.to_wire()}


def _done(life_cycle: LifeCycle, request: Request) -> dict[str, object]:
    if request.command is Command.LOAD:
        if request.descriptor is None:
            raise _invalid("load needs a descriptor")
        return {"codeletset_id": life_cycle.load(request.descriptor, dict(request.variables))}
    if request.command is Command.UNLOAD:
        if request.codeletset_id is None:
            raise _invalid("unload needs a codeletset_id")
        life_cycle.unload(request.codeletset_id)
        return {"codeletset_id": request.codeletset_id}
    if request.command is Command.LIST:
        return {"sets": [each.to_wire() for each in life_cycle.sets()]}
    if request.command is Command.STATS:
        return {"hooks": [each.to_wire() for each in life_cycle.stats()]}
    return {"interface": life_cycle.interface.to_wire()}


def _invalid(why: str) -> CodeletError:
    return CodeletError(Failure.INVALID_PARAMETER, ErrorKind.BAD_REQUEST, f"invalid request: {why}")


def frame(value: dict[str, object]) -> bytes:
    """A value as a frame. Raises KeepfleetError(TOO_LARGE)."""
    body = strict_json.dumps(value)
    if len(body) > MAX_FRAME:
        raise KeepfleetError(ErrorKind.TOO_LARGE, f"cannot send {len(body)} bytes: a frame has {MAX_FRAME} at most")
    return _LENGTH.pack(len(body)) + body


def frame_size(head: bytes) -> int:
    """How long the body is behind a frame's first HEAD_BYTES. Raises KeepfleetError where it is cut or too long."""
    if len(head) < HEAD_BYTES:
        raise cut()
    size: int = _LENGTH.unpack(head)[0]
    if size > MAX_FRAME:
        raise KeepfleetError(ErrorKind.TOO_LARGE, f"cannot read a frame of {size} bytes: {MAX_FRAME} at most")
    return size


def cut() -> KeepfleetError:
    """The error of a frame that ends before its time."""
    return KeepfleetError(ErrorKind.BAD_REQUEST, "cannot read a frame: it was cut")


def request_frame(request: Request) -> bytes:
    """A request as a client sends it: without what it does not say."""
    return frame({name: value for name, value in request.to_wire().items() if value not in (None, {})})


def answer_in(body: bytes) -> dict[str, Any]:
    """An answer's members. Raises KeepfleetError for what is none."""
    return strict_json.loads_object(body, MAX_FRAME, "the answer")


def checked(found: dict[str, Any]) -> dict[str, Any]:
    """An answer that is no error. Raises the error that it is."""
    if found.get("ok") is not True:
        raise _error_of(found.get("error"))
    return found


def sets_in(found: dict[str, Any]) -> tuple[SetState, ...]:
    """The sets in an answer to `list`."""
    return tuple(parse(SetState, each, "set") for each in _listed(found, "sets"))


def hooks_in(found: dict[str, Any]) -> tuple[HookState, ...]:
    """The hooks in an answer to `stats`."""
    return tuple(parse(HookState, each, "hook") for each in _listed(found, "hooks"))


def _receive(connection: socket.socket, size: int) -> bytes:
    """`size` bytes; fewer where the other end has closed. Raises OSError."""
    found = bytearray()
    while len(found) < size:
        data = connection.recv(min(size - len(found), 65536))
        if not data:
            break
        found += data
    return bytes(found)


def _receive_frame(connection: socket.socket) -> bytes | None:
    """The next frame; None where there is none. Raises OSError, KeepfleetError for one that is cut or too long."""
    head = _receive(connection, HEAD_BYTES)
    if not head:
        return None
    size = frame_size(head)
    body = _receive(connection, size)
    if len(body) < size:
        raise cut()
    return body


def _send_frame(connection: socket.socket, value: dict[str, object]) -> None:
    """Sends an answer; where that is too long, the error that says so. Raises OSError."""
    try:
        data = frame(value)
    except KeepfleetError as error:
        data = frame({"ok": False, "error": error.to_wire()})
    connection.sendall(data)


class Server:
    """The socket at `path`, served by threads of its own until `close`.

    users: who else may connect, by user ID. Raises KeepfleetError where the path cannot be bound: a socket that is
    there is replaced if nobody listens on it, and nothing else is.
    """

    def __init__(self, path: str, life_cycle: LifeCycle, users: Collection[int] = ()) -> None:
        self.path, self._life_cycle = path, life_cycle
        self._users = frozenset({0, os.geteuid(), *users})
        self._open: set[socket.socket] = set()
        self._lock, self._closed = threading.Lock(), False
        self._listener = _listen(path, group=bool(users))
        self._identity = os.stat(path).st_ino
        self._thread = threading.Thread(target=self._accept, name="codelets-lcm", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"Server({self.path})"

    def close(self) -> None:
        """Ends every connection, and removes the socket unless another has taken its place."""
        self._closed = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        with suppress(FileNotFoundError):
            if os.stat(self.path).st_ino == self._identity:
                os.unlink(self.path)

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if self._closed:
                    return
                LOG.warning("cannot accept on %s: %s", self.path, error.strerror)
                threading.Event().wait(0.1)  # for want of descriptors, say: it would be asked for again immediately
                continue
            refusal = self._refusal(connection)
            if refusal is not None:
                LOG.warning("refused a connection: %s", refusal.message)
                with connection, suppress(OSError):
                    connection.setblocking(False)
                    _send_frame(connection, {"ok": False, "error": refusal.to_wire()})
                continue
            threading.Thread(target=self._serve, args=(connection,), name="codelets-lcm-client", daemon=True).start()

    def _refusal(self, connection: socket.socket) -> KeepfleetError | None:
        """Why a client may not connect; None where it may, and it is then one of the open connections."""
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, user, _ = struct.unpack("3i", credentials)
        if user not in self._users:
            why = f"user {user} may not; only the application's own user, root and whom it names may"
            return KeepfleetError(ErrorKind.FORBIDDEN, f"cannot connect to {self.path}: {why}")
        with self._lock:
            if len(self._open) >= MAX_CONNECTIONS:
                why = f"there are {MAX_CONNECTIONS} connections"
                return KeepfleetError(ErrorKind.TOO_MANY, f"cannot connect to {self.path}: {why}")
            self._open.add(connection)
        return None

    def _serve(self, connection: socket.socket) -> None:
        try:
            connection.settimeout(IDLE_SECONDS)
            while (body := _receive_frame(connection)) is not None:
                _send_frame(connection, answer(self._life_cycle, body))
        except KeepfleetError as error:
            with suppress(OSError):
                _send_frame(connection, {"ok": False, "error": error.to_wire()})
        except OSError as error:
            LOG.debug("a connection to %s ended: %s", self.path, error)
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()


def _listen(path: str, *, group: bool) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _clear(path)
        before = os.umask(0o177)  # between bind and chmod anybody could connect otherwise
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        if group:
            os.chmod(path, 0o666)  # noqa: S103  # who connects is checked
        listener.listen(MAX_CONNECTIONS)
    except (OSError, KeepfleetError) as error:
        listener.close()
        if isinstance(error, KeepfleetError):
            raise
        why = error.strerror or str(error)
        raise KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot listen on {path}: {why}") from error
    return listener


def _clear(path: str) -> None:
    """Removes the socket of an application that has ended. Raises KeepfleetError(CONFLICT) for anything else there."""
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(there.st_mode):
        raise KeepfleetError(ErrorKind.CONFLICT, f"cannot listen on {path}: there is something that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise KeepfleetError(ErrorKind.CONFLICT, f"cannot listen on {path}: an application listens there")


class Client:
    """The other end: asks an application. What it raises is KeepfleetError; of a refusal, with jbpf's number."""

    def __init__(self, path: str, seconds: float = CALL_SECONDS) -> None:
        self._path = path
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection.settimeout(seconds)
        try:
            self._connection.connect(path)
        except OSError as error:
            self._connection.close()
            why = error.strerror or str(error)
            raise KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot reach the application at {path}: {why}") from error

    def __repr__(self) -> str:
        return f"Client({self._path})"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection; what was loaded stays."""
        self._connection.close()

    def ask(self, request: Request) -> dict[str, Any]:
        """The answer's members. Raises the error that it holds."""
        data = request_frame(request)
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # why it was refused can be read all the same
                self._connection.sendall(data)
            body = _receive_frame(self._connection)
        except OSError as error:
            why = error.strerror or str(error)
            raise KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot ask the application at {self._path}: {why}") from error
        if body is None:
            why = "it has closed the connection"
            raise KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot ask the application at {self._path}: {why}")
        return checked(answer_in(body))

    def load(self, descriptor: str, variables: dict[str, str] | None = None) -> str:
        """Loads a set; its ID."""
        pairs = tuple((variables or {}).items())
        return str(self.ask(Request(Command.LOAD, descriptor, pairs)).get("codeletset_id"))

    def unload(self, name: str) -> None:
        """Unloads a set."""
        self.ask(Request(Command.UNLOAD, codeletset_id=name))

    def sets(self) -> tuple[SetState, ...]:
        """Every set."""
        return sets_in(self.ask(Request(Command.LIST)))

    def stats(self) -> tuple[HookState, ...]:
        """Every hook."""
        return hooks_in(self.ask(Request(Command.STATS)))

    @property
    def interface(self) -> Interface:
        """What the application offers."""
        found = self.ask(Request(Command.INTERFACE)).get("interface")
        return parse(Interface, found if isinstance(found, dict) else {}, "interface")


def _listed(found: dict[str, Any], member: str) -> list[dict[str, Any]]:
    listed = found.get(member)
    return [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []


def _error_of(value: object) -> KeepfleetError:
    error = error_from_wire(value)
    failures = {each.value: each for each in Failure}
    failure = failures.get(str(value.get("failure"))) if isinstance(value, dict) else None
    return CodeletError(failure, error.kind, error.message, error.evidence) if failure else error
