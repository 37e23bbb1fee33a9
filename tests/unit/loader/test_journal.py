"""The journal's follower of the ring: every line, or the count of what is missing; never faster than journald takes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keep_loader.journal import (
    FULL_SECONDS,
    LAST_ENTRIES,
    LAST_PATIENCE_SECONDS,
    LAST_WORDS,
    LOOK_BYTES,
    LOOK_SECONDS,
    MAX_ENTRY,
    PACKED,
    JournalFollower,
    Pace,
    Sent,
    entry,
)
from keep_protocol.ring import MARK, MIN_CAPACITY, STDERR, STDOUT, RingWriter

FAST = 1_000_000.0


def fields_of(data: bytes) -> dict[str, bytes]:
    """One entry of the native protocol, read again."""
    found: dict[str, bytes] = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + size], rest[9 + size :]
        found[name.decode()] = value
        data = rest
    return found


class Journald:
    """Takes entries; `room` bounds how many until it reads again, None for any number."""

    def __init__(self) -> None:
        self.entries: list[dict[str, bytes]] = []
        self.room: int | None = None
        self.there = True

    def send(self, data: bytes) -> Sent:
        if not self.there:
            return Sent.GONE
        if self.room == 0:
            return Sent.FULL
        if self.room is not None:
            self.room -= 1
        self.entries.append(fields_of(data))
        return Sent.TAKEN

    def all_read(self) -> bool:
        return self.room is None

    def lines(self, stream: str) -> list[bytes]:
        return [
            line
            for found in self.entries
            if found.get("KEEP_STREAM") == stream.encode()
            for line in found["MESSAGE"].split(b"\n")
        ]

    def skipped(self, stream: str) -> int:
        return sum(int(found.get(f"KEEP_SKIPPED_{stream.upper()}", b"0")) for found in self.entries)


@pytest.fixture
def ring() -> Iterator[RingWriter]:
    with tempfile.TemporaryFile() as opened:
        yield RingWriter.create(opened.fileno(), MIN_CAPACITY)


def follow(ring: RingWriter, journald: Journald, rate: float = FAST, now: float = 0.0) -> JournalFollower:
    return JournalFollower(ring, Pace(rate, now), journald.send, journald.all_read, [("KEEP_ID", b"7")])


def whole(follower: JournalFollower, now: float = 0.0) -> int:
    """Has it send all there is, and says in how many looks."""
    looks = 1
    while (seconds := follower.pump(now)) is not None:
        assert seconds == LOOK_SECONDS
        looks += 1
    return looks


def test_one_entry_a_line_with_its_stream_number_and_fields(ring: RingWriter) -> None:
    journald = Journald()
    follower = follow(ring, journald)
    ring.append(STDOUT, b"one\n\ntwo \t\r\n", 0)
    ring.append(STDERR, b"nul\0inside \xff\n", 0)
    assert follower.pump(0.0) is None
    assert journald.entries == [
        {"MESSAGE": b"one", "PRIORITY": b"6", "KEEP_STREAM": b"stdout", "KEEP_SEQ": b"0", "KEEP_ID": b"7"},
        {"MESSAGE": b"", "PRIORITY": b"6", "KEEP_STREAM": b"stdout", "KEEP_SEQ": b"1", "KEEP_ID": b"7"},
        {"MESSAGE": b"two \t\r", "PRIORITY": b"6", "KEEP_STREAM": b"stdout", "KEEP_SEQ": b"2", "KEEP_ID": b"7"},
        {"MESSAGE": b"nul\0inside \xff", "PRIORITY": b"3", "KEEP_STREAM": b"stderr", "KEEP_SEQ": b"3", "KEEP_ID": b"7"},
    ]


def test_a_line_waits_for_its_end_and_the_last_one_for_the_guest_s(ring: RingWriter) -> None:
    journald = Journald()
    follower = follow(ring, journald)
    ring.append(STDOUT, b"half", 0)
    assert follower.pump(0.0) is None
    assert journald.entries == []
    ring.append(STDOUT, b" and whole\nno newline", 0)
    assert follower.pump(0.0) is None
    assert journald.lines("stdout") == [b"half and whole"]
    assert follower.pump(0.0, last=True) is None
    assert journald.lines("stdout") == [b"half and whole", b"no newline"]
    assert "KEEP_CUT" not in journald.entries[-1]


def test_a_line_longer_than_an_entry_is_cut_and_its_pieces_say_so(ring: RingWriter) -> None:
    journald = Journald()
    follower = follow(ring, journald)
    ring.append(STDOUT, b"x" * 120_000 + b"\n", 0)
    assert follower.pump(0.0) is None
    assert [len(found["MESSAGE"]) for found in journald.entries] == [MAX_ENTRY, MAX_ENTRY, 120_000 - 2 * MAX_ENTRY]
    assert ["KEEP_CUT" in found for found in journald.entries] == [True, True, False]


@given(
    st.lists(st.tuples(st.sampled_from([STDOUT, STDERR, MARK]), st.binary(max_size=300)), max_size=30),
    st.sampled_from([1, 100, 10_000]),
)
def test_a_follower_that_keeps_up_journals_every_byte_in_its_order(writes: list[tuple[int, bytes]], times: int) -> None:
    with tempfile.TemporaryFile() as opened:
        ring, journald = RingWriter.create(opened.fileno(), MIN_CAPACITY), Journald()
        follower = follow(ring, journald)
        written = {STDOUT: b"", STDERR: b""}
        for number, (stream, data) in enumerate(writes):
            piece = (data * times)[:100_000]
            ring.append(stream, piece, number)
            if stream != MARK:
                written[stream] += piece
            whole(follower, float(number))
        assert follower.pump(100.0, last=True) is None
        for stream, name in ((STDOUT, "stdout"), (STDERR, "stderr")):
            found = [item for item in journald.entries if item.get("KEEP_STREAM") == name.encode()]
            text = b"".join(item["MESSAGE"] + (b"" if "KEEP_CUT" in item else b"\n") for item in found)
            wanted = written[stream]
            assert text == (wanted if wanted.endswith(b"\n") or not wanted else wanted + b"\n")
        assert follower.skipped == {STDOUT: 0, STDERR: 0}


def test_the_next_follower_repeats_no_entry_and_leaves_none_out(ring: RingWriter) -> None:
    journald = Journald()
    first = follow(ring, journald)
    ring.append(STDOUT, b"1\n2\n", 0)
    ring.append(STDERR, b"a\nhalf", 0)
    first.pump(0.0)
    ring.append(STDOUT, b"3\n", 0)
    second = follow(RingWriter.resume(ring.descriptor), journald)
    assert second.pump(0.0, last=True) is None
    assert journald.lines("stdout") == [b"1", b"2", b"3"]
    assert journald.lines("stderr") == [b"a", b"half"]
    assert [int(found["KEEP_SEQ"]) for found in journald.entries] == list(range(5))


def test_many_lines_that_wait_go_in_few_entries_cut_at_newlines(ring: RingWriter) -> None:
    journald = Journald()
    follower = follow(ring, journald, rate=1000.0)
    for number in range(20_000):
        ring.append(STDOUT, b"line %d\n" % number, 0)
    assert ring.tail == 0
    assert follower.pump(0.0) is None
    assert journald.lines("stdout") == [b"line %d" % number for number in range(20_000)]
    assert len(journald.entries) < 1000


def test_what_journald_has_no_room_for_waits_in_the_ring_and_what_is_overwritten_is_counted(ring: RingWriter) -> None:
    journald = Journald()
    journald.room = 0
    follower = follow(ring, journald)
    for number in range(40):
        ring.append(STDOUT, b"%04d\n" % number * 20_000, 0)
        assert follower.pump(0.0) == FULL_SECONDS
    journald.room = None
    whole(follower)
    kept = sum(len(line) + 1 for line in journald.lines("stdout"))
    assert kept + journald.skipped("stdout") == 40 * 100_000
    assert follower.skipped == {STDOUT: journald.skipped("stdout"), STDERR: 0}
    said = [found["MESSAGE"] for found in journald.entries if "KEEP_SKIPPED_STDOUT" in found]
    assert all(message.endswith(b" bytes of stdout are not in the journal") for message in said)


def test_no_more_than_its_rate_and_reserve_is_ever_queued_while_journald_stands_still(ring: RingWriter) -> None:
    journald = Journald()
    rate = 500.0
    follower = follow(ring, journald, rate)
    journald.room = 10_000  # it queues, and reads nothing
    for second in range(20):
        for _ in range(900):
            ring.append(STDERR, b"a line\n", 0)
        wanted = follower.pump(float(second))
        assert wanted is None or wanted > 0
    assert len(journald.entries) <= rate
    follower.pump(20.0, last=True)
    assert len(journald.entries) <= rate + LAST_ENTRIES


def test_a_flood_costs_the_journal_its_rate_of_bytes_and_no_more(ring: RingWriter) -> None:
    journald = Journald()
    follower = follow(ring, journald)
    now = 0.0
    for _ in range(600):
        ring.append(STDOUT, b"y" * 99_999 + b"\n", 0)
        follower.pump(now)
        now += 0.01
    taken = sum(len(found.get("MESSAGE", b"")) for found in journald.entries)
    assert 16_000_000 < taken < 16_000_000 + 6 * 1_000_000 + MAX_ENTRY


def test_what_a_living_guest_has_written_goes_in_parts_and_that_of_one_that_has_ended_as_a_whole(
    ring: RingWriter,
) -> None:
    journald = Journald()
    follower = follow(ring, journald)
    for number in range(12):
        ring.append(STDOUT, b"%04d\n" % number * 16_000, 0)
    assert whole(follower) > 12 * 80_000 // LOOK_BYTES
    for number in range(12):
        ring.append(STDERR, b"%04d\n" % number * 16_000, 0)
    assert follower.pump(0.0, last=True) is None
    for stream in ("stdout", "stderr"):
        assert journald.lines(stream) == [b"%04d" % number for number in range(12) for _ in range(16_000)]


def test_the_guest_s_last_words_get_in_whatever_waits_before_them(ring: RingWriter) -> None:
    journald = Journald()
    follower = follow(ring, journald, rate=LAST_ENTRIES + 1.0)
    for number in range(8_000):
        ring.append(STDOUT, b"line %06d of a flood without an end\n" % number, 0)
    ring.append(STDERR, b"panicked: out of cheese\n", 0)
    assert follower.pump(0.0) is not None
    before = len(journald.entries)
    assert follower.pump(0.0, last=True) is None
    assert journald.lines("stdout")[-1] == b"line 007999 of a flood without an end"
    assert journald.lines("stderr") == [b"panicked: out of cheese"]
    assert len(journald.entries) - before <= LAST_ENTRIES
    kept = sum(len(line) + 1 for line in journald.lines("stdout"))
    assert kept + journald.skipped("stdout") == ring.totals[STDOUT - 1]
    assert kept >= LAST_WORDS // 2 - PACKED


def test_a_journald_that_takes_something_now_and_then_gets_all_that_a_guest_wrote_before_it_ended(
    ring: RingWriter,
) -> None:
    journald = Journald()
    journald.room = 0  # the host is busy: it has not run yet
    follower = follow(ring, journald, 500.0)
    for number in range(8_000):
        ring.append(STDOUT, b"line %06d of a job that prints\n" % number, 0)
    now = 0.0
    while follower.pump(now, last=True) is not None:
        now += LAST_PATIENCE_SECONDS * 0.9
        journald.room = 2
    assert now > 3 * LAST_PATIENCE_SECONDS
    assert journald.lines("stdout") == [b"line %06d of a job that prints" % number for number in range(8_000)]
    assert journald.skipped("stdout") == 0


def test_a_loader_that_got_no_processor_after_its_guest_s_end_leaves_out_nothing_that_journald_takes(
    ring: RingWriter,
) -> None:
    journald = Journald()
    journald.room = 0
    follower = follow(ring, journald)
    for number in range(8_000):
        ring.append(STDOUT, b"line %06d of a job that prints\n" % number, 0)
    assert follower.pump(0.0, last=True) == FULL_SECONDS
    journald.room = None
    assert follower.pump(3 * LAST_PATIENCE_SECONDS, last=True) is None
    assert journald.lines("stdout") == [b"line %06d of a job that prints" % number for number in range(8_000)]
    assert follower.skipped == {STDOUT: 0, STDERR: 0}


def test_a_journald_that_is_gone_is_said_and_nothing_is_lost_when_it_is_back(ring: RingWriter) -> None:
    journald = Journald()
    follower = follow(ring, journald)
    journald.there = False
    ring.append(STDOUT, b"kept\n", 0)
    assert follower.pump(0.0) is not None
    assert follower.gone
    journald.there = True
    assert follower.pump(1.0) is None
    assert not follower.gone
    assert journald.lines("stdout") == [b"kept"]


@given(st.binary(max_size=200))
def test_an_entry_s_value_is_read_again_as_it_was(value: bytes) -> None:
    assert fields_of(entry([("MESSAGE", value), ("KEEP_ID", b"1")])) == {"MESSAGE": value, "KEEP_ID": b"1"}


def test_a_follower_reads_the_ring_alone(ring: RingWriter) -> None:
    ring.append(STDOUT, b"text\n", 0)
    before = os.lseek(ring.descriptor, 0, os.SEEK_CUR)
    follow(ring, Journald()).pump(0.0)
    assert os.lseek(ring.descriptor, 0, os.SEEK_CUR) == before
