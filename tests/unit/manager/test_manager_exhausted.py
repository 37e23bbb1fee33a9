"""A manager without descriptors for a moment: what it does goes on afterwards, and nothing of a keep is lost by it."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from keep_manager import daemon, tasks
from keep_manager.__main__ import EXIT_FAILED, main
from keep_manager.folders import Folders
from keep_manager.keeps import readers
from keep_manager.keeps.creation import Unbroken
from keep_manager.keeps.streams import KeepOutput
from keep_manager.keeps.view import clear_away
from keep_manager.loader_client import Loaders
from keep_manager.model import exhaustion_explained
from keep_manager.systemd.fields import FieldFiles
from keep_manager.tasks import Group, carried_on
from keep_protocol.control import Command, CommandType
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.ring import RingWriter
from keep_protocol.spec import KeepSpec

EXHAUSTED = OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "FIRST_PAUSE_SECONDS", 0.0)


def failing(times: int, error: OSError = EXHAUSTED) -> Callable[..., int]:
    """Works after it has failed so often."""
    left = [error] * times

    def work(*_: object, **__: object) -> int:
        if left:
            raise left.pop()
        return 7

    return work


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS])
async def test_what_lacks_descriptors_begins_again_and_says_so_once(
    number: int, caplog: pytest.LogCaptureFixture
) -> None:
    work = failing(3, OSError(number, os.strerror(number)))
    assert await carried_on(lambda: asyncio.to_thread(work), "a part") == 7
    assert caplog.messages == [f"a part: interrupted, and tried again: {os.strerror(number)}"]


async def test_another_error_of_the_system_is_a_fault_still() -> None:
    work = failing(1, OSError(errno.EIO, "I/O error"))
    with pytest.raises(OSError, match="I/O error"):
        await carried_on(lambda: asyncio.to_thread(work), "a part")
    with pytest.raises(OSError, match="I/O error"), exhaustion_explained("do it"):
        raise OSError(errno.EIO, "I/O error")


async def test_work_that_is_carried_through_fails_with_the_reason_and_ends_no_manager() -> None:
    async def work() -> None:
        raise EXHAUSTED

    async with Group() as group:
        with pytest.raises(KeepfleetError, match="Too many open files") as failed:
            await Unbroken(group).finish(work())
    assert failed.value.kind is ErrorKind.UNAVAILABLE


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """One with the folder of keep 1."""
    folders = Folders(str(tmp_path), "this boot")
    for descriptor in folders.make(1, KeepSpec(name="web")):
        os.close(descriptor)
    return folders


async def test_the_files_of_a_keep_that_has_gone_are_removed_as_soon_as_that_can_be(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, broken = folders._base, failing(2)

    def opened() -> int:
        broken()
        return base()

    monkeypatch.setattr(folders, "_base", opened)
    with pytest.raises(OSError, match="Too many open files"):
        folders.remove(1)
    await clear_away(folders, 1)
    assert folders.kuuids() == set()


def test_a_keep_of_an_earlier_boot_is_not_removed_because_it_cannot_be_read_now(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = Folders(str(tmp_path), "the next boot")
    base, broken = later._base, failing(1)

    def opened() -> int:
        broken()
        return base()

    monkeypatch.setattr(later, "_base", opened)
    with pytest.raises(OSError, match="Too many open files"):
        later.remains([1], 1.0)
    assert later.remains([1], 1.0)[1].spec.name == "web"


def test_a_record_that_cannot_be_opened_now_is_not_taken_for_none(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "_base", failing(1))
    with pytest.raises(OSError, match="Too many open files"):
        folders.record(1)


def test_an_output_that_cannot_be_opened_now_is_no_fault_of_its_keep(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "_base", failing(1))
    with pytest.raises(KeepfleetError, match="Too many open files") as failed:
        folders.open_output(1)
    assert failed.value.kind is ErrorKind.UNAVAILABLE


async def test_loaders_that_cannot_be_asked_are_each_said_to_be_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keep_manager.loader_client.select.epoll", failing(1))
    answers = await Loaders("/nowhere").ask_all([1, 2], Command(CommandType.INFO))
    assert [(kuuid, str(answer)) for kuuid, answer in answers.items()] == [
        (kuuid, f"cannot reach the loader of keep {kuuid}: Too many open files") for kuuid in (1, 2)
    ]


def test_tidying_up_waits_for_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("keep_manager.systemd.fields.os", SimpleNamespace(listdir=failing(1)))
    assert FieldFiles(str(tmp_path)).kuuids() == set()
    assert "cannot list journald's settings of keeps: Too many open files" in caplog.text


def test_every_part_of_the_manager_that_goes_on_is_carried_on() -> None:
    """What the daemon starts, and the recheck, is no bare task: the list of them is in one place."""
    source = (Path(tasks.__file__).parent / "daemon.py").read_text()
    started = [line.strip() for line in source.splitlines() if "tasks.start(" in line]
    assert started == [
        "self._tasks.start(carried_on(run_part, name), name=name)",
        'self._tasks.start(self._providers.try_roots(settings.grant_roots), name="grant roots")',
    ]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ETOOMANYREFS])
async def test_a_loader_that_cannot_be_given_a_channel_now_is_asked_again(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch asks: a reader who came, or the report of a keep that is read, must end nothing."""
    ring = os.open(tmp_path / "ring", os.O_RDWR | os.O_CREAT)
    RingWriter.create(ring, 1 << 20)
    output = KeepOutput(1, ring)
    shim = SimpleNamespace(**{**vars(socket), "socketpair": failing(1, OSError(number, os.strerror(number)))})
    monkeypatch.setattr(readers, "socket", shim)
    given, asked = readers.Readers(None, None, None), list[int]()  # type: ignore[arg-type]
    given.on_unattached = asked.append
    await given._attach(1, output)
    assert (asked, output.attached) == ([1], False)
    output.close()


def test_the_reader_of_output_is_refused_and_no_part_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    shim = SimpleNamespace(**{**vars(socket), "socketpair": failing(1)})
    monkeypatch.setattr(readers, "socket", shim)
    followed = readers._Followed()
    followed.readings.append(readers.Reading(0, holds=False, follows=True))
    given = readers.Readers(None, None, None)  # type: ignore[arg-type]
    given._followed[1] = followed
    with pytest.raises(KeepfleetError, match="cannot follow keep 1: Too many open files"), given.channel(1):
        pass


def test_a_start_that_cannot_open_its_configuration_for_want_of_descriptors_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("keep_manager.config.open", failing(1), raising=False)
    assert main(["--config", "/etc/keepfleet/manager.yaml"]) == EXIT_FAILED
    assert capsys.readouterr().err.endswith("manager.yaml: Too many open files\n")


def test_a_start_without_descriptors_ends_with_one_line_that_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run(*_: object) -> None:
        raise EXHAUSTED

    monkeypatch.setattr(daemon, "run", run)
    monkeypatch.setattr("keep_manager.log.set_up", lambda level: None)
    (tmp_path / "manager.yaml").write_text("instance: user\n")
    assert main(["--config", str(tmp_path / "manager.yaml")]) == EXIT_FAILED
    assert caplog.messages == ["cannot go on: [Errno 24] Too many open files; systemd starts the manager again"]
