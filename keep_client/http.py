"""HTTP/1.1 for a client, of it what our servers speak: a request and its answer on a channel, bounded in size and time.

An answer is read strictly, since where one ends the next begins: a length in digits or in chunks, never both or two, no
folded line, at most MAX_HEADERS lines of MAX_LINE bytes. What is in doubt raises ValueError, what ends too early
EOFError. `http.client` would be 9 ms of every command, and `email`'s parser of each head.
"""

from __future__ import annotations

from _collections_abc import Callable, Iterable, Iterator, Mapping, Sequence

from keep_client.channel import Channel
from keep_client.peer import ConnectionFailed, Endpoint, not_whole, translate
from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError, error_from_wire
from keep_protocol.fields import Record

MAX_REPLY = 16 * 1024 * 1024
"""The longest answer: a list of 2,000 keeps at 8 KiB each (a keep's object with its certificate)."""
MAX_HEADER = 8000
"""Signatures travel in one; servers take 8190 bytes of one."""
STREAM_CHUNK = 256 * 1024
"""The most of a body that is given out in one part: what a channel reads at a time."""
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
_PLAIN = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
"""What stands for itself in a query (RFC 3986, section 2.3)."""


def nothing() -> None:
    """What is done while a server works, unless there is something."""


def nothing_of(_: str) -> None:
    """What is done with words where they are not shown."""


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


def objects_in(answer: dict[str, object], member: str, peer: str) -> list[dict[str, object]]:
    """The JSON objects that a member of an answer lists. Raises KeepfleetError(BAD_REQUEST) on another shape."""
    listed = answer.get(member)
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        why = f"{member!r} must list objects"
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read the answer of {peer}: {why}")
    return listed


class Body(Record):
    """What a request carries: its type, its exact length, None where no one knows it yet, and its bytes in parts."""

    type: str
    length: int | None
    parts: Iterable[bytes]


NO_BODY = Body("application/json", 0, ())


def json_body(value: object) -> Body:
    """`value` as a JSON body."""
    data = strict_json.dumps(value)
    return Body("application/json", len(data), (data,))


def target_of(path: str, query: Sequence[tuple[str, str]]) -> str:
    """The path with a query. `urllib.parse` would be 2 ms of every run."""
    return f"{path}?{'&'.join(f'{name}={_quoted(value)}' for name, value in query)}" if query else path


def _quoted(text: str) -> str:
    return "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in text.encode("utf-8", "surrogateescape"))


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
        length = "Transfer-Encoding: chunked" if body.length is None else f"Content-Length: {body.length}"
        lines += [f"Content-Type: {body.type}", length]
    return "\r\n".join([*lines, "", ""]).encode()


def _send(channel: Channel, head: bytes, body: Body) -> bool:
    """Whether all of it went out before an answer came."""
    if body.length is None:
        return _send_chunks(channel, head, body.parts)
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


def _send_chunks(channel: Channel, head: bytes, parts: Iterable[bytes]) -> bool:
    """The same for a body whose length is not known. It has ended only where its last chunk was sent."""
    if not channel.send(head):  # the server is to know of us also while there is nothing to send yet
        return False
    return all(channel.send(b"%x\r\n%s\r\n" % (len(part), part)) for part in parts) and channel.send(b"0\r\n\r\n")


class Head(Record):
    """An answer's status, and how its body ends: after `length` bytes, by a last chunk (-1), or with the connection
    (None); and whether another request may follow."""

    status: int
    length: int | None
    keeps: bool


_CHUNKED = -1
_BODILESS = (204, 304)


def read_head(channel: Channel) -> Head:
    """Raises EOFError for a connection that ended without a byte, ValueError for what is no answer."""
    for _ in range(MAX_INTERIM):
        version, status = _status(channel.line(MAX_LINE))
        fields = _fields(channel)
        if status >= 200:
            said, is_bodiless = _length(fields), status in _BODILESS
            asked = {word.strip().lower() for word in fields.get(b"connection", b"").split(b",")}
            # A body that was announced where none may come could be taken for the next answer.
            is_clear = said in (None, 0) if is_bodiless else said is not None
            return Head(
                status, 0 if is_bodiless else said, version == b"HTTP/1.1" and b"close" not in asked and is_clear
            )
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


