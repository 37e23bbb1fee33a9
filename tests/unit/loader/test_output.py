"""A workload's output through its loader: into the ring, the journal and to readers that it waits for, to its end."""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from keep_loader import output
from keep_loader.journal import JournalFollower, Pace, Sent
from keep_loader.loop import Loop
from keep_loader.streams import IN_ALL
from keep_protocol.control import UNSTORED, CommandType
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepReport, OutcomeKind
from keep_protocol.outcome import TRAP, Outcome
from keep_protocol.ring import (
    MARK,
    MIN_CAPACITY,
    STDERR,
    STDOUT,
    TOKEN,
    Acknowledgement,
    RingReader,
    RingWriter,
    decode_mark,
)
from keep_protocol.states import State
from tests.fakes.loader_process import DEADLINE, Endpoint, LoaderProcess, Peer, Stub, opened
from tests.unit.loader.test_journal import fields_of

PATIENT = {
    "FAKE_CONSTANTS": "keep_loader.output:LAST_WORDS_SECONDS=60,keep_loader.output:LAST_SECONDS=60"
    ",keep_loader.journal:LAST_PATIENCE_SECONDS=60"
}
"""The loader's environment where the test has journald's place and reads: that it may be late is no one's subject."""
EXACT = "\n\n trailing \t\r\nnul\0inside\xff\xfe\x1b[31m\n" + "x" * 300_000 + "\nno newline"


def running(loader: LoaderProcess, passed: Endpoint) -> tuple[Peer, Stub]:
    peer, stub = opened(loader, passed)
    stub.accept()
    loader.systemd.wait_for("STATUS", "started: running")
    return peer, stub


def exits(stub: Stub, code: int = 0) -> None:
    stub.report("ended", outcome={"kind": "exited", "text": f"exited {code}", "exit_code": code})
    stub.order("exit", code=code)


def outcome_of(report: KeepReport) -> Outcome:
    assert report.outcome is not None
    return report.outcome


def wait_until_full(stub: Stub) -> None:
    """Returns when the stub's next write to its stdout has to wait, which nothing notifies others of."""
    with open(f"/proc/{stub.pid}/fd/1", "wb", buffering=0) as pipe:
        while select.select([], [pipe], [], 0)[1]:
            time.sleep(0.001)


@contextmanager
def journald_reading(passed: Endpoint) -> Iterator[list[dict[str, bytes]]]:
    """journald, which reads for the block; what it has been sent, once that is over."""
    found: list[dict[str, bytes]] = []
    end = b"the end of the test"

    def read() -> None:
        while (data := passed.journald.recv(1 << 20)) != end:
            found.append(fields_of(data))

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield found
    finally:
        passed.journal.send(end)
        thread.join()


def entries_of(passed: Endpoint) -> list[dict[str, bytes]]:
    """What journald has been sent so far."""
    passed.journald.setblocking(False)
    found = []
    try:
        while True:
            found.append(fields_of(passed.journald.recv(1 << 20)))
    except BlockingIOError:
        return found


class Manager:
    """The manager's end of a channel."""

    def __init__(self, peer: Peer, *, kept: int) -> None:
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(DEADLINE)
        self.acknowledge(0, kept)
        with theirs:
            peer.ask(CommandType.FOLLOW, "", (theirs.fileno(),))

    def acknowledge(self, seen: int, kept: int, stdout: int = 0) -> None:
        self.sock.send(Acknowledgement(seen, kept, stdout).encode())

    def token(self) -> None:
        assert self.sock.recv(16) == TOKEN


@contextmanager
def following(peer: Peer, *, kept: int = 0) -> Iterator[Manager]:
    made = Manager(peer, kept=kept)
    with made.sock:
        yield made


