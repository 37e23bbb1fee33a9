"""A store's keys on disk: kept whole, checked when they are read, and an error where they are damaged."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from keep_protocol.errors import ErrorKind, KeepfleetError
from module_store.keys import Keys
from module_store.signatures import Signed
from module_store.trust import Newest, Trust
from tests.unit.module_store.signers import Signer

ALICE, BOB = Signer("alice"), Signer("bob")
DIGEST, OTHER = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(str(tmp_path))


@pytest.fixture
def folder(keys: Keys, tmp_path: Path) -> Path:
    """The folder, with a key that is required, one that is revoked, and a version that was seen."""
    keys.add("alice", ALICE.public)
    keys.add("bob", BOB.public)
    keys.require(Trust(require=("alice",)))
    keys.revoke("bob", 5.0, "lost")
    keys.saw(Signed("web", "1.2"), DIGEST)
    return tmp_path / "keys"


def test_without_a_folder_there_is_nothing_and_nothing_is_required(keys: Keys, tmp_path: Path) -> None:
    assert (keys.keys(), keys.trust(), keys.newest()) == ((), Trust(), {})
    assert os.listdir(tmp_path) == []


def test_what_was_kept_is_there(keys: Keys, folder: Path) -> None:
    alice, bob = keys.keys()
    assert (alice.name, alice.public, alice.revoked) == ("alice", ALICE.public, None)
    assert (bob.revoked, bob.reason) == (5.0, "lost")
    assert keys.trust() == Trust(require=("alice",))
    assert keys.newest() == {"web": Newest("1.2", DIGEST)}
    assert sorted(os.listdir(folder)) == ["alice.pub", "bob.pub", "bob.revoked", "newest.json", "trust.json"]
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_name_or_a_key_is_there_once(keys: Keys, folder: Path) -> None:
    for name, signer in (("alice", Signer("third")), ("third", ALICE), ("bob", BOB)):
        with pytest.raises(KeepfleetError) as caught:
            keys.add(name, signer.public)
        assert caught.value.kind is ErrorKind.CONFLICT
    for name in ("", "Alice", "../x", "a b", "x" * 64):
        with pytest.raises(KeepfleetError, match="field 'name' must be 1 to 63 of a-z"):
            keys.add(name, Signer("third").public)


def test_a_revocation_is_permanent_and_its_first_reason_stays(keys: Keys, folder: Path) -> None:
    assert keys.revoke("bob", 9.0, "another").reason == "lost"
    with pytest.raises(KeepfleetError, match="it was revoked"):
        keys.require(Trust(any_of=("alice", "bob")))
    with pytest.raises(KeepfleetError) as caught:
        keys.revoke("carol", 1.0)
    assert caught.value.kind is ErrorKind.NOT_FOUND


def test_the_newest_version_is_kept_whatever_comes_after_it(keys: Keys, folder: Path) -> None:
    keys.saw(Signed("web", "1.1"), OTHER)
    assert keys.newest()["web"] == Newest("1.2", DIGEST)
    keys.saw(Signed("web", "1.3"), OTHER)
    keys.saw(Signed("api", "0.1"), DIGEST)
    assert keys.newest() == {"web": Newest("1.3", OTHER), "api": Newest("0.1", DIGEST)}


def test_two_that_see_versions_at_one_time_lose_none(keys: Keys, folder: Path) -> None:
    def see(number: int) -> None:
        for minor in range(20):
            keys.saw(Signed(f"module{number}", f"1.{minor}"), DIGEST)

    threads = [threading.Thread(target=see, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: each.version for name, each in keys.newest().items() if name != "web"} == {
        f"module{number}": "1.19" for number in range(4)
    }


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _link(path: Path) -> None:
    target = path.with_name("target")
    path.rename(target)
    path.symlink_to(target)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _writable(path: Path) -> None:
    path.chmod(0o666)


@pytest.mark.parametrize("file", ["alice.pub", "bob.pub", "bob.revoked", "trust.json", "newest.json"])
@pytest.mark.parametrize("damage", [_truncate, _empty, _link, _directory, _pipe, _writable])
def test_damage_of_any_kind_is_an_error_that_names_the_file(
    keys: Keys, folder: Path, file: str, damage: Callable[[Path], None]
) -> None:
    damage(folder / file)
    with pytest.raises(KeepfleetError) as caught:
        _ = (keys.keys(), keys.trust(), keys.newest())
    assert caught.value.kind is ErrorKind.CONFIGURATION and str(folder / file) in caught.value.message


@pytest.mark.parametrize("text", [b"{}", b'{"revoked": null}', b'{"revoked": 1, "x": 2}', b"[]", b'{"revoked": NaN}'])
def test_a_revocation_that_does_not_say_when_is_an_error_and_not_no_revocation(
    keys: Keys, folder: Path, text: bytes
) -> None:
    (folder / "bob.revoked").write_bytes(text)
    with pytest.raises(KeepfleetError, match=r"cannot use .*bob\.revoked"):
        keys.keys()


def test_a_folder_that_others_may_write_to_is_not_used(keys: Keys, folder: Path) -> None:
    folder.chmod(0o770)
    with pytest.raises(KeepfleetError, match="its mode is 0770, and others may write to it"):
        keys.trust()


def test_a_folder_that_is_a_link_is_not_followed(keys: Keys, folder: Path, tmp_path: Path) -> None:
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeepfleetError, match="cannot use"):
        keys.trust()


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away takes root")
def test_what_belongs_to_another_user_is_not_used(keys: Keys, folder: Path) -> None:
    os.chown(folder / "trust.json", 12345, -1)
    with pytest.raises(KeepfleetError, match="it belongs to user 12345"):
        keys.trust()


@pytest.mark.parametrize("step", ["rename", "fsync"])
def test_a_change_that_fails_leaves_what_was_there(
    keys: Keys, folder: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(os, step, fails)
    with pytest.raises(KeepfleetError) as caught:
        keys.saw(Signed("web", "3.0"), OTHER)
    assert caught.value.kind is ErrorKind.NO_SPACE
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
