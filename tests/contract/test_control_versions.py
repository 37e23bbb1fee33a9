"""Control protocol 1 and 2: a loader and a manager of either version serve a keep together."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from keep_manager.loader_client import Loaders
from keep_manager.model import Answer
from keep_protocol.control import CONTROL_VERSION, CommandType, StartMessage, hello
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import OutcomeKind
from keep_protocol.limits import Limits
from keep_protocol.spec import KeepSpec, encode_spec
from keep_protocol.states import State
from keep_protocol.workload import Directory, Workload
from tests.fakes.loader_process import FINGERPRINT, KUUID, Endpoint, LoaderProcess, Peer, endpoint

HERE = Path(__file__).parent
ENOUGH = 60.0
SPEC = KeepSpec(name="web", owner="alice", labels=(("team", "a b"),), limits=Limits(wall_seconds=77))


@pytest.fixture
def place() -> Iterator[Path]:
    """A keep's runtime directory, below a runtime root."""
    with tempfile.TemporaryDirectory(prefix="kv") as name:
        made = Path(name) / "keepfleet" / str(KUUID)
        made.mkdir(mode=0o700, parents=True)
        yield made


@pytest.fixture
def version_1(place: Path) -> Path:
    """The packages of version 1."""
    packages = place.parent.parent / "version_1"
    with tarfile.open(HERE / "version_1.tar.xz") as archive:
        for member in archive:  # `extractall` wants a filter from 3.12 on, and knows none before 3.11.4
            file = archive.extractfile(member)
            if file is not None:
                (packages / member.name).parent.mkdir(parents=True, exist_ok=True)
                (packages / member.name).write_bytes(file.read())
    return packages


@pytest.fixture
def passed(place: Path) -> Iterator[Endpoint]:
    with endpoint(place.parent) as made:
        yield made


@pytest.fixture
def old_loader(place: Path, version_1: Path) -> Iterator[LoaderProcess]:
    """A loader of version 1, READY and idle."""
    fakes = version_1 / "tests/fakes"
    stub = (sys.executable, "-I", "-S", str(fakes / "app_loader_puppet.py"))
    with ExitStack() as stack:
        loader = LoaderProcess(
            place, stack, main=fakes / "loader_main.py", stub=stub, calls="puppet.sock", path=str(version_1)
        )
        loader.start(environment={"KEEPFLEET_LIMITS": "wall_seconds=77"})  # as its own manager has written it
        yield loader


@pytest.fixture
def new_loader(place: Path) -> Iterator[LoaderProcess]:
    with ExitStack() as stack:
        loader = LoaderProcess(place, stack)
        loader.start(environment={"KEEPFLEET_SPEC": encode_spec(SPEC)})
        yield loader


def started(loader: LoaderProcess, peer: Peer, passed: Endpoint, *more: int) -> None:
    """A start as a manager makes it whose hello was not understood."""
    with pytest.raises(KeepfleetError) as unknown:
        peer.give(hello())
        peer.answer()
    assert unknown.value.kind is ErrorKind.UNKNOWN_COMMAND
    peer.ask(CommandType.ADDR, "127.0.0.1")
    peer.ask(CommandType.PORT, str(passed.port))
    peer.ask(CommandType.NAMES, "a.example")
    peer.send(CommandType.START, "", (*passed.descriptors[:3], *more))
    report = {"report": "listening", "fingerprint": FINGERPRINT, "certificate": "PEM"}
    loader.stub().do("report", report=report, files=["the key"])


def test_an_old_loader_says_what_it_is(old_loader: LoaderProcess) -> None:
    peer = old_loader.peer()
    peer.ask(CommandType.DESCRIBE, json.dumps({"name": "web", "labels": {"a": "b"}, "owner": "Ann Example"}))
    report = peer.ask(CommandType.INFO)
    assert (report.kuuid, report.state, report.phase) == (KUUID, State.LISTENING, "idle")
    assert (report.control_version, report.isolation_failures, report.workload) == (1, (), None)
    claim = peer.claims()
    assert (claim.name, claim.labels, claim.owner, claim.limits) == (
        "web",
        (("a", "b"),),
        "Ann Example",
        SPEC.limits,
    )