def test_every_byte_is_in_the_ring_and_every_line_in_the_journal_each_stream_apart(
    unstarted: LoaderProcess, unread: Endpoint
) -> None:
    unstarted.start(environment=PATIENT)
    _, stub = running(unstarted, unread)
    with journald_reading(unread) as entries:
        for character in "one byte at a time\n":
            stub.do("write", to=2, text=character)
        stub.do("write", to=1, text=EXACT)
        exits(stub, 3)
        outcome = outcome_of(unstarted.ended(unread))
    assert unread.written(STDOUT) == EXACT.encode("latin-1")
    assert unread.written(STDERR) == b"one byte at a time\n"
    assert (outcome.output_bytes, outcome.lost_bytes, outcome.journal_skipped_bytes) == (len(EXACT) + 19, 0, 0)
    text = b"".join(
        entry["MESSAGE"] + (b"" if "KEEP_CUT" in entry else b"\n")
        for entry in entries
        if entry["KEEP_STREAM"] == b"stdout"
    )
    assert text == EXACT.encode("latin-1") + b"\n"
    assert [int(entry["KEEP_SEQ"]) for entry in entries] == list(range(len(entries)))
    assert {entry["SYSLOG_IDENTIFIER"] for entry in entries} == {b"keep-7"}


def test_a_job_that_prints_20000_lines_in_one_burst_and_ends_has_all_of_them_in_the_journal(
    unstarted: LoaderProcess, unread: Endpoint
) -> None:
    unstarted.start(environment=PATIENT)
    _, stub = running(unstarted, unread)
    with journald_reading(unread) as entries:
        stub.do("write", to=1, text="".join(f"line {number}\n" for number in range(20_000)))
        exits(stub)
        outcome = outcome_of(unstarted.ended(unread))
    assert (outcome.lost_bytes, outcome.journal_skipped_bytes) == (0, 0)
    lines = [line for entry in entries for line in entry["MESSAGE"].split(b"\n")]
    assert lines == [b"line %d" % number for number in range(20_000)]


@pytest.mark.parametrize("rest", [output.REST_SECONDS, 3600.0], ids=["that ends", "during which the end is asked for"])
def test_a_guest_that_writes_line_by_line_is_read_with_rests_and_whole(
    rest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "DENSE_SECONDS", 3600.0)  # each line comes soon after the last, however busy the host
    monkeypatch.setattr(output, "REST_SECONDS", rest)
    loop, ring = Loop(), RingWriter.create(os.memfd_create("ring"), MIN_CAPACITY)
    tested = output.Output(loop, ring, None, drops_oldest=False)
    guest, other = tested.open()
    lines = [b"line %d\n" % number for number in range(4 * output.DENSE_LOOKS)]
    left = iter(lines)

    def write() -> None:
        line = next(left, None)
        if line is not None:
            os.write(guest, line)
            loop.after("next line", 0, write)  # once the loader has looked at its pipes, if it does
            return
        os.close(guest)
        os.close(other)
        tested.finish(loop.stop)
        if rest > 1:
            tested.hurry()

    write()
    loop.run()
    frames = [frame for frame in RingReader(ring.descriptor).read(0)[0] if frame.stream == STDOUT]
    os.close(ring.descriptor)
    assert b"".join(frame.data for frame in frames) == b"".join(lines)
    assert len(frames) > output.DENSE_LOOKS
    assert rest < 1 or len(frames) <= output.DENSE_LOOKS + 3


def test_the_loader_s_own_lines_stand_among_the_output_with_the_clock(loader: LoaderProcess, passed: Endpoint) -> None:
    peer, stub = running(loader, passed)
    stub.do("write", to=1, text="hello\n")
    assert peer.ask(CommandType.INFO).state is State.STARTED
    exits(stub)
    loader.ended(passed)
    frames = passed.frames
    assert frames[0].stream == MARK
    assert abs(decode_mark(frames[0].data).time_ns - frames[0].time_ns) > 0
    assert passed.lines[0] == "idle -> opening (start)" or passed.lines[0].startswith("opening ->")
    assert passed.lines[-1] == "running -> ended (finish): exited 0"
    streams = [frame.stream for frame in frames]
    assert STDOUT in streams and streams[-1] == MARK


