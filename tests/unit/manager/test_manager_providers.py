"""What the manager opens for a guest, and every way out of a root that must stay shut."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from keep_grants import kernel
from keep_grants.protocol import SOCKET_NAME
from keep_manager.callers import GrantRoot
from keep_manager.folders import Folders
from keep_manager.keeps.policy import DEFAULT_CEILINGS
from keep_manager.model import Allowance, Provision, UnixUser
from keep_manager.providers import Providers
from keep_manager.providers.files import Files
from keep_protocol.api_workload import Grant, GrantKind, WorkloadRequest, parse_workload
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.spec import KeepSpec
from keep_protocol.workload import MAX_SECRET_BYTES, Directory, Workload, workload_from_json
from tests.fakes.callers import ALICE
from tests.fakes.grants_helper import grants_helper

ME = UnixUser(os.getuid(), os.getgid())
FILES = Files("", mapped=False)
"""With the socket of each test's helper."""


@pytest.fixture(scope="module")
def helper_at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the helper is asked for directories, as a user's own manager does."""
    path = tmp_path_factory.mktemp("run") / SOCKET_NAME
    with grants_helper(path):
        yield path


@pytest.fixture(autouse=True)
def helper(helper_at: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    made = Files(str(helper_at), mapped=False)
    monkeypatch.setattr(f"{__name__}.FILES", made)
    return made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    (made / "data" / "deep").mkdir(parents=True)
    (made / "data" / "in.txt").write_text("hello")
    (made / "key").write_text("s3cret")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "passwd").write_text("not yours")
    return made


@pytest.fixture(autouse=True)
def nothing_is_left_open() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


def allowed(root: Path | str, writable: bool = False) -> Allowance:
    return Allowance((GrantRoot(str(root), writable),), DEFAULT_CEILINGS)


def asked(*granted: Grant) -> WorkloadRequest:
    count = sum(grant.kind is GrantKind.SECRET for grant in granted)
    return WorkloadRequest(
        Workload(
            stdin=any(grant.kind is GrantKind.STDIN for grant in granted),
            directories=tuple(
                Directory(f"/d{n}", grant.writable)
                for n, grant in enumerate(grant for grant in granted if grant.kind is GrantKind.DIRECTORY)
            ),
            secrets=tuple(f"s{n}" for n in range(count)),
        ),
        granted,
    )


def directory(path: Path | str, writable: bool = False) -> Grant:
    return Grant(GrantKind.DIRECTORY, str(path), writable)


def secret(path: Path | str) -> Grant:
    return Grant(GrantKind.SECRET, str(path))


def stdin(path: Path | str) -> Grant:
    return Grant(GrantKind.STDIN, str(path))


def provided(allowance: Allowance, request: WorkloadRequest | None) -> Provision:
    return Provision(7, KeepSpec(), ALICE, allowance, ME, request)


@contextmanager
def granted(request: WorkloadRequest, allowance: Allowance) -> Iterator[tuple[int, ...]]:
    """What the providers open, in the order of its names."""
    with ExitStack() as held:
        provision = provided(allowance, request)
        found = FILES.opened(provision, held)
        assert tuple(found) == ("workload", *request.workload.grant_names)
        yield tuple(found.values())


def refusal(grant: Grant, allowance: Allowance) -> KeepfleetError:
    with pytest.raises(KeepfleetError) as caught, granted(asked(grant), allowance):
        pytest.fail("it was granted")
    assert caught.value.message.startswith("cannot ")
    return caught.value


def same(descriptor: int, path: Path) -> bool:
    return os.path.samestat(os.fstat(descriptor), path.stat())


def test_what_is_granted_arrives_in_the_order_of_its_names(root: Path) -> None:
    request = asked(stdin(root / "data" / "in.txt"), directory(root / "data"), secret(root / "key"))
    assert request.workload.grant_names == ("stdin", "directory-0", "secret-0")
    with granted(request, allowed(root)) as (description, file, place, key):
        assert workload_from_json(os.pread(description, 1 << 20, 0)) == request.workload
        assert os.pread(file, 10, 0) == b"hello"
        assert same(place, root / "data")
        assert os.pread(key, 10, 0) == b"s3cret"


