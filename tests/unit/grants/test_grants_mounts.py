"""The mounts themselves, made by this process, which may as root: maps, flags, and what nothing leads out of."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from keep_grants import kernel
from keep_grants.mounts import Maker, MountTable, no_view_of_the_host
from keep_grants.protocol import DiskIds, Granted, KeepIds, Wanted, WantedFile
from keep_protocol.errors import ErrorKind, KeepfleetError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a mount of a directory")
OWNER, OTHER, KEEP = DiskIds(5000, 5001), DiskIds(6000, 6001), KeepIds(62000, 62001)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory of OWNER's with a file of OWNER's and one of OTHER's, both for their owners alone."""
    made = tmp_path / "root"
    (made / "in").mkdir(parents=True)
    for name, whose in (("own", OWNER), ("other", OTHER)):
        (made / name).write_text(name)
        (made / name).chmod(0o600)
        os.chown(made / name, whose.uid, whose.gid)
    for path in (made, made / "in"):
        os.chown(path, OWNER.uid, OWNER.gid)
        path.chmod(0o700)
    return made


@contextmanager
def made(*wanted: Wanted, keep: KeepIds | None = KEEP) -> Iterator[list[tuple[int, Granted]]]:
    with ExitStack() as held, Maker(keep) as maker:
        yield [maker.make(held, each) for each in wanted]


