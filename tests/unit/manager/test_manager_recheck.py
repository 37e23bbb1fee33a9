"""A client whose certificate is revoked loses its open connections, whatever it does on them."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from contextlib import suppress

import pytest

from keep_manager import pki
from tests.fakes.fake_pki import Identity
from tests.fakes.running_manager import RunningManager

ENOUGH = 5.0


async def opened(manager: RunningManager, identity: Identity, request: str) -> asyncio.StreamReader:
    """A connection on which this was sent and its answer has begun."""
    context = manager.context(identity)
    reader, writer = await asyncio.open_connection("127.0.0.1", manager.port, ssl=context)
    writer.write(f"{request} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    if "changed-from" not in request:
        assert b"200" in await asyncio.wait_for(reader.readline(), ENOUGH)
    return reader


async def closed(reader: asyncio.StreamReader) -> bool:
    with suppress(ConnectionError, ssl.SSLError):
        await asyncio.wait_for(reader.read(), ENOUGH)
    return True


REQUESTS = {
    "idle": "GET /",
    "following events": "GET /v1/events?follow=true",
    "following lines": "GET /v1/keeps/{}/logs?follow=true",
    "waiting": "GET /v1/keeps/{}?changed-from=1&timeout=60",
}


@pytest.mark.parametrize("request_line", REQUESTS.values(), ids=REQUESTS)
async def test_a_revoked_client_s_connection_is_closed_while_nothing_is_sent(
    manager: RunningManager, caplog: pytest.LogCaptureFixture, request_line: str
) -> None:
    async with manager.client() as good:
        async with good.post("/v1/keeps") as response:
            kuuid = (await response.json())["kuuid"]
        bad = manager.authority.issue("bad")
        loader = manager.units.loaders[kuuid]
        loader.heard.clear()
        reader = await opened(manager, bad, request_line.format(kuuid))
        if "changed-from" in request_line:
            await asyncio.wait_for(loader.heard.wait(), ENOUGH)
        manager.revoke(bad)
        assert await closed(reader)
        assert f"connections of bad (serial {bad.certificate.serial_number:x})" in caplog.text
        async with good.get("/v1/keeps") as response:
            assert response.status == 200


async def test_a_connection_ends_when_its_certificate_expires(
    manager: RunningManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = await opened(manager, manager.operator, "GET /v1/events?follow=true")
    later = pki.now() + datetime.timedelta(days=4000)
    monkeypatch.setattr(pki, "now", lambda: later)
    assert await closed(reader)


async def test_a_revoked_client_that_connects_anew_hears_why(manager: RunningManager) -> None:
    bad = manager.authority.issue("bad")
    manager.revoke(bad)
    async with manager.client(bad) as client, client.get("/") as response:
        assert response.status == 403
        assert "it was revoked" in (await response.json())["error"]["message"]
