"""SIGHUP: what can change changes, what cannot is refused whole, and a broken file changes nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from keep_manager import config, log
from keep_manager.callers import CallerEntry, ConfiguredRole, Quotas
from keep_manager.config import Settings
from keep_manager.keeps.policy import Policy
from keep_manager.keeps.upkeep import Retention
from keep_manager.keeps.view import Entry
from keep_manager.model import Caller
from keep_manager.reload import NEEDS_RESTART, Reload, changes
from keep_protocol.api import NewKeep
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.identity import Role
from tests.fakes.manager_parts import ManagerParts
from tests.fakes.running_manager import RunningManager

ANN = Caller("ann", Role.USER, "192.0.2.1", "ann at 192.0.2.1")
SECONDS = 20
OTHER: dict[str, object] = {
    "address": "192.0.2.1",
    "port": 4030,
    "client_certificates": config.ClientCertificates.OPTIONAL,
    "pki": "/etc/other",
    "instance": config.Instance.USER if Settings().instance is config.Instance.SYSTEM else config.Instance.SYSTEM,
}


class Reloading:
    """A reload of the settings in a file; `said` is what systemd is notified of, `applied` what was put in force."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.said: asyncio.Queue[tuple[str, ...]] = asyncio.Queue()
        self.applied: list[Settings] = []
        self.reload = Reload(
            config.load(str(file), {}),
            lambda: config.load(str(file), {}),
            self.applied.append,
            lambda *words: self.said.put_nowait(words),
        )

    async def once(self, text: str | None = None) -> None:
        """Reloads, with this text in the file, or without the file."""
        if text is None:
            self.file.unlink()
        else:
            self.file.write_text(text)
        self.reload.request()
        began, ended = [await asyncio.wait_for(self.said.get(), SECONDS) for _ in range(2)]
        assert (began[0], began[1].partition("=")[0], ended) == ("RELOADING=1", "MONOTONIC_USEC", ("READY=1",))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "manager.yaml"
    path.write_text("max_keeps: 5\n")
    return path


@asynccontextmanager
async def reloading(file: Path) -> AsyncIterator[Reloading]:
    made = Reloading(file)
    task = asyncio.create_task(made.reload.run())
    yield made
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_what_a_file_changes_is_applied_and_said(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with reloading(file) as made:
        await made.once("max_keeps: 6\nlog_level: debug\n")
        assert [(new.max_keeps, new.log_level.value) for new in made.applied] == [(6, "debug")]
        assert "reloaded the configuration: changed max_keeps, log_level" in caplog.text
        await made.once("max_keeps: 6\nlog_level: debug\n")
        assert "reloaded the configuration: changed nothing" in caplog.text


async def test_a_broken_file_keeps_what_is_in_force_and_the_next_good_one_is_applied(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with reloading(file) as made:
        await made.once("max_kepes: 6\n")
        assert made.applied == []
        assert f"cannot reload the configuration, the one in force stays: cannot use {file}:1:1" in caplog.text
        await made.once("max_keeps: 7\n")
        assert [new.max_keeps for new in made.applied] == [7]


async def test_a_file_that_is_gone_keeps_what_is_in_force(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with reloading(file) as made:
        await made.once(None)
        assert (made.applied, "there is no such file" in caplog.text) == ([], True)


@pytest.mark.parametrize("name", NEEDS_RESTART)
def test_what_the_manager_has_opened_at_its_start_is_refused_with_what_to_do(name: str) -> None:
    with pytest.raises(KeepfleetError, match=f"cannot change {name} while the manager runs: restart it") as caught:
        changes(Settings(), Settings().replace(max_keeps=1, **{name: OTHER[name]}))
    assert caught.value.kind is ErrorKind.CONFIGURATION


async def test_a_refused_key_leaves_the_others_as_they_were(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with reloading(file) as made:
        await made.once("max_keeps: 6\nport: 4030\n")
        assert (made.applied, "cannot change port while the manager runs" in caplog.text) == ([], True)


async def test_keeps_are_made_by_the_policy_applied_last(parts: ManagerParts, policy: Policy) -> None:
    smaller = Policy(policy.client_ca, policy.revoked, policy.first_port, policy.last_port, max_keeps=1)
    parts.keeps.apply(smaller)
    await parts.keeps.create(NewKeep(), ANN)
    with pytest.raises(KeepfleetError, match="max_keeps is 1"):
        await parts.keeps.create(NewKeep(), ANN)
    parts.keeps.apply(policy)
    await parts.keeps.create(NewKeep(), ANN)


async def test_roles_and_quotas_hold_for_the_next_request_of_an_open_connection(manager: RunningManager) -> None:
    async with manager.client(manager.authority.issue("ann")) as session:
        assert (await session.post("/v1/keeps", json={})).status == 201
        manager.quotas.apply({"ann": CallerEntry(quotas=Quotas(keeps=1))})
        assert (await session.post("/v1/keeps", json={})).status == 429
        manager.quotas.apply({"ann": CallerEntry(role=ConfiguredRole.VIEWER)})
        assert (await session.post("/v1/keeps", json={})).status == 403


async def test_retention_looks_immediately_by_what_was_applied() -> None:
    looked: asyncio.Queue[None] = asyncio.Queue()

    class Removing:
        async def remove(self, kuuid: int, caller: Caller) -> None:
            raise AssertionError(f"{caller} removes {kuuid}")

    def look() -> tuple[Entry, ...]:
        looked.put_nowait(None)
        return ()

    retention = Retention(Removing(), look, 3600)
    task = asyncio.create_task(retention.run())
    await asyncio.wait_for(looked.get(), SECONDS)
    retention.apply(1800)
    await asyncio.wait_for(looked.get(), SECONDS)
    task.cancel()


def test_the_log_level_changes_for_every_logger() -> None:
    before = logging.getLogger().level
    try:
        log.set_level("error")
        assert not logging.getLogger("keepfleet.keeps").isEnabledFor(logging.WARNING)
        log.set_level("debug")
        assert logging.getLogger("keepfleet.keeps").isEnabledFor(logging.DEBUG)
    finally:
        logging.getLogger().setLevel(before)
