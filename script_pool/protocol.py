"""The protocol of the pool, Jefe's own: JSON objects, each ended by CRLF. Takes and gives bytes; no I/O.

    {"cmd":"AddCode","name":N,"code":S}             → {"ok":true}
    {"cmd":"RemoveCode","name":N}                   → {"ok":true} or {"ok":false,"reason":"no such script"}
    {"cmd":"ExecCode","name":N,"inputSandbox":{…}}  → {"ok":true,"outputSandbox":{…}} or {"ok":false,"reason":…}
    anything else                                   → {"ok":false,"reason":"malformed request"}
    and of ours: {"cmd":"ListCode"}       → {"ok":true,"scripts":[{"name":N,"language":L}, …]}

Also, of this pool alone: AddCode's `hostFunctions`, ExecCode's `session`, `clock` and `zone`, and

    {"cmd":"HostResult","id":I,"call":N,"value":…} or "error":S, for {"id":I,"hostCall":{"call":N,…}}
    {"cmd":"SaveSession","session":S}               → {"ok":true,"saved":BASE64}
    {"cmd":"LoadSession","session":S,"saved":BASE64}, {"cmd":"EndSession","session":S}   → {"ok":true}

A request may have an `id`, a string or a whole number: then its answer begins with that, comes as soon as there is one,
and says more (`timeTaken` in milliseconds, `console`). Requests without one are answered in their order. AddCode may
name a `language`. An input's text goes to the engine as it came, and an output's text back, so that what a number looks
like is the script's alone.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from script_pool import zones
from script_pool.engine.interface import Fault, Reason
from script_pool.hostcalls import Allowance, HostCall

END = b"\r\n"
BESIDE_THE_INPUT = 64 * 1024
"""What a request may hold besides its input sandbox or code: a name, an id, and white space."""
MAX_NAME = 256
"""Characters of a script's name; a name is a key of the pool's table and stands in every request."""
MAX_ID = 64
"""Characters of an `id` as it is written; a UUID in quotes is 38."""
MAX_EVIDENCE = 4096
"""Characters of a message, of a line of a stack, that an answer repeats."""
MAX_CLOCK = 8.64e15
"""Milliseconds since 1970, as far as Date goes."""
LANGUAGES = ("js", "ts", "python", "micropython")
"""What AddCode may name; the first where it names none."""
CONTROL = bytes(range(32))
"""What JSON never holds unescaped. A script whose output had CRLF in it could answer another request."""

NO_SUCH_SCRIPT = "no such script"
MALFORMED = Reason.MALFORMED.value
INPUT_TOO_LARGE = "input too large"
QUEUE_FULL = "queue full"
TOO_MANY_SCRIPTS = "too many scripts"
SHUTTING_DOWN = "shutting down"
NO_SUCH_SESSION = "no such session"
SESSION_REFUSED = "session refused"
"""Why the pool refuses a request, besides the engine's reasons; each a value of `reason`."""

_SPACE = re.compile(r"[ \t\r\n]*")
_ID = re.compile(r'-?(?:0|[1-9][0-9]*)|"[^\\"]*"')


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


_decoder = json.JSONDecoder(parse_constant=_refuse_constant)
_scan: Callable[[str, int], tuple[object, int]] = _decoder.scan_once  # type: ignore[attr-defined] # no stub has it
"""The value that begins at a character, and where it ends; raises StopIteration where none does."""


@dataclass(frozen=True, slots=True)
class AddCode:
    """`id`: as the request writes it, in all of them; None where it has none."""

    id: str | None
    name: str
    code: str
    language: str
    functions: Mapping[str, Allowance] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RemoveCode:
    id: str | None
    name: str


@dataclass(frozen=True, slots=True)
class ExecCode:
    id: str | None
    name: str
    input_text: bytes
    session: str | None = None
    clock: float | None = None
    zone: str = ""


@dataclass(frozen=True, slots=True)
class HostResult:
    """`done`: whether the call has a value; `text`: that, as it was written, or an error's message."""

    id: str | None
    call: int
    done: bool
    text: str


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """`command`: SaveSession, LoadSession or EndSession."""

    id: str | None
    command: str
    session: str
    saved: bytes = b""


@dataclass(frozen=True, slots=True)
class ListCode:
    id: str | None


