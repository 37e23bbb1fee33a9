"""What the pool's process and a child say to each other, over a socket pair: a fixed head, then two byte strings.

A child may have been taken over by what it ran: what comes from one is bounded before it is read, and of its answers
the pool believes nothing but the one it waits for. No I/O.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import IntEnum

from script_pool.engine.interface import Fault, Limits, Reason, Script

HEAD = struct.Struct("<BxxxIIQd")
"""Kind, the lengths of `text` and `body`, number, and seconds."""
MAX_TEXT = 1024 * 1024
"""What accompanies a result: 64 KiB of console, each byte of which JSON may write as six; and a stack."""
MAX_IMAGE = 32 * 1024 * 1024
"""A prepared script: the memory that compiling it changed; 223 KB for a source of 9 KB."""
MAX_STACK_LINES = 64
"""Lines of a stack that are kept."""


class Kind(IntEnum):
    """To a child: SCRIPT, FORGET, PREPARE, RUN, ANSWER, PARK, RESUME; from it: READY, UNABLE, PREPARED, RAN, FAULT,
    CALLS, PARKED. Either way MEMORY: a session's, before the RUN or RAN that it belongs to."""

    SCRIPT = 1
    FORGET = 2
    PREPARE = 3
    RUN = 4
    ANSWER = 5
    PARK = 6
    RESUME = 7
    MEMORY = 8
    READY = 11
    UNABLE = 12
    PREPARED = 13
    RAN = 14
    FAULT = 15
    CALLS = 16
    PARKED = 17


@dataclass(frozen=True, slots=True)
class Frame:
    """`number`: a script's for SCRIPT and FORGET, a request's otherwise. `seconds`: what a run may take, or took.
    `text` of ANSWER, and behind the script's of RESUME: answers of host functions; `body` of CALLS: what is asked of
    them, of PARKED, RESUME and MEMORY: a guest's memory."""

    kind: Kind
    number: int = 0
    text: bytes = b""
    body: bytes = b""
    seconds: float = 0.0


class FrameError(ValueError):
    """What a child sent is none of its frames."""


def encode(frame: Frame) -> bytes:
    """The frame's bytes."""
    head = HEAD.pack(frame.kind, len(frame.text), len(frame.body), frame.number, frame.seconds)
    return b"".join((head, frame.text, frame.body))


class Frames:
    """Cuts what a child sent into frames. `limit`: bytes of a body."""

    def __init__(self, limit: int) -> None:
        self._limit, self._buffer = limit, bytearray()

    def __repr__(self) -> str:
        return f"Frames({len(self._buffer)} bytes of a frame)"

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that end in `data`. Raises FrameError."""
        self._buffer += data
        found, at = list[Frame](), 0
        while len(self._buffer) - at >= HEAD.size:
            kind, text, body, number, seconds = HEAD.unpack_from(self._buffer, at)
            if kind not in _FROM_CHILD or text > MAX_TEXT or body > self._limit or not 0 <= seconds < 1e6:
                raise FrameError(f"cannot read a child's frame: kind {kind}, {text} and {body} bytes")
            first = at + HEAD.size
            if len(self._buffer) < first + text + body:
                break
            middle, at = first + text, first + text + body
            whole = bytes(self._buffer[first:middle]), bytes(self._buffer[middle:at])
            found.append(Frame(Kind(kind), number, *whole, seconds))
        del self._buffer[:at]
        return found


_FROM_CHILD = frozenset(
    (Kind.READY, Kind.UNABLE, Kind.PREPARED, Kind.RAN, Kind.FAULT, Kind.CALLS, Kind.PARKED, Kind.MEMORY)
)


def script_text(script: Script) -> bytes:
    """The `text` of a script that is sent, prepared or to be prepared."""
    fields = [script.name, script.language, script.digest, script.imports, script.functions]
    return json.dumps(fields).encode("ascii")


def script_of(frame: Frame) -> Script:
    """The script in a SCRIPT, PREPARE or PREPARED frame. Raises FrameError."""
    try:
        name, language, digest, imports, functions = json.loads(frame.text)
    except (ValueError, TypeError, RecursionError) as error:
        raise FrameError("cannot read a child's frame: it holds no script") from error
    _all_strings([name, language, digest])
    return Script(name, language, frame.body, digest, _all_strings(imports), _all_strings(functions))


@dataclass(frozen=True, slots=True)
class Order:
    """What a RUN or RESUME says besides its body: the script's number, those that it imports, and the world it is in.
    `answers`: of host functions, for a RESUME."""

    script: int
    modules: Mapping[str, int]
    keep: bool = False
    clock: float | None = None
    zone: str = ""
    answers: str = ""

    def encode(self) -> bytes:
        """The frame's `text`; short where there is nothing but a script."""
        number = self.script.to_bytes(8, "little")
        if not (self.modules or self.keep or self.clock is not None or self.zone or self.answers):
            return number
        more = [dict(self.modules), self.keep, self.clock, self.zone, self.answers]
        return number + json.dumps(more).encode("ascii")

    @classmethod
    def decode(cls, text: bytes) -> Order:
        """What the pool has written; it is trusted."""
        number = int.from_bytes(text[:8], "little")
        return cls(number, {}) if len(text) == 8 else cls(number, *json.loads(text[8:]))


def calls_of(frame: Frame) -> list[tuple[int, str, str]]:
    """The number, the name and the arguments' JSON of each call in a CALLS frame. Raises FrameError."""
    try:
        found = [(int(number), str(name), given) for number, name, given in json.loads(frame.body)]
        if all(isinstance(given, list) for _, _, given in found):
            return [(number, name, json.dumps(given, separators=(",", ":"))) for number, name, given in found]
    except (ValueError, TypeError, RecursionError):
        pass
    raise FrameError("cannot read a child's frame: it holds no calls of host functions")


def console_text(console: tuple[str, ...]) -> bytes:
    """The `text` of a RAN frame, empty for an empty console."""
    return json.dumps(console).encode("ascii") if console else b""


def console_of(frame: Frame) -> tuple[str, ...]:
    """What a RAN frame says was logged. Raises FrameError."""
    return _strings(frame.text) if frame.text else ()


def fault_text(fault: Fault) -> bytes:
    """The `text` of a FAULT frame; a message of any length is cut to what fits."""
    long = 16 * 1024
    stack = [line[:1024] for line in fault.stack[:MAX_STACK_LINES]]
    text = json.dumps([fault.reason.value, fault.name[:256], fault.message[:long], stack, list(fault.console)])
    return text.encode("ascii")


def fault_of(frame: Frame) -> Fault:
    """The fault in a FAULT frame. Raises FrameError."""
    try:
        reason, name, message, stack, console = json.loads(frame.text)
        fault = Fault(Reason(reason), name, message, _all_strings(stack))
        fault.console = _all_strings(console)
    except (ValueError, TypeError, RecursionError) as error:
        raise FrameError("cannot read a child's frame: it holds no fault") from error
    if not isinstance(name, str) or not isinstance(message, str):
        raise FrameError("cannot read a child's frame: it holds no fault")
    return fault


def limits_text(limits: Limits) -> str:
    """Limits as they are passed to the template process."""
    return json.dumps(asdict(limits))


def _strings(text: bytes) -> tuple[str, ...]:
    try:
        return _all_strings(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise FrameError("cannot read a child's frame: it is no list of strings") from error


def _all_strings(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise FrameError("cannot read a child's frame: it is no list of strings")
    return tuple(value)