def test_no_fork_has_the_loader_s_own_stream_and_what_it_says_is_logged_for_it(
    loader: LoaderProcess, passed: Endpoint
) -> None:
    _, stub = opened(loader, passed)
    runner = stub.connect()
    for fork in (stub, runner):
        assert fork.descriptors[1] == fork.descriptors[2]
        assert fork.descriptors[1].startswith("pipe:")
        assert str(loader.log) not in fork.descriptors.values()
    runner.do("write", to=2, text="Traceback\x1b[2J\nrunning -> ended (finish)\n")
    stub.do("write", to=1, text="no newline")
    stub.order("signal", number=signal.SIGKILL)
    loader.stub()
    log = loader.log_text().splitlines()
    assert "app-loader: Traceback [2J" in log
    assert "app-loader: running -> ended (finish)" in log
    assert "app-loader: no newline" in log
    assert "running -> ended (finish)" not in log


@pytest.mark.parametrize("answered", [True, False])
def test_a_line_s_reader_is_woken_before_the_journal_which_has_it_also_without_an_answer(
    answered: bool,
) -> None:
    loop, sent = Loop(), list[bytes]()
    with tempfile.TemporaryFile() as opened_file:
        ring = RingWriter.create(opened_file.fileno(), MIN_CAPACITY)

        def send(data: bytes) -> Sent:
            sent.append(fields_of(data)["MESSAGE"])
            loop.stop()
            return Sent.TAKEN

        journal = JournalFollower(ring, Pace(1000.0, 0.0), send, lambda: True, ())
        shown = output.Output(loop, ring, journal, drops_oldest=False)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.send(Acknowledgement(kept=0).encode())
        shown.attach(theirs)
        out, err = shown.open()
        assert ours.recv(16) == TOKEN
        ours.send(Acknowledgement(ring.head, 0).encode())
        shown._answered(0)
        os.write(out, b"a line\n")
        (pipe,) = (pipe for pipe, stream in shown.pipes.items() if stream == STDOUT)
        shown._readable(pipe)
        assert ours.recv(16) == TOKEN
        assert sent == []
        if answered:
            ours.send(Acknowledgement(ring.head, 0).encode())
            shown._answered(0)
        else:
            loop.run()
        assert sent == [b"a line"]
        shown.close()
        for number in (out, err):
            os.close(number)
        ours.close()


def test_last_words_that_journald_would_take_are_not_left_out_by_a_loader_that_got_no_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, sent, answers = Loop(), list[bytes](), iter([Sent.FULL])
    ring = RingWriter.create(os.memfd_create("ring"), MIN_CAPACITY)
    ring.append(STDOUT, b"last words\n", 0)

    def send(data: bytes) -> Sent:
        answer = next(answers, Sent.TAKEN)
        if answer is Sent.TAKEN:
            sent.append(fields_of(data)["MESSAGE"])
        return answer

    journal = JournalFollower(ring, Pace(1000.0, 0.0), send, lambda: True, ())
    output.Output(loop, ring, journal, drops_oldest=False).finish(loop.stop)
    assert sent == []
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + 2 * output.LAST_WORDS_SECONDS)
    loop.run()
    os.close(ring.descriptor)
    assert sent == [b"last words"]


def test_a_fork_that_talks_without_end_floods_no_log_and_holds_nothing_up(
    unstarted: LoaderProcess, passed: Endpoint
) -> None:
    unstarted.start(environment={"FAKE_CONSTANTS": "keep_loader.streams:PAUSE_SECONDS=0"})
    peer, stub = opened(unstarted, passed)
    stub.do("write", to=1, text="x\n", times=IN_ALL)
    assert peer.ask(CommandType.INFO).state is State.STARTED
    stub.listen()
    log = unstarted.log_text()
    assert len(log) < IN_ALL
    assert log.count("says too much of itself") == 1