def body_of(channel: Channel, length: int | None) -> Iterator[memoryview]:
    """The body as it arrives; each part is valid until the next is asked for. Raises EOFError where it ends too early,
    ValueError for what are no chunks."""
    if length is None:
        while data := channel.view(STREAM_CHUNK):
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


def _exactly(channel: Channel, left: int) -> Iterator[memoryview]:
    while left:
        data = channel.view(min(left, STREAM_CHUNK))
        if not data:
            raise EOFError(f"it ends {left} bytes too early")
        left -= len(data)
        yield data


def _chunk_size(channel: Channel) -> int:
    digits = channel.line(MAX_LINE).partition(b";")[0].rstrip(b" \t")
    if not 0 < len(digits) <= MAX_CHUNK_DIGITS or digits.strip(b"0123456789abcdefABCDEF"):
        raise ValueError(f"no chunk: {digits[:60]!r}")
    return int(digits, 16)


def _whole(channel: Channel, head: Head, peer: str, limit: int) -> Reply:
    parts: list[bytes] = []
    size = 0
    for part in body_of(channel, head.length):
        parts.append(bytes(part))
        size += len(part)
        if size > limit:
            raise KeepfleetError(ErrorKind.TOO_LARGE, f"cannot read the answer of {peer}: it is over {limit} bytes")
    return Reply(head.status, b"".join(parts), peer)


def _head_of(channel: Channel, endpoint: Endpoint) -> Head:
    """The head of the answer to what was sent. Raises ConnectionFailed when none came, or one that is not HTTP."""
    try:
        if not channel.starts():
            raise ConnectionResetError("it ended without an answer")
        return read_head(channel)
    except (OSError, ValueError) as error:
        raise translate(error, endpoint, channel.seconds(), kept=channel.answers > 0) from error
    except EOFError as error:
        raise not_whole(error, endpoint) from error


def _sent(channel: Channel, endpoint: Endpoint, request: bytes, body: Body) -> bool:
    """Sends a request; whether all of it went out before an answer came. Raises ConnectionFailed."""
    try:
        return _send(channel, request, body)
    except (OSError, ValueError) as error:
        raise translate(error, endpoint, channel.seconds(), kept=channel.answers > 0) from error


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
    whole = _sent(channel, endpoint, _request(method, target, endpoint, body, headers, keep), body)
    meanwhile()
    head = _head_of(channel, endpoint)
    try:
        reply = _whole(channel, head, str(endpoint), limit)
    except (OSError, ValueError) as error:
        raise translate(error, endpoint, channel.seconds()) from error
    except EOFError as error:
        raise not_whole(error, endpoint) from error
    if keep and whole and head.keeps:
        channel.answered()
    return reply


NOTHING = memoryview(b"")


def receive(
    channel: Channel, endpoint: Endpoint, target: str, headers: Headers, idle: float, keep: bool = False
) -> Iterator[memoryview]:
    """Sends one GET and yields the body of its answer as it comes, each part within `idle` seconds of the last, and
    valid until the next. Before that it yields NOTHING twice: once the request is out, and once the answer has begun.

    keep: as for `exchange`. Raises ConnectionFailed when no answer came, when it breaks off, or falls silent; and the
    error the peer reported where its status is not 200.
    """
    channel.extend(idle)
    whole = _sent(channel, endpoint, _request("GET", target, endpoint, NO_BODY, headers, keep), NO_BODY)
    yield NOTHING
    channel.extend(idle)
    head = _head_of(channel, endpoint)
    try:
        if head.status != 200:
            raise _whole(channel, head, str(endpoint), MAX_REPLY).error()
        yield NOTHING
        for data in body_of(channel, head.length):
            yield data
            channel.extend(idle)
    except TimeoutError as error:
        raise ConnectionFailed(ErrorKind.TOO_SLOW, f"cannot read on from {endpoint}: it fell silent") from error
    except (OSError, ValueError, EOFError) as error:
        raise ConnectionFailed(
            ErrorKind.UNAVAILABLE, f"cannot read on from {endpoint}: the connection was lost"
        ) from error
    if keep and whole and head.keeps:
        channel.answered()
