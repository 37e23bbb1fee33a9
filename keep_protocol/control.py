"""The loader's control protocol: manager ↔ keep-loader, over a Unix stream socket.

Takes and returns bytes and objects; no sockets here. Import rule: the light part of keep_protocol.

A command is `{"commandtype": "…", "commandcontents": "…"}`, one after another, a newline between them allowed.
Every command is answered, in order, with one line: the keep's object, which is `keep.KeepReport.to_wire` and, for the
managers of version 1, what they read from it of the keep's spec; or `{"error": {"kind": …, "message": …, "evidence":
[…]}}`.
"""

from __future__ import annotations

from keep_protocol import strict_json
from keep_protocol.constants import MAX_CERTIFICATE_NAMES, MAX_CONTROL_FDS, MAX_CONTROL_FRAME, unit_name
from keep_protocol.enumeration import Enum
from keep_protocol.errors import ErrorKind, KeepfleetError, error_from_wire
from keep_protocol.fields import Flag, Items, Nested, Record, Text, Whole, field, parse
from keep_protocol.keep import KeepReport
from keep_protocol.limits import DEFAULT_LIMITS, Limits
from keep_protocol.spec import LABELS, MAX_UPLOADERS, NAME, UPLOADER, KeepSpec, Labels, Printable, encode_spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from keep_protocol.keep import KeepInfo

CONTROL_VERSION = 3
"""Version 1 has no HELLO: a loader that speaks it answers `unknown-command`, and takes START and what is set before.
A loader of version 2 keeps no output: its workload writes into the journal."""


_LATER_LIMITS = frozenset(("compile_seconds", "compile_memory_bytes", "output_buffer_bytes"))
"""Managers of version 1 refuse limits that they do not know."""


class CommandType(Enum):
    """What the manager may ask of a loader.

    HELLO, contents `Hello`, is answered immediately with the keep's object, whose `control_version` is the loader's.
    CLAIM, contents an encoded `KeepSpec`, says what a spare is from now on, whose unit says so by then; it may come
    twice. KEEP_START, contents a `StartMessage`, carries the descriptors that it names, in its order, as SCM_RIGHTS; it
    is answered when the app-loader listens, or its module runs.

    The original's commands, and version 1's: ADDR, PORT and NAMES say what the certificate is for and what `keep-info`
    shows: contents are the address, the decimal port, and comma-separated further names and addresses. DESCRIBE,
    contents a `Description`, is for keeps without a spec. START carries the descriptors START_DESCRIPTORS in that
    order, from version 3 on OUTPUT_DESCRIPTORS, then perhaps WORKLOAD_DESCRIPTOR and what that grants, and is answered
    as KEEP_START is.

    INFO is answered immediately. STOP, contents who asked, ends the app-loader or the workload; it is answered when
    that has ended, and immediately where it had. WAIT, contents a state's decimal number or a phase's word, perhaps a
    space and the `detail`, is answered when the keep's state, phase or detail is another one; with the `detail` also
    when `begun` is not what the connection was answered last.

    FOLLOW brings one end of a SOCK_SEQPACKET pair, over which the loader announces output (see `ring`), in place of the
    one before; it is answered when the workload waits for its readers. JOURNAL brings a datagram socket that is
    connected to journald, in place of one that journald does not read any more. Neither has contents. JOURNAL with the
    contents UNSTORED brings nothing, also before the start, and says that journald stores nothing of what it takes:
    what the journal has of this keep is not known from then on.
    """

    HELLO = "keep-hello"
    CLAIM = "keep-claim"
    KEEP_START = "keep-start"
    ADDR = "apploader-addr"
    PORT = "apploader-port"
    NAMES = "apploader-names"
    START = "apploader-start"
    INFO = "keep-info"
    DESCRIBE = "keep-describe"
    STOP = "apploader-stop"
    WAIT = "keep-wait"
    FOLLOW = "keep-follow"
    JOURNAL = "keep-journal"


DESCRIPTOR = Text(
    16,
    r"listener|client-ca|revoked|module|compiled|follow|workload|output|record|journal|stdin|input"
    "|directory-[0-9]{1,2}|secret-[0-9]{1,2}",
    "the name of a descriptor that a start may bring",
)
CERTIFICATE_NAME = Text(253, r"[A-Za-z0-9.:-]{1,253}", "a DNS name or an address")


UNSTORED = "unstored"


