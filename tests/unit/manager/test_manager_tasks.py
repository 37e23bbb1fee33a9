"""Tasks have an owner: every one is a group's, and a group ends with the first that fails."""

from __future__ import annotations

import ast
import asyncio
import errno
import time
from pathlib import Path

import pytest

from keep_manager.daemon import Pulse
from keep_manager.keeps.upkeep import Retention
from keep_manager.keeps.view import Entry, View
from keep_manager.model import Caller
from keep_manager.tasks import Group
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.sdnotify import Notifier

ROOT = Path(__file__).resolve().parents[3]
ACCEPTOR = "keep_manager/http/acceptor.py"
ENDED_BY_THEIR_MAKER = (
    "codelets/proxy.py",  # what was asked of the application is done, also where the client has gone
    "codelets/proxy_command.py",
    "keep_manager/http/transfer.py",
    "keep_manager/pulls.py",
    "script_pool/children.py",
    "script_pool/client.py",
    "script_pool/keep/service.py",
    "script_pool/serve.py",
)
PACKAGES = (
    *("app_loader", "codelets", "keep_client", "keep_grants", "keep_loader", "keep_manager", "keepctl", "module_pull"),
    *("module_store", "script_pool", "testers"),
)
BARE = {"create_task", "ensure_future", "gather", "run_coroutine_threadsafe"}


def test_no_task_is_made_outside_a_group() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and (node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")) in BARE
    ]
    # The acceptor keeps its handshakes in a set of its own, which it empties when it closes; the others' are ended, and
    # their errors looked at, by what makes them.
    assert {place.partition(":")[0] for place in found} <= {"keep_manager/tasks.py", ACCEPTOR, *ENDED_BY_THEIR_MAKER}


async def test_what_still_runs_is_ended_with_the_group() -> None:
    ended = []

    async def runs() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("it")

    async with Group() as tasks:
        tasks.start(runs())
        await asyncio.sleep(0)
    assert ended == ["it"]


async def test_a_task_that_fails_ends_the_group_with_its_own_error() -> None:
    async def fails() -> None:
        raise KeepfleetError(ErrorKind.UNAVAILABLE, "cannot go on")

    with pytest.raises(KeepfleetError, match="cannot go on"):
        async with Group() as tasks:
            tasks.start(fails())
            await asyncio.Event().wait()


async def test_a_second_failure_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def fails(why: str) -> None:
        raise KeepfleetError(ErrorKind.UNAVAILABLE, why)

    with pytest.raises(KeepfleetError, match="the first"):
        async with Group() as tasks:
            tasks.start(fails("the first"))
            tasks.start(fails("the second"))
            await asyncio.Event().wait()
    assert "another task failed, too: the second" in caplog.text


async def test_a_group_whose_block_is_cancelled_is_cancelled() -> None:
    async def waits() -> None:
        async with Group() as tasks:
            tasks.start(asyncio.Event().wait())
            await asyncio.Event().wait()

    waiting = asyncio.ensure_future(waits())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


class FullQueue(Notifier):
    """systemd's socket as it is on a host without buffers for a moment."""

    def __init__(self, refusals: int) -> None:
        self.refusals, self.sent = refusals, asyncio.Event()

    def send(self, *assignments: str, descriptors: tuple[int, ...] = ()) -> bool:
        if self.refusals:
            self.refusals -= 1
            raise OSError(errno.ENOBUFS, "No buffer space available")
        self.sent.set()
        return True


async def test_the_watchdog_is_fed_again_after_a_moment_without_buffers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "3000")
    notifier = FullQueue(3)
    async with Group() as tasks:
        tasks.start(Pulse(notifier).beat(View()))
        await asyncio.wait_for(notifier.sent.wait(), 60)
    assert caplog.text.count("cannot notify systemd, trying again") == 1


async def test_a_step_that_holds_the_loop_is_found(held_too_long: list[str]) -> None:
    looked = asyncio.Event()

    def looks_for_long() -> list[Entry]:
        ends = time.thread_time() + 0.06
        while time.thread_time() < ends:
            continue
        looked.set()
        return []

    async with Group() as tasks:
        tasks.start(Retention(NoKeeps(), looks_for_long, 60.0).run())
        await asyncio.wait_for(looked.wait(), 60)
    assert "Retention.run" in held_too_long.pop()


class NoKeeps:
    async def remove(self, kuuid: int, caller: Caller) -> None:
        raise AssertionError("there is none")
