"""The folder of a keep: made whole or not at all, opened through no link, and what is left of earlier boots."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import keep_manager.folders as module
from keep_manager.folders import Folders
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepReport
from keep_protocol.limits import Limits
from keep_protocol.record import MAX_RECORD, KeepRecord, write_record
from keep_protocol.ring import RingReader
from keep_protocol.spec import KeepSpec
from keep_protocol.states import State

SPEC = KeepSpec(name="web", owner="alice", limits=Limits(output_buffer_bytes=2 << 20))
ENDED = KeepReport(State.COMPLETE, 7, phase="ended", detail="exited 0")


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    made = Folders(str(tmp_path / "state" / "keeps"), "boot-1")
    made.open()
    return made


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state" / "keeps"


@contextmanager
def made(folders: Folders, kuuid: int = 7) -> Iterator[tuple[int, int]]:
    output, record = folders.make(kuuid, SPEC)
    try:
        yield output, record
    finally:
        os.close(output)
        os.close(record)


def test_a_start_makes_a_ring_a_record_and_what_the_keep_is(folders: Folders, directory: Path) -> None:
    with made(folders) as (output, record):
        assert RingReader(output).capacity == 2 << 20
        write_record(record, KeepRecord(ENDED), 1)
    assert sorted(os.listdir(directory / "7")) == ["output", "record", "spec"]
    for path in (directory, directory / "7"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (directory / "7").iterdir()} == {0o600}
    assert (directory / "7" / "output").stat().st_blocks * 512 <= 64 * 1024, "it takes room as output comes"
    assert folders.kuuids() == {7}
    found = folders.record(7)
    assert found is not None
    assert found.report == ENDED


def test_a_start_after_one_that_failed_makes_all_of_it_again(folders: Folders) -> None:
    with made(folders) as (first, _), made(folders) as (second, _):
        assert os.fstat(first).st_ino != os.fstat(second).st_ino
        assert os.fstat(first).st_nlink == 0


def test_a_full_disk_refuses_a_start_and_leaves_nothing(
    folders: Folders, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(module, "_write_spec", full)
    with pytest.raises(KeepfleetError, match=r"cannot start keep 7: .*: No space left on device; make room") as caught:
        folders.make(7, SPEC)
    assert caught.value.kind is ErrorKind.NO_SPACE
    assert os.listdir(directory) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_removed_is_gone_and_what_is_not_there_is_no_error(folders: Folders, directory: Path) -> None:
    with made(folders):
        pass
    folders.remove(7)
    folders.remove(7)
    assert os.listdir(directory) == []
    assert folders.open_output(7) is None
    assert folders.record(7) is None


def test_no_link_is_followed(folders: Folders, directory: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "output").write_bytes(b"x")
    os.symlink(secret, directory / "7")
    with pytest.raises(KeepfleetError, match="cannot read the output of keep 7"):
        folders.open_output(7)
    os.unlink(directory / "7")
    with made(folders):
        os.unlink(directory / "7" / "record")
        os.symlink(secret / "output", directory / "7" / "record")
        assert folders.record(7) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x" * (2 * MAX_RECORD + 1),
        b"1\n{}\n1\n",
        b'1\n{"schema":3,"report":{"state":3,"kuuid":8,"phase":"ended"}}\n1\n',
    ],
)
def test_a_record_that_a_loader_wrote_wrongly_or_of_another_keep_is_none(folders: Folders, data: bytes) -> None:
    with made(folders) as (_, record):
        os.pwrite(record, data, 0)
        assert folders.record(7) is None


def test_what_is_left_of_an_earlier_boot_is_found_and_counts_from_when_it_was(
    folders: Folders, directory: Path
) -> None:
    with made(folders) as (_, record):
        write_record(record, KeepRecord(ENDED), 1)
    later = Folders(str(directory), "boot-2")
    (first,) = later.remains([7], 100.0).values()
    (second,) = Folders(str(directory), "boot-2").remains([7], 900.0).values()
    assert (first.spec, first.found_at) == (SPEC, 100.0)
    assert first.record is not None
    assert first.record.report == ENDED
    assert second == first, "another manager in the same boot counts on"
    (third,) = Folders(str(directory), "boot-3").remains([7], 5.0).values()
    assert third.found_at == 5.0


def test_what_is_known_of_keeps_is_written_to_the_disk_where_they_are_still_there(
    folders: Folders, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.readlink(f"/proc/self/fd/{file}")))
    with made(folders):
        folders.settle([7, 8])
    assert synced == [f"{directory}/7/spec", f"{directory}/7/record", f"{directory}/7", str(directory)]


def test_a_disk_that_is_full_leaves_whole_what_was_known_of_a_keep_before(
    folders: Folders, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with made(folders):
        pass
    before = (directory / "7" / "spec").read_bytes()
    monkeypatch.setattr(os, "write", lambda file, data: len(data) // 2)
    later = Folders(str(directory), "boot-2")
    assert later.remains([7], 100.0)[7].spec == SPEC
    assert (directory / "7" / "spec").read_bytes() == before
    monkeypatch.undo()
    assert later.remains([7], 200.0)[7].found_at == 200.0
    assert sorted(os.listdir(directory / "7")) == ["output", "record", "spec"]


def test_what_was_being_removed_or_made_when_a_manager_ended_is_removed(folders: Folders, directory: Path) -> None:
    for kuuid in (7, 8, 9):
        with made(folders, kuuid):
            pass
    os.unlink(directory / "8" / "spec")
    (directory / "9" / "spec").write_bytes(b"{}")
    assert folders.remains([7], 1.0) == {}, "of this boot, and without a unit"
    assert Folders(str(directory), "boot-2").remains([8, 9], 1.0) == {}
    assert os.listdir(directory) == []


def test_a_directory_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(KeepfleetError, match=r"cannot keep what keeps write in .*: Not a directory"):
        Folders(str(tmp_path / "state" / "keeps"), "boot-1").open()


def test_what_is_no_keep_s_is_left_alone(folders: Folders, directory: Path) -> None:
    (directory / "lost+found").mkdir()
    assert folders.kuuids() == set()
