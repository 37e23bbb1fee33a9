"""A keep's output, from the guest's write to a client, the ring and the journal, byte for byte."""

from __future__ import annotations

import hashlib
import http.client
import signal
from collections.abc import Iterator

import pytest

from keep_protocol.keep import Outcome
from keep_protocol.output import END
from keep_protocol.ring import STDERR, STDOUT, Frame
from keep_protocol.states import State
from tests.output_decoder import OutputDecoder
from tests.system import modules
from tests.system.fixtures import module_s_fleet
from tests.system.fleet import Fleet
from tests.system.host import until
from tests.system.life import SOON, Life

pytestmark = pytest.mark.usefixtures("undisturbed")
fleet = pytest.fixture(scope="module")(module_s_fleet)

EXACT = b"\n\n trailing \t\r\nnul\0inside\xff\xfe\x1b[31m\n" + b"x" * 300_000 + b"\nno newline"
BLOCK = bytes(range(256)) * 256
HUNDRED_MB = 100_000_000
TICK = b"tick\n"


class Output:
    """A client that follows a keep's output: attached once this is made, and read by `frames`."""

    def __init__(self, life: Life, *, hold: bool = True) -> None:
        self._connection = http.client.HTTPSConnection(
            "127.0.0.1", life.fleet.port, context=life.fleet.tls(), timeout=6 * SOON
        )
        query = f"follow=true&hold={'true' if hold else 'false'}"
        self._connection.request("GET", f"/v1/keeps/{life.kuuid}/output?{query}")
        self._answer = self._connection.getresponse()
        assert self._answer.status == 200, self._answer.read()

    def close(self) -> None:
        """Goes away in the middle."""
        self._answer.close()
        self._connection.close()

    def frames(self) -> Iterator[Frame]:
        """The frames up to the end."""
        decoder = OutputDecoder()
        while data := self._answer.read1(1 << 20):
            yield from decoder.feed(data)
        assert decoder.whole
        self._connection.close()

    def streams(self) -> dict[int, bytes]:
        """Both of the guest's, whole."""
        pieces: dict[int, list[bytes]] = {STDOUT: [], STDERR: []}
        last = 0
        for frame in self.frames():
            last = frame.stream
            if frame.stream in pieces:
                pieces[frame.stream].append(frame.data)
        assert last == END
        return {stream: b"".join(parts) for stream, parts in pieces.items()}


def outcome_of(life: Life, state: State = State.COMPLETE) -> Outcome:
    life.until(State.STARTED, state)
    assert life.info.outcome is not None
    return life.info.outcome


def entries_of(life: Life, stream: str) -> list[bytes]:
    """The lines of one stream that journald has."""
    found: list[bytes] = []
    for entry in life.host.journal(_SYSTEMD_UNIT=life.unit, KEEP_STREAM=stream):
        message = entry["MESSAGE"]
        found += (bytes(message) if isinstance(message, list) else str(message).encode()).split(b"\n")
    return found


def test_what_no_text_may_hold_arrives_as_it_was_written_in_each_stream(fleet: Fleet) -> None:
    life = Life.awaiting(fleet)
    output = Output(life)
    assert life.upload(modules.says(EXACT)).status == 200
    assert output.streams() == {STDOUT: EXACT, STDERR: b""}
    outcome = outcome_of(life)
    assert (outcome.output_bytes, outcome.lost_bytes, outcome.journal_skipped_bytes) == (len(EXACT), 0, 0)
    lines = entries_of(life, "stdout")
    assert lines[:4] == [b"", b"", b" trailing \t\r", b"nul\0inside\xff\xfe\x1b[31m"]
    assert lines[-1] == b"no newline"
    assert b"".join(lines[4:-1]) == b"x" * 300_000  # in pieces that say so
    life.remove()


def test_20000_lines_that_are_printed_in_one_burst_are_all_in_output_and_journal(fleet: Fleet) -> None:
    life = Life.awaiting(fleet)
    text = b"".join(b"line %d\n" % number for number in range(20_000))
    assert life.upload(modules.sleeps(text)).status == 200
    life.line("line 19999")  # a journald that stands still when the guest has ended gets a second
    fleet.client().stop(life.kuuid)
    outcome = outcome_of(life)
    assert (outcome.output_bytes, outcome.lost_bytes, outcome.journal_skipped_bytes) == (len(text), 0, 0)
    assert Output(life, hold=False).streams()[STDOUT] == text
    assert entries_of(life, "stdout") == text[:-1].split(b"\n")
    life.remove()


