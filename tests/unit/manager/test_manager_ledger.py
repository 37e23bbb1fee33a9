"""Events as entries of the journal, with a socket in journald's place and a script in journalctl's."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from keep_manager.model import Told
from keep_manager.systemd import ledger
from keep_manager.systemd.ledger import Ledger
from keep_manager.systemd.lines import Journal
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.sse import EventType, KeepEvent
from keep_protocol.states import State
from tests.fakes.fake_journal import cursor

EVENT = KeepEvent(1.5, EventType.FAILED, KeepInfo(7, State.ERROR, "lost\nits way", restarts=2, phase="failed"), "alice")


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "socket"))
        yield sock


def with_journalctl(place: Path, *records: Mapping[str, object], follows: bool = False) -> Ledger:
    """A ledger whose journalctl writes `records`, and its arguments into the file `arguments`, one call a line."""
    script, told = place / "journalctl", "".join(json.dumps(record) + "\n" for record in records)
    (place / "records").write_text(told)
    end = "exec sleep 1000" if follows else "exit 0"
    script.write_text(f'#!/bin/sh\necho "$@" >> {place}/arguments\ncase "$*" in *--sync*) exit 0;; esac\n'
                      f'cat {place}/records\n{end}\n')  # fmt: skip
    script.chmod(0o755)
    return Ledger(Journal("system", (str(script),)), "system", str(place / "socket"))


async def test_an_event_is_an_entry_with_fields_about_the_keeps_unit(tmp_path: Path, journald: socket.socket) -> None:
    await with_journalctl(tmp_path).write(EVENT, "keep@7.service: failed")
    said = dict(line.split("=", 1) for line in journald.recv(65536).decode().splitlines())
    assert (said["MESSAGE"], said["KEEP_EVENT_KEEP"], said["KEEP_EVENT"]) == ("keep@7.service: failed", "7", "failed")
    assert (said["OBJECT_SYSTEMD_UNIT"], said["PRIORITY"], said["KEEP_RESTARTS"]) == ("keep@7.service", "4", "2")
    assert ledger.read_event(json.dumps({**said, "__CURSOR": cursor(3)}).encode()) == KeepEvent(
        EVENT.at, EVENT.type, EVENT.keep, EVENT.by, cursor(3)
    )


def test_a_value_with_a_newline_cannot_add_a_field() -> None:
    assert ledger.entry({"MESSAGE": "a\nPRIORITY=0"}) == b"MESSAGE\n\x0c\0\0\0\0\0\0\0a\nPRIORITY=0\n"


async def test_a_journald_that_is_not_there_or_takes_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "WRITE_SECONDS", 0.05)
    book = with_journalctl(tmp_path)
    with pytest.raises(KeepfleetError, match="cannot write to the journal: No such file") as caught:
        await book.write(EVENT, "x")
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as full:
        full.bind(str(tmp_path / "socket"))
        with pytest.raises(KeepfleetError, match="cannot write to the journal: it takes nothing"):
            while True:
                await book.write(EVENT, "x")


async def test_what_was_told_last_is_the_first_found_from_the_newest_back(tmp_path: Path) -> None:
    told = [
        {"KEEP_EVENT_KEEP": "7", "KEEP_EVENT": word, "KEEP_RESTARTS": "1"} for word in ("running", "started", "created")
    ]
    book = with_journalctl(tmp_path, *told, {"KEEP_EVENT_KEEP": "8", "KEEP_EVENT": "melted"}, {"KEEP_EVENT_KEEP": None})
    assert await book.told() == {7: Told(EventType.RUNNING, 1)}
    assert "--reverse" in (tmp_path / "arguments").read_text()


async def test_dropped_lines_are_added_up_after_journald_has_written_everything_down(tmp_path: Path) -> None:
    book = with_journalctl(tmp_path, {"N_DROPPED": "5"}, {"N_DROPPED": "37"}, {"N_DROPPED": None}, {})
    assert await book.dropped(7) == 42
    synced, read = (tmp_path / "arguments").read_text().splitlines()
    assert synced == "--sync"
    assert read.endswith(
        "_TRANSPORT=driver MESSAGE_ID=a596d6fe7bfa4994828e72309e95d61e OBJECT_SYSTEMD_UNIT=keep@7.service"
    )


async def test_lines_that_were_taken_are_counted_from_a_moment_on(tmp_path: Path) -> None:
    moments = ({"__MONOTONIC_TIMESTAMP": text} for text in ("5249999", "5250000", "9000000", "x"))
    book = with_journalctl(tmp_path, *moments)
    assert await book.taken(7, 5.25, 100) == 2
    assert "--lines=100 _SYSTEMD_UNIT=keep@7.service" in (tmp_path / "arguments").read_text()


async def test_events_begin_after_the_latest_entry_whoevers_it_is(tmp_path: Path) -> None:
    record = {"__CURSOR": cursor(3), "KEEP_RECORD": json.dumps(EVENT.to_wire())}
    later = {"__CURSOR": cursor(4), "KEEP_RECORD": json.dumps(EVENT.to_wire())}
    book = with_journalctl(tmp_path, record, {"__CURSOR": cursor(5), "KEEP_RECORD": "{"}, later, follows=True)
    async with asyncio.timeout(20), book.events(7, follow=True) as events:
        first = await anext(events)
    assert first.cursor == cursor(4), "the latest entry was there before, and what cannot be read is passed over"
    end, read = (tmp_path / "arguments").read_text().splitlines()
    assert end.endswith("--lines=1")
    assert read.endswith(f"--cursor={cursor(3)} --no-tail _SYSTEMD_UNIT=keep-manager.service "
                         f"MESSAGE_ID={ledger.MESSAGE_ID} KEEP_EVENT_KEEP=7")  # fmt: skip


async def test_the_last_events_and_those_after_one_are_asked_for_directly(tmp_path: Path) -> None:
    record = {"__CURSOR": cursor(10), "KEEP_RECORD": json.dumps(EVENT.to_wire())}
    book = with_journalctl(tmp_path, record, follows=True)
    for last, after in ((3, ""), (None, cursor(9))):
        async with asyncio.timeout(20), book.events(last=last, after=after, follow=True) as events:
            assert (await anext(events)).type is EventType.FAILED
    first, second = (tmp_path / "arguments").read_text().splitlines()
    assert "--lines=3" in first
    assert f"--cursor={cursor(9)}" in second


async def test_an_id_that_is_no_cursor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeepfleetError, match="cannot resume after"):
        async with with_journalctl(tmp_path).events(after="--help"):
            pytest.fail("it was taken")