def test_an_old_loader_is_started_and_stopped(old_loader: LoaderProcess, passed: Endpoint, place: Path) -> None:
    peer = old_loader.peer()
    (place.parent / "workload").write_bytes(Workload(("-v",), directories=(Directory("/data"),)).to_json())
    granted = [os.open(place.parent / "workload", os.O_RDONLY), os.open(place, os.O_RDONLY)]
    started(old_loader, peer, passed, *granted)
    report = peer.answer()
    assert (report.state, report.port, report.fingerprint) == (State.STARTED, passed.port, FINGERPRINT)
    report = peer.ask(CommandType.STOP, "alice")
    assert (report.state, report.detail) == (State.COMPLETE, "stopped by alice")
    assert report.outcome is not None and report.outcome.kind is OutcomeKind.STOPPED
    for descriptor in granted:
        os.close(descriptor)


def test_an_old_loaders_isolation_failures_are_known_by_their_new_name(
    place: Path, version_1: Path, passed: Endpoint
) -> None:
    fakes = version_1 / "tests/fakes"
    with ExitStack() as stack:
        loader = LoaderProcess(place, stack, main=fakes / "loader_main.py", path=str(version_1))
        loader.start(environment={"FAKE_WALLS": "/etc is not mounted read-only"})
        peer = loader.peer()
        assert peer.ask(CommandType.INFO).isolation_failures == ("/etc is not mounted read-only",)
        with pytest.raises(KeepfleetError) as refused:
            peer.ask(CommandType.START, "", passed.descriptors[:3])
        assert refused.value.kind is ErrorKind.ISOLATION_FAILURE


def test_an_old_manager_cannot_start_a_keep_whose_output_it_does_not_know(
    new_loader: LoaderProcess, passed: Endpoint, place: Path, version_1: Path
) -> None:
    old = passed.descriptors[:3]
    arguments = [HERE / "manager_of_version_1.py", place.parent.parent, KUUID, passed.port, *old]
    manager = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env={"PYTHONPATH": str(version_1)},
        stderr=subprocess.PIPE,
        pass_fds=old,
        text=True,
    )
    _, said = manager.communicate(timeout=ENOUGH)
    assert "cannot start the keep: it takes 6 descriptors, not 3" in said
    assert new_loader.peer().ask(CommandType.INFO).state is State.LISTENING


@pytest.mark.parametrize(("version", "speaks"), [("old_loader", 1), ("new_loader", CONTROL_VERSION)])
def test_todays_manager_starts_a_keep_of_either_version(
    request: pytest.FixtureRequest, place: Path, passed: Endpoint, version: str, speaks: int
) -> None:
    loader: LoaderProcess = request.getfixturevalue(version)
    named = passed.named if speaks > 1 else dict(list(passed.named.items())[:3])
    message = StartMessage("127.0.0.1", ("a.example",), ("name:bob",), tuple(named))

    async def begin() -> list[Answer]:
        async with Loaders(str(place.parent.parent)).session(KUUID) as session:
            greeting = await session.hello(ENOUGH)
            start = asyncio.ensure_future(session.start(message, passed.port, tuple(named.values()), ENOUGH))
            await asyncio.to_thread(listen)
            return [greeting, await start]

    def listen() -> None:
        stub = loader.stub()
        files = {"identity": "the key"} if speaks > 1 else ["the key"]
        report = {"report": "listening", "fingerprint": FINGERPRINT, "certificate": "PEM"}
        stub.do("report", report=report, files=files)
        assert stub.environment["KEEPFLEET_NAMES"] == "a.example"
        assert stub.environment.get("KEEPFLEET_UPLOADERS") == ("name:bob" if speaks > 1 else None)

    greeting, begun = asyncio.run(begin())
    assert (greeting.report.control_version, greeting.report.phase) == (speaks, "idle")
    assert greeting.claims.limits == (SPEC.limits if speaks < 2 else KeepSpec().limits)  # today's unit says what it is
    assert (begun.report.state, begun.report.port) == (State.STARTED, passed.port)
    assert begun.report.fingerprint == FINGERPRINT
