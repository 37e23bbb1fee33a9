"""What the manager may rely on from a loader: the fake, and a real one with a stub for its app-loader, pass alike."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from keep_manager.loader_client import Loaders
from keep_manager.model import LoaderGone
from keep_protocol.constants import STOP_REPLY_SECONDS
from keep_protocol.control import CONTROL_VERSION, Command, CommandType, StartMessage
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.spec import SPEC_VARIABLE, KeepSpec, encode_spec
from keep_protocol.states import Phase, State
from tests.fakes.fake_loader import WORDS, FakeLoader
from tests.fakes.loader_process import KUUID, Endpoint, LoaderProcess, endpoint

SPEC = KeepSpec(name="web", owner="alice", labels=(("a", "b"),))
ENOUGH = 60.0


@dataclass(frozen=True)
class Subject:
    """A loader under test, and what its app-loader has to do so that a start is answered."""

    loaders: Loaders
    listen: Callable[[], object]


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="kc") as name:
        (Path(name) / "keepfleet" / str(KUUID)).mkdir(parents=True, mode=0o700)
        yield Path(name)


@pytest.fixture
def passed(root: Path) -> Iterator[Endpoint]:
    with endpoint(root) as made:
        yield made


@pytest.fixture(params=["fake", "loader"])
async def subject(request: pytest.FixtureRequest, root: Path) -> AsyncIterator[Subject]:
    loaders = Loaders(str(root))
    if request.param == "fake":
        fake = FakeLoader(str(root), KUUID, SPEC)
        fake.open()
        yield Subject(loaders, lambda: None)
        await fake.close()
        return
    with ExitStack() as stack:
        process = LoaderProcess(root / "keepfleet" / str(KUUID), stack)
        await asyncio.to_thread(process.start, environment={SPEC_VARIABLE: encode_spec(SPEC)})
        yield Subject(loaders, lambda: process.stub().listen())


async def start(subject: Subject, passed: Endpoint, names: tuple[str, ...] = ()) -> object:
    message = StartMessage("127.0.0.1", ("a.example",), ("name:alice",), names or tuple(passed.named))
    async with subject.loaders.session(KUUID) as session:
        await session.hello(ENOUGH)
        listening = asyncio.create_task(asyncio.to_thread(subject.listen))
        answer = await session.start(message, passed.port, passed.descriptors, ENOUGH)
        await listening
        return answer.report


async def refusal(work: object) -> KeepfleetError:
    with pytest.raises(KeepfleetError) as caught:
        await work  # type: ignore[misc] # whatever coroutine a test passes
    return caught.value


async def test_an_idle_loader_says_what_it_is(subject: Subject) -> None:
    async with subject.loaders.session(KUUID) as session:
        answer = await session.hello(ENOUGH)
    report = answer.report
    assert (report.state, report.phase, report.detail) == (State.LISTENING, "idle", WORDS[Phase.IDLE])
    assert (report.control_version, report.port, report.outcome) == (CONTROL_VERSION, 0, None)
    assert answer.claims == KeepSpec()  # what it is stands in its unit; only a loader of version 1 is asked


async def test_a_started_loader_awaits_its_workload_where_the_listener_is(subject: Subject, passed: Endpoint) -> None:
    await start(subject, passed)
    report = (await subject.loaders.ask(KUUID, Command(CommandType.INFO), ENOUGH)).report
    assert (report.state, report.phase, report.detail) == (
        State.STARTED,
        "awaiting-workload",
        WORDS[Phase.AWAITING],
    )
    assert (report.address, report.port, report.uploaders) == ("127.0.0.1", passed.port, ("name:alice",))


async def test_a_wait_is_answered_when_the_phase_or_the_sentence_is_another(subject: Subject, passed: Endpoint) -> None:
    idle = f"idle {WORDS[Phase.IDLE]}"
    for known in ("2", "running", "idle another sentence"):
        report = (await subject.loaders.ask(KUUID, Command(CommandType.WAIT, known), ENOUGH)).report
        assert report.phase == "idle"
    waiting = [
        asyncio.create_task(subject.loaders.ask(KUUID, Command(CommandType.WAIT, known), ENOUGH))
        for known in ("idle", idle)
    ]
    await start(subject, passed)
    assert {(await task).report.phase for task in waiting} <= {"opening", "awaiting-workload"}


async def test_a_stop_is_answered_when_the_process_has_ended_and_written_down_and_then_no_loader_is_there(
    subject: Subject, passed: Endpoint
) -> None:
    await start(subject, passed)
    stop = Command(CommandType.STOP, "alice")
    report = (await subject.loaders.ask(KUUID, stop, STOP_REPLY_SECONDS)).report
    assert (report.state, report.phase) == (State.COMPLETE, "ended")
    assert report.outcome is not None
    assert (report.outcome.kind.value, report.outcome.by) == ("stopped", "alice")
    assert passed.recorded.report == report
    with pytest.raises(LoaderGone):
        await subject.loaders.ask(KUUID, stop, STOP_REPLY_SECONDS)


async def test_what_cannot_be_done_now_is_a_conflict_and_changes_nothing(subject: Subject, passed: Endpoint) -> None:
    stop = await refusal(subject.loaders.ask(KUUID, Command(CommandType.STOP, "alice"), ENOUGH))
    assert (stop.kind, stop.message) == (ErrorKind.CONFLICT, "cannot stop a keep that is idle")
    await start(subject, passed)
    async with subject.loaders.session(KUUID) as session:
        await session.hello(ENOUGH)
        message = StartMessage("127.0.0.1", (), (), tuple(passed.named))
        again = await refusal(session.start(message, passed.port, passed.descriptors, ENOUGH))
    assert (again.kind, again.message) == (ErrorKind.CONFLICT, "cannot start a keep that is awaiting-workload")


async def test_a_start_that_brings_too_little_is_refused(subject: Subject) -> None:
    async with subject.loaders.session(KUUID) as session:
        await session.hello(ENOUGH)
        error = await refusal(session.start(StartMessage("127.0.0.1"), 1, (), ENOUGH))
    assert error.kind is ErrorKind.BAD_REQUEST
