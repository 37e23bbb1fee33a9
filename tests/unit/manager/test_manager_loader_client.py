"""The control client against loaders that answer, stay silent, lie and flood."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from keep_manager import loader_client
from keep_manager.loader_client import Loaders
from keep_manager.model import Answer, LoaderGone
from keep_protocol.constants import MAX_CONTROL_FRAME
from keep_protocol.control import Command, CommandType
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.states import Event, State
from tests.fakes.fake_loader import FakeLoader
from tests.unit.manager.conftest import PATIENCE

INFO = Command(CommandType.INFO)


@pytest.fixture
def directory(place: Path) -> Path:
    made = place / "keepfleet" / "5"
    made.mkdir(parents=True)
    return made


@pytest.fixture
async def loader(directory: Path, place: Path) -> AsyncIterator[FakeLoader]:
    made = FakeLoader(str(place), 5)
    made.open()
    yield made
    await made.close()


@asynccontextmanager
async def raw_loader(directory: Path, answer: bytes) -> AsyncIterator[None]:
    """Answers one connection so, which has ended when the block has."""
    served = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        served.set()

    async with await asyncio.start_unix_server(serve, directory / "control.sock"):
        yield
        await served.wait()


async def refused(place: Path, seconds: float = PATIENCE) -> KeepfleetError:
    with pytest.raises(KeepfleetError) as caught:
        await Loaders(str(place)).ask(5, INFO, seconds)
    return caught.value


async def test_a_loader_is_asked(loader: FakeLoader, place: Path) -> None:
    report = (await Loaders(str(place)).ask(5, INFO)).report
    assert (report.kuuid, report.state) == (5, State.LISTENING)


async def test_several_commands_go_over_one_connection(loader: FakeLoader, place: Path) -> None:
    async with Loaders(str(place)).session(5) as session:
        for _ in range(3):
            await session.ask(INFO)
    assert loader.connections == 1


async def test_descriptors_arrive_and_the_caller_keeps_its_own(loader: FakeLoader, place: Path) -> None:
    loader.version = 2
    with (place / "a").open("wb") as one, (place / "b").open("wb") as two, socket.socket() as three:
        numbers = [three.fileno(), one.fileno(), two.fileno()]
        async with Loaders(str(place)).session(5) as session:
            await session.ask(Command(CommandType.START), descriptors=numbers)
        assert loader.received == [os.fstat(number).st_ino for number in numbers]


async def test_a_loader_s_error_is_raised_as_it_said_it(loader: FakeLoader, place: Path) -> None:
    with pytest.raises(KeepfleetError, match="it brings 0") as caught:
        await Loaders(str(place)).ask(5, Command(CommandType.START))
    assert caught.value.kind is ErrorKind.BAD_REQUEST


async def test_a_wait_is_answered_when_the_state_changes(loader: FakeLoader, place: Path) -> None:
    waiting = asyncio.create_task(Loaders(str(place)).ask(5, Command(CommandType.WAIT, "1")))
    await loader.heard.wait()
    await loader.move(Event.FAIL)
    assert (await waiting).report.state is State.ERROR


async def test_a_silent_loader_is_given_up_at_the_deadline(loader: FakeLoader, place: Path) -> None:
    loader.silent = True
    error = await refused(place, 0.05)
    assert error.kind is ErrorKind.UNAVAILABLE
    assert not isinstance(error, LoaderGone)
    assert "no answer to keep-info in 0.05 s" in error.message


async def test_a_loader_of_another_keep_is_not_believed(loader: FakeLoader, place: Path) -> None:
    loader.says_it_is = 6
    assert (await refused(place)).kind is ErrorKind.KEEP_FAILED


async def test_no_loader_is_an_error_with_the_reason(place: Path, directory: Path) -> None:
    error = await refused(place)
    assert isinstance(error, LoaderGone)
    assert "No such file" in error.message
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(directory / "control.sock"))
    error = await refused(place)
    assert isinstance(error, LoaderGone)
    assert "Connection refused" in error.message


async def test_a_loader_that_ends_during_a_wait_is_gone(loader: FakeLoader, place: Path) -> None:
    waiting = asyncio.create_task(Loaders(str(place)).ask(5, Command(CommandType.WAIT, "1")))
    await loader.heard.wait()
    await loader.close()
    with pytest.raises(LoaderGone):
        await waiting


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"", ErrorKind.UNAVAILABLE),
        (b'{"state":1', ErrorKind.UNAVAILABLE),
        (b"nonsense\n", ErrorKind.BAD_REQUEST),
        (b"[1]\n", ErrorKind.BAD_REQUEST),
        (b'{"state":7,"kuuid":5}\n', ErrorKind.BAD_REQUEST),
        (b'{"state":"1","kuuid":5}\n', ErrorKind.BAD_REQUEST),
        (b"[" * 60000 + b"\n", ErrorKind.BAD_REQUEST),
        (b"x" * 200_000, ErrorKind.TOO_LARGE),
        (b'{"error":7}\n', ErrorKind.INTERNAL),
    ],
)
async def test_a_hostile_answer_is_an_error(directory: Path, place: Path, answer: bytes, kind: ErrorKind) -> None:
    async with raw_loader(directory, answer):
        assert (await refused(place)).kind is kind


async def test_a_link_in_the_keep_s_directory_is_not_followed(directory: Path, place: Path) -> None:
    other = place / "keepfleet" / "6"
    other.mkdir()
    (directory / "control.sock").symlink_to(other / "control.sock")
    loader = FakeLoader(str(place), 6)
    loader.open()
    error = await refused(place)
    await loader.close()
    assert error.kind is ErrorKind.UNAVAILABLE
    assert loader.connections == 0


async def test_a_regular_file_is_not_a_control_socket(directory: Path, place: Path) -> None:
    (directory / "control.sock").touch()
    error = await refused(place)
    assert not isinstance(error, LoaderGone)
    assert "not its own socket" in error.message


async def test_no_descriptor_is_left_after_failures(directory: Path, place: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    loader = FakeLoader(str(place), 5)
    loader.open()
    loader.silent = True
    for _ in range(5):
        await refused(place, 0.01)
    await loader.close()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_many_loaders_are_asked_together_and_each_answer_or_its_absence_is_its_own(
    place: Path, over_after: Callable[[int], None]
) -> None:
    loaders = []
    for kuuid in range(1, 9):
        (place / "keepfleet" / str(kuuid)).mkdir(parents=True)
        loaders.append(FakeLoader(str(place), kuuid))
        loaders[-1].open()
    one, two, three, *_ = loaders
    one.says_it_is = 99
    await two.close()
    three.silent = True
    over_after(6)
    found = await Loaders(str(place)).ask_all([*range(1, 9), 10], INFO)
    for loader in loaders:
        await loader.close()
    answered = [kuuid for kuuid, answer in found.items() if isinstance(answer, Answer)]
    assert sorted(answered) == [4, 5, 6, 7, 8]
    failures = {kuuid: answer for kuuid, answer in found.items() if isinstance(answer, KeepfleetError)}
    assert failures[1].kind is ErrorKind.KEEP_FAILED
    assert [type(failures[kuuid]) for kuuid in (2, 10)] == [LoaderGone] * 2
    assert type(failures[3]) is KeepfleetError
    assert "no answer to keep-info in 60 s" in failures[3].message


async def test_more_loaders_than_are_asked_together_are_all_asked(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_client, "ASKED_TOGETHER", 2)
    loaders = []
    for kuuid in range(1, 8):
        (place / "keepfleet" / str(kuuid)).mkdir(parents=True)
        loaders.append(FakeLoader(str(place), kuuid))
        loaders[-1].open()
    found = await Loaders(str(place)).ask_all(range(1, 8), INFO)
    for loader in loaders:
        await loader.close()
    assert all(isinstance(answer, Answer) for answer in found.values())
    assert len(found) == 7


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"", ErrorKind.UNAVAILABLE),
        (b"{}\n", ErrorKind.BAD_REQUEST),
        (b'{"state": 1', ErrorKind.UNAVAILABLE),
        (b"x" * (2 * MAX_CONTROL_FRAME), ErrorKind.TOO_LARGE),
    ],
    ids=["hangs up", "says nothing", "is cut off", "floods"],
)
async def test_among_many_one_that_misbehaves_is_an_error(
    directory: Path, place: Path, answer: bytes, kind: ErrorKind
) -> None:
    async with raw_loader(directory, answer):
        found = await Loaders(str(place)).ask_all([5], INFO)
    failure = found[5]
    assert isinstance(failure, KeepfleetError)
    assert failure.kind is kind


async def test_among_many_one_whose_queue_is_full_is_asked_again_until_its_time_is_over(
    directory: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_client, "CONTROL_REPLY_SECONDS", 0.1)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(directory / "control.sock"))
        listener.listen(0)
        first.connect(str(directory / "control.sock"))
        found = await Loaders(str(place)).ask_all([5], INFO)
    failure = found[5]
    assert isinstance(failure, KeepfleetError)
    assert "stayed busy" in failure.message