def test_every_descriptor_is_open_for_reading_alone_and_can_be_stored(root: Path) -> None:
    request = asked(stdin(root / "data" / "in.txt"), directory(root / "data", True), secret(root / "key"))
    with granted(request, allowed(root, True)) as descriptors:
        for descriptor in descriptors:
            flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
            assert flags & os.O_ACCMODE == os.O_RDONLY
            assert not flags & os.O_PATH
            assert fcntl.fcntl(descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


def test_a_description_can_be_changed_by_no_one(root: Path) -> None:
    with granted(asked(), allowed(root)) as (description,):
        with pytest.raises(OSError, match="Operation not permitted"):
            os.open(f"/proc/self/fd/{description}", os.O_WRONLY | os.O_TRUNC)
        with pytest.raises(OSError, match="Operation not permitted"):
            descriptor = os.open(f"/proc/self/fd/{description}", os.O_RDWR)
            try:
                os.write(descriptor, b"x")
            finally:
                os.close(descriptor)


def test_the_root_itself_can_be_granted(root: Path) -> None:
    with granted(asked(directory(root)), allowed(root)) as (_, place):
        assert same(place, root)


def test_a_caller_without_roots_gets_nothing(root: Path) -> None:
    error = refusal(directory(root), Allowance((), DEFAULT_CEILINGS))
    assert error.kind is ErrorKind.FORBIDDEN
    assert "for alice it lies below no directory" in error.message


@pytest.mark.parametrize("path", ["/etc/passwd", "/", "{root}sibling", "{outside}/passwd"])
def test_what_lies_below_no_root_is_forbidden(root: Path, path: str) -> None:
    sibling = Path(f"{root}sibling")
    sibling.write_text("x")
    found = path.format(root=root, outside=root.parent / "outside")
    assert refusal(secret(found), allowed(root)).kind is ErrorKind.FORBIDDEN


def test_a_root_for_reading_gives_nothing_to_write_to(root: Path) -> None:
    error = refusal(directory(root / "data", True), allowed(root))
    assert error.kind is ErrorKind.FORBIDDEN
    assert "may only be read" in error.message


def test_a_writable_root_below_one_for_reading_is_used_for_writing(root: Path) -> None:
    both = Allowance((GrantRoot(str(root)), GrantRoot(str(root / "data"), True)), DEFAULT_CEILINGS)
    with granted(asked(directory(root / "data" / "deep", True)), both) as (_, place):
        assert same(place, root / "data" / "deep")
    assert refusal(directory(root, True), both).kind is ErrorKind.FORBIDDEN


@pytest.mark.parametrize("path", ["..", "../outside/passwd", "data/../../outside", "data/../..", "/etc/passwd"])
def test_the_kernel_leads_no_one_out_of_a_root(root: Path, path: str) -> None:
    place = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EXDEV)):
            kernel.open_strictly(path, os.O_PATH, place)
    finally:
        os.close(place)


@pytest.mark.parametrize(
    "path",
    ["relative", "", "/a/../b", "/..", "/a/./b", "//a", "/a/", "/a\0b", "/\ud800", "/" + "x" * 4096, 5, None],
)
def test_a_path_that_is_not_plain_is_not_even_tried(path: object) -> None:
    with pytest.raises(KeepfleetError) as caught:
        parse_workload({"stdin": {"file": path}})
    assert caught.value.kind is ErrorKind.BAD_REQUEST
    caught.value.message.encode()


@pytest.mark.parametrize("target", ["{outside}", "../outside", "data", "/proc/self/root"])
@pytest.mark.parametrize("rest", ["", "/passwd"])
def test_no_symbolic_link_is_followed_wherever_it_leads(root: Path, target: str, rest: str) -> None:
    (root / "link").symlink_to(target.format(outside=root.parent / "outside"))
    assert refusal(directory(f"{root}/link{rest}"), allowed(root)).kind is ErrorKind.FORBIDDEN


def test_a_file_with_a_second_name_is_forbidden(root: Path) -> None:
    os.link(root.parent / "outside" / "passwd", root / "mine")
    for grant in (secret(root / "mine"), stdin(root / "mine")):
        error = refusal(grant, allowed(root))
        assert error.kind is ErrorKind.FORBIDDEN
        assert "hard link" in error.message