@dataclass(frozen=True, slots=True)
class Refused:
    """A line that asks for nothing the pool does, and the answer it gets."""

    id: str | None
    reason: str
    message: str


Request = AddCode | RemoveCode | ExecCode | HostResult | SessionRequest | ListCode | Refused


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request came to: done where `reason` is None. The rest is evidence."""

    reason: str | None = None
    output: bytes | None = None
    console: tuple[str, ...] = ()
    seconds: float | None = None
    name: str = ""
    message: str = ""
    stack: tuple[str, ...] = ()
    scripts: tuple[tuple[str, str], ...] | None = None
    """Name and language of each, where they were asked for."""
    saved: bytes | None = None

    @classmethod
    def of(cls, fault: Fault, seconds: float | None = None) -> Answer:
        """What `fault` says."""
        return cls(fault.reason.value, None, fault.console, seconds, fault.name, fault.message, fault.stack)


DONE = Answer()


class Lines:
    """Cuts a stream into lines, however it arrives, holding at most `limit` bytes of one that has not ended.

    A longer line is given as None, once, and the stream goes on behind its end.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._buffer, self._seen, self._skipping = limit, bytearray(), 0, False

    def __repr__(self) -> str:
        return f"Lines({len(self._buffer)} bytes of a line{', skipping' if self._skipping else ''})"

    @property
    def partial(self) -> bool:
        """Whether a line has begun and not ended."""
        return bool(self._buffer) or self._skipping

    def feed(self, data: bytes) -> list[bytes | None]:
        """The lines that end in `data`, without their ends."""
        buffer, lines = self._buffer, list[bytes | None]()
        buffer += data
        begin = 0
        while (end := buffer.find(END, max(begin, self._seen))) >= 0:
            if not self._skipping:
                lines.append(bytes(buffer[begin:end]) if end - begin <= self._limit else None)
            self._skipping = False
            begin = self._seen = end + len(END)
        del buffer[:begin]
        if len(buffer) > self._limit + 1 and not self._skipping:  # its last byte may be the end's first
            self._skipping = True
            lines.append(None)
        if self._skipping:
            del buffer[: max(0, len(buffer) - 1)]
        self._seen = max(0, len(buffer) - 1)
        return lines


def _members(text: str) -> dict[str, tuple[object, int, int]]:
    """The members of the object in `text`: each value, and where its text begins and ends. Raises ValueError."""
    found: dict[str, tuple[object, int, int]] = {}
    skip = _SPACE.match
    at = _end(skip(text, 0))
    if text[at : at + 1] != "{":
        raise ValueError("it is not a JSON object")
    at = _end(skip(text, at + 1))
    closed = text[at : at + 1] == "}" and not found
    while not closed:
        key, at = _value(text, at)
        at = _end(skip(text, at))
        if not isinstance(key, str) or key in found or text[at : at + 1] != ":":
            raise ValueError("it is not a JSON object with each member once")
        begin = _end(skip(text, at + 1))
        value, end = _value(text, begin)
        found[key] = (value, begin, end)
        at = _end(skip(text, end))
        closed = text[at : at + 1] == "}"
        if not closed:
            if text[at : at + 1] != ",":
                raise ValueError("it is not a JSON object")
            at = _end(skip(text, at + 1))
    if _end(skip(text, at + 1)) != len(text):
        raise ValueError("something follows its JSON object")
    return found


def _end(match: re.Match[str] | None) -> int:
    assert match is not None  # noqa: S101 - the pattern fits everywhere
    return match.end()


def _value(text: str, at: int) -> tuple[object, int]:
    try:
        value, end = _scan(text, at)
    except StopIteration:
        raise ValueError(f"there is no JSON value at character {at}") from None
    return value, end


_WHOLE = "-?(?:0|[1-9][0-9]{0,18})"
_RUN = re.compile(
    rf'\{{ ?(?:"id": ?({_WHOLE}), ?)?"cmd": ?"ExecCode", ?"name": ?"([^"\\\x00-\x1f]*)", ?"inputSandbox": ?(?=\{{)'
)
_RUN_ENDS = re.compile(rf'(?:, ?"id": ?({_WHOLE}))? ?\}}')


