"""The ring in shared memory: what one end writes the other reads, whole and in order, and neither trusts the other."""

from __future__ import annotations

import fcntl
import os
import random
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codelets.collector_ring import HEADER_BYTES, MAX_MESSAGE_BYTES, MIN_RING_BYTES, Reader, RingFault, Writer
from keep_protocol.errors import KeepfleetError

STREAM, OTHER = bytes(range(16)), bytes(range(16, 32))
READ, WRITTEN = 16, 8
"""The indexes' words."""


@pytest.fixture
def writer() -> Iterator[Writer]:
    made = Writer(MIN_RING_BYTES)
    yield made
    made.close()


@pytest.fixture
def reader(writer: Writer) -> Iterator[Reader]:
    made = Reader(os.dup(writer.file))
    yield made
    made.close()


_STEPS = st.lists(
    st.one_of(st.none(), st.tuples(st.sampled_from([STREAM, OTHER]), st.lists(st.binary(max_size=1500), max_size=6)))
)
"""None: the reader takes what is there."""


@given(_STEPS)
@settings(max_examples=200, deadline=None)
def test_what_fits_comes_out_in_order_and_the_rest_is_counted(steps: list[tuple[bytes, list[bytes]] | None]) -> None:
    writer = Writer(MIN_RING_BYTES)
    reader = Reader(os.dup(writer.file))
    expected: list[tuple[bytes, bytes]] = []
    used = lost = 0
    for step in [*steps, None]:
        if step is None:
            assert reader.take() == expected
            expected, used = [], 0
            continue
        stream, messages = step
        writer.write(stream, messages)
        for message in messages:
            if used + 20 + len(message) <= MIN_RING_BYTES:
                expected.append((stream, message))
                used += 20 + len(message)
            else:
                lost += 1
        assert (writer.lost, writer.unread()) == (lost, len(expected))
    assert reader.lost == lost
    reader.close()
    writer.close()


_READS = """
import sys
from codelets.collector_ring import Reader
reader, last, count = Reader(int(sys.argv[1])), 0, 0
print("reads", flush=True)
while last != 0xFFFFFFFF:
    for stream, message in reader.take():
        number = int.from_bytes(message[:4], "little")
        assert stream == bytes([number & 0xFF]) * 16
        assert number > last
        assert message[4:] == bytes([number % 251]) * (len(message) - 4)
        last, count = number, count + 1
print(count)
"""


@pytest.mark.parametrize("seed", range(2))
def test_another_process_reads_messages_of_any_size_whole_and_in_order(seed: int) -> None:
    sizes, writer = random.Random(seed), Writer(16 * 1024)
    command = [sys.executable, "-c", _READS, str(writer.file)]
    with subprocess.Popen(command, pass_fds=[writer.file], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reads\n"
        for number in range(1, 20_000):
            message = number.to_bytes(4, "little") + bytes([number % 251]) * sizes.randrange(300)
            writer.write(bytes([number & 0xFF]) * 16, [message])
            while number % 1000 == 0 and process.poll() is None and writer.unread():
                pass
        while process.poll() is None and writer.unread():
            pass
        writer.write(b"\xff" * 16, [b"\xff\xff\xff\xff" + bytes([0xFFFFFFFF % 251])])
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert int(printed) == writer.sent
    assert writer.sent > 1000
    assert writer.sent + writer.lost == 20_000
    writer.close()


@pytest.mark.parametrize("index", [1, MIN_RING_BYTES + 1, 1 << 40, (1 << 64) - 1])
def test_a_reader_that_scribbles_on_its_index_is_found_out(writer: Writer, reader: Reader, index: int) -> None:
    reader._words[READ] = index
    with pytest.raises(RingFault, match="the reader's index"):
        writer.write(STREAM, [b"message"])


def test_a_reader_that_moves_its_index_back_loses_its_own_messages_alone(writer: Writer, reader: Reader) -> None:
    for _ in range(100):
        writer.write(STREAM, [bytes(64)])
        reader._words[READ] = 0
    assert writer.sent == MIN_RING_BYTES // 84
    assert writer.lost == 100 - writer.sent


def test_the_writer_goes_by_its_own_counts(writer: Writer, reader: Reader) -> None:
    writer.write(STREAM, [b"first"])
    reader._words[WRITTEN] = 12345
    reader._words[9] = reader._words[10] = reader._words[17] = 1 << 63
    writer.write(STREAM, [b"second"])
    assert reader.take() == [(STREAM, b"first"), (STREAM, b"second")]
    assert (writer.sent, writer.lost, writer.unread()) == (2, 0, 0)


@pytest.mark.parametrize("index", [MIN_RING_BYTES + 1, 1 << 63, (1 << 64) - 1])
def test_a_writers_index_that_cannot_be_is_refused(writer: Writer, reader: Reader, index: int) -> None:
    writer._words[WRITTEN] = index
    with pytest.raises(RingFault, match="the writer's index"):
        reader.take()


@pytest.mark.parametrize("size", [6, MAX_MESSAGE_BYTES + 1, 0xFFFFFFFF])
def test_a_records_size_that_cannot_be_is_refused(writer: Writer, reader: Reader, size: int) -> None:
    writer.write(STREAM, [b"hello"])
    writer._records[:4] = size.to_bytes(4, "little")
    with pytest.raises(RingFault, match="a record has"):
        reader.take()


def test_a_record_that_is_cut_is_refused(writer: Writer, reader: Reader) -> None:
    writer.write(STREAM, [b"hello"])
    writer._words[WRITTEN] = 19
    with pytest.raises(RingFault, match="cut"):
        reader.take()


def memory(size: int, seals: int) -> int:
    file = os.memfd_create("no ring", os.MFD_ALLOW_SEALING)
    os.ftruncate(file, size)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
    return file


@pytest.mark.parametrize(
    ("size", "seals", "words"),
    [
        (HEADER_BYTES + MIN_RING_BYTES, 0, "not sealed"),
        (HEADER_BYTES + MIN_RING_BYTES, fcntl.F_SEAL_GROW, "not sealed"),
        (HEADER_BYTES + MIN_RING_BYTES, fcntl.F_SEAL_SHRINK, "not sealed"),
        (0, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK, "it has 0 bytes"),
        (HEADER_BYTES, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK, "it has 4096 bytes"),
        (1 << 40, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK, "it has 1099511627776 bytes"),
    ],
)
def test_memory_whose_size_could_change_or_is_absurd_is_refused(size: int, seals: int, words: str) -> None:
    with pytest.raises(KeepfleetError, match=words):
        Reader(memory(size, seals))


def test_a_descriptor_of_something_else_is_refused_and_closed() -> None:
    begin, end = os.pipe()
    with pytest.raises(KeepfleetError, match="no memory of that kind"):
        Reader(begin)
    with pytest.raises(OSError):
        os.fstat(begin)
    os.close(end)


def test_the_reader_cannot_change_the_rings_size_or_seal_it_further(writer: Writer) -> None:
    for size in (0, HEADER_BYTES, 1 << 30):
        with pytest.raises(PermissionError):
            os.ftruncate(writer.file, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(writer.file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_a_reader_that_waits_is_woken_once(writer: Writer, reader: Reader) -> None:
    assert not writer.write(STREAM, [b"before"])
    assert not reader.must_wait()
    reader.take()
    assert reader.must_wait()
    assert writer.write(STREAM, [b"wakes"])
    assert not writer.write(STREAM, [b"is awake"])
