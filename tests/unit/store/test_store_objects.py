"""Objects, references and attachments of a store that nothing happens to, and what is refused."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import pytest

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.store import MAX_HISTORY
from module_store import checking
from module_store.disk import Disk
from module_store.place import Damaged
from module_store.store import MAX_ATTACHMENTS, Store
from tests.unit.store.conftest import HELLO, WORLD, add, digest_of, read, tree

ROOT = Path(__file__).resolve().parents[3]
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to other users")


def test_what_is_added_is_read_again_by_its_digest_and_is_its_owner_s_alone_to_read(
    store: Store, directory: Path
) -> None:
    digest = add(store, HELLO)
    assert digest == digest_of(HELLO)
    assert read(store, digest) == HELLO
    assert stat.S_IMODE((directory / "objects" / digest.removeprefix("sha256:")).stat().st_mode) == 0o400
    assert [stat.S_IMODE(path.stat().st_mode) for path in (directory, directory / "objects")] == [0o700, 0o700]
    assert store.object(digest).size == len(HELLO)
    assert tree(directory / "new") == {}


def test_an_object_s_descriptor_is_at_its_beginning_and_cannot_be_written_to(store: Store) -> None:
    file = store.open_object(add(store, HELLO))
    try:
        assert os.lseek(file, 0, os.SEEK_CUR) == 0
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(file, b"x")
    finally:
        os.close(file)


def test_what_was_verified_is_read_whatever_takes_its_name_afterwards(store: Store, directory: Path) -> None:
    digest = add(store, HELLO)
    with os.fdopen(store.open_object(digest), "rb") as file:
        (directory / "new" / "other").write_bytes(b"\0asm evil!")
        os.rename(directory / "new" / "other", directory / "objects" / digest.removeprefix("sha256:"))
        assert file.read() == HELLO


def test_adding_the_same_again_leaves_one_object_that_counts_as_young(store: Store, directory: Path) -> None:
    digest = add(store, HELLO)
    path = directory / "objects" / digest.removeprefix("sha256:")
    os.utime(path, (1, 1))
    assert add(store, HELLO) == digest
    assert store.object(digest).added > 1
    assert [each.digest for each in store.objects()] == [digest]


def test_another_digest_than_was_asked_for_is_refused_and_nothing_stays(store: Store, directory: Path) -> None:
    before = tree(directory)
    with pytest.raises(KeepfleetError, match="its digest is sha256:") as refused:
        store.add(io.BytesIO(HELLO), reference="web:1", digest=digest_of(WORLD))
    assert refused.value.kind is ErrorKind.BAD_REQUEST
    assert tree(directory) == before


def test_what_is_too_large_is_refused_and_nothing_stays(store: Store, directory: Path) -> None:
    before = tree(directory)
    with pytest.raises(KeepfleetError, match="it is over 100 bytes") as refused:
        store.add(io.BytesIO(WORLD), limit=100)
    assert refused.value.kind is ErrorKind.TOO_LARGE
    assert tree(directory) == before


def test_a_source_that_cannot_be_read_is_named_and_nothing_stays(store: Store, directory: Path) -> None:
    before = tree(directory)
    with open("/proc/self/mem", "rb", buffering=0) as broken, pytest.raises(KeepfleetError) as refused:
        store.add(broken)
    assert refused.value.message == "cannot read the module: Input/output error"
    assert tree(directory) == before


class Zeros(io.RawIOBase):
    """A long file of zeros, made as it is read."""

    def __init__(self, size: int) -> None:
        self._left = size

    def read(self, size: int = -1, /) -> bytes:
        count = min(self._left, size)
        self._left -= count
        return bytes(count)


def test_adding_and_reading_take_the_same_memory_whatever_the_length(store: Store) -> None:
    peaks = []
    for size in (8 << 20, 64 << 20):
        tracemalloc.start()
        os.close(store.open_object(store.add(Zeros(size)).digest))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 6 << 20
    assert abs(peaks[1] - peaks[0]) < 1 << 20


def test_many_adders_and_readers_of_one_object_get_along(directory: Path) -> None:
    faults: list[BaseException] = []

    def work() -> None:
        try:
            with Store.create(str(directory)) as own:
                for _ in range(10):
                    assert read(own, add(own, WORLD, "web:1")) == WORLD
        except BaseException as fault:
            faults.append(fault)
            raise

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    with Store.open(str(directory)) as store:
        assert [each.digest for each in store.objects()] == [digest_of(WORLD)]
        assert len(store.reference("web:1").history) == 1
    assert tree(directory / "new") == {}


WORKING = """
import io, sys
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.store import Collection, Tagging
from module_store.operations import Operations

