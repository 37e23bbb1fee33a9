"""HTTP/1.1 for a client, of it what our servers speak: a request and its answer on a channel, bounded in size and time.

An answer is read strictly: a length in digits or chunks, never both; at most MAX_HEADERS lines of MAX_LINE bytes.
`http.client` would be 9 ms of every command, and `email`'s parser of each head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from keep_client.channel import Channel
from keep_client.peer import ConnectionFailed, Endpoint, not_whole, translate
from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError, error_from_wire
from keep_protocol.fields import Record

MAX_REPLY = 16 * 1024 * 1024
"""The longest answer: a list of 2,000 keeps at 8 KiB each (a keep's object with its certificate)."""
STREAM_CHUNK = 64 * 1024
MAX_HEADER = 1024
MAX_LINE = 64 * 1024
"""The longest line of an answer's head; aiohttp's own are under 100 bytes, a proxy's cookies under 8 KiB."""
MAX_HEADERS = 100
"""Lines in a head, and after the last chunk; our servers send six."""
MAX_CHUNK_DIGITS = 8
"""Hexadecimal digits of a chunk's size: 4 GiB, over any limit of ours."""
MAX_INTERIM = 10
"""Answers of the kind 1xx before the one that counts; our servers send none."""
Headers = Mapping[str, str]
NO_HEADERS: Headers = {}


def nothing() -> None:
    """What is done while a server works, unless there is something."""


class Reply(Record):
    """An answer: its status, its body, and who sent it."""

    status: int
    body: bytes
    peer: str

    @property
    def text(self) -> str:
        """The body as text; bytes that are not UTF-8 are shown as such."""
        return self.body.decode("utf-8", "backslashreplace")

    def object(self) -> dict[str, object]:
        """The body as a JSON object. Raises KeepfleetError(BAD_REQUEST) when it is none."""
        return strict_json.loads_object(self.body, MAX_REPLY, f"the answer of {self.peer}")

    def error(self) -> KeepfleetError:
        """The error the peer reported in `{"error": …}`, or what can be said of an answer that has another shape."""
        try:
            reported = self.object().get("error")
        except KeepfleetError:
            reported = None
        if reported is not None:
            return error_from_wire(reported)
        first = self.text.strip().splitlines()[:5]
        return KeepfleetError(ErrorKind.INTERNAL, f"cannot go on: {self.peer} answered {self.status}", tuple(first))


class Body(Record):
    """What a request carries: its type, its exact length, and its bytes in parts."""

    type: str
    length: int
    parts: Iterable[bytes]


NO_BODY = Body("application/json", 0, ())


def json_body(value: object) -> Body:
    """`value` as a JSON body."""
    data = strict_json.dumps(value)
    return Body("application/json", len(data), (data,))


def _request(method: str, target: str, endpoint: Endpoint, body: Body, headers: Headers, keep: bool) -> bytes:
    if target[:1] != "/" or not all("!" <= character <= "~" for character in target):
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot ask for {target!r}: it is no path")
    if any(not value.isprintable() or len(value) > MAX_HEADER for value in headers.values()):
        raise KeepfleetError(ErrorKind.BAD_REQUEST, "cannot send a header that is not printable text")
    lines = [
        f"{method} {target} HTTP/1.1",
        f"Host: {endpoint.authority}",
        *([] if keep else ["Connection: close"]),
        "Accept: application/json, text/plain, text/event-stream",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    if method != "GET":
        lines += [f"Content-Type: {body.type}", f"Content-Length: {body.length}"]
    return "\r\n".join([*lines, "", ""]).encode()


def _send(channel: Channel, head: bytes, body: Body) -> bool:
    """Whether all of it went out before an answer came."""
    sent = 0
    for part in body.parts:
        sent += len(part)
        if not channel.send(head + part):  # together: what fits into one TLS record is one packet
            return False
        head = b""
    if sent != body.length:
        raise KeepfleetError(
            ErrorKind.CONFLICT, f"cannot send the file: it changed while it was read ({sent} of {body.length} bytes)"
        )
    return not head or channel.send(head)


class _Head(Record):
    """An answer's status, and how its body ends: after `length` bytes, by a last chunk (-1), or with the connection
    (None); and whether another request may follow."""

    status: int
    length: int | None
    keeps: bool


_CHUNKED = -1
_BODILESS = (204, 304)


def _head(channel: Channel) -> _Head:
    """Raises EOFError for a connection that ended without a byte, ValueError for what is no answer."""
    for _ in range(MAX_INTERIM):
        version, status = _status(channel.line(MAX_LINE))
        fields = _fields(channel)
        if status >= 200:
            length = 0 if status in _BODILESS else _length(fields)
            asked = {word.strip().lower() for word in fields.get(b"connection", b"").split(b",")}
            return _Head(status, length, version == b"HTTP/1.1" and b"close" not in asked and length is not None)
    raise ValueError("only interim answers came")


def _status(line: bytes) -> tuple[bytes, int]:
    version, _, rest = line.partition(b" ")
    digits = rest[:3]
    if version not in (b"HTTP/1.1", b"HTTP/1.0") or not digits.isdigit() or rest[3:4] not in (b"", b" "):
        raise ValueError(f"no status: {line[:60]!r}")
    status = int(digits)
    if status < 100:
        raise ValueError(f"no status: {line[:60]!r}")
    return version, status


def _fields(channel: Channel) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for _ in range(MAX_HEADERS):
        line = channel.line(MAX_LINE)
        if not line:
            return found
        name, colon, value = line.partition(b":")
        if not colon or not name or name.strip() != name:  # a folded line, which no server of today sends, among it
            raise ValueError(f"no header: {line[:60]!r}")
        name, value = name.lower(), value.strip()
        if name in found:
            value = found[name] + b"," + value  # two lengths are thereby no number
        found[name] = value
    raise ValueError(f"over {MAX_HEADERS} headers")


def _length(fields: dict[bytes, bytes]) -> int | None:
    coding, length = fields.get(b"transfer-encoding"), fields.get(b"content-length")
    if coding is not None:
        if coding.lower() != b"chunked" or length is not None:
            raise ValueError("its length is said in two ways, or in one that is not known")
        return _CHUNKED
    if length is None:
        return None
    if not length.isdigit() or len(length) > 18:
        raise ValueError(f"no length: {length[:60]!r}")
    return int(length)


def _parts(channel: Channel, length: int | None) -> Iterator[bytes]:
    """The body as it arrives. Raises EOFError where it ends too early, ValueError for what are no chunks."""
    if length is None:
        while data := channel.read(STREAM_CHUNK):
            yield data
        return
    if length != _CHUNKED:
        yield from _exactly(channel, length)
        return
    while size := _chunk_size(channel):
        yield from _exactly(channel, size)
        if channel.line(MAX_LINE):
            raise ValueError("a chunk is longer than it says")
    _fields(channel)  # the trailer


def _exactly(channel: Channel, left: int) -> Iterator[bytes]:
    while left:
        data = channel.read(min(left, STREAM_CHUNK))
        if not data:
            raise EOFError(f"it ends {left} bytes too early")
        left -= len(data)
        yield data


def _chunk_size(channel: Channel) -> int:
    digits = channel.line(MAX_LINE).partition(b";")[0].rstrip(b" \t")
    if not 0 < len(digits) <= MAX_CHUNK_DIGITS or digits.strip(b"0123456789abcdefABCDEF"):
        raise ValueError(f"no chunk: {digits[:60]!r}")
    return int(digits, 16)


def _whole(channel: Channel, head: _Head, peer: str, limit: int) -> Reply:
    parts: list[bytes] = []
    size = 0
    for part in _parts(channel, head.length):
        parts.append(part)
        size += len(part)
        if size > limit:
            raise KeepfleetError(ErrorKind.TOO_LARGE, f"cannot read the answer of {peer}: it is over {limit} bytes")
    return Reply(head.status, b"".join(parts), peer)


def _ask(channel: Channel, endpoint: Endpoint, request: bytes, body: Body, meanwhile: Callable[[], None]) -> _Head:
    """Sends a request, does something meanwhile, and reads the answer's head. Raises ConnectionFailed when no answer
    came, KeepfleetError for one that is not HTTP."""
    try:
        sent = _send(channel, request, body)
        meanwhile()
        if not channel.starts():
            raise ConnectionResetError("it ended without an answer")
        head = _head(channel)
    except (OSError, ValueError) as error:
        raise translate(error, endpoint, channel.seconds(), kept=channel.answers > 0) from error
    except EOFError as error:
        raise not_whole(error, endpoint) from error
    return head if sent else head.replace(keeps=False)


def exchange(
    channel: Channel,
    endpoint: Endpoint,
    method: str,
    target: str,
    body: Body = NO_BODY,
    limit: int = MAX_REPLY,
    headers: Headers = NO_HEADERS,
    keep: bool = False,
    meanwhile: Callable[[], None] = nothing,
) -> Reply:
    """Sends one request and reads its answer, at most `limit` bytes of it; stops sending when it comes early.

    keep: the connection is to stay for another request, and does where `channel.answers` has grown. meanwhile: done
    when the request is out, while the server works; it raises nothing.
    Raises ConnectionFailed when no answer came, KeepfleetError for one that is too large or not HTTP.
    """
    head = _ask(channel, endpoint, _request(method, target, endpoint, body, headers, keep), body, meanwhile)
    try:
        reply = _whole(channel, head, str(endpoint), limit)
    except (OSError, ValueError) as error:
        raise translate(error, endpoint, channel.seconds()) from error
    except EOFError as error:
        raise not_whole(error, endpoint) from error
    if keep and head.keeps:
        channel.answered()
    return reply


def receive(
    channel: Channel, endpoint: Endpoint, target: str, headers: Headers, idle: float, keep: bool = False
) -> Iterator[bytes]:
    """Sends one GET and yields the body of its answer as it comes, each part within `idle` seconds of the last.

    keep: as for `exchange`. Raises ConnectionFailed when no answer came, when it breaks off, or falls silent; and the
    error the peer reported where its status is not 200.
    """
    channel.extend(idle)
    head = _ask(channel, endpoint, _request("GET", target, endpoint, NO_BODY, headers, keep), NO_BODY, nothing)
    try:
        if head.status != 200:
            raise _whole(channel, head, str(endpoint), MAX_REPLY).error()
        for data in _parts(channel, head.length):
            yield data
            channel.extend(idle)
    except TimeoutError as error:
        raise ConnectionFailed(ErrorKind.TOO_SLOW, f"cannot read on from {endpoint}: it fell silent") from error
    except (OSError, ValueError, EOFError) as error:
        raise ConnectionFailed(
            ErrorKind.UNAVAILABLE, f"cannot read on from {endpoint}: the connection was lost"
        ) from error
    if keep and head.keeps:
        channel.answered()