def _run(text: str, input_bytes: int) -> ExecCode | None:
    """What nearly every request is, as clients write it, in half the time; None for another, which `parse` reads."""
    begin = _RUN.match(text)
    if begin is None:
        return None
    end = _value(text, begin.end())[1]
    rest = _RUN_ENDS.fullmatch(text, end)
    if rest is None or (begin[1] and rest[1]) or len(begin[2]) > MAX_NAME:
        return None
    id = begin[1] or rest[1]
    sandbox = text[begin.end() : end].encode()
    return ExecCode(id, begin[2], sandbox) if len(sandbox) <= input_bytes else None


def parse(line: bytes | None, input_bytes: int) -> Request:
    """What `line` asks for; None is a line that was too long. Never raises."""
    if line is None:
        return Refused(None, INPUT_TOO_LARGE, f"the request is over {input_bytes + BESIDE_THE_INPUT} bytes")
    name: str | None = None
    try:
        text = line.decode("utf-8")
        run = _run(text, input_bytes)
        if run is not None:
            return run
        members = _members(text)
        if "id" in members:
            _, begin, end = members.pop("id")
            if end - begin > MAX_ID or not _ID.fullmatch(text, begin, end):
                raise ValueError(f"its id is no string or whole number of at most {MAX_ID} characters")
            name = text[begin:end]
        return _request(name, text, members, input_bytes)
    except RecursionError:
        return Refused(name, Reason.NESTED_TOO_DEEPLY.value, "the request is nested too deeply to be read")
    except ValueError as error:  # of UTF-8 also
        return Refused(name, MALFORMED, str(error)[:MAX_EVIDENCE])


def _request(id: str | None, text: str, members: dict[str, tuple[object, int, int]], input_bytes: int) -> Request:
    given = {key: value for key, (value, _, _) in members.items()}
    name, command = given.get("name"), given.get("cmd")
    if command == "ListCode" and members.keys() == {"cmd"}:
        return ListCode(id)
    if command == "HostResult":
        return _host_result(id, text, members)
    if command in _OF_SESSIONS and members.keys() == _OF_SESSIONS[str(command)]:
        return _of_session(id, str(command), given)
    if not isinstance(name, str) or len(name) > MAX_NAME:
        raise ValueError(f"its name is no string of at most {MAX_NAME} characters")
    if command == "ExecCode" and _EXEC <= members.keys() <= _EXEC_MORE:
        if not isinstance(given["inputSandbox"], dict):
            raise ValueError("its inputSandbox is no object")
        _, begin, end = members["inputSandbox"]
        sandbox = text[begin:end].encode()
        if len(sandbox) > input_bytes:
            return Refused(id, INPUT_TOO_LARGE, f"the input sandbox is over {input_bytes} bytes")
        return ExecCode(id, name, sandbox) if len(members) == 3 else ExecCode(id, name, sandbox, *_settings(given))
    if command == "RemoveCode" and members.keys() == {"cmd", "name"}:
        return RemoveCode(id, name)
    if command == "AddCode" and _ADD <= members.keys() <= _ADD_MORE:
        code, language = given["code"], given.get("language", LANGUAGES[0])
        if isinstance(code, str) and isinstance(language, str) and language in LANGUAGES:
            if len(code) > input_bytes:
                return Refused(id, INPUT_TOO_LARGE, f"the code is over {input_bytes} characters")
            return AddCode(id, name, code, language, Allowance.read(given.get("hostFunctions", []), language))
        raise ValueError(f"its code is no string, or its language is not one of {', '.join(LANGUAGES)}")
    raise ValueError("its cmd is none that is known, or its members are not those of its cmd")


_EXEC, _ADD = {"cmd", "name", "inputSandbox"}, {"cmd", "name", "code"}
_EXEC_MORE, _ADD_MORE = {*_EXEC, "session", "clock", "zone"}, {*_ADD, "language", "hostFunctions"}
_OF_SESSIONS = {
    "SaveSession": {"cmd", "session"},
    "LoadSession": {"cmd", "session", "saved"},
    "EndSession": {"cmd", "session"},
}