@pytest.mark.parametrize("path", ["/proc/self/root/etc/passwd", "/proc/self/fd/0", "/proc/self/cwd", "/dev/fd/0"])
def test_no_way_of_proc_s_leads_anywhere_even_below_the_root_of_all(path: str) -> None:
    assert refusal(stdin(path), allowed("/")).kind is ErrorKind.FORBIDDEN


def test_a_root_that_is_a_link_is_refused(root: Path) -> None:
    link = root.parent / "alias"
    link.symlink_to(root)
    error = refusal(directory(link / "data"), allowed(link))
    assert error.kind is ErrorKind.CONFIGURATION
    assert "symbolic link" in error.message
    assert refusal(directory(link / "data" / "deep"), allowed(link / "data")).kind is ErrorKind.CONFIGURATION


def test_a_root_that_is_gone_is_refused(root: Path) -> None:
    error = refusal(directory(root / "none" / "x"), allowed(root / "none"))
    assert error.kind is ErrorKind.CONFIGURATION


@pytest.mark.parametrize("name", ["none", "data/none", "key/x"])
def test_what_is_not_there_is_not_found(root: Path, name: str) -> None:
    assert refusal(secret(root / name), allowed(root)).kind is ErrorKind.NOT_FOUND


def test_what_is_of_another_kind_is_refused_unopened(root: Path) -> None:
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(root, os.O_PATH)
        listener.bind(f"/proc/self/fd/{here}/sock")
        os.close(here)
        for name in ("pipe", "sock", "data"):
            assert refusal(stdin(root / name), allowed(root)).kind is ErrorKind.BAD_REQUEST
        assert refusal(directory(root / "pipe"), allowed(root)).kind is ErrorKind.BAD_REQUEST
    assert refusal(directory(root / "key"), allowed(root)).kind is ErrorKind.BAD_REQUEST


def test_a_device_is_no_standard_input() -> None:
    assert refusal(stdin("/dev/zero"), allowed("/dev")).kind is ErrorKind.BAD_REQUEST


def test_a_secret_that_is_too_long_is_refused(root: Path) -> None:
    with open(root / "key", "wb") as file:
        file.truncate(MAX_SECRET_BYTES + 1)
    assert refusal(secret(root / "key"), allowed(root)).kind is ErrorKind.TOO_LARGE


def test_one_refusal_among_many_grants_closes_them_all(root: Path) -> None:
    many = asked(*(directory(root / "data") for _ in range(15)), directory(root / "none"))
    with pytest.raises(KeepfleetError), granted(many, allowed(root)):
        pytest.fail("it was granted")


def test_a_grant_that_was_opened_stays_the_same_when_its_name_is_given_to_another(root: Path) -> None:
    with granted(asked(directory(root / "data")), allowed(root)) as (_, place):
        inode = os.fstat(place).st_ino
        (root / "data").rename(root / "old")
        (root / "data").symlink_to(root.parent / "outside")
        assert os.fstat(place).st_ino == inode
        assert sorted(os.listdir(place)) == ["deep", "in.txt"]


TRIES = 200
"""Enough for each of granted, refused as a link, and not there, dozens of times: each is what a third of them meet."""


def test_a_directory_swapped_for_a_link_during_the_grant_never_leads_out(root: Path) -> None:
    """A writer below the root swaps a directory and a link to the outside as fast as it can."""
    outside, swapped, stop = root.parent / "outside", root / "data" / "deep", threading.Event()
    (outside / "x").mkdir()
    (swapped / "x").mkdir()
    (root / "link").symlink_to(outside)

    def swap() -> None:
        while not stop.is_set():
            swapped.rename(root / "aside")
            (root / "link").rename(swapped)
            swapped.rename(root / "link")
            (root / "aside").rename(swapped)

    inside = (swapped / "x").stat().st_ino
    results: set[int | ErrorKind] = set()
    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        for _ in range(TRIES):
            try:
                with granted(asked(directory(swapped / "x")), allowed(root)) as (_, place):
                    results.add(os.fstat(place).st_ino)
            except KeepfleetError as error:
                results.add(error.kind)
    finally:
        stop.set()
        swapper.join()
    found = {result for result in results if isinstance(result, int)}
    assert found <= {inside}
    # The writer may have stood still with the link there for all of the tries; where it has ended the directory is.
    with granted(asked(directory(swapped / "x")), allowed(root)) as (_, place):
        assert os.fstat(place).st_ino == inside
    assert results - found <= {ErrorKind.FORBIDDEN, ErrorKind.NOT_FOUND, ErrorKind.UNAVAILABLE}