def as_keep(work: str, directory: int) -> str:
    """What a process of the keep's user finds: the value of the expression `work`, with the directory as `d`."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(KEEP.gid, KEEP.gid, KEEP.gid)
            os.setresuid(KEEP.uid, KEEP.uid, KEEP.uid)
            os.umask(0o077)
            try:
                said = str(eval(work, {"os": os, "d": directory}))  # noqa: S307 - a test's own text
            except OSError as error:
                said = str(error.strerror)
            os.write(theirs, said.encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as file:
        said = file.read().decode()
    os.waitpid(child, 0)
    return said


WRITE = "os.write(os.open('new', os.O_WRONLY | os.O_CREAT, 0o666, dir_fd=d), b'x')"


def test_the_owner_s_files_are_the_keep_s_own_and_what_it_makes_is_the_owner_s(root: Path) -> None:
    with made(Wanted(str(root), ".", True)) as ((directory, granted),):
        assert granted == Granted(OWNER)
        assert as_keep("os.read(os.open('own', os.O_RDONLY, dir_fd=d), 9)", directory) == "b'own'"
        assert as_keep(WRITE, directory) == "1"
        assert as_keep("os.mkdir('dir', dir_fd=d)", directory) == "None"
    for name in ("new", "dir"):
        status = (root / name).stat()
        assert (status.st_uid, status.st_gid) == (OWNER.uid, OWNER.gid)
    assert (root / "new").stat().st_mode & 0o777 == 0o600


def test_files_of_others_stay_theirs(root: Path) -> None:
    with made(Wanted(str(root), ".", True)) as ((directory, _),):
        assert as_keep("os.read(os.open('other', os.O_RDONLY, dir_fd=d), 9)", directory) == "Permission denied"
        assert as_keep("os.stat('other', dir_fd=d).st_uid", directory) == "65534"
        (root / "other").chmod(0o666)
        assert as_keep("os.read(os.open('other', os.O_RDONLY, dir_fd=d), 9)", directory) == "b'other'"
        assert as_keep("os.open('other', os.O_WRONLY, dir_fd=d)", directory) == "Permission denied"


def test_without_write_access_nothing_of_any_owner_is_written(root: Path) -> None:
    with made(Wanted(str(root), ".", False)) as ((directory, granted),):
        assert granted == Granted(OWNER)
        assert as_keep("os.read(os.open('own', os.O_RDONLY, dir_fd=d), 9)", directory) == "b'own'"
        for work in (
            WRITE,
            "os.mkdir('x', dir_fd=d)",
            "os.unlink('own', dir_fd=d)",
            "os.chmod('own', 0o777, dir_fd=d)",
        ):
            assert as_keep(work, directory) == "Read-only file system"
        assert as_keep("os.open(f'/proc/self/fd/{d}/own', os.O_WRONLY)", directory) == "Read-only file system"


def test_the_way_up_from_a_granted_directory_is_itself(root: Path) -> None:
    with made(Wanted(str(root), "in", True)) as ((directory, _),):
        assert os.path.samestat(os.stat("..", dir_fd=directory), os.fstat(directory))
        assert as_keep("os.listdir(os.open('../../..', os.O_RDONLY, dir_fd=d))", directory) == "[]"


def test_no_set_user_id_file_of_another_owner_can_be_run_and_no_device_opened(root: Path) -> None:
    with made(Wanted(str(root), ".", True)) as ((directory, _),):
        flags = os.fstatvfs(directory).f_flag
        assert flags & os.ST_NOSUID
        assert flags & os.ST_NODEV
        assert flags & os.ST_NOEXEC


def test_one_user_namespace_serves_all_directories_of_one_owner(root: Path) -> None:
    wanted = Wanted(str(root), "in", True)
    with ExitStack() as held, Maker(KEEP) as maker:
        (root / "in").chmod(0o755)
        for each in (wanted, wanted, Wanted(str(root), "in", False, OTHER)):
            maker.make(held, each)
        assert repr(maker).endswith("2 user namespaces)")


def test_another_owner_by_configuration_is_the_one_on_disk(root: Path) -> None:
    (root / "in").chmod(0o777)
    os.chown(root / "in", OTHER.uid, OTHER.gid)
    with made(Wanted(str(root), "in", True, OTHER)) as ((directory, granted),):
        assert granted == Granted(OTHER)
        assert as_keep(WRITE, directory) == "1"
    assert (root / "in/new").stat().st_uid == OTHER.uid


def test_unmapped_by_choice_files_are_the_keep_s_own_number_s(root: Path) -> None:
    (root / "in").chmod(0o777)
    with made(Wanted(str(root), "in", True, None, False)) as ((directory, granted),):
        assert granted == Granted(None)
        assert as_keep(WRITE, directory) == "1"
    assert (root / "in/new").stat().st_uid == KEEP.uid


@pytest.mark.parametrize("owner", [(0, 0), (0, 5), (5, 0), (61184, 5), (5, 65519)])
def test_a_root_of_root_s_or_of_a_passing_user_s_is_never_written_to(root: Path, owner: tuple[int, int]) -> None:
    os.chown(root, *owner)
    with pytest.raises(KeepfleetError) as caught, made(Wanted(str(root), "in", True)):
        pytest.fail("it was granted")
    assert caught.value.kind is ErrorKind.CONFIGURATION
    assert f"belongs to {owner[0]}:{owner[1]}" in caught.value.message
    assert "set `files_as: USER` for this root" in caught.value.message
    with made(Wanted(str(root), ".", False)) as ((_, granted),):
        assert granted.disk is None
        assert granted.lacks.startswith("the keep reads what everybody may read: ")


@pytest.mark.parametrize("owner", [(0, 0), (6000, 5001), (5000, 0)])
def test_a_directory_of_another_user_or_group_cannot_be_written_to_and_is_refused(
    root: Path, owner: tuple[int, int]
) -> None:
    os.chown(root / "in", *owner)
    (root / "in").chmod(0o777)
    with pytest.raises(KeepfleetError) as caught, made(Wanted(str(root), "in", True)):
        pytest.fail("it was granted")
    assert caught.value.kind is ErrorKind.FORBIDDEN
    assert f"it belongs to {owner[0]}:{owner[1]}, and the keep writes to what is 5000:5001's alone" in str(caught.value)
    with made(Wanted(str(root), "in", False)) as ((directory, _),):
        assert as_keep("os.listdir(d)", directory) == "[]"
    (root / "in").chmod(0o700)
    if owner[0] != OWNER.uid:
        with pytest.raises(KeepfleetError, match="who may not read it"), made(Wanted(str(root), "in", False)):
            pytest.fail("it was granted")


def test_a_user_that_passes_is_not_taken_from_the_configuration_either(root: Path) -> None:
    with (
        pytest.raises(KeepfleetError, match="it has files_as 61184:61184"),
        made(Wanted(str(root), "in", False, DiskIds(61184, 61184))),
    ):
        pytest.fail("it was granted")


def test_a_user_s_own_directories_are_mounts_too_and_belong_to_whom_they_belong(root: Path) -> None:
    with made(Wanted(str(root), ".", False), keep=None) as ((directory, granted),):
        assert granted == Granted(None)
        assert os.fstat(directory).st_uid == OWNER.uid
        assert os.path.samestat(os.stat("..", dir_fd=directory), os.fstat(directory))
        assert os.fstatvfs(directory).f_flag & os.ST_RDONLY


def test_a_file_of_any_owner_is_read_and_never_opened_again_for_writing(root: Path) -> None:
    (root / "other").chmod(0o666)
    with ExitStack() as held, Maker(KEEP) as maker:
        descriptor, granted = maker.open(held, WantedFile(str(root), "other"))
        assert (os.read(descriptor, 9), granted) == (b"other", Granted())
        assert as_keep("os.open(f'/proc/self/fd/{d}', os.O_WRONLY)", descriptor) == os.strerror(errno.EROFS)
        assert not MountTable().has(descriptor), "it is a mount that no path leads to"


def test_a_file_system_goes_while_a_file_of_it_is_granted(root: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "later", root / "in"], check=True)
    (root / "in" / "file").write_text("later")
    with ExitStack() as held, Maker(KEEP) as maker:
        descriptor, _ = maker.open(held, WantedFile(str(root), "in/file"))
        subprocess.run(["umount", root / "in"], check=True)
        assert os.read(descriptor, 9) == b"later"


def test_a_file_system_is_named_that_cannot_be_mapped() -> None:
    with pytest.raises(KeepfleetError) as caught, made(Wanted("/proc", "sys", True, OWNER)):
        pytest.fail("it was granted")
    assert caught.value.kind is ErrorKind.UNSUPPORTED
    assert "cannot grant /proc/sys with files as user 5000: its file system, proc, cannot be id-mapped" in str(
        caught.value
    )
    with made(Wanted("/proc", "sys", False, OWNER)) as ((_, granted),):
        assert "its file system, proc, cannot be id-mapped" in granted.lacks


def test_the_mount_table_knows_kind_and_place() -> None:
    place = os.open("/proc", os.O_PATH)
    try:
        assert MountTable().kind_of(place) == "proc"
    finally:
        os.close(place)
    root = os.open("/", os.O_PATH)
    try:
        assert ("/proc", "proc") in MountTable().below(root)
    finally:
        os.close(root)


@contextmanager
def elsewhere() -> Iterator[int]:
    """A process in a mount namespace of its own."""
    ready, say = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            kernel.unshare(kernel.CLONE_NEWNS)
            os.write(say, b"x")
            signal.pause()
        finally:
            os._exit(1)
    os.close(say)
    try:
        assert os.read(ready, 1) == b"x"
        yield child
    finally:
        os.close(ready)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_helper_sees_the_host_s_mounts_where_its_service_manager_has_the_same_ones() -> None:
    assert no_view_of_the_host(os.getppid()) == ""
    with elsewhere() as child:
        assert "it has a mount namespace of its own" in no_view_of_the_host(child)


def test_a_helper_that_cannot_look_at_its_service_manager_s_mounts_does_not_vouch_for_its_own() -> None:
    with elsewhere() as child:
        gone = child
    why = f"it cannot know whether it sees the host's mounts: /proc/{gone}/mountinfo: No such file or directory"
    assert no_view_of_the_host(gone) == why


def test_a_user_namespace_that_cannot_be_made_raises_the_kernel_s_reason() -> None:
    with pytest.raises(OSError, match="Invalid argument"), kernel.user_namespace((2**32 - 1, 5), (5, 5)):
        pytest.fail("it was made")
