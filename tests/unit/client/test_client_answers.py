"""The reader of answers, with `http.client` as the oracle: what it takes it reads alike, in any pieces."""

from __future__ import annotations

import io
import math
from http.client import HTTPException, HTTPResponse
from itertools import pairwise
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from keep_client.channel import Channel
from keep_client.http import body_of, read_head


class Arriving:
    """What a channel takes for a connection: one piece arrives after the other, each a record that is not full."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = [piece for piece in pieces if piece]

    def setblocking(self, _: bool) -> None:
        """It never blocks."""

    def read(self, length: int, buffer: memoryview) -> int:
        data = self._pieces.pop(0) if self._pieces else b""
        buffer[: len(data)] = data
        return len(data)


class Sock:
    """What `http.client` takes for a socket."""

    def __init__(self, data: bytes) -> None:
        self.makefile = lambda mode: io.BytesIO(data)


def ours(pieces: list[bytes]) -> tuple[int, bytes] | None:
    """Status and body, None for what is refused; whatever else is raised fails the test."""
    connection = cast("Any", Arriving(pieces))
    channel = Channel(connection, connection, math.inf)
    try:
        head = read_head(channel)
        return head.status, b"".join(map(bytes, body_of(channel, head.length)))
    except (ValueError, EOFError):
        return None


def theirs(data: bytes) -> tuple[int, bytes] | None:
    response = HTTPResponse(cast("Any", Sock(data)))
    try:
        response.begin()
        return response.status, response.read()
    except (HTTPException, ValueError):
        return None


BODY = st.binary(max_size=20)
LINES = st.sampled_from(
    [
        b"Server: x",
        b"X: a:b",
        b"Content-Length: 3",
        b"Content-Length: -1",
        b"Transfer-Encoding: chunked",
        b" folded",
        b"",
    ]
)


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """An answer as a server may send it, or nearly one."""
    body = draw(BODY)
    status = draw(st.sampled_from([b"200 OK", b"404", b"503 x y", b"99 Low", b"abc"]))
    fields = draw(st.lists(LINES, max_size=3))
    if draw(st.booleans()):
        fields.append(b"Content-Length: %d" % len(body))
    elif draw(st.booleans()):
        fields.append(b"Transfer-Encoding: chunked")
        cut = draw(st.integers(0, len(body)))
        chunks = [chunk for chunk in (body[:cut], body[cut:]) if chunk]
        body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    return b"HTTP/1.1 " + b"\r\n".join([status, *fields, b"", b""]) + body


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(places)]


CUTS = st.lists(st.integers(0, 1 << 16), max_size=8)


@given(answers(), CUTS)
def test_what_is_taken_is_read_as_http_client_reads_it(data: bytes, cuts: list[int]) -> None:
    found = ours(split(data, cuts))
    if found is not None:
        assert found == theirs(data)


@given(BODY, st.booleans(), CUTS)
def test_a_good_answer_is_taken_in_any_pieces(body: bytes, in_chunks: bool, cuts: list[int]) -> None:
    head = b"Transfer-Encoding: chunked" if in_chunks else b"Content-Length: %d" % len(body)
    sent = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n" if in_chunks else body
    assert ours(split(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + sent, cuts)) == (200, body)


@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_do_more_than_be_refused(data: bytes, after_a_head: bool) -> None:
    ours([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" * after_a_head + data])
