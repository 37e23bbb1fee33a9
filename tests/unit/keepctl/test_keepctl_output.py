"""Output on our own streams: bytes as they are, safe text on a terminal, lines for programs; and what is sent in."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import tty
from collections.abc import Sequence
from pathlib import Path

import pytest

from keep_client.output import GAP, Piece
from keep_protocol.keep import Outcome, OutcomeKind
from keep_protocol.ring import MARK, STDERR, STDOUT, Mark
from keep_protocol.states import State
from keepctl.output import LONGEST_LINE, Lines, Sink, Streams
from tests.fakes.manager_in_memory import FIRST_ID, ManagerInMemory
from tests.unit.keepctl.conftest import GOOD, MakeStub, Run


def on_a_terminal(parts: Sequence[bytes], raw: bool = False) -> bytes:
    """What a terminal is sent of a guest's output that comes in these pieces."""
    reader, terminal = pty.openpty()
    tty.setraw(terminal)
    with os.fdopen(terminal, "w", buffering=1) as stream:
        sink = Sink(stream, raw)
        for part in parts:
            sink.write([part])
        sink.end()
        os.write(terminal, b"\0")  # so that there is something to read in any case
        said = b""
        while not said.endswith(b"\0"):
            said += os.read(reader, 4096)
    os.close(reader)
    return said[:-1]


@pytest.mark.parametrize(
    ("parts", "shown"),
    [
        ((b"hello\n", b"\tworld\n"), "hello\n\tworld\n"),
        ((b"\x1b[2J\r\n",), "\\x1b[2J\\r\n"),
        ((b"na\xc3", b"\xafve\n"), "naïve\n"),
        ((b"\xff\n",), "\\xff\n"),
        ((b"\xc2", b"\x9b31m\n"), "\\x9b31m\n"),
        ((b"cut \xe2\x82",), "cut \\xe2\\x82\n"),
        ((b"name? ",), "name? \n"),
        ((), ""),
    ],
)
def test_a_terminal_is_steered_by_no_guest(parts: tuple[bytes, ...], shown: str) -> None:
    assert on_a_terminal(parts).decode() == shown


def test_a_terminal_gets_it_as_it_is_where_a_person_wants_that() -> None:
    assert on_a_terminal([b"\x1b[31mred"], raw=True) == b"\x1b[31mred"


def test_a_line_that_the_guest_left_open_is_ended_before_something_else_is_shown() -> None:
    reader, terminal = pty.openpty()
    tty.setraw(terminal)
    with os.fdopen(terminal, "w", buffering=1) as stream:
        sink = Sink(stream, raw=False)
        for part in (b"name? ", b"", b"x\n"):
            sink.write([part])
            sink.break_line()
            sink.break_line()
        said = b""
        while not said.endswith(b"x\n"):
            said += os.read(reader, 4096)
    assert said == b"name? \nx\n"
    os.close(reader)


