"""The ring of a keep's output: what is written is read again exactly, or what is missing is known to the byte."""

from __future__ import annotations

import fcntl
import os
import resource
import sys
import tempfile
import termios
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.ring import (
    DATA,
    HEADER,
    LONGEST,
    MARK,
    MAX_FRAME,
    MIN_CAPACITY,
    STDERR,
    STDOUT,
    Frame,
    Progress,
    RingReader,
    RingWriter,
    frames_in,
)


@pytest.fixture
def file() -> Iterator[int]:
    with tempfile.TemporaryFile() as opened:
        yield opened.fileno()


def read_all(reader: RingReader, position: int = 0) -> tuple[list[Frame], int]:
    found: list[Frame] = []
    while True:
        frames, position = reader.read(position)
        if not frames:
            return found, position
        found += frames


def text_of(frames: list[Frame], stream: int) -> bytes:
    return b"".join(frame.data for frame in frames if frame.stream == stream)


def test_frames_come_back_as_they_were_written_with_their_stream_time_and_place(file: int) -> None:
    writer, reader = RingWriter.create(file, MIN_CAPACITY), RingReader(file)
    writer.append(STDOUT, b"one\n", 10)
    writer.append(STDERR, b"\0\xff\r\n", 20)
    writer.append(STDOUT, b"", 30)
    writer.append(MARK, b"run 2", 40)
    frames, end = read_all(reader)
    assert frames == [
        Frame(STDOUT, 10, 0, 0, b"one\n"),
        Frame(STDERR, 20, HEADER + 4, 0, b"\0\xff\r\n"),
        Frame(STDOUT, 30, 2 * HEADER + 8, 4, b""),
        Frame(MARK, 40, 3 * HEADER + 8, 0, b"run 2"),
    ]
    assert reader.read(end) == ([], end)
    assert reader.bounds() == (0, end)


def test_an_empty_ring_takes_no_room_on_its_disk(file: int) -> None:
    RingWriter.create(file)
    assert os.fstat(file).st_blocks * 512 <= DATA