def test_a_reader_that_holds_makes_the_workload_wait_and_gets_everything(
    loader: LoaderProcess, passed: Endpoint
) -> None:
    peer, stub = opened(loader, passed)
    with following(peer) as manager:
        stub.accept()
        stub.order("write", to=1, text="0123456789abcdef" * 64, times=4096)
        ring, position, whole = RingReader(passed.output), 0, 0
        while whole < 4096 * 1024:
            manager.token()
            frames, position = ring.read(position, MIN_CAPACITY)
            data = b"".join(frame.data for frame in frames if frame.stream == STDOUT)
            assert data == (b"0123456789abcdef" * (len(data) // 16 + 2))[whole % 16 :][: len(data)]
            whole += len(data)
            manager.acknowledge(position, position, whole)
        exits(stub)
        outcome = outcome_of(loader.ended(passed))
        assert (outcome.output_bytes, outcome.lost_bytes) == (whole, 0)


def test_without_a_reader_nothing_is_waited_for_and_what_is_overwritten_is_counted(
    loader: LoaderProcess, passed: Endpoint
) -> None:
    _, stub = running(loader, passed)
    stub.do("write", to=1, text="0123456789abcde\n" * 64, times=4096)
    exits(stub)
    outcome = outcome_of(loader.ended(passed))
    tail = RingReader(passed.output).bounds()[0]
    kept = b"".join(f.data for f in RingReader(passed.output).read(tail, MIN_CAPACITY)[0] if f.stream == STDOUT)
    assert outcome.output_bytes == 4096 * 1024
    assert outcome.lost_bytes == 4096 * 1024 - len(kept)
    assert outcome.journal_skipped_bytes is not None


def test_a_reader_that_comes_to_nothing_is_waited_for_until_the_stop(loader: LoaderProcess, passed: Endpoint) -> None:
    peer, stub = opened(loader, passed)
    with following(peer):
        stub.accept()
        stub.order("write", to=1, text="x" * 1024, times=4096)
        loader.systemd.wait_for("STATUS", "started: running")
        report = peer.ask(CommandType.STOP, "alice")
    assert report.detail == "stopped by alice"
    assert loader.ended(passed) == report
    assert loader.end() == 0


@pytest.mark.parametrize("packet", [b"", b"x", b"\0" * 31, b"\xff" * 33, b"\xff" * 64])
def test_a_channel_that_says_what_is_no_acknowledgement_is_closed(
    loader: LoaderProcess, passed: Endpoint, packet: bytes
) -> None:
    peer, stub = running(loader, passed)
    with following(peer) as manager:
        manager.token()
        if packet:
            manager.sock.send(packet)
        else:
            manager.sock.shutdown(socket.SHUT_RDWR)
        assert manager.sock.recv(16) == b""
    stub.do("write", to=1, text="x" * 1024, times=4096)
    exits(stub)
    assert outcome_of(loader.ended(passed)).output_bytes == 4096 * 1024


@pytest.mark.parametrize("seen", [0, 1, 1 << 62, (1 << 64) - 1])
@pytest.mark.parametrize("kept", [1, 1 << 62, (1 << 64) - 1])
def test_no_position_that_is_acknowledged_can_harm_the_loader(
    loader: LoaderProcess, passed: Endpoint, seen: int, kept: int
) -> None:
    peer, stub = running(loader, passed)
    with following(peer) as manager:
        manager.token()
        manager.acknowledge(seen, kept)
        stub.do("write", to=1, text="x" * 100)
        exits(stub)
        assert outcome_of(loader.ended(passed)).output_bytes == 100


def test_a_channel_or_a_journal_is_taken_of_a_started_keep_alone(loader: LoaderProcess, passed: Endpoint) -> None:
    peer = loader.peer()
    for kind in (CommandType.FOLLOW, CommandType.JOURNAL):
        with pytest.raises(KeepfleetError) as refused:
            peer.ask(kind, "", (passed.authority,))
        assert refused.value.kind is ErrorKind.CONFLICT
    opened(loader, passed)
    for kind in (CommandType.FOLLOW, CommandType.JOURNAL):
        for wrong in ((), (passed.authority,), (passed.authority, passed.authority)):
            with pytest.raises(KeepfleetError) as refused:
                peer.ask(kind, "", wrong)
            assert refused.value.kind is ErrorKind.BAD_REQUEST


def test_what_is_in_the_pipes_when_the_loader_is_killed_is_not_lost(loader: LoaderProcess, passed: Endpoint) -> None:
    peer, stub = opened(loader, passed)
    with following(peer):
        stub.accept()
        stub.order("write", to=1, text="0123456789abcdef" * 64, times=4096)
        loader.systemd.wait_for("STATUS", "started: running")
        assert loader.process is not None
        loader.process.send_signal(signal.SIGSTOP)  # it reads no more
        wait_until_full(stub)
        loader.end(signal.SIGKILL)
        os.kill(stub.pid, signal.SIGKILL)
        loader.systemd.drain()
    before = len(passed.written(STDOUT))
    loader.start()
    report = loader.ended(passed)
    assert report.detail == "the loader was killed while the workload ran"
    ring = RingReader(passed.output)
    frames = [frame for frame in ring.read(ring.bounds()[0], MIN_CAPACITY)[0] if frame.stream == STDOUT]
    total = frames[-1].offset + len(frames[-1].data)
    assert total >= before + 512 * 1024
    text = b"".join(frame.data for frame in frames)
    assert text == (b"0123456789abcdef" * (len(text) // 16 + 2))[frames[0].offset % 16 :][: len(text)]
    assert (outcome_of(report).output_bytes, outcome_of(report).lost_bytes) == (total, None)
    loader.systemd.drain()
    assert loader.systemd.stored == {}


def test_a_ring_that_cannot_be_written_costs_its_bytes_and_not_the_workload(
    loader: LoaderProcess, passed: Endpoint
) -> None:
    _, stub = running(loader, passed)
    assert loader.process is not None
    resource.prlimit(loader.process.pid, resource.RLIMIT_FSIZE, (4096 + 200_000, resource.RLIM_INFINITY))
    stub.do("write", to=1, text="x" * 1000, times=400)
    resource.prlimit(loader.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    exits(stub)
    outcome = outcome_of(loader.ended(passed))
    assert outcome.kind is OutcomeKind.EXITED
    assert outcome.output_bytes == 400_000
    assert outcome.lost_bytes is not None and len(passed.written(STDOUT)) + outcome.lost_bytes == 400_000
    assert loader.log_text().count("output is lost, as it cannot be written") <= 1


def test_a_journald_that_is_gone_is_reported_and_gets_everything_over_its_next_socket(
    loader: LoaderProcess, unread: Endpoint
) -> None:
    peer, stub = running(loader, unread)
    waiter = loader.peer()
    waiter.send(CommandType.WAIT, f"running {peer.ask(CommandType.INFO).detail}")
    unread.journald.close()
    stub.do("write", to=1, text="first\nsecond\n")
    report = waiter.answer()
    assert (report.journal_gone, "journald's socket is gone" in report.detail) == (True, True)
    ours, journald = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, journald:
        report = peer.ask(CommandType.JOURNAL, "", (ours.fileno(),))
        assert not report.journal_gone
        assert [fields_of(journald.recv(4096))["MESSAGE"] for _ in range(2)] == [b"first", b"second"]
        exits(stub)
        outcome = outcome_of(loader.ended(unread))
    assert (outcome.lost_bytes, outcome.journal_skipped_bytes) == (0, 0)


@pytest.mark.parametrize("before_start", [True, False])
def test_what_a_journald_that_stores_nothing_has_is_not_known(
    unstarted: LoaderProcess, passed: Endpoint, before_start: bool
) -> None:
    unstarted.start()
    if before_start:
        unstarted.peer().ask(CommandType.JOURNAL, UNSTORED)
    peer, stub = running(unstarted, passed)
    if not before_start:
        peer.ask(CommandType.JOURNAL, UNSTORED)
    stub.do("write", to=1, text="nowhere\n")
    exits(stub)
    outcome = outcome_of(unstarted.ended(passed))
    assert (outcome.output_bytes, outcome.lost_bytes, outcome.journal_skipped_bytes) == (8, 0, None)


def test_what_a_journald_that_stands_still_to_the_end_was_not_given_is_counted(
    loader: LoaderProcess, unread: Endpoint
) -> None:
    _, stub = running(loader, unread)
    stub.do("write", to=1, text="a line of the guest's\n" * 2000)
    exits(stub)
    outcome = outcome_of(loader.ended(unread))
    unread.journald.setblocking(False)
    stored = 0
    with suppress(BlockingIOError):
        while True:
            entry = fields_of(unread.journald.recv(64 * 1024))
            if "KEEP_STREAM" in entry:
                stored += len(entry["MESSAGE"]) + 1
    assert stored < 44_000
    assert outcome.journal_skipped_bytes == 44_000 - stored


def test_the_loader_waits_until_journald_has_read_its_last_words(unstarted: LoaderProcess, unread: Endpoint) -> None:
    unstarted.start(environment=PATIENT)
    _, stub = running(unstarted, unread)
    stub.do("write", to=2, text="last words\n")
    exits(stub)
    unstarted.systemd.drain()
    assert select.select([unread.journald], [], [], DEADLINE)[0]
    assert unstarted.process is not None and unstarted.process.poll() is None
    assert entries_of(unread)[-1]["MESSAGE"] == b"last words"
    assert unstarted.ended(unread).state is State.COMPLETE


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        ({"kind": "exited", "text": "exited 0", "exit_code": 0}, 0),
        ({"kind": "exited", "text": "exited 42", "exit_code": 42}, 42),
        ({"kind": "exited", "text": "exited 75", "exit_code": 75}, 1),
        ({"kind": "exited", "text": "exited 256", "exit_code": 256}, 1),
        ({"kind": "trapped", "text": "trapped: unreachable"}, TRAP),
        ({"kind": "refused", "text": "refused: no"}, 126),
    ],
)
def test_the_loader_exits_as_its_workload_ended_and_leaves_nothing_with_systemd(
    loader: LoaderProcess, passed: Endpoint, outcome: dict[str, object], status: int
) -> None:
    peer, stub = running(loader, passed)
    peer.send(CommandType.WAIT, "2")
    stub.report("ended", outcome=outcome)
    stub.order("exit", code=1)
    report = peer.answer()
    assert report.detail == outcome["text"]
    assert loader.ended(passed) == report
    assert loader.end() == status
    loader.systemd.drain()
    assert loader.systemd.stored == {}
    assert loader.systemd.statuses[-1].startswith(f"{report.state.name.lower()}: {outcome['text']}")


def test_a_stopped_keep_s_loader_exits_with_0_and_one_that_was_never_started_stays(
    loader: LoaderProcess, passed: Endpoint
) -> None:
    peer, _ = opened(loader, passed)
    peer.send(CommandType.STOP, "alice")
    assert peer.answer().detail == "stopped by alice"
    assert loader.ended(passed).state is State.COMPLETE
    assert loader.end() == 0


def test_a_keep_whose_start_failed_stays_and_can_be_started(loader: LoaderProcess, passed: Endpoint) -> None:
    peer = loader.peer()
    peer.start(passed.named)
    loader.stub().order("exit", code=1)
    with pytest.raises(KeepfleetError):
        peer.answer()
    loader.systemd.drain()
    assert loader.systemd.stored == {}
    _, stub = running(loader, passed)
    stub.do("write", to=1, text="second start\n")
    exits(stub)
    loader.ended(passed)
    assert passed.written(STDOUT) == b"second start\n"
