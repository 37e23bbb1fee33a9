"""The life-cycle socket: what it says, and both of its ends.

A Unix socket of frames, each 4 bytes of length, big-endian, and so many of JSON:
`{"command": "load", "descriptor": …}`, `{"command": "unload", "codeletset_id": …}`, and `list`, `stats`, `interface`.
An answer is `{"ok": true, …}`, or `{"ok": false, "error": {…}}` with jbpf's number in it. One connection may ask any
number of times. After `{"command": "watch", "every_ms": …}` it is sent answers as to `list` until it ends: one as soon
as a set was loaded or unloaded, and otherwise each time so many milliseconds are over.
Only the application's own user and root may connect (unix(7), SO_PEERCRED), and whom it names.

Import rule: the standard library, keep_protocol, codelets.
"""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Any, Protocol

from codelets.faults import CodeletError, Failure
from codelets.interface import NAME, Interface
from codelets.listening import Listener
from codelets.states import HookState, SetState
from keep_protocol import strict_json
from keep_protocol.enumeration import Enum
from keep_protocol.errors import ErrorKind, KeepfleetError, error_from_wire
from keep_protocol.fields import Maybe, Pairs, Record, Text, Whole, Word, field, parse

LOG = logging.getLogger("keepfleet.codelets.lcm")
MAX_FRAME = 1024 * 1024
"""Bytes: a descriptor of 256 KiB as a string of JSON, and an answer with 64 sets."""
IDLE_SECONDS = 30.0
"""What a client may take for one frame, and between two."""
CALL_SECONDS = 60.0
"""What a client waits for an answer: sixteen modules are verified and compiled in two seconds."""
EVERY_MS, DEFAULT_EVERY_MS = (100, 10_000), 1000
"""Milliseconds between two answers to one who watches; a client that was killed has its connection for as long."""
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
    WATCH = "watch"


class Request(Record):
    """One request."""

    command: Command = field(Word(Command), about="what to do")
    descriptor: str | None = field(Maybe(Text(256 * 1024)), default=None, about="of `load`: YAML or JSON")
    variables: tuple[tuple[str, str], ...] = field(
        Pairs(Text(64), Text(4096), 64), default=(), about="of `load`: what `${NAME}` in it stands for"
    )
    codeletset_id: str | None = field(Maybe(NAME), default=None, about="of `unload`")
    every_ms: int | None = field(Maybe(Whole(*EVERY_MS)), default=None, about="of `watch`: between two looks")


class LifeCycle(Protocol):
    """What the socket hands on to: a Runtime."""

    def load(self, wanted: str, variables: dict[str, str]) -> str: ...
    def unload(self, name: str) -> None: ...
    def sets(self) -> tuple[SetState, ...]: ...
    def stats(self) -> tuple[HookState, ...]: ...
    def wait_for_change(self, seen: int, seconds: float) -> int | None: ...
    @property
    def interface(self) -> Interface: ...


def answers(life_cycle: LifeCycle, body: bytes) -> Iterator[dict[str, object]]:
    """The answer to one frame, or those to one that watches. Never raises for what is in it."""
    try:
        request = parse(Request, strict_json.loads_object(body, MAX_FRAME, "the request"), "request", strict=True)
        seen = life_cycle.wait_for_change(-1, 0) if request.command is Command.WATCH else None
        yield {"ok": True, **_done(life_cycle, request)}
        while seen is not None:
            seen = life_cycle.wait_for_change(seen, (request.every_ms or DEFAULT_EVERY_MS) / 1000)
            if seen is not None:
                yield {"ok": True, **_done(life_cycle, request)}
    except KeepfleetError as error:
        yield {"ok": False, "error": error.to_wire()}
    except Exception as error:
        LOG.exception("a request on the life-cycle socket failed")
        internal = KeepfleetError(ErrorKind.INTERNAL, f"cannot answer: {type(error).__name__}")
        yield {"ok": False, "error": internal.to_wire()}


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
    if request.command in (Command.LIST, Command.WATCH):
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


class Server(Listener):
    """The life-cycle socket at `path`, of an application that `life_cycle` is."""

    def __init__(self, path: str, life_cycle: LifeCycle, users: Collection[int] = ()) -> None:
        self._life_cycle = life_cycle
        super().__init__(path, "codelets-lcm", users)

    def serve(self, connection: socket.socket) -> None:
        """Answers frame after frame."""
        connection.settimeout(IDLE_SECONDS)
        try:
            while (body := _receive_frame(connection)) is not None:
                for each in answers(self._life_cycle, body):
                    _send_frame(connection, each)
        except KeepfleetError as error:
            self.refuse(connection, error)

    def refuse(self, connection: socket.socket, error: KeepfleetError) -> None:
        """An answer that is an error."""
        _send_frame(connection, {"ok": False, "error": error.to_wire()})


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
        except OSError as error:
            raise self._lost(error.strerror or str(error)) from error
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        try:
            body = _receive_frame(self._connection)
        except OSError as error:
            raise self._lost(error.strerror or str(error)) from error
        if body is None:
            raise self._lost("it has closed the connection")
        return checked(answer_in(body))

    def _lost(self, why: str) -> KeepfleetError:
        return KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot ask the application at {self._path}: {why}")

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

    def watch(self, every_ms: int) -> Iterator[tuple[SetState, ...]]:
        """Every set, again and again; this connection asks nothing else any more."""
        yield sets_in(self.ask(Request(Command.WATCH, every_ms=every_ms)))
        while True:
            yield sets_in(self._answer())

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
