"""What scripts print, on the pool's standard error in place of their answers: marked, cleaned, bounded, and never
waited for."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator

import pytest

from script_pool import console
from script_pool.console import Journal, marked
from tests.unit.script_pool.test_script_service import PROGRAM, ROOT

MARK = re.compile(r'script-pool: script "[^\n]*"…? run [0-9]+: ')


def lines_of(name: str, *lines: str) -> list[str]:
    written = b"".join(marked(name, 7, lines))
    assert written.endswith(b"\n")
    return written.decode("utf-8")[:-1].split("\n")


def test_what_scripts_print_is_journaled_and_in_no_answer() -> None:
    asked = (
        {"id": 1, "cmd": "AddCode", "name": "a", "code": "log hello"},
        {"id": 2, "cmd": "AddCode", "name": "bad", "code": "log begins\nthrow TypeError why"},
        {"id": 3, "cmd": "ExecCode", "name": "a", "inputSandbox": {}},
        {"id": 4, "cmd": "ExecCode", "name": "bad", "inputSandbox": {}},
    )
    given = b"".join(json.dumps(each).encode() + b"\r\n" for each in asked)
    for where, journaled in (("journal", True), ("return", False)):
        program = [*PROGRAM, "--stdio", f"--console={where}"]
        done = subprocess.run(program, input=given, capture_output=True, cwd=ROOT)
        answers = {answer["id"]: answer for answer in map(json.loads, done.stdout.splitlines())}
        assert (answers[3]["ok"], answers[4]["reason"]) == (True, "exception")
        printed = [answers[number].get("console") for number in (3, 4)]
        assert printed == ([None, None] if journaled else [["hello"], ["begins"]])
        said = sorted(
            re.sub(r"run [0-9]+", "run N", line) for line in done.stderr.decode().splitlines() if " run " in line
        )
        lines = ['script-pool: script "a" run N: hello', 'script-pool: script "bad" run N: begins']
        assert said == (lines if journaled else [])


def test_a_line_cannot_pass_for_another_runs() -> None:
    forged = 'script-pool: script "b" run 8: paid'
    for text in (
        f"a\n{forged}",
        f"a\r{forged}",
        f"a\x85{forged}",
        f"a\u2028{forged}",
        f"\x1b[2K\r{forged}",
        f"\0{forged}",
    ):
        (line,) = lines_of("a", text)
        assert line.startswith('script-pool: script "a" run 7: ')
        assert line.isprintable()
    for name in (f'a" run 8: paid\n{forged}', "\u202e\x7f", "\ud800", '"'):
        (line,) = lines_of(name, "x")
        assert line.isprintable()
        quoted, rest = json.JSONDecoder().raw_decode(line.removeprefix("script-pool: script ").replace("\\x7f", "\x7f"))
        assert (quoted, rest > 0) == (name, True)


def test_a_long_line_is_cut_and_each_piece_has_the_mark() -> None:
    for text in ("x" * 65536, "é" * 5000, "😀" * 3000, "\x01" * 3000):
        pieces = lines_of("😀" * 300, text)
        assert len(pieces) > 1
        assert all(MARK.match(piece) and len(piece.encode()) < 4096 for piece in pieces)
        whole = "".join(MARK.sub("", piece, count=1) for piece in pieces)
        assert whole == (text if text.isprintable() else r"\x01" * 3000)


def test_a_run_has_a_hundred_lines() -> None:
    lines = lines_of("a", *[""] * 65536)
    assert len(lines) == console.MAX_LINES + 1
    assert lines[-1].endswith("(the rest of its lines is left out: a run has 100)")
    assert len(lines_of("a", *["x"] * 100)) == 100


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_what_is_not_read_is_lost_and_counted_and_holds_no_run_up(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    seconds = [0.0]
    journal = Journal(writing, lambda: seconds[0])
    for run in range(50):
        seconds[0] += 1
        journal.write("a", run, ["x" * 700] * 10)  # 350 KB, of which a pipe takes 64
    kept = os.read(reading, 1 << 20).count(b"\n")
    journal.close()
    said = os.read(reading, 1 << 20)
    assert said == f"script-pool: {500 - kept} lines of scripts were lost: they came too fast\n".encode()
    assert 50 < kept < 100


def test_a_flood_leaves_room_for_what_else_the_journal_takes(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    seconds = [0.0]
    journal = Journal(writing, lambda: seconds[0])
    for run in range(5):
        journal.write("a", run, [""] * 100)
    seconds[0] = 1.5
    journal.write("b", 6, ["after"])
    lines = os.read(reading, 1 << 20).decode().splitlines()
    assert len(lines) == console.PER_SECOND + 2
    assert lines[-2:] == [
        "script-pool: 250 lines of scripts were lost: they came too fast", 'script-pool: script "b" run 6: after'
    ]  # fmt: skip


def test_a_standard_error_that_is_closed_stops_no_run() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    journal = Journal(writing)
    journal.write("a", 1, ["x"])
    os.close(writing)
    journal.write("a", 2, ["x"])
    journal.close()
    assert repr(journal) == "Journal(2 lines lost)"
