"""Volumes as the helper mounts them: within their limits, one keep's at a time, and of nothing but root's own files."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from keep_grants.mounts import Maker
from keep_grants.protocol import Granted, GrantRequest, KeepIds, WantedVolume, decode_request
from keep_grants.volumes import CONTROL, OWNER
from keep_manager.declared.volumes import Volumes
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.limits import MIB
from tests.unit.grants.test_grants_mounts import KEEP, as_keep

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists(CONTROL), reason="only root can mount a file system, from a loop device"
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with the volume `data` of 16 MiB and 100 inodes."""
    volumes = Volumes(str(tmp_path / "volumes"), lambda _: 1 << 40)
    volumes.open()
    volumes.ensure("data", "alice", 16 * MIB, 100)
    return tmp_path / "volumes"


def mounted(held: ExitStack, place: Path, keep: KeepIds | None = KEEP) -> int:
    maker = held.enter_context(Maker(keep))
    directory, granted = maker.volume(held, WantedVolume(str(place), "data"))
    assert granted == Granted(OWNER)
    return directory


def refused(place: Path, keep: KeepIds | None = KEEP) -> KeepfleetError:
    with pytest.raises(KeepfleetError) as caught, ExitStack() as held:
        mounted(held, place, keep)
    return caught.value


def test_it_is_an_empty_directory_of_the_keep_s_own_at_first_and_what_it_writes_lasts(place: Path) -> None:
    with ExitStack() as held:
        volume = mounted(held, place)
        assert (os.listdir(volume), os.fstat(volume).st_uid, os.fstat(volume).st_gid) == ([], KEEP.uid, KEEP.gid)
        assert as_keep("os.write(os.open('new', os.O_WRONLY | os.O_CREAT, 0o666, dir_fd=d), b'x')", volume) == "1"
        assert as_keep("os.listdir(os.open('../..', os.O_RDONLY, dir_fd=d))", volume) == "['new']"
    other = KeepIds(63000, 63000)
    with ExitStack() as held:
        volume = mounted(held, place, other)
        status = os.stat("new", dir_fd=volume)
        assert (status.st_uid, status.st_gid, status.st_size) == (other.uid, other.gid, 1)


def test_its_bytes_and_its_inodes_end(place: Path) -> None:
    fill = "[os.pwrite(os.open('big', os.O_WRONLY | os.O_CREAT, dir_fd=d), bytes(1 << 20), n << 20) for n in range(99)]"
    make = "[os.mkdir(str(n), dir_fd=d) for n in range(9999)]"
    with ExitStack() as held:
        volume = mounted(held, place)
        assert as_keep(make, volume) == os.strerror(errno.ENOSPC)
        assert 64 <= len(os.listdir(volume)) < 200
        assert as_keep("[os.rmdir(n, dir_fd=d) for n in os.listdir(d)] and 1", volume) == "1"
        assert as_keep(fill, volume) == os.strerror(errno.ENOSPC)
        assert 8 * MIB < os.stat("big", dir_fd=volume).st_size < 16 * MIB
    status = (place / "data" / "image").stat()
    assert (status.st_size, status.st_blocks * 512 >= 16 * MIB) == (16 * MIB, True)  # a full host is no fault in it


def test_one_keep_has_it_until_its_last_descriptor_is_closed(place: Path) -> None:
    with ExitStack() as held:
        kept = os.dup(mounted(held, place))
    error = refused(place)  # which waits for it
    assert (error.kind, "another keep has it" in error.message) == (ErrorKind.CONFLICT, True)
    with pytest.raises(KeepfleetError, match="a keep has it"):
        Volumes(str(place), lambda _: 0).remove("data")
    assert Volumes(str(place), lambda _: 0).find("data").in_use
    os.close(kept)
    with ExitStack() as held:
        mounted(held, place)


def test_nothing_in_it_can_be_run_or_gain_rights(place: Path) -> None:
    with ExitStack() as held:
        flags = os.fstatvfs(mounted(held, place)).f_flag
    assert flags & os.ST_NOSUID and flags & os.ST_NOEXEC and flags & os.ST_NODEV


def link_in_place(place: Path) -> None:
    (place / "data").rename(place / "moved")
    (place / "data").symlink_to("moved")


def image_is_a_link(place: Path) -> None:
    (place / "data/image").rename(place / "moved")
    (place / "data/image").symlink_to(place / "moved")


DAMAGES: dict[str, tuple[Callable[[Path], None], ErrorKind]] = {
    "a link in its place": (link_in_place, ErrorKind.FORBIDDEN),
    "a link in its image's place": (image_is_a_link, ErrorKind.FORBIDDEN),
    "another's folder": (lambda place: os.chown(place / "data", 1000, 1000), ErrorKind.FORBIDDEN),
    "another's image": (lambda place: os.chown(place / "data/image", 1000, 1000), ErrorKind.FORBIDDEN),
    "a folder that others may write to": (lambda place: (place / "data").chmod(0o777), ErrorKind.FORBIDDEN),
    "a second name": (lambda place: os.link(place / "data/image", place / "second"), ErrorKind.FORBIDDEN),
    "no image": (lambda place: (place / "data/image").unlink(), ErrorKind.NOT_FOUND),
    "no file system": (lambda place: os.truncate(place / "data/image", 4096), ErrorKind.UNAVAILABLE),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_root_s_alone_or_is_damaged_is_not_mounted(place: Path, damage: str) -> None:
    work, kind = DAMAGES[damage]
    work(place)
    assert refused(place).kind is kind


def test_a_user_s_own_instance_has_none(place: Path) -> None:
    assert refused(place, None).kind is ErrorKind.UNSUPPORTED


def test_a_request_without_volumes_is_one_that_older_helpers_know() -> None:
    request = GrantRequest((), KEEP)
    assert b"volumes" not in request.encode()
    asked = request.replace(volumes=(WantedVolume("/var/lib/keepfleet/volumes", "data"),))
    assert decode_request(asked.encode()) == asked