number = int(sys.argv[2])
store = Operations(sys.argv[1], f"process {number}")
for turn in range(8):
    own = b"\\0asm" + bytes([number, turn])
    added = store.add(io.BytesIO(own), f"own:{number}-{turn}")
    store.add(io.BytesIO(b"\\0asm shared"), "shared:1")
    store.tag("moving:1", Tagging(added.digest))
    try:
        store.untag(f"own:{number}-{turn - 3}")
    except KeepfleetError as error:
        assert error.kind is ErrorKind.NOT_FOUND, error
    store.collect(Collection(grace=-1.0, history=2))
    assert store.inspect(added.digest).digest == added.digest
"""


def test_processes_that_add_move_remove_and_collect_concurrently_lose_nothing_that_is_named(directory: Path) -> None:
    """As several `keepctl`, or a manager and `keepctl`, or two managers of one store: the same calls."""
    Store.create(str(directory)).close()
    command = [sys.executable, "-c", WORKING, str(directory)]
    running = [
        subprocess.Popen([*command, str(number)], cwd=ROOT, stderr=subprocess.PIPE, text=True) for number in range(4)
    ]
    assert [(process.communicate()[1], process.returncode) for process in running] == [("", 0)] * 4
    with Store.open(str(directory)) as store:
        assert list(checking.findings(store)) == []
        names = {f"own:{number}-{turn}" for number in range(4) for turn in (5, 6, 7)} | {"shared:1", "moving:1"}
        assert set(store.reference_names()) == names
        moved = store.reference("moving:1").history
        assert [move.source for move in moved[1:]] == [move.target for move in moved[:-1]], "each from where it was"
        for name in names:
            read(store, store.resolve(name))
    assert tree(directory / "new") == {}


def test_a_change_waits_for_another_for_a_while_and_no_reader_does(store: Store, directory: Path) -> None:
    digest = add(store, HELLO, "web:1")
    with Store.open(str(directory)) as other, other.place.locked():
        assert read(store, store.resolve("web:1")) == HELLO
        with pytest.raises(KeepfleetError, match="another process is changing it") as refused:
            store.place.locked(0.0).__enter__()
        assert refused.value.kind is ErrorKind.UNAVAILABLE
    store.tag("web:2", digest)


def test_a_reference_moves_and_remembers_who_moved_it_when_and_from_where(store: Store) -> None:
    first = add(store, HELLO, "web:1.2")
    second = add(store, WORLD)
    moved = store.tag("web:1.2", second, "alice")
    assert store.reference("web:1.2") == moved
    assert moved.digest == second
    assert [(move.who, move.source, move.target) for move in moved.history] == [
        ("tester", None, first),
        ("alice", first, second),
    ]
    assert moved.history[0].when <= moved.history[1].when
    assert store.tag("web:1.2", second, "bob") == moved, "it names that already"


def test_a_reference_keeps_its_last_moves(store: Store) -> None:
    digests = [add(store, HELLO), add(store, WORLD)]
    for number in range(MAX_HISTORY + 5):
        store.tag("web:1", digests[number % 2], f"user {number}")
    history = store.reference("web:1").history
    assert [move.who for move in history] == [f"user {number}" for number in range(5, MAX_HISTORY + 5)]


def test_a_digest_decides_wherever_the_reference_next_to_it_points(store: Store) -> None:
    first = add(store, HELLO, "web:1")
    second = add(store, WORLD, "web:1")
    assert store.resolve("web:1") == second
    assert store.resolve(f"web:1@{first}") == first
    assert store.resolve(first) == first
    with pytest.raises(KeepfleetError, match="cannot find sha256:") as refused:
        store.resolve(f"web:1@{digest_of(b'other')}")
    assert refused.value.kind is ErrorKind.NOT_FOUND


@pytest.mark.parametrize(
    "wrong",
    [
        "web",
        "Web:1",
        "web:",
        ":1",
        "../x:1",
        "web:1/2",
        "web:1@sha256:12",
        "sha256:12",
        "a" * 64 + ":1",
        "web:.",
        "-w:1",
    ],
)
def test_what_is_no_reference_is_refused_before_anything_is_looked_for(store: Store, wrong: str) -> None:
    with pytest.raises(KeepfleetError, match="cannot read ") as refused:
        store.resolve(wrong)
    assert refused.value.kind is ErrorKind.BAD_REQUEST


def test_a_reference_to_what_is_not_there_is_refused(store: Store) -> None:
    with pytest.raises(KeepfleetError) as refused:
        store.tag("web:1", digest_of(HELLO))
    assert refused.value.kind is ErrorKind.NOT_FOUND
    with pytest.raises(KeepfleetError, match="keepctl store ls") as missing:
        store.resolve("web:1")
    assert missing.value.kind is ErrorKind.NOT_FOUND
    with pytest.raises(KeepfleetError, match="cannot find the reference web:1"):
        store.untag("web:1")


def test_what_is_attached_is_read_again_and_replaced_whole(store: Store) -> None:
    digest = add(store, HELLO)
    assert store.attached(digest, "signature.a") is None
    store.attach(digest, "signature.a", b"one")
    store.attach(digest, "signature.a", b"two\nlines")
    store.attach(digest, "local.report", b"")
    assert store.attached(digest, "signature.a") == b"two\nlines"
    assert store.attachments(digest) == ("local.report", "signature.a")
    store.detach(digest, "signature.a")
    assert store.attachments(digest) == ("local.report",)


def test_attachments_are_bounded_in_length_and_number_and_belong_to_an_object(store: Store) -> None:
    digest = add(store, HELLO)
    with pytest.raises(KeepfleetError, match="cannot find"):
        store.attach(digest_of(WORLD), "note", b"")
    with pytest.raises(KeepfleetError, match="over 1048576 bytes"):
        store.attach(digest, "note", bytes((1 << 20) + 1))
    with pytest.raises(KeepfleetError, match="as the kind of an attachment"):
        store.attach(digest, "../note", b"")
    for number in range(MAX_ATTACHMENTS):
        store.attach(digest, f"note.{number}", b"")
    with pytest.raises(KeepfleetError, match="it has 64 attachments already"):
        store.attach(digest, "note", b"")
    store.attach(digest, "note.1", b"again")


def object_of(directory: Path, digest: str) -> Path:
    return directory / "objects" / digest.removeprefix("sha256:")


def quarantined(directory: Path) -> list[bytes]:
    return [path.read_bytes() for path in (directory / "quarantine").iterdir() if not path.is_symlink()]


def test_an_object_with_other_bytes_is_put_into_quarantine_and_the_others_go_on(store: Store, directory: Path) -> None:
    bad, good = add(store, HELLO), add(store, WORLD)
    os.chmod(object_of(directory, bad), 0o600)
    object_of(directory, bad).write_bytes(b"\0asm evil!")
    os.chmod(object_of(directory, bad), 0o400)
    with pytest.raises(Damaged, match=r"its contents are not those of its digest; it was moved to .*/quarantine/"):
        store.open_object(bad)
    assert quarantined(directory) == [b"\0asm evil!"]
    with pytest.raises(KeepfleetError, match="cannot find"):
        store.open_object(bad)
    assert read(store, good) == WORLD
    assert read(store, add(store, HELLO)) == HELLO, "adding it again brings it back"


def test_adding_what_is_damaged_here_replaces_it(store: Store, directory: Path) -> None:
    digest = add(store, HELLO)
    os.chmod(object_of(directory, digest), 0o600)
    object_of(directory, digest).write_bytes(b"\0")
    os.chmod(object_of(directory, digest), 0o400)
    add(store, HELLO)
    assert read(store, digest) == HELLO
    assert quarantined(directory) == [b"\0"]


def test_two_objects_that_were_exchanged_are_both_refused(store: Store, directory: Path) -> None:
    one, other = object_of(directory, add(store, HELLO)), object_of(directory, add(store, WORLD))
    os.rename(one, directory / "objects" / "x")
    os.rename(other, one)
    os.rename(directory / "objects" / "x", other)
    for data in (HELLO, WORLD):
        with pytest.raises(Damaged):
            store.open_object(digest_of(data))


def test_a_link_in_an_object_s_place_is_not_followed_whatever_it_leads_to(
    store: Store, directory: Path, tmp_path: Path
) -> None:
    digest = add(store, HELLO)
    (tmp_path / "same").write_bytes(HELLO)
    os.chmod(tmp_path / "same", 0o400)
    object_of(directory, digest).unlink()
    object_of(directory, digest).symlink_to(tmp_path / "same")
    with pytest.raises(Damaged, match="it is a symbolic link; it was moved to"):
        store.open_object(digest)
    assert (tmp_path / "same").read_bytes() == HELLO


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_regular_file_is_put_into_quarantine_without_waiting(
    store: Store, directory: Path, make: object
) -> None:
    digest = add(store, HELLO)
    object_of(directory, digest).unlink()
    assert callable(make)
    make(object_of(directory, digest))
    with pytest.raises(Damaged, match="it is no regular file; it was moved to"):
        store.open_object(digest)


def test_an_object_that_could_be_written_to_is_refused_with_the_command_that_helps(
    store: Store, directory: Path
) -> None:
    digest = add(store, HELLO)
    os.chmod(object_of(directory, digest), 0o640)
    with pytest.raises(Damaged, match=r"its mode is 0640, which lets it be changed; .*run: chmod 0400 /") as refused:
        store.open_object(digest)
    os.chmod(refused.value.message.rpartition(" ")[2], 0o400)
    assert read(store, digest) == HELLO


@AS_ROOT
def test_an_object_of_another_user_is_put_into_quarantine(store: Store, directory: Path) -> None:
    digest = add(store, HELLO)
    os.chown(object_of(directory, digest), 12345, -1)
    with pytest.raises(Damaged, match="it belongs to user 12345, and the store to user 0; it was moved to"):
        store.open_object(digest)


def test_a_reader_refuses_what_is_damaged_though_it_cannot_move_it_away(store: Store, directory: Path) -> None:
    digest = add(store, HELLO)
    object_of(directory, digest).unlink()
    object_of(directory, digest).symlink_to("/etc/hostname")
    with (
        Store.open(str(directory)) as other,
        other.place.locked(),
        pytest.raises(Damaged, match=r"it could not be moved away \(.*\), and is not used"),
    ):
        store.open_object(digest)
    assert object_of(directory, digest).is_symlink()


class Unflushed(Disk):
    """For what is made by the thousand: flushing takes a millisecond each."""

    def sync(self, descriptor: int) -> None:
        pass


def test_a_thousand_objects_are_opened_listed_and_resolved(store: Store, directory: Path) -> None:
    store.place.disk = Unflushed()
    for number in range(1000):
        data = b"%d" % number
        path = object_of(directory, digest_of(data))
        path.write_bytes(data)
        os.chmod(path, 0o400)
        store.tag(f"web:{number}", digest_of(data))
    with Store.open(str(directory)) as again:
        assert len(again.objects()) == len(again.references()) == 1000
        assert read(again, again.resolve("web:999")) == b"999"
