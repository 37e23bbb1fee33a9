"""A manager to talk to, in a directory whose name is short enough for Unix sockets."""

from __future__ import annotations

import asyncio
import gc
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from keep_manager import loader_client
from keep_manager.keeps import watch
from keep_manager.keeps.policy import Policy
from keep_manager.loader_client import Loaders, LoaderSession
from keep_manager.model import Answer
from keep_protocol.errors import KeepfleetError
from tests.fakes.fake_event_log import FakeEventLog
from tests.fakes.fake_pki import FakeAuthority
from tests.fakes.fake_units import FakeUnits
from tests.fakes.manager_parts import ManagerParts, manager_parts
from tests.fakes.running_manager import RunningManager, running_manager


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="km") as name:
        yield Path(name)


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    """A socket in journald's place, at `tmp_path`/socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "socket"))
        yield sock


@pytest.fixture
async def manager(place: Path) -> AsyncIterator[RunningManager]:
    async with running_manager(place) as made:
        yield made


@pytest.fixture
async def units(place: Path) -> AsyncIterator[FakeUnits]:
    made = FakeUnits(str(place))
    yield made
    await made.close()


@pytest.fixture
def authority(place: Path) -> FakeAuthority:
    made = FakeAuthority(place / "pki")
    made.manager_files()
    return made


@pytest.fixture
def events() -> FakeEventLog:
    return FakeEventLog()


@pytest.fixture
def policy(place: Path, authority: FakeAuthority) -> Policy:
    pki = str(place / "pki")
    return Policy(f"{pki}/ca.crt", f"{pki}/revoked", 43000, 43999, 60.0, max_keeps=60, max_creations_at_once=4)


@pytest.fixture
async def parts(units: FakeUnits, place: Path, policy: Policy, events: FakeEventLog) -> AsyncIterator[ManagerParts]:
    async with manager_parts(units, str(place), policy, events) as made:
        yield made


PATIENCE = 60.0
"""Seconds in which a fake loader answers."""


@pytest.fixture(autouse=True)
def patient_with_loaders(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake loader runs in the loop of who asks it: a process that had no processor for the two seconds that a real
    one has would find every one of them silent. So does a fake event log, which has two seconds to record a removal."""
    monkeypatch.setattr(watch, "RECORDED_SECONDS", PATIENCE)
    monkeypatch.setattr(loader_client, "CONTROL_REPLY_SECONDS", PATIENCE)
    monkeypatch.setattr(Loaders.ask, "__defaults__", (PATIENCE,))
    monkeypatch.setattr(LoaderSession.ask, "__defaults__", (PATIENCE, ()))


@contextmanager
def reserved_port(address: str = "127.0.0.1") -> Iterator[int]:
    """A port that no one gets who asks for any, and that a listener gets who names it: it is bound, and no one listens
    (man 7 socket, SO_REUSEADDR)."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((address, 0))
        yield int(holder.getsockname()[1])


@pytest.fixture
def over_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Has the time in which loaders that are asked together may answer be over once so many have, and neither before
    nor later."""

    def after(count: int) -> None:
        answers, answer = 0, loader_client._Round._answer

        def counted(asking: loader_client._Round, kuuid: int, data: bytearray) -> Answer | KeepfleetError | None:
            nonlocal answers
            found = answer(asking, kuuid, data)
            answers += found is not None
            return found

        clock = SimpleNamespace(monotonic=lambda: time.monotonic() + (PATIENCE if answers >= count else 0.0))
        monkeypatch.setattr(loader_client._Round, "_answer", counted)
        monkeypatch.setattr(loader_client, "time", clock)

    return after


BLOCKED_SECONDS = 0.05
"""The longest that one step of a task may hold the loop; measured in processor time, which a busy machine does not add
to."""


@pytest.fixture(autouse=True)
def held_too_long(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Fails a test in which one step of a task, other than the tests' own and their fakes', held the event loop."""
    held: list[str] = []
    collected = [0.0, 0.0]  # the garbage of a whole test session is not the manager's: since when, and how long

    def collects(phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            collected[0] = time.thread_time()
        else:
            collected[1] += time.thread_time() - collected[0]

    gc.callbacks.append(collects)
    run = asyncio.events.Handle._run

    def timed(handle: asyncio.events.Handle) -> None:
        began, garbage = time.thread_time(), collected[1]
        run(handle)
        used = time.thread_time() - began - (collected[1] - garbage)
        task = getattr(getattr(handle, "_callback", None), "__self__", None)
        code = getattr(task.get_coro(), "cr_code", None) if isinstance(task, asyncio.Task) else None
        ours = code is not None and "/tests/" not in code.co_filename and "pytest" not in code.co_filename
        if used > BLOCKED_SECONDS and ours:
            held.append(f"{used:.3f} s in a step of {task!r}")

    monkeypatch.setattr(asyncio.events.Handle, "_run", timed)
    yield held
    gc.callbacks.remove(collects)
    assert not held, held