class Command(Record):
    """One control command: its type and its contents, always a string."""

    type: CommandType
    contents: str = ""

    @property
    def takes_descriptors(self) -> bool:
        """Whether descriptors may come with it."""
        return self.type in (CommandType.START, CommandType.KEEP_START, CommandType.FOLLOW, CommandType.JOURNAL)


class Hello(Record):
    """The newest version that the manager speaks."""

    version: int = field(Whole(1, 1000), about="the newest control protocol that the manager speaks")


class StartMessage(Record):
    """One start. descriptors: the names of those that come with it, in their order, each once."""

    address: str = field(Text(64), default="", about="where clients reach it; empty for where the listener is bound")
    names: tuple[str, ...] = field(
        Items(CERTIFICATE_NAME, MAX_CERTIFICATE_NAMES), default=(), about="further names for its certificate"
    )
    uploaders: tuple[str, ...] = field(
        Items(UPLOADER, MAX_UPLOADERS), default=(), about="who may send the workload; empty for what the spec says"
    )
    descriptors: tuple[str, ...] = field(
        Items(DESCRIPTOR, MAX_CONTROL_FDS), default=(), about="the names of the descriptors that come with it"
    )
    warm: bool = field(Flag(), default=False, about="whether its runner is made ready before the first client comes")


class Description(Record):
    """What a manager of version 1 says of a keep whose unit has no spec; each member may be empty."""

    name: str = field(NAME, default="", about="what its creator called it")
    labels: Labels = field(LABELS, default=(), about="what it can be found by")
    owner: str = field(
        Printable(128, must="at most 128 printable characters"), default="", about="its creator's common name"
    )


class _Claim(Description):
    """What an answer says of the keep's spec."""

    limits: Limits = field(Nested(Limits, "limits"), default=DEFAULT_LIMITS, about="what it may use")


def hello() -> Command:
    """The command that asks for the loader's version."""
    return _with_contents(CommandType.HELLO, Hello(CONTROL_VERSION).to_wire())


def claim(spec: KeepSpec) -> Command:
    """The command that says what a spare is from now on."""
    return Command(CommandType.CLAIM, encode_spec(spec))


def start(message: StartMessage) -> Command:
    """The command that starts a keep by `message`; its descriptors travel with it."""
    contents = message.to_wire()
    if not message.warm:
        del contents["warm"]  # which loaders before it refuse, as all that they do not know
    return _with_contents(CommandType.KEEP_START, contents)


def _with_contents(kind: CommandType, contents: dict[str, object]) -> Command:
    return Command(kind, strict_json.dumps(contents).decode("ascii"))


def encode_command(command: Command) -> bytes:
    """The command as one line."""
    return strict_json.dumps({"commandtype": command.type.value, "commandcontents": command.contents}) + b"\n"


def decode_command(frame: bytes) -> Command:
    """The command in one frame. Raises KeepfleetError: BAD_REQUEST for its shape, UNKNOWN_COMMAND for its type."""
    value = strict_json.loads_object(frame, MAX_CONTROL_FRAME, "the command")
    word, contents = value.get("commandtype"), value.get("commandcontents", "")
    if not isinstance(word, str) or not isinstance(contents, str):
        raise KeepfleetError(
            ErrorKind.BAD_REQUEST, "cannot read the command: 'commandtype' and 'commandcontents' must be strings"
        )
    for kind in CommandType:
        if kind.value == word:
            return Command(kind, contents)
    raise KeepfleetError(ErrorKind.UNKNOWN_COMMAND, f"cannot obey {word[:40]!r}: it is no command of the loader's")


def decode_hello(contents: str) -> Hello:
    """The contents of HELLO. Raises KeepfleetError(BAD_REQUEST)."""
    return parse(Hello, _object(contents, "hello"), "hello")


def decode_start(contents: str) -> StartMessage:
    """The contents of KEEP_START: an unknown member is refused, since it could be a restriction.

    Raises KeepfleetError(BAD_REQUEST).
    """
    message = parse(StartMessage, _object(contents, "start"), "start", strict=True)
    if len(set(message.descriptors)) != len(message.descriptors):
        raise KeepfleetError(ErrorKind.BAD_REQUEST, "invalid start: duplicate name of a descriptor")
    return message


def decode_description(contents: str) -> Description:
    """The contents of DESCRIBE. Raises KeepfleetError(BAD_REQUEST)."""
    return parse(Description, _object(contents, "description"), "description", strict=True)


def _object(contents: str, what: str) -> dict[str, object]:
    return strict_json.loads_object(contents.encode("utf-8", "replace"), MAX_CONTROL_FRAME, f"the {what}")


