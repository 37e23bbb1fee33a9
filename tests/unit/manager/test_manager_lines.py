"""Lines out of frames: whole ones, pieces, what is missing, and where to go on after each."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator

import pytest

from keep_manager.keeps.logs import MAX_LINE, LineDecoder, Place, place_of, tail_position
from keep_protocol.errors import KeepfleetError
from keep_protocol.ring import MARK, MIN_CAPACITY, STDERR, STDOUT, Frame, Mark, RingReader, RingWriter
from keep_protocol.sse import LogLine

CLOCK = 1_000_000_000
BEGIN = Place()


@pytest.fixture
def ring() -> Iterator[RingWriter]:
    descriptor = os.open(tempfile.gettempdir(), os.O_TMPFILE | os.O_RDWR, 0o600)
    yield RingWriter.create(descriptor, MIN_CAPACITY)
    os.close(descriptor)


def frames_of(ring: RingWriter, position: int = 0) -> list[Frame]:
    found: list[Frame] = []
    while True:
        some, position = RingReader(ring.descriptor).read(position)
        if not some:
            return found
        found += some


def lines_of(ring: RingWriter, place: Place | None = BEGIN) -> list[LogLine]:
    decoder = LineDecoder(place, CLOCK)
    found = [line for frame in frames_of(ring, place.position if place else 0) for line in decoder.feed(frame)]
    return [*found, *decoder.rest()]


def texts(lines: list[LogLine]) -> list[tuple[str, str]]:
    return [(line.source, line.text) for line in lines]


def test_lines_are_cut_at_newlines_alone_and_each_stream_has_its_own(ring: RingWriter) -> None:
    ring.append(STDOUT, b"a\r\n\nb \tc\0d\n\xffe", 5)
    ring.append(STDERR, b"err", 6)
    ring.append(STDOUT, b"f\n", 7)
    ring.append(STDERR, b"or\nlast", 8)
    assert texts(lines_of(ring)) == [
        ("stdout", "a\r"),
        ("stdout", ""),
        ("stdout", "b \tc\0d"),
        ("stdout", "\ufffdef"),
        ("stderr", "error"),
        ("stderr", "last"),
    ]


def test_a_line_is_as_old_as_its_beginning_by_the_clock_of_the_last_mark(ring: RingWriter) -> None:
    ring.append(STDOUT, b"early\nbe", 1_000_000_000)
    ring.append(MARK, Mark(90_000_000_000, "own words").encode(), 3_000_000_000)
    ring.append(STDOUT, b"gun\n", 4_000_000_000)
    assert [(line.text, line.at) for line in lines_of(ring)] == [("early", 2.0), ("own words", 90.0), ("begun", 88.0)]


def test_a_line_that_is_too_long_comes_in_pieces_at_characters(ring: RingWriter) -> None:
    text = "x" + "é" * MAX_LINE  # each two bytes, from an odd place on
    data = text.encode() + b"\n"
    for start in range(0, len(data), 10_000):
        ring.append(STDOUT, data[start : start + 10_000], 1)
    found = [line.text for line in lines_of(ring)]
    assert "".join(found) == text
    assert all(len(line.encode()) <= MAX_LINE for line in found)


def test_what_was_overwritten_is_a_line_that_says_how_much(ring: RingWriter) -> None:
    ring.append(STDOUT, b"half a li", 1)
    for _ in range(12):
        ring.append(STDERR, b"y" * 100_000 + b"\n", 2)
    ring.append(STDOUT, b"ne\n", 3)
    first, *_, gap, last = texts(lines_of(ring))
    assert first[0] == "gap"
    assert (gap, last) == (("gap", "9 bytes are missing here"), ("stdout", "ne"))
    assert texts(lines_of(ring, None))[-1] == ("stdout", "ne"), "from the middle on, nothing is missed"


def test_after_each_line_one_can_go_on_exactly(ring: RingWriter) -> None:
    ring.append(MARK, Mark(5).encode(), 1)
    ring.append(STDOUT, b"one\ntwo\nthr", 1)
    ring.append(STDERR, b"e1\ne", 2)
    ring.append(MARK, Mark(7, "own").encode(), 3)
    ring.append(STDOUT, b"ee\n" + b"z" * (MAX_LINE + 10), 4)
    ring.append(STDERR, b"2\n", 5)
    ring.append(STDOUT, b"z\nend", 6)
    whole = lines_of(ring)
    for number, line in enumerate(whole, 1):
        rest = lines_of(ring, place_of(line.cursor))
        assert texts(rest) == texts(whole[number:]), line.text


@pytest.mark.parametrize("cursor", ["", "p=1", "p=1;o=2;e=3;m=x", "p=1;o=2;e=3;m=4\n", f"p={'1' * 17};o=1;e=1;m=1"])
def test_what_is_no_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(KeepfleetError, match="cannot resume after"):
        place_of(cursor)


@pytest.mark.parametrize("wanted", [1, 5, 999])
def test_the_last_lines_are_found_without_those_before(ring: RingWriter, wanted: int) -> None:
    for number in range(2000):
        ring.append(STDOUT if number % 3 else STDERR, b"line %d\n" % number, number)
    reader = RingReader(ring.descriptor)
    position = tail_position(lambda at: reader.block(at, 4096), ring.head, wanted, (STDOUT, STDERR))
    decoder = LineDecoder(None, CLOCK)
    found = list(itertools.chain.from_iterable(decoder.feed(frame) for frame in frames_of(ring, position)))
    assert [line.text for line in found][-wanted:] == [f"line {number}" for number in range(2000 - wanted, 2000)]
    assert len(found) <= wanted + 3


def test_fewer_lines_than_wanted_are_all_of_them(ring: RingWriter) -> None:
    ring.append(STDOUT, b"a\nb\n", 1)
    assert tail_position(RingReader(ring.descriptor).block, ring.head, 5, (STDOUT,)) == 0