def test_100_mb_reach_a_client_exactly_and_what_the_journal_skipped_is_counted(fleet: Fleet) -> None:
    life = Life.awaiting(fleet)
    output = Output(life)
    times = HUNDRED_MB // len(BLOCK)
    assert life.upload(modules.repeats(BLOCK, times)).status == 200
    digest, size = hashlib.sha256(), 0
    for frame in output.frames():
        if frame.stream == STDOUT:
            assert frame.offset == size
            digest.update(frame.data)
            size += len(frame.data)
    expected = hashlib.sha256()
    for _ in range(times):
        expected.update(BLOCK)
    assert (size, digest.digest()) == (times * len(BLOCK), expected.digest())
    outcome = outcome_of(life)
    assert (outcome.output_bytes, outcome.lost_bytes) == (size, 0)
    assert outcome.journal_skipped_bytes is not None and 0 < outcome.journal_skipped_bytes < size
    life.remove()


def test_a_journald_that_was_stopped_gets_what_was_written_meanwhile(fleet: Fleet) -> None:
    life = Life.awaiting(fleet)
    assert life.upload(modules.repeats(TICK, 1 << 30, pause_ms=100)).status == 200  # until it is stopped
    life.line("tick")
    sockets = ("systemd-journald.socket", "systemd-journald-dev-log.socket", "systemd-journald-audit.socket")
    # A datagram that journald has not yet read goes with its socket, so none is sent while that is closed.
    life.signal(life.loader_pid, signal.SIGSTOP)
    fleet.host.assistant.synchronize()
    fleet.host.systemctl("stop", *sockets, "systemd-journald.service", check=False)
    life.signal(life.loader_pid, signal.SIGCONT)

    def is_without() -> bool:
        return life.look().detail.startswith("the journal gets no output")

    until(is_without, lambda: life.info)
    fleet.host.systemctl("start", *sockets, "systemd-journald.service", check=False)
    until(lambda: not is_without(), lambda: life.info)
    fleet.client().stop(life.kuuid)
    outcome = outcome_of(life)
    assert (outcome.lost_bytes, outcome.journal_skipped_bytes) == (0, 0)
    written = Output(life, hold=False).streams()[STDOUT]
    assert written == TICK * (len(written) // len(TICK))
    assert entries_of(life, "stdout") == written[:-1].split(b"\n")
    life.remove()
    assert "reloaded the configuration" in fleet.reload(), "the manager's log goes on, whose stream journald has closed"


def test_a_loader_that_is_killed_in_a_flood_loses_nothing_that_was_written(fleet: Fleet) -> None:
    life = Life.awaiting(fleet)
    output = Output(life)
    assert life.upload(modules.repeats(BLOCK, 1 << 30)).status == 200
    frames, size, killed = output.frames(), 0, False
    whole = BLOCK + BLOCK
    for frame in frames:
        if frame.stream != STDOUT:
            continue
        assert frame.offset == size
        for start in range(0, len(frame.data), len(BLOCK)):
            piece = frame.data[start : start + len(BLOCK)]
            at = (size + start) % len(BLOCK)
            assert piece == whole[at : at + len(piece)]
        size += len(frame.data)
        if size > 20_000_000 and not killed:
            killed = True
            life.host.systemctl("kill", "--kill-whom=main", "--signal=KILL", life.unit)
    assert killed
    outcome = outcome_of(life, State.ERROR)
    assert (outcome.output_bytes, outcome.lost_bytes) == (size, None)
    life.remove()


def test_systemd_says_of_a_keep_what_its_workload_came_to(fleet: Fleet) -> None:
    lives = {code: Life.ended(fleet, code) for code in (0, 3)}
    states = {code: fleet.host.show(life.unit, "ActiveState", "MainPID") for code, life in lives.items()}
    assert states[0] == {"ActiveState": "active", "MainPID": "0"}
    assert states[3] == {"ActiveState": "failed", "MainPID": "0"}
    failed = fleet.host.systemctl("list-units", "--failed", "--plain", "--no-legend")
    assert (lives[3].unit in failed, lives[0].unit in failed) == (True, False)
    for life in lives.values():
        assert fleet.host.run(["systemctl", "is-failed", life.unit], check=False).returncode == (life is lives[0])
        life.remove()
