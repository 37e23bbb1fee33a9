"""Whether journald stores what it is given: tried at the start, with each journald after it, and now and then."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from pathlib import Path

import pytest

from keep_manager.systemd import journal, storing
from keep_manager.systemd.journal import Journal
from keep_manager.systemd.storing import Storing
from tests.fakes.fake_event_log import cursor

SAID = "shows nothing of priority info"
ENOUGH = 60.0
RECORD = json.dumps({"__CURSOR": cursor(1)}) + "\n"


class Host:
    """A journald that a test sets what to store, and a journalctl that reads it, in `place`."""

    def __init__(self, place: Path, journald: socket.socket, instance: str = "system") -> None:
        self.place, self.journald = place, journald
        script = place / "journalctl"
        script.write_text(
            f'#!/bin/sh\ncase "$*" in *--sync*) exit $(cat {place}/sync);; esac\n'
            f"cat {place}/records\nif test -e {place}/later; then mv {place}/later {place}/records; fi\n"
        )
        script.chmod(0o755)
        self.keeps(True)
        self.syncs(True)
        self.start("first")
        self.storing = Storing(
            Journal(instance, (str(script),)), instance, str(place / "socket"), str(place / "invocation")
        )

    def keeps(self, stores: bool) -> None:
        (self.place / "records").write_text(RECORD if stores else "")

    def keeps_later(self) -> None:
        """From the second look on."""
        self.keeps(False)
        (self.place / "later").write_text(RECORD)

    def syncs(self, answers: bool) -> None:
        (self.place / "sync").write_text("0" if answers else "1")

    def start(self, invocation: str) -> None:
        link = self.place / "invocation"
        link.unlink(missing_ok=True)
        os.symlink(invocation, link)

    def tried(self) -> int:
        """How often it was since the last time."""
        count = 0
        self.journald.setblocking(False)
        try:
            while True:
                assert b"KEEP_PROBE=" in self.journald.recv(4096)
                count += 1
        except BlockingIOError:
            return count


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that answers immediately may take longer to start than a journald has to answer."""
    monkeypatch.setattr(journal, "SYNC_SECONDS", ENOUGH)


@pytest.fixture
def host(tmp_path: Path, journald: socket.socket) -> Host:
    return Host(tmp_path, journald)


@pytest.mark.parametrize("there", [True, False])
async def test_a_journal_that_stores_nothing_is_said(host: Host, caplog: pytest.LogCaptureFixture, there: bool) -> None:
    host.keeps(there)
    await host.storing.probe()
    assert host.tried() == 1
    assert host.storing.stores is there
    assert (SAID in caplog.text) is not there


async def test_a_journal_that_stays_so_is_said_once_and_that_it_stores_again_too(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for stores in (False, False, True, True):
        host.keeps(stores)
        await host.storing.probe()
        assert host.storing.stores is stores
    assert caplog.text.count(SAID) == caplog.text.count("stores what it is given again") == 1


async def test_a_journald_that_has_not_come_to_it_is_not_known_to_store_nothing(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(storing, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(storing, "AGAIN_SECONDS", 0.01)
    host.keeps(False)
    host.syncs(False)
    await host.storing.probe()
    assert host.storing.stores
    assert SAID not in caplog.text


async def test_a_user_s_entry_is_waited_for_as_only_root_may_ask_journald_to_write(
    tmp_path: Path, journald: socket.socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(storing, "AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(storing, "PATIENCE_SECONDS", ENOUGH)
    host = Host(tmp_path, journald, "user")
    host.keeps_later()
    host.syncs(False)
    await host.storing.probe()
    assert host.storing.stores
    assert (tmp_path / "records").read_text() == RECORD, "it was looked for twice"
    monkeypatch.setattr(storing, "PATIENCE_SECONDS", 0.05)
    host.keeps(False)
    await host.storing.probe()
    assert not host.storing.stores
    assert "or this user may not read it" in caplog.text


async def test_each_journald_is_tried_and_one_that_goes_on_now_and_then_while_there_are_keeps(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storing, "LOOK_SECONDS", 0.01)
    keeps, heard = [False], asyncio.Queue[bool]()

    async def changed() -> None:
        heard.put_nowait(host.storing.stores)

    tending = asyncio.create_task(host.storing.tend(lambda: keeps[0], changed))
    try:
        async with asyncio.timeout(ENOUGH):
            host.keeps(False)
            host.start("second")
            assert await heard.get() is False
            host.keeps(True)
            host.start("third")
            assert await heard.get() is True
            monkeypatch.setattr(storing, "TRY_SECONDS", 0.02)
            host.keeps(False)
            keeps[0] = True
            assert await heard.get() is False
            keeps[0] = False
            host.keeps(True)
            assert await heard.get() is True, "also without keeps, so that the next one's outcome is right"
    finally:
        tending.cancel()
