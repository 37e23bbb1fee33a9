"""The processes of journalctl that read the journal."""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from keep_manager.systemd import journal as lines
from keep_protocol.errors import ErrorKind, KeepfleetError


async def test_a_host_without_journalctl_says_so(tmp_path: Path) -> None:
    journal = lines.Journal("system", (str(tmp_path / "none"),))
    with pytest.raises(KeepfleetError) as caught:
        async with journal.records(()):
            pytest.fail("it was read")
    assert caught.value.kind is ErrorKind.UNAVAILABLE


async def test_a_unit_s_last_lines_are_read_once_journald_has_written_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "journalctl"
    command.write_text('#!/bin/sh\ncd "${0%/*}"; [ "$1" = --sync ] && exec touch "no such luck"; exec ls no*\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for limit in ("SYNC_SECONDS", "EVIDENCE_SECONDS"):  # in which a script may not have begun
        monkeypatch.setattr(lines, limit, 60.0)
    assert await lines.last_lines("keep@1.service", "system") == ("no such luck",)


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
