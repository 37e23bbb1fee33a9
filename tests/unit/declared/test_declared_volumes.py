"""Volumes as files: whole or not there, whose they are, and what a full disk or a killed manager leaves."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from keep_manager.declared import images
from keep_manager.declared.volumes import Volumes
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.limits import MIB
from keep_protocol.volumes import usual_inodes
from module_store.disk import Disk
from tests.unit.store.disks import Full, deadly_at

SIZE, INODES = 16 * MIB, 100
OPENING, CHANGES = 2, 10
"""Changes of the disk that opening the folder takes, and more than making a volume takes."""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "volumes"


def opened(place: Path, allowed: int = 1 << 40, disk: Disk | None = None) -> Volumes:
    """The volumes there, as a manager that starts finds them."""
    found = Volumes(str(place), lambda _: allowed, disk)
    found.open()
    return found


def refused(work: Callable[[], object]) -> KeepfleetError:
    with pytest.raises(KeepfleetError) as caught:
        work()
    return caught.value


def test_one_is_made_once_and_belongs_to_who_had_it_first(place: Path) -> None:
    volumes = opened(place)
    volumes.ensure("data", "alice", SIZE, INODES)
    made = volumes.find("data")
    assert (made.owner, made.size_bytes, made.inodes, made.in_use, made.detail) == ("alice", SIZE, INODES, False, "")
    image = place / "data/image"
    before = image.stat()
    volumes.ensure("data", "alice", SIZE, INODES)
    assert image.stat() == before
    assert (before.st_mode & 0o777, before.st_blocks * 512 >= SIZE) == (0o600, True)
    assert refused(lambda: volumes.ensure("data", "bob", SIZE, INODES)).kind is ErrorKind.FORBIDDEN
    assert "100 inodes" in refused(lambda: volumes.ensure("data", "alice", SIZE, 200)).message


def test_the_quota_counts_what_an_owner_s_volumes_have_together(place: Path) -> None:
    volumes = opened(place, 2 * SIZE)
    volumes.ensure("a", "alice", SIZE, INODES)
    volumes.ensure("b", "alice", SIZE, INODES)
    assert refused(lambda: volumes.ensure("c", "alice", SIZE, INODES)).kind is ErrorKind.TOO_MANY
    volumes.ensure("c", "bob", SIZE, INODES)
    assert [each.name for each in volumes.listed()] == ["a", "b", "c"]


@pytest.mark.parametrize("number", range(1, CHANGES))
def test_a_full_disk_at_any_step_leaves_none_and_room_for_the_next_try(place: Path, number: int) -> None:
    disk = Full(OPENING + number)
    volumes = opened(place, disk=disk)
    try:
        volumes.ensure("data", "alice", SIZE, INODES)
    except KeepfleetError as error:
        assert error.kind is ErrorKind.NO_SPACE
        assert [name for name in os.listdir(place) if not name.startswith(".")] in ([], ["data"])
    else:
        assert not disk.refused
    opened(place).ensure("data", "alice", SIZE, INODES)
    assert os.listdir(place) == ["data"]
    assert opened(place).find("data").detail == ""


@pytest.mark.parametrize("number", range(1, CHANGES))
def test_a_manager_that_is_killed_at_any_step_leaves_a_whole_one_or_none(place: Path, number: int) -> None:
    child = os.fork()
    if child == 0:
        try:
            opened(place, disk=deadly_at(OPENING + number)).ensure("data", "alice", SIZE, INODES)
        finally:
            os._exit(0)  # whatever became of it: the test goes on in its own process alone
    os.waitpid(child, 0)
    volumes = opened(place)
    assert os.listdir(place) in ([], ["data"])
    volumes.ensure("data", "alice", SIZE, INODES)
    assert volumes.find("data").detail == ""


def made_with_a_file(place: Path) -> None:
    """A volume with the file `kept` in it, and a guest's directory that is empty otherwise."""
    opened(place).ensure("data", "alice", SIZE, usual_inodes(SIZE))
    image = place / "data/image"
    (place.parent / "kept").write_bytes(b"what a guest wrote")
    subprocess.run(["debugfs", "-w", "-R", f"write {place.parent}/kept kept", image], check=True, capture_output=True)


def content(place: Path) -> tuple[int, bytes, str]:
    """The length of its image, what is in the file, and the names in its directory; it is whole."""
    image = place / "data/image"
    subprocess.run(["e2fsck", "-f", "-n", image], check=True, capture_output=True)
    shown = subprocess.run(["debugfs", "-R", "cat kept", image], check=True, capture_output=True).stdout
    listed = subprocess.run(["debugfs", "-R", "ls -p /", image], check=True, capture_output=True, text=True).stdout
    names = " ".join(line.split("/")[5] for line in listed.splitlines() if line.startswith("/"))
    return image.stat().st_size, shown, names


