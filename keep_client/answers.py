"""An HTTP/1.1 answer on a channel: its head, and its body as it arrives.

Read strictly, since where one answer ends the next begins: a length in digits or in chunks, never both or two, no
folded line, at most MAX_HEADERS lines of MAX_LINE bytes. What is in doubt raises ValueError, what ends too early
EOFError.
"""

from __future__ import annotations

from _collections_abc import Iterator

from keep_client.channel import Channel
from keep_protocol.fields import Record

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