def _session_name(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME:
        raise ValueError(f"its session is no string of 1 to {MAX_NAME} characters")
    return value


def _settings(given: Mapping[str, object]) -> tuple[str | None, float | None, str]:
    session = _session_name(given["session"]) if "session" in given else None
    clock, zone = given.get("clock"), given.get("zone", "")
    if clock is not None and (
        isinstance(clock, bool) or not isinstance(clock, (int, float)) or not 0 <= clock <= MAX_CLOCK
    ):
        raise ValueError("its clock is no number of milliseconds since 1970")
    if not isinstance(zone, str):
        raise ValueError("its zone is no string")  # noqa: TRY004 - the request is malformed, not this program
    return session, None if clock is None else float(clock), zones.table(zone) if zone else ""


def _of_session(id: str | None, command: str, given: Mapping[str, object]) -> SessionRequest:
    saved = given.get("saved", "")
    if not isinstance(saved, str):
        raise ValueError("its saved is no base64")  # noqa: TRY004 - as above
    try:
        return SessionRequest(id, command, _session_name(given["session"]), base64.b64decode(saved, validate=True))
    except binascii.Error:
        raise ValueError("its saved is no base64") from None


def _host_result(id: str | None, text: str, members: dict[str, tuple[object, int, int]]) -> HostResult | Refused:
    """Malformed, it is refused without its id: that is the id of the run."""
    call, error = members.get("call", ("", 0, 0))[0], members.get("error", ("", 0, 0))[0]
    wrong = not isinstance(call, int) or not isinstance(error, str) or id is None
    if wrong or members.keys() not in ({"cmd", "call", "value"}, {"cmd", "call", "error"}):
        return Refused(None, MALFORMED, "a HostResult has an id, a call, and a value or an error that is a string")
    assert isinstance(call, int) and isinstance(error, str)  # noqa: S101 - for the type's sake
    if "error" in members:
        return HostResult(id, call, False, error)
    _, begin, end = members["value"]
    return HostResult(id, call, True, _one_line(text[begin:end], members["value"][0]))


def _one_line(text: str, value: object) -> str:
    """JSON without white space that could be a line's end, and in ASCII."""
    return text if text.isascii() and text.isprintable() else json.dumps(value)


def host_call(id: str, call: HostCall) -> bytes:
    """The line that asks a client for a host function's value."""
    return (
        f'{{"id":{id},"hostCall":{{"call":{call.number},"name":"{call.name}","arguments":{call.arguments}}}}}\r\n'
    ).encode("ascii")


def check_output(text: bytes) -> bool:
    """Whether `text` is one JSON object without a control byte: the process that says so may have been taken over by
    the script, and what follows an object could be an answer to another request."""
    if len(text.translate(None, CONTROL)) != len(text) or not text.startswith(b"{"):
        return False
    try:
        decoded = text.decode("utf-8")
        return _value(decoded, 0)[1] == len(decoded)
    except (ValueError, RecursionError):
        return False


def encode(id: str | None, answer: Answer) -> bytes:
    """The line that answers a request. One without an id that was done gets Jefe's bytes and no others."""
    parts = [] if id is None else [f'"id":{id}']
    parts.append('"ok":true' if answer.reason is None else f'"ok":false,"reason":{json.dumps(answer.reason)}')
    explained = id is not None and answer.reason is not None
    if explained or answer.reason not in (None, NO_SUCH_SCRIPT, MALFORMED):
        evidence = {"name": answer.name[:MAX_NAME], "message": answer.message[:MAX_EVIDENCE]}
        parts += [f'"{key}":{json.dumps(value)}' for key, value in evidence.items() if value]
        if answer.stack:
            parts.append(f'"stack":{json.dumps([line[:MAX_EVIDENCE] for line in answer.stack])}')
    if id is not None:
        if answer.console:
            parts.append(f'"console":{json.dumps(answer.console)}')
        if answer.seconds is not None:
            parts.append(f'"timeTaken":{answer.seconds * 1000:.3f}')
    if answer.scripts is not None:
        listed = [{"name": name, "language": language} for name, language in answer.scripts]
        parts.append(f'"scripts":{json.dumps(listed)}')
    if answer.saved is not None:
        parts.append(f'"saved":"{base64.b64encode(answer.saved).decode("ascii")}"')
    head = ("{" + ",".join(parts)).encode("ascii")
    if answer.output is None:
        return head + b"}\r\n"
    return b"".join((head, b',"outputSandbox":', answer.output, b"}\r\n"))
