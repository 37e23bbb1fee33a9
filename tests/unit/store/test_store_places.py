"""Where a store may be, and what is in it when something else has been at it: links, owners, flipped bits, versions."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from keep_protocol.errors import ErrorKind, KeepfleetError
from module_store import checking, collect
from module_store.place import Damaged, default_directory
from module_store.store import Store
from tests.unit.store.conftest import HELLO, WORLD, add, digest_of, read, tree

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to other users")


def refusal(directory: Path, *, create: bool = False) -> KeepfleetError:
    """Why a store is not opened."""
    with pytest.raises(KeepfleetError) as refused:
        (Store.create if create else Store.open)(str(directory)).close()
    return refused.value


def test_a_store_is_made_with_what_is_missing_above_it_and_opened_again(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b" / "store"
    error = refusal(directory)
    assert error.kind is ErrorKind.NOT_FOUND
    assert "there is no module store; `keepctl store add` makes one" in error.message
    Store.create(str(directory)).close()
    Store.create(str(directory)).close()
    with Store.open(str(directory)) as store:
        assert store.objects() == ()
        assert repr(store) == f"Store({directory})"


def test_the_store_of_root_is_the_system_s_and_that_of_others_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_directory() == "/var/lib/keepfleet/store"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_directory() == "/data/keepfleet/store"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/home/alice")
    assert default_directory() == "/home/alice/.local/share/keepfleet/store"


def test_a_store_that_was_moved_is_whole_in_its_new_place(store: Store, directory: Path, tmp_path: Path) -> None:
    digest = add(store, HELLO, "web:1")
    os.rename(directory, tmp_path / "moved")
    with Store.open(str(tmp_path / "moved")) as moved:
        assert read(moved, moved.resolve("web:1")) == HELLO
        assert list(checking.findings(moved)) == []
    assert read(store, digest) == HELLO, "who has it open goes on"


@pytest.mark.parametrize("version", [b"keepfleet module store 2\n", b"", b"keepfleet module store 1", b"\xff" * 4096])
def test_a_store_of_an_unknown_layout_is_refused_and_left_as_it_is(
    store: Store, directory: Path, version: bytes
) -> None:
    add(store, HELLO)
    (directory / "version").write_bytes(version)
    before = tree(directory)
    for create in (False, True):
        error = refusal(directory, create=create)
        assert error.kind is ErrorKind.CONFIGURATION
        assert "and this version of keepfleet knows 'keepfleet module store 1'; nothing was changed" in error.message
    assert tree(directory) == before


def test_a_directory_with_other_files_does_not_become_a_store(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "mine" / "letter").write_text("dear")
    error = refusal(tmp_path / "mine", create=True)
    assert "it has other files, and is no store" in error.message
    assert os.listdir(tmp_path / "mine") == ["letter"]


def test_no_link_is_followed_on_the_way_to_a_store_or_in_it(store: Store, directory: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "last").symlink_to(directory)
    for path in (tmp_path / "link" / "store", tmp_path / "last"):
        error = refusal(path, create=True)
        assert error.kind is ErrorKind.CONFIGURATION
        assert "no link is followed; name the real path" in error.message
    for folder in ("objects", "references", "attachments", "uses", "quarantine", "new"):
        os.rename(directory / folder, tmp_path / "away")
        (directory / folder).symlink_to(tmp_path / "away")
        assert f"{directory}/{folder} for modules: it is a symbolic link" in refusal(directory).message
        (directory / folder).unlink()
        os.rename(tmp_path / "away", directory / folder)
    Store.open(str(directory)).close()


def test_a_path_that_is_not_absolute_is_refused() -> None:
    assert "its path must be absolute" in refusal(Path("store")).message


def test_a_store_into_which_others_may_look_is_refused_with_the_command_that_helps(
    store: Store, directory: Path, tmp_path: Path
) -> None:
    os.chmod(directory / "objects", 0o750)  # noqa: S103  # the mistake that is meant
    assert refusal(directory).message.endswith(f"which lets others in; run: chmod 700 {directory}/objects")
    os.chmod(directory / "objects", 0o700)
    os.chmod(directory, 0o701)
    assert refusal(directory).message.endswith(f"which lets others in; run: chmod 700 {directory}")
    os.chmod(directory, 0o700)
    os.chmod(tmp_path, 0o777)  # noqa: S103  # the mistake that is meant
    assert refusal(directory).message.endswith(f"other users may change what is in it; run: chmod go-w {tmp_path}")
    os.chmod(tmp_path, 0o700)
    Store.open(str(directory)).close()


def test_a_store_that_was_opened_to_others_later_is_not_read_any_more(store: Store, directory: Path) -> None:
    digest = add(store, HELLO, "web:1")
    for folder, path in (("objects", directory / "objects"), ("", directory), ("references", directory / "references")):
        os.chmod(path, 0o755)  # noqa: S103  # the mistake that is meant
        with pytest.raises(KeepfleetError, match="its mode is 0755, which lets others in; run: chmod 700 /"):
            store.resolve("web:1") if folder == "references" else store.open_object(digest)
        os.chmod(path, 0o700)
    assert read(store, store.resolve("web:1")) == HELLO


def test_what_is_strange_where_new_files_are_written_keeps_nothing_from_being_added(
    store: Store, directory: Path, tmp_path: Path
) -> None:
    (directory / "new" / "folder").mkdir()
    (directory / "new" / "link").symlink_to(tmp_path)
    os.mkfifo(directory / "new" / "pipe")
    for name in ("folder", "link", "pipe"):
        os.utime(directory / "new" / name, (1, 1), follow_symlinks=False)
    add(store, HELLO)
    assert os.listdir(directory / "new") == ["folder"]
    assert tmp_path.is_dir()


def test_a_store_may_have_its_keys_before_it_has_anything_else(directory: Path) -> None:
    (directory / "keys").mkdir(parents=True, mode=0o700)
    os.chmod(directory, 0o700)
    Store.create(str(directory)).close()
    assert (directory / "keys").is_dir()


@AS_ROOT
def test_a_store_of_another_user_is_refused(store: Store, directory: Path, tmp_path: Path) -> None:
    os.chown(directory / "references", 12345, -1)
    assert "it belongs to user 12345; go on as that user, or run: chown -R 0 " in refusal(directory).message
    os.chown(directory / "references", 0, -1)
    os.chown(tmp_path, 12345, -1)
    assert f"cannot use {tmp_path} for modules: it belongs to user 12345" in refusal(directory).message
    os.chown(tmp_path, 0, -1)


@AS_ROOT
def test_a_record_of_another_user_is_not_believed(store: Store, directory: Path) -> None:
    add(store, HELLO, "web:1")
    os.chown(directory / "references" / "web:1", 12345, -1)
    with pytest.raises(Damaged, match="it belongs to user 12345, and the store to user 0"):
        store.resolve("web:1")


def filled(store: Store) -> None:
    """One file of every kind."""
    digest = add(store, HELLO, "web:1")
    store.attach(digest, "signature.a", b"signed")
    collect.declare(store, "manager", [digest])
    add(store, WORLD, "web:2")


def flip(path: Path, position: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    mode = stat.S_IMODE(path.stat().st_mode)
    os.chmod(path, 0o600)
    path.write_bytes(data)
    os.chmod(path, mode)


@pytest.mark.parametrize("kind", ["objects", "references", "attachments", "uses"])
def test_a_flipped_bit_is_found_whatever_it_is_in_and_the_rest_goes_on(
    store: Store, directory: Path, kind: str
) -> None:
    filled(store)
    first = digest_of(HELLO)
    path = next(
        path
        for path in (directory / kind).iterdir()
        if path.name in ("web:1", "manager") or path.name[:8] == first[7:15]
    )
    good = path.read_bytes()
    for position in range(len(good)):
        flip(path, position, position % 8)
        with pytest.raises(Damaged, match="its contents are not those"):
            match kind:
                case "objects":
                    store.open_object(first)
                case "references":
                    store.resolve("web:1")
                case "attachments":
                    store.attached(first, "signature.a")
                case _:
                    collect.declared(store)
        assert read(store, store.resolve("web:2")) == WORLD
        path.unlink(missing_ok=True)
        path.write_bytes(good)
        os.chmod(path, 0o400)


def test_records_that_were_exchanged_cut_short_or_made_longer_are_found(store: Store, directory: Path) -> None:
    filled(store)
    one, other = directory / "references" / "web:1", directory / "references" / "web:2"
    os.rename(one, one.with_name("x"))
    os.rename(other, one)
    os.rename(one.with_name("x"), other)
    for name in ("web:1", "web:2"):
        with pytest.raises(Damaged):
            store.resolve(name)
    for damaged in (b"", other.read_bytes()[:-1], one.read_bytes() + b" "):
        one.unlink()
        one.write_bytes(damaged)
        os.chmod(one, 0o400)
        with pytest.raises(Damaged):
            store.resolve("web:1")


def test_a_record_that_is_a_link_is_not_followed(store: Store, directory: Path, tmp_path: Path) -> None:
    filled(store)
    path = directory / "references" / "web:1"
    os.rename(path, tmp_path / "web:1")
    path.symlink_to(tmp_path / "web:1")
    with pytest.raises(Damaged, match="it is a symbolic link, and none is followed"):
        store.resolve("web:1")


def test_a_damaged_reference_can_be_tagged_again_or_removed(store: Store, directory: Path) -> None:
    filled(store)
    for name in ("web:1", "web:2"):
        flip(directory / "references" / name, 70, 0)
    store.tag("web:1", digest_of(WORLD), "me")
    assert len(store.reference("web:1").history) == 1
    store.untag("web:2")
    assert [reference.name for reference in store.references()] == ["web:1"]


def test_a_look_at_every_byte_finds_everything_that_is_wrong(store: Store, directory: Path) -> None:
    filled(store)
    assert list(checking.findings(store)) == []
    first, second = (digest.removeprefix("sha256:") for digest in (digest_of(HELLO), digest_of(WORLD)))
    flip(directory / "objects" / first, 3, 3)
    flip(directory / "references" / "web:2", 80, 3)
    flip(directory / "attachments" / f"{first}.signature.a", 2, 3)
    (directory / "objects" / "letter").write_text("dear")
    found = list(checking.findings(store))
    quarantined = os.listdir(directory / "quarantine")[0]
    for finding, what in zip(
        (
            f"{directory}/objects/letter is none of the store's files",
            f"cannot use sha256:{first} ",
            f"cannot use {directory}/attachments/{first}.signature.a: ",
            f"signature.a is attached to sha256:{first}, which is not there",
            f"web:1 names sha256:{first}, which is not there",
            f"cannot use {directory}/references/web:2: ",
            f"manager declared that it uses sha256:{first}, which is not there",
            f"{directory}/quarantine/{quarantined} is in quarantine",
        ),
        found,
        strict=True,
    ):
        assert what.startswith(finding)
    assert read(store, f"sha256:{second}") == WORLD
