"""A keep's output at its client: the guest's bytes, over any pieces and any lost connections, and what is missing."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from keep_client.output import GAP, Decoder
from keep_protocol.errors import KeepfleetError
from keep_protocol.output import ALIVE, END, encode_frame
from keep_protocol.ring import MARK, MIN_CAPACITY, STDERR, STDOUT, Mark, RingReader, RingWriter


class Ring:
    """A ring in memory, with all of it as it is sent."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("ring")
        self.writer = RingWriter.create(self.descriptor, MIN_CAPACITY)
        self.reader = RingReader(self.descriptor)

    def write(self, stream: int, data: bytes) -> None:
        self.writer.append(stream, data, 7)

    def sent(self, position: int = 0) -> bytes:
        return bytes(self.reader.block(position, MIN_CAPACITY).data)


@pytest.fixture
def ring() -> Iterator[Ring]:
    made = Ring()
    yield made
    os.close(made.descriptor)


def received(decoder: Decoder, data: bytes, size: int = 1 << 20) -> dict[int, bytes]:
    """What came of each stream, where `data` arrives in parts of `size` bytes."""
    found = {GAP: b"", STDOUT: b"", STDERR: b"", MARK: b""}
    view = memoryview(data)
    for start in range(0, len(view), size):
        for stream, _, part in decoder.feed(view[start : start + size]):
            found[stream] += bytes(part)
    return found


@pytest.mark.parametrize("size", [1, 7, 31, 33, 4096, 1 << 20])
def test_the_bytes_of_both_streams_arrive_whole_in_any_pieces(ring: Ring, size: int) -> None:
    chance = random.Random(1)
    wrote = {STDOUT: b"", STDERR: b""}
    ring.write(MARK, Mark(5, "started").encode())
    for _ in range(40):
        stream, data = chance.choice((STDOUT, STDERR)), chance.randbytes(chance.choice((0, 1, 60, 900)))
        wrote[stream] += data
        ring.write(stream, data)
    decoder = Decoder()
    found = received(decoder, ring.sent() + encode_frame(ALIVE, b"") + encode_frame(END, b"{}"), size)
    assert found == {**wrote, GAP: b"", MARK: Mark(5, "started").encode()}
    assert (decoder.end, decoder.position) == (b"{}", ring.writer.head)


def test_an_answer_that_breaks_off_anywhere_is_gone_on_with_where_it_broke_off(ring: Ring) -> None:
    for number in range(6):
        ring.write(STDOUT, b"out %d\n" % number)
        ring.write(MARK, Mark(number, "mark").encode())
        ring.write(STDERR, b"err %d\n" % number)
    whole, all_of_it = ring.sent(), received(Decoder(), ring.sent())
    for cut in range(len(whole)):
        decoder = Decoder()
        first = received(decoder, whole[:cut])
        decoder.again()
        second = received(decoder, ring.sent(decoder.position))
        assert {stream: first[stream] + second[stream] for stream in first} == all_of_it, cut


def test_what_was_overwritten_is_counted_for_each_stream(ring: Ring) -> None:
    ring.write(STDERR, b"e" * 10)
    while ring.writer.tail == 0:
        ring.write(STDOUT, b"o" * 60_000)
    ring.write(STDERR, b"late")
    decoder = Decoder()
    pieces = decoder.feed(memoryview(ring.sent()))
    assert pieces[0] == (GAP, STDOUT, str(ring.writer.overwritten[0]).encode())
    assert (GAP, STDERR, b"10") in pieces
    written = sum(len(part) for stream, _, part in pieces if stream == STDOUT)
    assert written + ring.writer.overwritten[0] == ring.writer.totals[0]


@pytest.mark.parametrize(
    "data",
    [
        b"no frame" * 4,
        encode_frame(9, b""),
        encode_frame(STDOUT, b"a", 100) + encode_frame(STDOUT, b"b", 50),
        encode_frame(STDOUT, b"x" * (256 * 1024 + 1)),
        encode_frame(END, b"x" * (128 * 1024 + 1)),
    ],
    ids=["noise", "no stream", "backwards", "too long", "too long an end"],
)
def test_what_cannot_be_read_is_refused_and_not_guessed(data: bytes) -> None:
    with pytest.raises(KeepfleetError, match="cannot read the keep's output"):
        Decoder().feed(memoryview(data))