def test_one_of_which_more_is_asked_for_grows_with_what_is_in_it_and_one_of_which_less_is_stays(place: Path) -> None:
    made_with_a_file(place)
    volumes = opened(place, 4 * SIZE)
    volumes.ensure("data", "alice", 4 * SIZE, usual_inodes(4 * SIZE))
    assert content(place) == (4 * SIZE, b"what a guest wrote", ". .. kept")
    found = volumes.find("data")
    assert (found.size_bytes, found.detail, (place / "data/image").stat().st_blocks * 512 >= 4 * SIZE) == (
        4 * SIZE,
        "",
        True,
    )
    volumes.ensure("data", "alice", SIZE, usual_inodes(SIZE))
    assert volumes.find("data").size_bytes == 4 * SIZE
    assert refused(lambda: volumes.ensure("data", "alice", 5 * SIZE, INODES)).kind is ErrorKind.TOO_MANY
    assert refused(lambda: volumes.ensure("data", "bob", 8 * SIZE, INODES)).kind is ErrorKind.FORBIDDEN
    with open(place / "data/image", "rb") as image:
        fcntl.flock(image, fcntl.LOCK_EX)
        assert (
            refused(lambda: opened(place).ensure("data", "alice", 8 * SIZE, INODES)).message
            == "cannot have volume data grow: a keep has it"
        )
    more = usual_inodes(8 * SIZE) + 1
    assert (
        "they were set when it was made"
        in refused(lambda: opened(place).ensure("data", "alice", 8 * SIZE, more)).message
    )
    assert content(place)[0] == 4 * SIZE
    assert sorted(os.listdir(place / "data")) == ["image", "volume.json"]


@pytest.mark.parametrize("how", [Full, deadly_at])
def test_a_full_disk_and_a_kill_at_any_step_of_its_growth_leave_the_old_one_or_the_new_one(
    place: Path, how: Callable[[int], Disk]
) -> None:
    made_with_a_file(place)
    sizes = set()
    for number in count(1):
        copy = place.parent / f"copy-{number}"
        shutil.copytree(place, copy)
        child = os.fork()
        if child == 0:
            try:
                opened(copy, disk=how(OPENING + number)).ensure("data", "alice", 2 * SIZE, usual_inodes(2 * SIZE))
            except KeepfleetError as error:
                os._exit(1 if error.kind is ErrorKind.NO_SPACE else 2)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, 1, -9)
        sizes.add(content(copy)[0])
        assert content(copy)[1:] == (b"what a guest wrote", ". .. kept")
        volumes = opened(copy)
        assert sorted(os.listdir(copy / "data")) == ["image", "volume.json"]
        volumes.ensure("data", "alice", 2 * SIZE, usual_inodes(2 * SIZE))
        assert (content(copy)[0], volumes.find("data").size_bytes) == (2 * SIZE, 2 * SIZE)
        assert sorted(os.listdir(copy / "data")) == ["image", "volume.json"]
        if number > 8 and status == 0:
            break
    assert sizes == {SIZE, 2 * SIZE}


@pytest.mark.parametrize("number", [1, 2])
def test_a_manager_that_is_killed_while_it_removes_one_leaves_it_or_nothing(place: Path, number: int) -> None:
    opened(place).ensure("data", "alice", SIZE, INODES)
    child = os.fork()
    if child == 0:
        try:
            opened(place, disk=deadly_at(OPENING + number)).remove("data")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    opened(place)
    assert os.listdir(place) == (["data"] if number == 1 else [])


def test_one_that_a_keep_has_is_not_removed(place: Path) -> None:
    volumes = opened(place)
    volumes.ensure("data", "alice", SIZE, INODES)
    with open(place / "data/image", "rb") as image:
        fcntl.flock(image, fcntl.LOCK_EX)
        assert volumes.find("data").in_use
        assert refused(lambda: volumes.remove("data")).kind is ErrorKind.CONFLICT
    volumes.remove("data")
    assert os.listdir(place) == []
    assert refused(lambda: volumes.remove("data")).kind is ErrorKind.NOT_FOUND


def test_a_damaged_one_says_so_stops_no_other_and_can_be_removed(place: Path) -> None:
    volumes = opened(place)
    for name in ("a", "b", "c", "d"):
        volumes.ensure(name, "alice", SIZE, INODES)
    (place / "a/volume.json").write_text("{}")
    (place / "b/image").unlink()
    (place / "c").rename(place / "moved")
    (place / "c").symlink_to("moved")
    found = {each.name: each.detail for each in volumes.listed()}
    assert found["a"].startswith("cannot use volume a: its schema is not 1")
    assert found["b"].startswith("cannot use volume b: No such file")
    assert found["c"].startswith("cannot use volume c: a link")
    assert found["d"] == ""
    for name in ("a", "b", "c"):
        volumes.remove(name)
    assert sorted(os.listdir(place)) == ["d", "moved"]
    assert (place / "moved/image").exists()  # what a link pointed to is not the volume's


def test_no_flipped_bit_of_its_record_is_believed(place: Path) -> None:
    volumes = opened(place)
    volumes.ensure("data", "alice", SIZE, INODES)
    record = place / "data/volume.json"
    whole = record.read_bytes().rstrip(b"\n")
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        record.write_bytes(data)
        for owner in ("alice", "clice"):
            with pytest.raises(KeepfleetError, match="volume data"):
                volumes.ensure("data", owner, SIZE, INODES)


def test_a_host_without_e2fsprogs_says_what_is_missing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "PROGRAMS", "/nowhere")
    error = refused(lambda: opened(place).ensure("data", "alice", SIZE, INODES))
    assert (error.kind, "install e2fsprogs" in error.message) == (ErrorKind.UNSUPPORTED, True)
    assert os.listdir(place) == []


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "x" * 64, ".new-data"])
def test_what_is_no_name_is_no_volume(place: Path, name: str) -> None:
    volumes = opened(place)
    assert refused(lambda: volumes.find(name)).kind is ErrorKind.NOT_FOUND
    assert refused(lambda: volumes.remove(name)).kind is ErrorKind.NOT_FOUND
