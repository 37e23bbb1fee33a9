"""Compiled code in its cache: what was written is found again, and nothing else is ever used."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.spec import Compiler, Profile
from module_store.artifacts import Artifact, Artifacts, another
from module_store.disk import Disk
from module_store.sealing import ARTIFACT_MODE, CHUNK_BYTES, SECRET, SECRET_MODE, Key, key_in

DIGEST, OTHER = "sha256:" + "1" * 64, "sha256:" + "2" * 64
FOR = Key(DIGEST, "a" * 64)
CODE = os.urandom(CHUNK_BYTES + 12345)
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"


@pytest.fixture
def cache(place: Path) -> Iterator[Artifacts]:
    with Artifacts(str(place)) as made:
        yield made


def put(cache: Artifacts, key: Key = FOR, code: bytes = CODE) -> Artifact:
    with cache.scratch() as scratch:
        os.write(scratch, code)
        return cache.put(key, scratch)


def kept(cache: Artifacts, key: Key = FOR, code: bytes = CODE) -> Path:
    """The file of an artifact that is there and not in use."""
    os.close(put(cache, key, code).descriptor)
    return Path(cache.path, key.name)


def has(cache: Artifacts, key: Key = FOR) -> bool:
    found = cache.open(key)
    if found is not None:
        os.close(found.descriptor)
    return found is not None


def read(artifact: Artifact) -> bytes:
    try:
        return os.pread(artifact.descriptor, artifact.size, 0)
    finally:
        os.close(artifact.descriptor)


def names(place: Path) -> set[str]:
    return set(os.listdir(place))


def test_what_was_put_is_found_again_by_another_process_s_cache(cache: Artifacts, place: Path) -> None:
    assert read(put(cache)) == CODE
    with Artifacts(str(place)) as again:
        found = again.open(FOR)
        assert found is not None
        assert found.size == len(CODE)
        assert read(found) == CODE


def test_the_directory_admits_no_other_user_and_the_files_cannot_be_written(cache: Artifacts, place: Path) -> None:
    path = kept(cache)
    assert place.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == ARTIFACT_MODE
    assert (place / SECRET).stat().st_mode & 0o777 == SECRET_MODE
    assert names(place) == {SECRET, FOR.name}


def test_the_descriptor_is_for_reading_alone(cache: Artifacts) -> None:
    artifact = put(cache)
    assert fcntl.fcntl(artifact.descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    os.close(artifact.descriptor)


@pytest.mark.parametrize(
    "other",
    [
        Key(OTHER, FOR.engine),
        Key(DIGEST, "b" * 64),
        FOR.replace(profile=Profile.STRICT),
        FOR.replace(compiler=Compiler.FAST),
        FOR.replace(images=False),
    ],
    ids=["module", "engine", "profile", "compiler", "images"],
)
def test_another_key_is_another_artifact(cache: Artifacts, other: Key) -> None:
    kept(cache)
    assert not has(cache, other)
    os.close(put(cache, other, b"other").descriptor)
    found = cache.open(FOR)
    assert found is not None
    assert read(found) == CODE


def rewritten(path: Path, change: Callable[[bytearray], object]) -> None:
    data = bytearray(path.read_bytes())
    change(data)
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(ARTIFACT_MODE)


@pytest.mark.parametrize(
    "place_of_bit", [0, CHUNK_BYTES - 1, CHUNK_BYTES, len(CODE) - 1, len(CODE), -1, -9, -13, -44, -45]
)
def test_one_changed_bit_anywhere_and_it_is_removed(cache: Artifacts, place_of_bit: int) -> None:
    path = kept(cache)
    rewritten(path, lambda data: data.__setitem__(place_of_bit, data[place_of_bit] ^ 1))
    assert not has(cache)
    assert not path.exists()
    assert has(cache) is False
    assert read(put(cache)) == CODE


@pytest.mark.parametrize("length", [0, 1, 43, 44, 100, len(CODE), len(CODE) + 50])
def test_one_that_is_cut_off_is_removed(cache: Artifacts, length: int) -> None:
    path = kept(cache)
    rewritten(path, lambda data: data.__delitem__(slice(length, None)))
    assert not has(cache)
    assert not path.exists()


def test_one_with_more_behind_it_is_removed(cache: Artifacts) -> None:
    path = kept(cache)
    rewritten(path, lambda data: data.extend(b"more"))
    assert not has(cache)


def test_two_that_were_swapped_are_both_removed(cache: Artifacts, place: Path) -> None:
    other = Key(OTHER, FOR.engine)
    first, second = kept(cache), kept(cache, other, b"other" * 100)
    first.rename(place / "spare")
    second.rename(first)
    (place / "spare").rename(second)
    assert not has(cache)
    assert not has(cache, other)


def test_what_another_cache_wrote_is_removed(cache: Artifacts, tmp_path: Path) -> None:
    with Artifacts(str(tmp_path / "other")) as other:
        foreign = kept(other)
    place = Path(cache.path, FOR.name)
    foreign.rename(place)
    assert not has(cache)
    assert not place.exists()


@pytest.mark.parametrize("mode", [0o644, 0o666, 0o400, 0o4444])
def test_one_of_another_mode_is_removed(cache: Artifacts, mode: int) -> None:
    kept(cache).chmod(mode)
    assert not has(cache)


def test_one_with_a_second_name_is_removed(cache: Artifacts, tmp_path: Path) -> None:
    os.link(kept(cache), tmp_path / "second")
    assert not has(cache)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_one_of_another_user_is_removed(cache: Artifacts) -> None:
    os.chown(kept(cache), 65534, 65534)
    assert not has(cache)


def test_a_link_in_its_place_is_removed_and_what_it_names_is_not(cache: Artifacts, tmp_path: Path) -> None:
    path = kept(cache)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert not has(cache)
    assert not path.is_symlink()
    assert (tmp_path / "elsewhere").exists()


def test_a_pipe_in_its_place_is_removed_and_not_waited_for(cache: Artifacts) -> None:
    path = Path(cache.path, FOR.name)
    os.mkfifo(path)
    assert not has(cache)
    assert not path.exists()


def test_a_directory_in_its_place_is_an_error_that_says_so(cache: Artifacts) -> None:
    Path(cache.path, FOR.name).mkdir()
    with pytest.raises(KeepfleetError, match="is a directory; remove it"):
        cache.open(FOR)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda key: key.unlink(),
        lambda key: (key.chmod(0o600), key.write_bytes(b"short"), key.chmod(SECRET_MODE)),
        lambda key: key.chmod(0o440),
        lambda key: (key.rename(key.with_name("moved")), key.symlink_to("moved")),
        lambda key: os.link(key, key.with_name("second")),
    ],
    ids=["gone", "short", "readable", "link", "second-name"],
)
def test_a_key_that_cannot_be_trusted_voids_all_that_was_kept(place: Path, spoil: Callable[[Path], object]) -> None:
    with Artifacts(str(place)) as first:
        kept(first)
    before = (place / SECRET).read_bytes()
    spoil(place / SECRET)
    with Artifacts(str(place)) as second:
        assert (place / SECRET).read_bytes() != before
        assert not (place / SECRET).is_symlink()
        assert not has(second)
        assert read(put(second)) == CODE


def test_two_caches_of_one_directory_have_one_key(place: Path) -> None:
    made: list[Artifacts] = []
    together = threading.Barrier(8)

    def make() -> None:
        together.wait()
        made.append(Artifacts(str(place)))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(put(made[0]).descriptor)
    assert all(has(cache) for cache in made)
    for cache in made:
        cache.close()


def test_many_who_put_and_open_one_artifact_never_see_half_of_it(place: Path) -> None:
    faults: list[object] = []

    def work() -> None:
        with Artifacts(str(place)) as cache:
            for _ in range(20):
                found = cache.open(FOR)
                if (found is not None and read(found) != CODE) or read(put(cache)) != CODE:
                    faults.append(found)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert names(place) == {SECRET, FOR.name}


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_directory_that_others_may_enter_is_refused(place: Path, mode: int) -> None:
    place.mkdir(mode=0o700)
    place.chmod(mode)
    with pytest.raises(KeepfleetError, match=r"lets others in|other users may") as caught:
        Artifacts(str(place))
    assert caught.value.kind is ErrorKind.CONFIGURATION


def test_a_link_on_the_way_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(KeepfleetError, match="no link is followed"):
        Artifacts(str(tmp_path / "link"))


# --- room ------------------------------------------------------------------------------------------------------------


def keys(count: int) -> list[Key]:
    return [Key("sha256:" + f"{number:064x}", FOR.engine) for number in range(count)]


def test_what_was_used_least_recently_goes_when_the_cache_is_full(place: Path) -> None:
    with Artifacts(str(place), limit=3 * 10_400) as cache:
        first, second, third, fourth = keys(4)
        for key in (first, second, third):
            kept(cache, key, bytes(10_000))
        assert has(cache, first)  # and so it is the youngest
        kept(cache, fourth, bytes(10_000))
        assert [cache.has(key) for key in (first, second, third, fourth)] == [True, False, True, True]
        assert cache.total() <= 3 * 10_400


def test_what_is_used_stays_and_what_has_no_room_is_refused_and_leaves_nothing(place: Path) -> None:
    with Artifacts(str(place), limit=2 * 10_400) as cache:
        first, second, third = keys(3)
        used = [put(cache, key, bytes(10_000)) for key in (first, second)]
        with pytest.raises(KeepfleetError, match="are in use") as refused:
            put(cache, third, bytes(10_000))
        assert refused.value.kind is ErrorKind.NO_SPACE
        assert sorted(os.listdir(place)) == sorted([SECRET, first.name, second.name])
        for artifact in used:
            os.close(artifact.descriptor)
        kept(cache, third, bytes(10_000))
        assert cache.has(third)


def test_an_artifact_counts_as_used_as_long_as_another_process_has_its_descriptor(place: Path) -> None:
    with Artifacts(str(place), limit=10_400) as cache:
        first, second = keys(2)
        artifact = put(cache, first, bytes(10_000))
        holder = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[artifact.descriptor])
        os.close(artifact.descriptor)
        with pytest.raises(KeepfleetError, match="are in use"):
            put(cache, second, bytes(10_000))
        assert cache.has(first)
        holder.communicate()
        os.close(put(cache, second, bytes(10_000)).descriptor)
        assert not cache.has(first)


def test_an_artifact_that_its_keep_has_locked_for_itself_is_found_all_the_same(cache: Artifacts) -> None:
    artifact = put(cache)
    fcntl.flock(artifact.descriptor, fcntl.LOCK_EX)
    assert has(cache)
    os.close(artifact.descriptor)


@pytest.mark.parametrize("size", [0, 1 << 31])
def test_what_is_empty_or_too_large_is_refused(cache: Artifacts, place: Path, size: int) -> None:
    with cache.scratch() as scratch:
        os.ftruncate(scratch, size)
        with pytest.raises(KeepfleetError) as caught:
            cache.put(FOR, scratch)
    assert caught.value.kind is ErrorKind.TOO_LARGE
    assert names(place) == {SECRET}


# --- what fails, and who dies ----------------------------------------------------------------------------------------


class FailingDisk(Disk):
    """Refuses its `after`-th change, as a full disk does."""

    def __init__(self) -> None:
        self.after = -1

    def _count(self) -> None:
        self.after -= 1
        if self.after == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def create(self, directory: int, name: str) -> int:
        self._count()
        return super().create(directory, name)

    def write(self, file: int, data: bytes | memoryview) -> None:
        self._count()
        super().write(file, data)

    def sync(self, descriptor: int) -> None:
        self._count()
        super().sync(descriptor)

    def rename(self, source: int, name: str, target: int, new_name: str) -> None:
        self._count()
        super().rename(source, name, target, new_name)


@pytest.mark.parametrize("step", range(1, 9))
def test_a_disk_that_is_full_at_any_step_leaves_nothing_half(place: Path, step: int) -> None:
    disk = FailingDisk()
    with Artifacts(str(place), disk) as cache, cache.scratch() as scratch:
        os.write(scratch, CODE)
        disk.after = step
        try:
            os.close(cache.put(FOR, scratch).descriptor)
        except KeepfleetError as error:
            assert error.kind is ErrorKind.NO_SPACE
            assert not any(name.startswith(".new-") for name in names(place))
        disk.after = -1
        assert names(place) <= {SECRET, FOR.name}
        assert read(cache.put(FOR, scratch)) == CODE


@pytest.mark.parametrize("step", range(1, 6))
def test_a_disk_that_is_full_as_the_key_is_made_is_said_and_the_next_time_is_well(place: Path, step: int) -> None:
    disk = FailingDisk()
    disk.after = step + 1  # the first is the directory's own
    try:
        Artifacts(str(place), disk).close()
    except KeepfleetError as error:
        assert error.kind is ErrorKind.NO_SPACE
    with Artifacts(str(place)) as cache:
        assert read(put(cache)) == CODE


DYING = """
import os, signal, sys
from module_store.artifacts import Artifacts
from module_store.sealing import Key
from pathlib import Path
cache = Artifacts(sys.argv[1])
with cache.scratch() as scratch:
    os.write(scratch, bytes(3_000_000))
    step = lambda name: name == sys.argv[2] and os.kill(os.getpid(), signal.SIGKILL)
    cache.put(Key(sys.argv[3], sys.argv[4]), scratch, step)