def encode_reply(reply: KeepReport | KeepInfo | KeepfleetError, spec: KeepSpec | None = None) -> bytes:
    """The answer to a command as one line; with `spec`, what a manager of version 1 reads of it is added.

    A line over MAX_CONTROL_FRAME, which would be refused, loses first the summary of the workload and then the labels:
    both are for people, and neither comes near that length but by intent.
    """
    if isinstance(reply, KeepfleetError):
        return strict_json.dumps({"error": reply.to_wire()}) + b"\n"
    value = reply.to_wire()
    if spec is not None:
        value |= {
            "unit": unit_name(reply.kuuid),
            "walls": list(reply.isolation_failures),
            "name": spec.name,
            "labels": dict(spec.labels),
            "owner": spec.owner,
            "limits": {name: limit for name, limit in spec.limits.to_wire().items() if name not in _LATER_LIMITS},
        }
    line = strict_json.dumps(value)
    for member, nothing in (("workload", None), ("labels", {})):
        if len(line) >= MAX_CONTROL_FRAME:
            value[member] = nothing
            line = strict_json.dumps(value)
    return line + b"\n"


def decode_reply(frame: bytes) -> KeepReport:
    """What a loader of either version says of its process.

    Raises the error the loader reported, or KeepfleetError(BAD_REQUEST) for another shape.
    """
    value = _answer(frame)
    if "isolation_failures" not in value and "walls" in value:
        value["isolation_failures"] = value["walls"]
    return parse(KeepReport, value, "answer")


def claimed_spec(frame: bytes) -> KeepSpec:
    """What a loader says of its keep's name, labels, owner and limits; for keeps whose unit has no spec.

    It is the loader's word: no right may be derived from it, the owner least of all. Raises as decode_reply does.
    """
    claim = parse(_Claim, _answer(frame), "answer")
    return KeepSpec(name=claim.name, labels=claim.labels, owner=claim.owner, limits=claim.limits)


def _answer(frame: bytes) -> dict[str, object]:
    value = strict_json.loads_object(frame, MAX_CONTROL_FRAME, "the loader's answer")
    if "error" not in value:
        return value
    error = error_from_wire(value["error"])
    wire = value["error"]
    if isinstance(wire, dict) and wire.get("kind") == "wall-missing":  # the word of version 1
        error = KeepfleetError(ErrorKind.ISOLATION_FAILURE, error.message, error.evidence)
    raise error


class FrameDecoder:
    """Cuts a stream of JSON objects into frames of at most MAX_CONTROL_FRAME bytes, whatever stands between them.

    Feed bytes as they come; each call returns the complete frames so far. After it has raised
    KeepfleetError(BAD_REQUEST or TOO_LARGE) the stream cannot be trusted again and must be closed.
    """

    def __init__(self, limit: int = MAX_CONTROL_FRAME) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._scanned = 0
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def __repr__(self) -> str:
        return f"FrameDecoder({len(self._buffer)} bytes waiting)"

    @property
    def waiting(self) -> bool:
        """Whether a frame has begun and not ended."""
        return self._depth > 0

    def feed(self, data: bytes) -> list[bytes]:
        """The frames completed by `data`."""
        self._buffer += data
        frames: list[bytes] = []
        while self._scanned < len(self._buffer):
            byte = self._buffer[self._scanned]
            self._scanned += 1
            if self._scanned > self._limit:
                raise KeepfleetError(ErrorKind.TOO_LARGE, f"cannot read a control message of over {self._limit} bytes")
            if self._depth == 0:
                self._begin(byte)
            elif self._ends(byte):
                frames.append(bytes(self._buffer[: self._scanned]))
                del self._buffer[: self._scanned]
                self._scanned = 0
        return frames

    def _begin(self, byte: int) -> None:
        if byte in b" \t\r\n":
            del self._buffer[: self._scanned]
            self._scanned = 0
        elif byte == ord("{"):
            self._depth = 1
        else:
            raise KeepfleetError(ErrorKind.BAD_REQUEST, "cannot read a control message: it must be a JSON object")

    def _ends(self, byte: int) -> bool:
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif byte == ord("\\"):
                self._escaped = True
            elif byte == ord('"'):
                self._in_string = False
        elif byte == ord('"'):
            self._in_string = True
        elif byte in b"{[":
            self._depth += 1
        elif byte in b"}]":
            self._depth -= 1
        return self._depth == 0
