"""A client whose certificate is revoked loses its open connections, whatever it does on them."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from keep_manager import pki
from tests.fakes.fake_pki import Identity
from tests.fakes.running_manager import RunningManager

ENOUGH = 60.0


@asynccontextmanager
async def opened(manager: RunningManager, identity: Identity, request: str) -> AsyncIterator[asyncio.StreamReader]:
    """A connection on which this was sent and its answer has begun; it is ours to close, or asyncio does it for us."""
    context = manager.context(identity)
    reader, writer = await asyncio.open_connection("127.0.0.1", manager.port, ssl=context)
    writer.write(f"{request} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    if "changed-from" not in request:
        assert b"200" in await asyncio.wait_for(reader.readline(), ENOUGH)
    yield reader
    writer.close()


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
        async with opened(manager, bad, request_line.format(kuuid)) as reader:
            if "changed-from" in request_line:
                async with asyncio.timeout(ENOUGH):
                    while not manager.keeps._waiters:  # noqa: ASYNC110 - it says so nowhere
                        await asyncio.sleep(0)
            manager.revoke(bad)
            assert await closed(reader)
        assert f"connections of bad (serial {bad.certificate.serial_number:x})" in caplog.text
        async with good.get("/v1/keeps") as response:
            assert response.status == 200


async def test_a_connection_ends_when_its_certificate_expires(
    manager: RunningManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(manager, manager.operator, "GET /v1/events?follow=true") as reader:
        later = pki.now() + datetime.timedelta(days=4000)
        monkeypatch.setattr(pki, "now", lambda: later)
        assert await closed(reader)


async def test_a_revoked_client_that_connects_again_hears_why(manager: RunningManager) -> None:
    bad = manager.authority.issue("bad")
    manager.revoke(bad)
    async with manager.client(bad) as client, client.get("/") as response:
        assert response.status == 403
        assert "it was revoked" in (await response.json())["error"]["message"]