"""


@pytest.mark.parametrize(("step", "there"), [("created", False), ("written", False), ("renamed", True)])
def test_a_process_that_is_killed_while_it_puts_leaves_nothing_half(place: Path, step: str, there: bool) -> None:
    command = [sys.executable, "-c", DYING, str(place), step, FOR.digest, FOR.engine]
    assert subprocess.run(command, check=False, cwd=ROOT).returncode == -signal.SIGKILL
    with Artifacts(str(place)) as cache:
        assert names(place) == ({SECRET, FOR.name} if there else {SECRET}), "what was half written is removed"
        assert has(cache) is there
        assert read(put(cache)) == CODE


def test_what_another_process_is_writing_is_not_taken_for_abandoned(place: Path) -> None:
    with Artifacts(str(place)) as first:
        seen: list[set[str]] = []

        def look(step: str) -> None:
            if step == "written":
                with Artifacts(str(place)):
                    seen.append({name for name in names(place) if name.startswith(".new-")})

        with first.scratch() as scratch:
            os.write(scratch, CODE)
            assert read(first.put(FOR, scratch, look)) == CODE
        assert [len(found) for found in seen] == [1]


def test_discarded_code_is_gone(cache: Artifacts) -> None:
    kept(cache)
    cache.discard(FOR, "the engine did not take it")
    assert not has(cache)
    cache.discard(FOR, "again")


def test_another_holder_s_locks_and_position_are_its_own(cache: Artifacts) -> None:
    artifact = put(cache)
    second = another(artifact)
    os.lseek(second.descriptor, 7, os.SEEK_SET)
    fcntl.flock(second.descriptor, fcntl.LOCK_UN)
    assert os.lseek(artifact.descriptor, 0, os.SEEK_CUR) == 0
    os.close(second.descriptor)
    assert cache._is_used(FOR.name)
    assert read(artifact) == CODE


def test_the_keys_of_what_is_there_are_listed_last_used_first_and_rubbish_is_left_out(
    cache: Artifacts, place: Path
) -> None:
    first, second, third = keys(3)
    other = first.replace(engine="another engine", profile=Profile.STRICT)
    for key in (first, second, other):
        kept(cache, key)
    (place / third.name).write_bytes(b"rubbish")
    (place / "link").symlink_to(place / first.name)
    assert has(cache, second)
    assert cache.keys() == [second, other, first]


@pytest.mark.parametrize("header", [b"", b"[]", b"{}", b'{"digest": "x"}', b"\xff" * 40, b'{"digest":' * 90])
def test_a_header_that_is_none_names_no_key(tmp_path: Path, header: bytes) -> None:
    made = tmp_path / "made"
    made.write_bytes(CODE + header + bytes(32) + len(header).to_bytes(4, "little") + b"keepart1")
    with made.open("rb") as file:
        assert key_in(file.fileno(), made.stat().st_size) is None
