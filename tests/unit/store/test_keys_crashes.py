"""A store's keys and its compiled code on a disk that is full, whose process is killed, and after a power cut; and one
changed bit in each file by which a store decides what may start."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from keep_protocol.errors import ErrorKind, KeepfleetError
from module_store.artifacts import Artifacts
from module_store.disk import Disk
from module_store.keys import Keys
from module_store.sealing import SECRET, Key
from module_store.signatures import Signed, parse_public_key
from module_store.trust import Newest, Trust
from tests.unit.module_store.signers import Signer
from tests.unit.store.disks import POWER_CUTS, Cutting, Full, deadly_at

ALICE, BOB = Signer("alice"), Signer("bob")
ONE, OTHER = "sha256:" + "1" * 64, "sha256:" + "2" * 64
POLICY = b"name: jobs\nmemory_initial: 65536\n"
CODE = b"\x7fELF" + bytes(range(256)) * 40
FOR = Key(ONE, "e" * 64)
Known = tuple[tuple[tuple[str, bool], ...], Trust, dict[str, Newest], bytes | None]
"""Keys with whether they count, what is required, the newest versions, the policy."""


def known(keys: Keys) -> Known:
    names = tuple((key.name, key.revoked is None) for key in keys.keys())  # noqa: SIM118 - no mapping
    return names, keys.trust(), keys.newest(), keys.policy()


def add(keys: Keys) -> None:
    keys.add("bob", BOB.public)


def revoke(keys: Keys) -> None:
    keys.revoke("alice", 1e9, "the laptop was stolen")


def require(keys: Keys) -> None:
    keys.require(Trust(any_of=("alice",)))


def saw(keys: Keys) -> None:
    keys.saw(Signed("web", "3.0"), OTHER)


def force(keys: Keys) -> None:
    keys.force("web", OTHER)


def set_policy(keys: Keys) -> None:
    keys.set_policy(POLICY + b"tables: 1\n")


def drop_policy(keys: Keys) -> None:
    keys.set_policy(None)


CHANGES: tuple[Callable[[Keys], None], ...] = (add, revoke, require, saw, force, set_policy, drop_policy)


def fill(keys: Keys) -> None:
    keys.add("alice", ALICE.public)
    keys.require(Trust(require=("alice",)))
    keys.saw(Signed("web", "2.0"), ONE)
    keys.set_policy(POLICY)


def made(directory: Path, disk: Disk | None = None) -> Keys:
    """Keys with what is there and acknowledged before a change; the change goes by `disk`."""
    directory.mkdir(mode=0o700)
    fill(Keys(str(directory)))
    return Keys(str(directory), disk)


def expected(directory: Path, change: Callable[[Keys], None]) -> tuple[Known, Known]:
    keys = made(directory)
    before = known(keys)
    change(keys)
    return before, known(keys)


@pytest.mark.parametrize("change", CHANGES)
def test_keys_on_a_disk_that_is_full_at_any_step_are_what_they_were_or_what_they_are_to_be(
    tmp_path: Path, change: Callable[[Keys], None]
) -> None:
    before, after = expected(tmp_path / "expected", change)
    for number in count(1):
        disk = Full(number)
        keys = made(tmp_path / str(number), disk)
        try:
            change(keys)
        except KeepfleetError as error:
            assert error.kind is ErrorKind.NO_SPACE
        if disk.count < number:
            break
        assert known(keys) in (before, after)
        assert [name for name in os.listdir(keys.path) if name.startswith(".")] == []
        if known(keys) != after:
            change(keys)
        assert known(keys) == after, "it goes on once there is room"
    assert number > 2


@pytest.mark.parametrize("change", CHANGES)
def test_a_process_killed_as_it_changes_keys_loses_none_and_leaves_nothing_behind(
    tmp_path: Path, change: Callable[[Keys], None]
) -> None:
    before, after = expected(tmp_path / "expected", change)
    for number in count(1):
        keys = made(tmp_path / str(number), deadly_at(number))
        child = os.fork()
        if child == 0:
            try:
                change(keys)
            finally:
                os._exit(1 if sys.exc_info()[0] else 0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL)
        keys = Keys(str(tmp_path / str(number)))
        assert known(keys) in (before, after)
        if status == 0:
            break
        keys.saw(Signed("other", "1.0"), ONE)  # whatever comes next tidies up
        assert [name for name in os.listdir(keys.path) if name.startswith(".")] == []
    assert number > 2


def life(keys: Keys) -> Iterator[Known]:
    """What there is at each acknowledgement, from the first key on."""
    yield known(keys)
    for step in (fill, add, revoke, saw, force, set_policy, drop_policy, lambda each: each.require(Trust())):
        step(keys)
        yield known(keys)


@pytest.mark.parametrize("model", POWER_CUTS)
def test_a_power_cut_takes_no_key_no_revocation_and_no_version_that_was_acknowledged(
    tmp_path: Path, model: str
) -> None:
    disk = Cutting(tmp_path, model, 3)
    before: Known | None = None
    for after in life(Keys(str(disk.base), disk)):
        disk.cut()
        for path in disk.left if before is not None and before[0] else disk.left[-1:]:
            assert known(Keys(str(path))) in (before, after)
        assert known(Keys(str(disk.left[-1]))) == after
        before = after
        for path in disk.left:
            shutil.rmtree(path)
        disk.left.clear()


@pytest.mark.parametrize("file", ["alice.pub", "alice.revoked", "trust.json", "newest.json", "policy.yaml"])
def test_no_changed_bit_trusts_another_key_forgets_a_version_or_widens_a_policy(tmp_path: Path, file: str) -> None:
    """It is an error, or changes nothing that decides; of a public key, no signature passes by it any more."""
    keys = made(tmp_path / "store")
    keys.revoke("alice", 1e9, "why")
    path, good = Path(keys.path, file), known(keys)
    data = path.read_bytes()
    for position in range(len(data)):
        for bit in range(8):
            path.write_bytes(data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :])
            try:
                found = known(keys)
            except KeepfleetError as error:
                assert error.kind is ErrorKind.CONFIGURATION and str(path) in error.message
                continue
            if file == "policy.yaml":
                assert found[:3] == good[:3]
                assert found[3] is not None and found[3].startswith(POLICY.rstrip()), "its digest's line alone"
            elif file == "alice.pub":
                public = keys.keys()[0].public
                same = public == parse_public_key(data)
                assert same or public != ALICE.public
                assert found[1:] == good[1:]
            else:
                assert found == good, (position, bit)


def test_files_of_before_without_a_digest_are_read(tmp_path: Path) -> None:
    keys = made(tmp_path / "store")
    Path(keys.path, "trust.json").write_bytes(b'{"require":["alice"],"any_of":[]}')
    Path(keys.path, "policy.yaml").write_bytes(POLICY)
    assert known(keys) == ((("alice", True),), Trust(require=("alice",)), keys.newest(), POLICY)


# --- compiled code ---------------------------------------------------------------------------------------------------


def code_in(place: Path) -> bytes | None:
    """What a cache there has for FOR, after it was checked."""
    with Artifacts(str(place)) as cache:
        found = cache.open(FOR)
        if found is None:
            return None
        try:
            return os.pread(found.descriptor, found.size, 0)
        finally:
            os.close(found.descriptor)


@pytest.mark.parametrize("model", POWER_CUTS)
def test_a_power_cut_leaves_compiled_code_whole_or_none_and_what_was_kept_is_there(tmp_path: Path, model: str) -> None:
    disk = Cutting(tmp_path, model, 5)
    with Artifacts(str(disk.base / "artifacts"), disk) as cache, cache.scratch() as scratch:
        os.write(scratch, CODE)
        os.close(cache.put(FOR, scratch).descriptor)
        disk.cut()
        for path in disk.left:
            assert code_in(path / "artifacts") in (None, CODE)
        assert code_in(disk.left[-1] / "artifacts") == CODE, "put has returned"
        cache.discard(FOR, "a test")
        disk.cut()
        assert code_in(disk.left[-1] / "artifacts") in (None, CODE)


def test_each_changed_bit_of_the_cache_s_own_key_voids_what_was_kept_and_is_no_fault(tmp_path: Path) -> None:
    place = tmp_path / "artifacts"
    with Artifacts(str(place)) as cache, cache.scratch() as scratch:
        os.write(scratch, CODE)
        os.close(cache.put(FOR, scratch).descriptor)
        good = (place / FOR.name).read_bytes()
    secret = (place / SECRET).read_bytes()
    for position in range(len(secret)):
        changed = bytearray(secret)
        changed[position] ^= 1 << position % 8
        for name, data, mode in ((SECRET, bytes(changed), 0o400), (FOR.name, good, 0o444)):
            (place / name).unlink(missing_ok=True)
            (place / name).write_bytes(data)
            (place / name).chmod(mode)
        assert code_in(place) is None
    assert not (place / FOR.name).exists()
