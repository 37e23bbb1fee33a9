"""A keep's lines out of what journalctl writes, and the journalctl processes themselves."""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack
from pathlib import Path

import pytest

from keep_manager.systemd import journal as lines
from keep_protocol import sse
from keep_protocol.errors import ErrorKind, KeepfleetError
from tests.fakes.fake_journal import cursor

RECORD = {"__CURSOR": cursor(7), "__REALTIME_TIMESTAMP": "1500000", "MESSAGE": "hello", "_CMDLINE": "python x run"}


def test_what_the_journal_dropped_is_a_line_of_its_own() -> None:
    record = {**RECORD, "MESSAGE": "Suppressed 7 messages from keep@5.service", "N_DROPPED": "7"}
    line = lines.read_record(json.dumps(record).encode())
    assert line == sse.LogLine(1.5, "journal", "7 lines were dropped here", cursor(7))


def test_a_record_of_journalctl_s_is_a_line() -> None:
    line = lines.read_record(json.dumps(RECORD).encode())
    assert line == sse.LogLine(1.5, "workload", "hello", cursor(7))
    raw = lines.read_record(json.dumps({**RECORD, "MESSAGE": [27, 91, 255, 65]}).encode())
    assert raw is not None
    assert raw.text == "\x1b[\ufffdA"


@pytest.mark.parametrize(
    "change",
    [
        {"MESSAGE": None},
        {"MESSAGE": [300]},
        {"MESSAGE": 5},
        {"__CURSOR": "x"},
        {"__CURSOR": None},
        {"__REALTIME_TIMESTAMP": "x"},
    ],
)
def test_a_record_of_another_shape_is_none(change: dict[str, object]) -> None:
    assert lines.read_record(json.dumps({**RECORD, **change}).encode()) is None
    assert lines.read_record(b"{") is None
    assert lines.read_record(b"[]") is None


@pytest.mark.parametrize(
    ("text", "command", "name", "written_by"),
    [
        ("started", "/usr/bin/python3 -I -S /x/keep_loader/__main__.py 5", "python3", "keep"),
        ("app-loader: refused", "/usr/bin/python3 -I -S /x/keep_loader/__main__.py 5", "keep-endpoint", "keep"),
        ("hello", "/usr/bin/python3 -I -S /x/keep_loader/__main__.py 5", "keep-runner", "workload"),
        ("app-loader: forged", "/usr/bin/python3 -I -S /x/keep_loader/__main__.py 5", "keep-runner", "workload"),
        ("app-loader: listening", "/usr/bin/python3 -I -S /x/app_loader/__main__.py", "python3", "keep"),
        ("app-loader: forged", "/usr/bin/python3 -I -S /x/app_loader/__main__.py run", "python3", "workload"),
        ("hello", "/usr/bin/python3 -I -S /x/app_loader/__main__.py", "python3", "workload"),
        ("hello", "", "", "workload"),
    ],
)
def test_who_wrote_a_line_is_told(text: str, command: str, name: str, written_by: str) -> None:
    assert lines.source(text, command, name) == written_by


async def test_readers_are_bounded_and_end_with_their_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_FOLLOWED", 1)
    script = tmp_path / "journalctl"
    script.write_text(f"#!/bin/sh\nprintf '%s\\n' '{json.dumps(RECORD)}'; exec sleep 1000\n")
    script.chmod(0o755)
    journal = lines.Journal("system", (str(script),))
    async with journal.lines(5, follow=True) as found:
        assert (await anext(found)).text == "hello"
        with pytest.raises(KeepfleetError) as caught:
            async with journal.lines(6, follow=True):
                pytest.fail("it was let in")
        assert caught.value.kind is ErrorKind.TOO_MANY
        async with journal.lines(5, beside=True) as rest:
            assert (await anext(rest)).text == "hello", "whoever has a place is not refused the rest"
    async with journal.lines(5, follow=True) as found:
        assert (await anext(found)).text == "hello"


async def test_a_host_without_journalctl_says_so(tmp_path: Path) -> None:
    journal = lines.Journal("system", (str(tmp_path / "none"),))
    with pytest.raises(KeepfleetError) as caught:
        async with journal.lines(5):
            pytest.fail("it was read")
    assert caught.value.kind is ErrorKind.UNAVAILABLE


def test_a_caller_gets_a_share_of_the_readers_and_the_others_theirs() -> None:
    journal = lines.Journal("system")
    with ExitStack() as held:
        for _ in range(lines.MAX_FOLLOWED_PER_CALLER):
            held.enter_context(journal.place_for_reader("alice"))
        with pytest.raises(KeepfleetError, match="16 readers of yours do already, which is the limit") as caught:
            held.enter_context(journal.place_for_reader("alice"))
        assert caught.value.kind is ErrorKind.TOO_MANY
        for number in range(lines.MAX_FOLLOWED - lines.MAX_FOLLOWED_PER_CALLER):
            held.enter_context(journal.place_for_reader(f"caller-{number}"))
        with pytest.raises(KeepfleetError, match="64 readers do already"):
            held.enter_context(journal.place_for_reader("bob"))
    with journal.place_for_reader("alice"):
        assert repr(journal) == "Journal(system, 1 readers)"


async def test_reading_many_records_lets_others_have_their_turn(tmp_path: Path) -> None:
    command = tmp_path / "journalctl"
    command.write_text("#!/bin/sh\nseq 1 5000\n")
    command.chmod(0o755)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    async with lines.Journal("system", (str(command),)).records(()) as records:
        await anext(records)
        before, read = turns, 1
        async for _ in records:
            read += 1
    counting.cancel()
    assert read == 5000
    assert turns - before > 5000 // lines.RECORDS_AT_ONCE - 10