def test_a_directory_removed_while_it_is_granted_stays_an_empty_directory(root: Path) -> None:
    with granted(asked(directory(root / "data")), allowed(root)) as (_, place):
        shutil.rmtree(root / "data")
        assert os.listdir(place) == []


def test_a_manager_that_cannot_reach_the_helper_grants_no_file_either(root: Path, tmp_path: Path) -> None:
    alone, request = Files(str(tmp_path / "none"), mapped=False), asked(secret(root / "key"))
    with ExitStack() as held, pytest.raises(KeepfleetError) as caught:
        alone.opened(provided(allowed(root), request), held)
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    assert "cannot grant directories or files: there is no socket" in caught.value.message


def test_what_a_start_opens_later_is_asked_of_no_helper_and_still_only_from_the_caller_s_roots(
    root: Path, tmp_path: Path
) -> None:
    alone = Files(str(tmp_path / "none"), mapped=False)
    for known, request in ((True, asked(secret(root / "key"))), (False, asked(secret(tmp_path / "key")))):
        provision = provided(allowed(root), request).replace(user=None, opens=False)
        with ExitStack() as held:
            if known:
                assert tuple(alone.opened(provision, held)) == ("workload",)
            else:
                with pytest.raises(KeepfleetError, match="lies below no directory"):
                    alone.opened(provision, held)


def test_a_file_that_is_granted_can_be_opened_again_for_reading_alone(root: Path) -> None:
    (root / "key").chmod(0o666)
    with granted(asked(secret(root / "key")), allowed(root)) as (_, key):
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            os.open(f"/proc/self/fd/{key}", os.O_RDWR)
        assert os.fstatvfs(key).f_flag & (os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC) == 15


@pytest.fixture
def trusted(tmp_path: Path, helper: Files) -> Providers:
    for name in ("ca", "revoked"):
        (tmp_path / name).touch()
    folders = Folders(str(tmp_path / "keeps"), "this boot")
    folders.open()
    return Providers(str(tmp_path / "ca"), str(tmp_path / "revoked"), helper, folders.make, lambda _: -1)


async def test_the_loop_goes_on_while_a_file_system_hangs(trusted: Providers, root: Path) -> None:
    """A FIFO in the place of the client CA is opened by a thread, which waits until a writer comes."""
    os.unlink(root.parent / "ca")
    os.mkfifo(root.parent / "ca")
    provision = provided(allowed(root), asked(directory(root)))
    opened = asyncio.Event()

    async def start() -> None:
        async with trusted.opened(provision) as found:
            assert list(found) == ["client-ca", "revoked", "workload", "directory-0"]
            opened.set()

    starting = asyncio.create_task(start())
    for _ in range(100):
        await asyncio.sleep(0)
    assert not opened.is_set()
    with (root.parent / "ca").open("wb"):
        await starting
    assert opened.is_set()


async def test_a_start_that_is_given_up_while_its_files_are_opened_leaves_none_open(
    trusted: Providers, root: Path
) -> None:
    os.unlink(root.parent / "ca")
    os.mkfifo(root.parent / "ca")
    provision = provided(allowed(root), asked(directory(root)))

    async def start() -> None:
        async with trusted.opened(provision):
            pytest.fail("it was given up")

    starting = asyncio.create_task(start())
    await asyncio.sleep(0)
    starting.cancel()
    await asyncio.wait({starting})
    assert starting.cancelled()
    with (root.parent / "ca").open("wb"):
        await asyncio.get_running_loop().shutdown_default_executor()  # the thread has ended, and what it does last


def test_a_start_without_a_workload_gets_what_an_upload_endpoint_needs(trusted: Providers, root: Path) -> None:
    with ExitStack() as held:
        found = trusted.open_now(provided(allowed(root), None), held)
        assert list(found) == ["client-ca", "revoked"]