def test_what_is_missing_is_said_where_it_is_missing(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    streams = Streams(raw=False)
    streams.show(
        [(STDOUT, 0, b"a\n"), (GAP, STDOUT, b"7"), (STDERR, 0, b"b\n"), (GAP, STDERR, b"1"), (STDOUT, 0, b"c")]
    )
    streams.end()
    out, err = capfdbinary.readouterr()
    assert out == b"a\nc"
    assert err == b"keepctl: 7 bytes are missing here, of stdout\nb\nkeepctl: 1 byte is missing here, of stderr\n"


def lines_of(*pieces: Piece) -> list[tuple[float, str, str]]:
    lines = Lines()
    found = [line for piece in pieces for line in lines.feed([piece])] + list(lines.end())
    return [(line.at, line.source, line.text) for line in found]


def test_lines_are_whole_and_have_their_stream_and_the_time_at_which_they_ended() -> None:
    found = lines_of(
        (MARK, 1_000_000_000, Mark(5_000_000_000).encode()),
        (STDOUT, 2_000_000_000, b"one\ntw"),
        (STDERR, 2_500_000_000, b"error\n"),
        (STDOUT, 3_000_000_000, b"o\nrest"),
        (GAP, STDOUT, b"9"),
        (STDOUT, 4_000_000_000, b"\xff"),
    )
    assert found == [
        (6.0, "stdout", "one"),
        (6.5, "stderr", "error"),
        (7.0, "stdout", "two"),
        (7.0, "stdout", "rest"),
        (7.0, "gap", "9 bytes are missing here, of stdout"),
        (8.0, "stdout", "\ufffd"),
    ]


@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_long_line_comes_in_pieces_of_whole_characters(end: bytes) -> None:
    text = "aä€" * 30_000
    found = lines_of((MARK, 0, Mark(0).encode()), (STDOUT, 0, text.encode() + end))
    assert "".join(piece for _, _, piece in found) == text
    assert max(len(piece.encode()) for _, _, piece in found) <= LONGEST_LINE


def fed(manager: ManagerInMemory, module: str, data: bytes, *words: str) -> subprocess.CompletedProcess[bytes]:
    """`keepctl run` with this standard input from a pipe, for a guest that ends well when it has ended."""
    manager.on_input = lambda kuuid: manager.change(kuuid, state=State.COMPLETE, outcome=GOOD)
    command = [sys.executable, "-m", "keepctl", "run", *words, module]
    return subprocess.run(command, input=data, capture_output=True, check=False)


@pytest.mark.parametrize(("contents", "sent"), [(b"from a file", True), (b"", False), (None, False)])
def test_a_file_is_sent_and_a_device_is_left_alone(
    manager: ManagerInMemory, stub: MakeStub, module: str, tmp_path: Path, contents: bytes | None, sent: bool
) -> None:
    file = tmp_path / "input"
    file.write_bytes(contents or b"")
    manager.on_input = lambda kuuid: manager.change(kuuid, state=State.COMPLETE, outcome=GOOD)
    with stub(None if sent else GOOD), open(os.devnull if contents is None else file, "rb") as given:
        done = subprocess.run([sys.executable, "-m", "keepctl", "run", module], stdin=given, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert (manager.workloads.get(FIRST_ID) == {"stdin": {"stream": True}}) is sent
    assert bytes(manager.input.get(FIRST_ID, b"")) == (contents if sent else b"")


@pytest.mark.parametrize("size", [0, 10, 5_000_000])
def test_standard_input_is_sent_to_its_end(manager: ManagerInMemory, stub: MakeStub, module: str, size: int) -> None:
    data = os.urandom(size)
    with stub(None):
        done = fed(manager, module, data)
    assert (done.returncode, done.stderr) == (0, b"")
    assert manager.workloads[FIRST_ID] == {"stdin": {"stream": True}}
    assert bytes(manager.input[FIRST_ID]) == data


def test_a_guest_that_takes_no_more_is_no_fault(manager: ManagerInMemory, stub: MakeStub, module: str) -> None:
    manager.takes = 10
    with stub(None):
        done = fed(manager, module, b"y\n" * 1_000_000)
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_input_that_breaks_off_is_the_end_of_the_guest(
    manager: ManagerInMemory, stub: MakeStub, module: str
) -> None:
    with stub(None), subprocess.Popen(
        [sys.executable, "-m", "keepctl", "run", "-i", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(b"half")
        process.stdin.flush()
        manager.followers.until(None, lambda: bytes(manager.input[FIRST_ID]) == b"half")
        process.kill()
    manager.followers.until(None, lambda: manager.keeps[FIRST_ID].outcome is not None)
    assert manager.keeps[FIRST_ID].outcome == Outcome(OutcomeKind.LOST, "lost: its input was cut")


def test_input_that_is_not_taken_stops_the_keep_and_is_said(
    manager: ManagerInMemory, stub: MakeStub, module: str
) -> None:
    with stub(None):
        manager.refuses_input = True
        done = fed(manager, module, b"x")
    assert done.returncode == 125
    assert f"keepctl: cannot send input to keep {FIRST_ID}: it takes none".encode() in done.stderr


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("-i", "-d", "m.wasm"), "-i and -d exclude each other"),
        (("-i", "-"), "standard input is the module (-) or the guest's (-i), not both"),
    ],
)
def test_standard_input_is_one_thing_alone(run: Run, words: tuple[str, ...], why: str) -> None:
    refused = run("run", *words)
    assert (refused.exit_code, why in refused.stderr) == (2, True)


@pytest.mark.parametrize("words", [("--stdin", "/in"), ("--restart", "always")])
def test_a_streamed_input_is_no_file_and_is_read_once(run: Run, words: tuple[str, ...]) -> None:
    refused = run("run", "-i", *words, "m.wasm")
    assert refused.exit_code == 125
    assert "standard input that is streamed" in refused.stderr


def test_a_module_comes_from_standard_input(manager: ManagerInMemory, stub: MakeStub) -> None:
    module = b"\0asm\1\0\0\0" + bytes(100_000)
    with stub() as at:
        command = [sys.executable, "-m", "keepctl", "run", "-"]
        done = subprocess.run(command, input=module, capture_output=True, check=False)
    assert (done.returncode, done.stderr, at.received) == (0, b"", module)
    assert "x-module-name" not in at.headers


def test_output_that_is_lost_on_the_way_is_asked_for_from_where_it_broke_off(
    run: Run, manager: ManagerInMemory, stub: MakeStub, module: str
) -> None:
    wrote = [os.urandom(50_000) for _ in range(9)]
    for data in wrote:
        manager.write(FIRST_ID, STDOUT, data)
    manager.break_off_after = [120_000, 3, 70_001]
    with stub():
        done = run("run", module)
    assert (done.exit_code, done.stdout_bytes) == (0, b"".join(wrote))
    asked = [query.get("from", "0") for query in manager.output[FIRST_ID].asked]
    assert asked == sorted(asked, key=int) and len(asked) == 4


def test_the_policy_of_its_output_is_asked_for(run: Run, manager: ManagerInMemory) -> None:
    run("create", "--output-policy", "drop-oldest")
    assert json.loads(run("inspect", str(FIRST_ID)).stdout)["output"] == "drop-oldest"
