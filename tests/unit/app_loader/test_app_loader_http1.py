"""The endpoint's reader of HTTP/1.1, against a table of what it refuses, and against h11 in everything it accepts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app_loader.limits import MAX_HEADER_BYTES, MAX_HEADERS, MAX_REQUEST_LINE, MAX_TRAILER_BYTES, READ_BYTES
from app_loader.receive.http1 import CONTINUE, End, Event, Head, Refused, RequestReader, response

LINE, HOST = b"PUT /workload HTTP/1.1\r\n", b"Host: keep\r\n"
START = LINE + HOST
CHUNKED = START + b"Transfer-Encoding: chunked\r\n\r\n"


def read(data: bytes, cuts: Sequence[int] = ()) -> list[Event]:
    """The events of `data`, which comes in pieces that end at `cuts`; the body in one piece."""
    reader, events = RequestReader(), list[Event]()
    places = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    for start, end in pairwise(places):
        events += reader.feed(data[start:end])
    assert all(event != b"" for event in events)
    body = b"".join(event for event in events if isinstance(event, bytes))
    joined: list[Event] = [event for event in events if isinstance(event, Head)]
    joined += [body] if body else []
    return joined + [event for event in events if isinstance(event, End)]


def refusal(data: bytes, cuts: Sequence[int] = ()) -> int:
    """The status with which `data` is refused."""
    with pytest.raises(Refused) as caught:
        read(data, cuts)
    assert caught.value.message.startswith("cannot read the request: ")
    assert caught.value.message.isprintable()
    return caught.value.status


def test_a_request_without_a_body_is_whole_with_its_head() -> None:
    assert read(b"GET / HTTP/1.1\r\nHost:keep\r\nX-A: \t b c\t\r\n\r\n") == [
        Head(b"GET", b"/", ((b"host", b"keep"), (b"x-a", b"b c"))),
        End(),
    ]


def test_a_body_of_known_length_ends_there_and_what_follows_is_dropped() -> None:
    head, body, end = read(START + b"Content-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\n")
    assert isinstance(head, Head) and (head.length, head.chunked) == (3, False)
    assert (body, end) == (b"abc", End())


def test_a_body_in_chunks_is_joined_and_its_trailers_are_dropped() -> None:
    data = CHUNKED + b"3\r\nabc\r\n00A\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\nrest"
    head, body, end = read(data)
    assert isinstance(head, Head) and (head.length, head.chunked) == (None, True)
    assert (body, end) == (b"abc0123456789", End())


def test_many_chunks_of_one_packet_are_one_event() -> None:
    reader = RequestReader()
    reader.feed(CHUNKED)
    assert reader.feed(b"1\r\nx\r\n" * (READ_BYTES // 6)) == [b"x" * (READ_BYTES // 6)]


def test_a_client_that_asks_first_is_seen() -> None:
    (head, *_) = read(START + b"Expect: 100-Continue\r\nContent-Length: 3\r\n\r\n")
    assert isinstance(head, Head) and head.expects_continue
    theirs = h11.Connection(h11.CLIENT)
    theirs.send(h11.Request(method="PUT", target="/", headers=[("Host", "keep"), ("Content-Length", "3")]))
    theirs.receive_data(CONTINUE)
    event = theirs.next_event()
    assert isinstance(event, h11.InformationalResponse) and event.status_code == 100


def test_a_header_of_eight_bits_is_taken_as_it_is() -> None:
    (head, *_) = read(START + "X-Module-Name: grüße\r\n\r\n".encode())
    assert isinstance(head, Head) and head.headers[-1] == (b"x-module-name", "grüße".encode())


REFUSED: dict[str, tuple[bytes, int]] = {
    "HTTP/1.0": (b"GET / HTTP/1.0\r\nHost: x\r\n\r\n", 505),
    "HTTP/2's preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400),
    "another protocol": (b"GET / SMTP/1.1\r\nHost: x\r\n\r\n", 400),
    "a version with a tail": (b"GET / HTTP/1.1x\r\nHost: x\r\n\r\n", 400),
    "a version in small letters": (b"GET / http/1.1\r\nHost: x\r\n\r\n", 400),
    "no method": (b" / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "a method that is no token": (b"GE(T / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "two spaces": (b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "a tab for a space": (b"GET\t/\tHTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "a space in the path": (b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "a NUL in the path": (b"GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "eight bits in the path": (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "an empty line first": (b"\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "TLS within TLS": (b"\x16\x03\x01\x02\x00\x01", 400),
    "a bare LF behind the request line": (b"GET / HTTP/1.1\nHost: x\r\n\r\n", 400),
    "a bare LF behind a header": (LINE + b"Host: x\n\r\n", 400),
    "a bare LF as the empty line": (START + b"\n", 400),
    "a bare CR in a value": (LINE + b"Host: x\rX-A: b\r\n\r\n", 400),
    "a bare CR before CRLF": (LINE + b"Host: x\r\r\n\r\n", 400),
    "a folded line": (START + b"X-A: b\r\n c\r\n\r\n", 400),
    "a folded line that looks like a header": (START + b" X-A: b\r\n\r\n", 400),
    "a space before the colon": (LINE + b"Host : x\r\n\r\n", 400),
    "a name of nothing": (START + b": b\r\n\r\n", 400),
    "a name that is no token": (START + b"X(A): b\r\n\r\n", 400),
    "a name of eight bits": (START + b"X\xe9: b\r\n\r\n", 400),
    "a header without a colon": (START + b"Content-Length\r\n\r\n", 400),
    "a NUL in a value": (START + b"X-A: \0\r\n\r\n", 400),
    "a control character in a value": (START + b"X-A: \x01\r\n\r\n", 400),
    "a DEL in a value": (START + b"X-A: \x7f\r\n\r\n", 400),
    "no Host": (LINE + b"Content-Length: 0\r\n\r\n", 400),
    "two Hosts": (START + HOST + b"\r\n", 400),
    "two lengths": (START + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    "one length twice": (START + b"Content-Length: 1\r\ncontent-length: 1\r\n\r\n", 400),
    "one length twice in one line": (START + b"Content-Length: 1, 1\r\n\r\n", 400),
    "an empty length": (START + b"Content-Length:\r\n\r\n", 400),
    "a length with a sign": (START + b"Content-Length: +1\r\n\r\n", 400),
    "a negative length": (START + b"Content-Length: -1\r\n\r\n", 400),
    "a length with an underscore": (START + b"Content-Length: 1_0\r\n\r\n", 400),
    "a length in hexadecimal": (START + b"Content-Length: 0x1\r\n\r\n", 400),
    "a length in other digits": (START + "Content-Length: ١\r\n\r\n".encode(), 400),
    "a length of 19 digits": (START + b"Content-Length: 0000000000000000001\r\n\r\n", 413),
    "both": (START + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    "gzip": (START + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
    "chunked and another": (START + b"Transfer-Encoding: chunked, identity\r\n\r\n", 501),
    "chunked with a vertical tab": (START + b"Transfer-Encoding: \x0bchunked\r\n\r\n", 400),
    "chunked twice": (START + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    "nothing as an encoding": (START + b"Transfer-Encoding:\r\n\r\n", 501),
    "another expectation": (START + b"Expect: a-pony\r\n\r\n", 417),
    "two expectations": (START + b"Expect: 100-continue\r\nExpect: 100-continue\r\n\r\n", 400),
    "a long request line": (b"GET /" + b"a" * MAX_REQUEST_LINE + b" HTTP/1.1\r\n", 414),
    "a request line that never ends": (b"G" * MAX_REQUEST_LINE, 414),
    "too many headers": (LINE + b"X-A: b\r\n" * (MAX_HEADERS + 1), 431),
    "headers that are too large": (START + b"X-A: " + b"b" * MAX_HEADER_BYTES + b"\r\n\r\n", 431),
    "a header that never ends": (START + b"X" * MAX_HEADER_BYTES, 431),
    "a chunk without a size": (CHUNKED + b"\r\n", 400),
    "a chunk's size that is no number": (CHUNKED + b"x\r\n", 400),
    "a chunk's size with a sign": (CHUNKED + b"+1\r\na\r\n", 400),
    "a chunk's size with 0x": (CHUNKED + b"0x1\r\na\r\n", 400),
    "a chunk's size with a space": (CHUNKED + b"1 \r\na\r\n", 400),
    "a chunk's size of 17 digits": (CHUNKED + b"00000000000000001\r\n", 400),
    "a chunk's size that never ends": (CHUNKED + b"0" * 100, 400),
    "a chunk's extension": (CHUNKED + b"1;a=b\r\na\r\n", 400),
    "a chunk's size behind a bare LF": (CHUNKED + b"1\na\r\n", 400),
    "a chunk that is longer than its size": (CHUNKED + b"1\r\nab\r\n", 400),
    "a chunk that ends in a bare LF": (CHUNKED + b"1\r\na\n0\r\n\r\n", 400),
    "a chunk that ends in a bare CR": (CHUNKED + b"1\r\na\r0\r\n\r\n", 400),
    "a trailer that is no header": (CHUNKED + b"0\r\nabc\r\n\r\n", 400),
    "a trailer that frames": (CHUNKED + b"0\r\nContent-Length: 5\r\n\r\n", 400),
    "too many trailers": (CHUNKED + b"0\r\n" + b"X-A: b\r\n" * (MAX_TRAILER_BYTES // 8 + 1), 431),
    "a trailer that never ends": (CHUNKED + b"0\r\n" + b"X" * MAX_TRAILER_BYTES, 431),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_two_readers_could_take_differently_is_refused(name: str) -> None:
    data, status = REFUSED[name]
    assert refusal(data) == status
    assert refusal(data, range(1, len(data))) == status, "byte by byte"


def test_the_limits_themselves_are_allowed() -> None:
    line = b"GET /" + b"a" * (MAX_REQUEST_LINE - len(b"GET / HTTP/1.1\r\n")) + b" HTTP/1.1\r\n"
    headers = HOST + b"X-A: b\r\n" * (MAX_HEADERS - 2)
    rest = MAX_HEADER_BYTES - len(line + headers + b"X-B: \r\n\r\n")
    data = line + headers + b"X-B: " + b"c" * rest + b"\r\n\r\n"
    assert read(data)[-1] == read(data, range(1, len(data)))[-1] == End()
    assert refusal(data.replace(b"ccc", b"cccc", 1)) == 431


def test_a_response_is_read_by_h11_as_it_was_meant() -> None:
    theirs = h11.Connection(h11.CLIENT)
    theirs.send(h11.Request(method="GET", target="/", headers=[("Host", "keep")]))
    theirs.receive_data(response(422, [("Content-Length", "2"), ("Connection", "close")], b"no"))
    event, body = theirs.next_event(), theirs.next_event()
    assert isinstance(event, h11.Response) and (event.status_code, event.reason) == (422, b"Unprocessable Content")
    assert isinstance(body, h11.Data) and body.data == b"no"


# --- h11 as the oracle -------------------------------------------------------------------------------------------

LINES = [b"GET / HTTP/1.1", b"PUT /workload HTTP/1.1", b"POST /payload HTTP/1.1", b"X* a?b HTTP/1.1", b"GET / HTTP/1.0"]
NAMES = [b"Host", b"Content-Length", b"Transfer-Encoding", b"Expect", b"X-A", b"Connection", b"TE", b"X A", b"Host "]
VALUES = [
    b"",
    b"0",
    b"3",
    b"12",
    b"3, 3",
    b"chunked",
    b"Chunked",
    b"gzip",
    b"identity",
    b"100-continue",
    b"a b\tc",
    b"\xc3",
]
ENDS = [b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\r\n "]
SPACES = [b" ", b" ", b"", b"\t ", b"\x0b"]
SIZES = [b"0", b"1", b"3", b"03", b"A", b"3;x=y", b" 3", b"3 ", b"0x3", b"", b"ffffffffffffffffff"]
NOISE = [b"\0", b"\r", b"\n", b" ", b":", b"\t", b",", b";", b"0", b"3", b"\x0b", b"\x85", b"Host: x\r\n", b"\r\n\r\n"]

HEADERS = st.tuples(st.sampled_from(NAMES), st.sampled_from(SPACES), st.sampled_from(VALUES), st.sampled_from(ENDS))
HEADER_LINES = HEADERS.map(lambda parts: parts[0] + b":" + parts[1] + parts[2] + parts[3])
GOOD_CHUNKS = st.binary(min_size=1, max_size=20).map(lambda data: b"%x\r\n%b\r\n" % (len(data), data))
ODD_CHUNKS = st.tuples(st.sampled_from(SIZES), st.sampled_from(ENDS), st.binary(max_size=5), st.sampled_from(ENDS))
CHUNKS = st.one_of(GOOD_CHUNKS, GOOD_CHUNKS, ODD_CHUNKS.map(b"".join))
CHUNKED_BODIES = st.tuples(
    st.lists(CHUNKS, max_size=4).map(b"".join), st.just(b"0\r\n"), st.lists(HEADER_LINES, max_size=2).map(b"".join)
).map(lambda parts: b"".join(parts) + b"\r\n")
BODIES = st.one_of(st.binary(max_size=20), CHUNKED_BODIES, CHUNKED_BODIES)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Bytes that are nearly a request: of its parts, right and wrong, and then with a few bytes put in or taken out."""
    framing = draw(st.sampled_from([b"", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n"]))
    host = draw(st.sampled_from([HOST, HOST, HOST, b""]))
    more = draw(st.lists(HEADER_LINES, max_size=3))
    line = draw(st.sampled_from(LINES)) + draw(st.sampled_from(ENDS))
    data = bytearray(line + b"".join(draw(st.permutations([host, framing, *more]))) + b"\r\n" + draw(BODIES))
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(data)))
        data[place : place + draw(st.integers(0, 2))] = draw(st.sampled_from(NOISE))
    return bytes(data)


class Theirs:
    """h11's reading of some bytes: its request, if it took one; the body so far; whole; whether it refused."""

    def __init__(self, data: bytes) -> None:
        self.request: h11.Request | None = None
        self.body, self.whole, self.refused = b"", False, False
        try:
            for event in self._events(data):
                if isinstance(event, h11.Request):
                    self.request = event
                elif isinstance(event, h11.Data):
                    self.body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    self.whole = True
        except h11.RemoteProtocolError:
            self.refused = True

    @staticmethod
    def _events(data: bytes) -> Iterator[object]:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER_BYTES)
        if data:  # nothing would be the end of the stream
            connection.receive_data(data)
        while (event := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            yield event
            if isinstance(event, h11.EndOfMessage):
                break


def agrees(data: bytes) -> bool:
    """Compares our reading of `data` with h11's; whether ours takes it whole."""
    theirs, reader, body = Theirs(data), RequestReader(), b""
    try:
        events = reader.feed(data)
    except Refused:
        return False
    for event in events:
        if isinstance(event, Head):
            assert theirs.request is not None, "h11 takes no request of it"
            assert (event.method, event.target) == (theirs.request.method, theirs.request.target)
            lowered = [(n, v.lower() if n == b"transfer-encoding" else v) for n, v in event.headers]
            assert lowered == list(theirs.request.headers)
        elif isinstance(event, bytes):
            body += event
    whole = End() in events
    assert not theirs.refused or not events, "h11 refuses it"
    assert (body, whole) == (theirs.body, theirs.whole)
    return whole


@given(requests())
@example(CHUNKED + b"3\r\nabc\r\n0\r\n\r\n")
def test_what_is_accepted_h11_reads_alike(data: bytes) -> None:
    agrees(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_read_as_h11_reads_them(data: bytes) -> None:
    agrees(data)
    agrees(START + b"\r\n" + data)
    agrees(START + b"Content-Length: 20\r\n\r\n" + data)
    agrees(CHUNKED + data)


@given(
    st.sampled_from(LINES[:3]),
    st.lists(
        st.tuples(st.sampled_from([b"X-A", b"Accept"]), st.sampled_from([b"a b", b"\xe2\x88\x91", b""])), max_size=5
    ),
    st.one_of(st.none(), st.binary(max_size=50), st.lists(st.binary(min_size=1, max_size=20), max_size=4)),
)
def test_a_right_request_is_taken_by_both(
    line: bytes, more: list[tuple[bytes, bytes]], body: bytes | list[bytes] | None
) -> None:
    head = line + b"\r\n" + HOST + b"".join(b"%b: %b\r\n" % header for header in more)
    if body is None:
        data = head + b"\r\n"
    elif isinstance(body, bytes):
        data = head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    else:
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in body)
        data = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    assert agrees(data)


@given(requests(), st.lists(st.integers(1, 200), max_size=6))
def test_where_packets_are_cut_changes_nothing(data: bytes, cuts: list[int]) -> None:
    try:
        whole = read(data)
    except Refused as refused:
        assert refusal(data, cuts) == refused.status
    else:
        assert read(data, cuts) == whole
