"""HTTP/1.1 as far as an upload endpoint needs it: one request in, as events, and one response out. Bytes alone, no I/O.

Strict where two readers of the same bytes could differ (RFC 9112, section 11.2): every line ends in CRLF, a name is a
token with its colon right behind it, no line is folded, a body is framed by exactly one Content-Length or by `chunked`
alone, and a chunk's size stands by itself. Nothing is repaired, and nothing is buffered beyond a limit. Tests hold this
reader against h11: what that refuses is refused here, and what is accepted here it reads alike.
Import rule: `app_loader.limits` and the light part of keep_protocol.
"""

from __future__ import annotations

from _collections_abc import Callable, Iterable

from app_loader.limits import (
    MAX_CHUNK_DIGITS,
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    MAX_LENGTH_DIGITS,
    MAX_REQUEST_LINE,
    MAX_TRAILER_BYTES,
)
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
"""For a client that asked by `Expect: 100-continue` before it sends its body."""
REASONS: dict[int, str] = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    411: "Length Required",
    413: "Content Too Large",
    414: "URI Too Long",
    415: "Unsupported Media Type",
    417: "Expectation Failed",
    422: "Unprocessable Content",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
    507: "Insufficient Storage",
}
"""RFC 9110's phrases; `http.HTTPStatus` would bring the whole of `http` into every keep."""
_TOKEN = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_VISIBLE = bytes(range(0x21, 0x7F))
_IN_VALUE = b"\t " + _VISIBLE + bytes(range(0x80, 0x100))
"""A header's value: no control character but the tab (RFC 9110, section 5.5)."""
_DIGITS, _HEXADECIMAL = b"0123456789", b"0123456789ABCDEFabcdef"
_HOST, _LENGTH, _TRANSFER, _EXPECT = b"host", b"content-length", b"transfer-encoding", b"expect"
_FRAMING = frozenset((_HOST, _LENGTH, _TRANSFER, _EXPECT))
"""Each may stand once, and none of them behind a body."""
_SHOWN = 60


class Refused(KeepfleetError):
    """A refusal whose status does not follow from its kind, perhaps with one more header."""

    def __init__(self, kind: ErrorKind, status: int, message: str, header: tuple[str, str] | None = None) -> None:
        super().__init__(kind, message)
        self.status = status
        self.header = header


def _bad(why: str, status: int = 400, kind: ErrorKind = ErrorKind.BAD_REQUEST) -> Refused:
    return Refused(kind, status, f"cannot read the request: {why}")


def shown(data: bytes | bytearray) -> str:
    """The beginning of what a client sent, for a message."""
    return bytes(data[:_SHOWN]).decode("ascii", "backslashreplace")


class Head(Record):
    """A request up to its body. headers: names in lower case, in order; length: the body's bytes, None where they come
    in chunks or where there is no body; chunked; expects_continue: the client may wait for CONTINUE."""

    method: bytes
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    length: int | None = None
    chunked: bool = False
    expects_continue: bool = False


class End(Record):
    """The request is whole."""


Event = Head | bytes | End
"""Bytes are the next piece of the body; it is never empty."""


class RequestReader:
    """Feed it what has come from the client; each call returns the events this completed.

    There is one request on a connection: what follows its end is dropped. A call that raised leaves the reader of no
    use.
    """

    def __init__(self) -> None:
        self._text = bytearray()
        self._searched = 0
        self._room = MAX_HEADER_BYTES
        self._method = self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._left = 0
        self._step: Callable[[], Event | bool] = self._request_line

    def __repr__(self) -> str:
        return f"RequestReader({self._step.__name__.lstrip('_')}, {len(self._text)} bytes waiting)"

    def feed(self, data: bytes | memoryview) -> list[Event]:
        """The events completed by `data`. Raises Refused."""
        self._text += data
        events: list[Event] = []
        pieces: list[bytes] = []
        while done := self._step():
            if isinstance(done, bytes):
                pieces.append(done)
            elif not isinstance(done, bool):
                if pieces:
                    events.append(b"".join(pieces))
                    pieces = []
                events.append(done)
        if pieces:
            events.append(b"".join(pieces))
        return events

    def _take_line(self, limit: int, too_long: Callable[[], Refused]) -> bytes | None:
        """The next line without its end; None while it has not all arrived."""
        end = self._text.find(b"\n", self._searched)
        if end >= limit or (end < 0 and len(self._text) >= limit):
            raise too_long()
        if end < 0:
            self._searched = len(self._text)
            return None
        line = bytes(self._text[: end + 1])
        del self._text[: end + 1]
        self._searched = 0
        if not line.endswith(b"\r\n"):
            raise _bad("a line ends in a bare line feed; CRLF ends one")
        return line[:-2]

    def _request_line(self) -> bool:
        if self._text and not _consists(self._text[:1], _TOKEN):  # TLS within TLS, say, in which no line may ever end
            raise _bad(f"it begins with {shown(self._text)!r}")
        line = self._take_line(MAX_REQUEST_LINE, _line_too_long)
        if line is None:
            return False
        self._room -= len(line) + 2
        parts = line.split(b" ")
        if len(parts) != 3 or not _consists(parts[0], _TOKEN) or not _consists(parts[1], _VISIBLE):
            raise _bad(f"its first line is {shown(line)!r}, and must be METHOD PATH HTTP/1.1")
        self._method, self._target, version = parts
        if version != b"HTTP/1.1":
            of_http = len(version) == 8 and version.translate(None, _DIGITS) == b"HTTP/."
            why = f"its version is {shown(version)!r}, and HTTP/1.1 is spoken here"
            raise _bad(why, 505 if of_http else 400)
        self._step = self._header
        return True

    def _header(self) -> Event | bool:
        line = self._take_line(self._room, _head_too_large)
        if line is None:
            return False
        self._room -= len(line) + 2
        if not line:
            return self._head()
        if len(self._headers) >= MAX_HEADERS:
            raise _head_too_large()
        self._headers.append(_read_header(line))
        return True

    def _head(self) -> Head:
        """The headers are whole: what they say of the body."""
        head = _frame(self._method, self._target, tuple(self._headers))
        self._left = head.length or 0
        self._step = self._chunk_size if head.chunked else self._plain if self._left else self._end
        return head

    def _plain(self) -> Event | bool:
        """A body of known length."""
        piece = self._take(self._left)
        self._left -= len(piece)
        if not self._left:
            self._step = self._end
        return piece

    def _take(self, most: int) -> bytes:
        piece = bytes(self._text[:most])
        del self._text[:most]
        return piece

    def _chunk_size(self) -> bool:
        line = self._take_line(MAX_CHUNK_DIGITS + 2, _bad_chunk)
        if line is None:
            return False
        if not _consists(line, _HEXADECIMAL):
            raise _bad_chunk()
        self._left = int(line, 16)
        self._room = MAX_TRAILER_BYTES
        self._step = self._chunk if self._left else self._trailer
        return True

    def _chunk(self) -> Event | bool:
        piece = self._take(self._left)
        self._left -= len(piece)
        if not self._left:
            self._step = self._chunk_end
        return piece

    def _chunk_end(self) -> bool:
        if len(self._text) < 2 and b"\r\n".startswith(self._text):
            return False
        if self._take(2) != b"\r\n":
            raise _bad("a chunk is longer than its size says")
        self._step = self._chunk_size
        return True

    def _trailer(self) -> bool:
        """A line behind the last chunk: well-formed, and of no use."""
        line = self._take_line(self._room, _trailers_too_large)
        if line is None:
            return False
        self._room -= len(line) + 2
        if not line:
            self._step = self._end
        elif _read_header(line)[0] in _FRAMING:
            raise _bad(f"a trailer is {shown(line)!r}")
        return True

    def _end(self) -> End:
        self._step = self._done
        return End()

    def _done(self) -> bool:
        self._text.clear()
        return False