@given(st.lists(st.tuples(st.sampled_from([STDOUT, STDERR]), st.integers(0, MAX_FRAME)), max_size=40), st.data())
def test_a_reader_has_every_byte_or_knows_exactly_how_many_it_missed(
    writes: list[tuple[int, int]], data: st.DataObject
) -> None:
    with tempfile.TemporaryFile() as opened:
        writer, reader = RingWriter.create(opened.fileno(), MIN_CAPACITY), RingReader(opened.fileno())
        written = {STDOUT: bytearray(), STDERR: bytearray()}
        expected = {STDOUT: 0, STDERR: 0}
        position = 0
        for number, (stream, size) in enumerate(writes):
            piece = number.to_bytes(4, "big") * (size // 4) + b"x" * (size % 4)
            writer.append(stream, piece, number)
            written[stream] += piece
            if data.draw(st.booleans()):
                frames, position = read_all(reader, position)
                for frame in frames:
                    assert frame.offset >= expected[frame.stream]
                    end = frame.offset + len(frame.data)
                    assert frame.data == written[frame.stream][frame.offset : end]
                    expected[frame.stream] = end
                assert position == writer.head


def test_what_the_kernel_moves_from_a_pipe_is_a_frame_like_any_other_round_the_ring(file: int) -> None:
    writer, reader = RingWriter.create(file, MIN_CAPACITY), RingReader(file)
    source, sink = os.pipe()
    fcntl.fcntl(sink, fcntl.F_SETPIPE_SZ, 2 * MAX_FRAME)
    position, seen, written = 0, b"", b""
    for number in range(12):
        data = bytes([number]) * (MAX_FRAME - 1000 * number)
        os.write(sink, data)
        written += data
        if number % 3 == 1:
            writer.append(STDERR, b"in between", number)
        while size := int.from_bytes(fcntl.ioctl(source, termios.FIONREAD, bytes(4)), sys.byteorder):
            assert 0 < writer.append_from(source, STDOUT, size, number) <= size
        frames, position = reader.read(position)
        seen += text_of(frames, STDOUT)
    assert seen == written
    assert RingWriter.resume(file).totals == writer.totals
    os.close(sink)
    assert writer.append_from(source, STDOUT, 10, 99) == 0
    assert reader.read(position) == ([], position)
    os.close(source)


@pytest.mark.parametrize("most", [DATA, DATA + HEADER], ids=["header", "bytes"])
def test_what_cannot_be_moved_stays_in_the_pipe(most: int) -> None:
    source, sink = os.pipe()
    with tempfile.TemporaryFile() as opened:
        writer = RingWriter.create(opened.fileno(), MIN_CAPACITY)
        os.write(sink, b"kept")
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                writer.append_from(source, STDOUT, 4, 0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert (writer.head, os.read(source, 10)) == (0, b"kept")
        assert RingReader(opened.fileno()).read(0)[0] == []
    os.close(source)
    os.close(sink)


@given(st.lists(st.integers(1, MAX_FRAME), min_size=1, max_size=40), st.data())
def test_what_a_writer_keeps_for_a_reader_is_not_overwritten(sizes: list[int], data: st.DataObject) -> None:
    with tempfile.TemporaryFile() as opened:
        writer, reader = RingWriter.create(opened.fileno(), MIN_CAPACITY), RingReader(opened.fileno())
        position = written = read = 0
        for size in sizes:
            piece = b"y" * min(size, writer.room(position))
            if piece:
                writer.append(STDOUT, piece, 0)
                written += len(piece)
            assert writer.tail <= position
            if not piece or data.draw(st.booleans()):
                frames, position = reader.read(position, 1)
                read += sum(len(frame.data) for frame in frames)
        frames, _ = read_all(reader, position)
        assert read + sum(len(frame.data) for frame in frames) == written


@given(
    st.lists(st.tuples(st.sampled_from([STDOUT, STDERR, MARK]), st.integers(0, 100_000)), max_size=60), st.booleans()
)
def test_how_much_of_each_stream_was_overwritten_is_known_and_found_again(
    writes: list[tuple[int, int]], resumed: bool
) -> None:
    with tempfile.TemporaryFile() as opened:
        writer = RingWriter.create(opened.fileno(), MIN_CAPACITY)
        for stream, size in writes:
            writer.append(stream, b"z" * size, 0)
        frames, _ = read_all(RingReader(opened.fileno()))
        if resumed:
            writer = RingWriter.resume(opened.fileno())
        for stream, overwritten in zip((STDOUT, STDERR), writer.overwritten, strict=True):
            assert writer.totals[stream - 1] - overwritten == len(text_of(frames, stream))
        writer.append(STDOUT, b"z" * MAX_FRAME, 0)
        frames, _ = read_all(RingReader(opened.fileno()))
        assert writer.totals[0] - writer.overwritten[0] == len(text_of(frames, STDOUT))


def test_a_reader_that_keeps_up_makes_room_for_ever(file: int) -> None:
    writer, reader = RingWriter.create(file, MIN_CAPACITY), RingReader(file)
    position = 0
    for number in range(200):
        assert writer.room(position) >= 100_000
        writer.append(STDOUT, bytes([number]) * 100_000, number)
        frames, position = reader.read(position)
        assert [frame.data[:1] for frame in frames] == [bytes([number])]


def test_a_late_reader_begins_at_the_oldest_frame_that_is_whole(file: int) -> None:
    writer, reader = RingWriter.create(file, MIN_CAPACITY), RingReader(file)
    for number in range(100):
        writer.append(STDOUT, b"%05d" % number * 20_000, number)
    frames, end = read_all(reader)
    assert frames[0].offset > 0
    assert frames[0].position == reader.bounds()[0]
    assert end == writer.head
    assert frames[-1].data == b"00099" * 20_000


def test_another_loader_goes_on_where_the_last_whole_frame_ended(file: int) -> None:
    first = RingWriter.create(file, MIN_CAPACITY)
    for number in range(30):
        first.append(STDOUT, b"a" * 100_000, number)
    first.note_journal(Progress(first.totals[0], 0, 7))
    os.pwrite(file, b"half a frame", DATA + first.head % first.capacity)  # the loader died before it moved its head
    second = RingWriter.resume(file)
    assert (second.head, second.tail, second.totals) == (first.head, first.tail, first.totals)
    assert second.journal == RingReader(file).journal() == Progress(30 * 100_000, 0, 7)
    for number in range(30):
        second.append(STDOUT, b"b" * 100_000, number)
    frames, _ = read_all(RingReader(file))
    assert frames[-1].offset + 100_000 == 60 * 100_000
    assert {frame.data[:1] for frame in frames} == {b"b"}


@pytest.mark.parametrize("room", [None, LONGEST, 3 * LONGEST], ids=lambda room: f"room of {room}")
def test_a_reader_next_to_a_writer_sees_only_whole_frames(file: int, room: int | None) -> None:
    writer, reader = RingWriter.create(file, MIN_CAPACITY), RingReader(file)
    total = 3000
    done = threading.Event()

    def write() -> None:
        for number in range(total):
            writer.append(STDOUT, bytes([number % 251]) * (number * 37 % 5000), number)
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    position, seen = 0, -1
    while not done.is_set() or position < writer.head:
        if room is None:
            frames, position = reader.read(position)
        else:
            place = memoryview(bytearray(room))
            block = reader.fill(place, position)
            frames, position = list(frames_in(place[: len(block.data)], block.position)), block.end
        for frame in frames:
            assert frame.time_ns > seen
            seen = frame.time_ns
            assert frame.data == bytes([seen % 251]) * (seen * 37 % 5000)
    thread.join()
    assert seen == total - 1


@given(st.binary(max_size=120), st.integers(0, 3 * MIN_CAPACITY), st.integers(0, 1 << 62))
def test_a_hostile_file_is_refused_or_read_within_bounds(page: bytes, place: int, position: int) -> None:
    with tempfile.TemporaryFile() as opened:
        writer = RingWriter.create(opened.fileno(), MIN_CAPACITY)
        reader = RingReader(opened.fileno())
        for number in range(20):
            writer.append(STDOUT, b"z" * 60_000, number)
        os.pwrite(opened.fileno(), page, place)
        for start in (0, position):
            try:
                frames, after = reader.read(start)
            except KeepfleetError as error:
                assert error.kind is ErrorKind.KEEP_FAILED
            else:
                assert sum(len(frame.data) + HEADER for frame in frames) <= MIN_CAPACITY
                assert after >= start


@pytest.mark.parametrize("size", [0, 10, DATA, DATA + 100])
def test_a_ring_that_is_cut_off_is_an_error_and_no_end(file: int, size: int) -> None:
    writer, reader = RingWriter.create(file, MIN_CAPACITY), RingReader(file)
    writer.append(STDOUT, b"text" * 100, 0)
    os.ftruncate(file, size)
    with pytest.raises(KeepfleetError, match="cannot read the keep's output"):
        reader.read(0)


def test_what_is_no_regular_file_is_no_ring() -> None:
    ours, theirs = os.pipe()
    try:
        with pytest.raises(KeepfleetError, match="no regular file"):
            RingReader(ours)
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_full_disk_fails_the_write_and_leaves_what_was_there(file: int) -> None:
    writer, reader = RingWriter.create(file, MIN_CAPACITY), RingReader(file)
    writer.append(STDOUT, b"kept", 0)
    descriptor, full = writer.descriptor, os.open("/dev/full", os.O_WRONLY)
    try:
        writer.descriptor = full
        with pytest.raises(OSError, match="No space left"):
            writer.append(STDOUT, b"lost", 1)
    finally:
        os.close(full)
    writer.descriptor = descriptor
    assert text_of(read_all(reader)[0], STDOUT) == b"kept"
    writer.append(STDOUT, b"and more", 2)
    assert text_of(read_all(reader)[0], STDOUT) == b"keptand more"