def _consists(text: bytes | bytearray, of: bytes) -> bool:
    """Whether `text` is not empty, and has no other bytes."""
    return bool(text) and not text.translate(None, of)


def _read_header(line: bytes) -> tuple[bytes, bytes]:
    """A header's name in lower case, and its value without the white space about it."""
    name, colon, value = line.partition(b":")
    value = value.strip(b" \t")
    if not colon or not _consists(name, _TOKEN):
        raise _bad(f"{shown(line)!r} is no header: it must be a name, a colon and a value on one line")
    if value and not _consists(value, _IN_VALUE):
        raise _bad(f"the header {shown(name)} has a control character in its value")
    return name.lower(), value


def _frame(method: bytes, target: bytes, headers: tuple[tuple[bytes, bytes], ...]) -> Head:
    """The head with what its headers say of the body."""
    framing: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in framing:
            raise _bad(f"{name.decode()} is given twice")
        if name in _FRAMING:
            framing[name] = value
    if _HOST not in framing:
        raise _bad("it has no Host header")
    length, transfer, expect = (framing.get(name) for name in (_LENGTH, _TRANSFER, _EXPECT))
    if transfer is not None and transfer.lower() != b"chunked":
        raise _bad(f"its Transfer-Encoding is {shown(transfer)!r}, and may be chunked alone", 501)
    if length is not None and transfer is not None:
        raise _bad("it has both Content-Length and Transfer-Encoding")
    if length is not None and not _consists(length, _DIGITS):
        raise _bad(f"its Content-Length is {shown(length)!r}, which is no decimal number")
    if length is not None and len(length) > MAX_LENGTH_DIGITS:
        raise _bad(f"its Content-Length has over {MAX_LENGTH_DIGITS} digits", 413, ErrorKind.TOO_LARGE)
    if expect is not None and expect.lower() != b"100-continue":
        raise _bad(f"its Expect is {shown(expect)!r}, and may be 100-continue alone", 417)
    return Head(
        method,
        target,
        headers,
        length=None if length is None else int(length),
        chunked=transfer is not None,
        expects_continue=expect is not None,
    )


def _line_too_long() -> Refused:
    return _bad(f"its first line is over {MAX_REQUEST_LINE} bytes", 414, ErrorKind.TOO_LARGE)


def _head_too_large() -> Refused:
    why = f"it has over {MAX_HEADERS} headers, or {MAX_HEADER_BYTES >> 10} KiB of them"
    return _bad(why, 431, ErrorKind.TOO_LARGE)


def _trailers_too_large() -> Refused:
    return _bad(f"it has over {MAX_TRAILER_BYTES >> 10} KiB of trailers", 431, ErrorKind.TOO_LARGE)


def _bad_chunk() -> Refused:
    return _bad(f"the size of a chunk must be 1 to {MAX_CHUNK_DIGITS} hexadecimal digits, and nothing behind them")


def response(status: int, headers: Iterable[tuple[str, str]], body: bytes) -> bytes:
    """The bytes of a response: its status line with RFC 9110's phrase, `headers` in order, and the body."""
    lines = [f"HTTP/1.1 {status} {REASONS.get(status, '')}", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body
