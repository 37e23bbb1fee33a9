"""Each step of each change refused by a full disk, ended by SIGKILL, and followed by a power cut.

Afterwards a store opens, has all that was acknowledged, and shows of what was not either nothing or the whole.
"""

from __future__ import annotations

import functools
import io
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from keep_protocol.errors import ErrorKind, KeepfleetError
from module_store import archive, checking, collect
from module_store.disk import Disk
from module_store.place import ABANDONED_SECONDS
from module_store.store import Store
from tests.unit.store.conftest import HELLO, WORLD, add, digest_of, read
from tests.unit.store.disks import POWER_CUTS, Cutting, Full, deadly_at

NEW = b"\0asm new" * 50_000
Contents = tuple[dict[str, bytes], dict[str, str], dict[tuple[str, str], bytes], dict[str, tuple[str, ...]]]
"""Objects, references, attachments and declared uses of a store."""
NOTHING: Contents = ({}, {}, {}, {})


@functools.cache
def exported() -> bytes:
    """An export of an object that the other stores have, and of one that they have not."""
    output = io.BytesIO()
    with tempfile.TemporaryDirectory() as place, Store.create(f"{place}/store") as store:
        add(store, HELLO, "web:1")
        store.attach(add(store, NEW, "web:3"), "signature.a", b"of what is new")
        archive.export(store, output)
    return output.getvalue()


def contents(store: Store) -> Contents:
    """What is in a store, every byte of it read."""
    objects = {each.digest: read(store, each.digest) for each in store.objects()}
    attached = {
        (digest, kind): store.attached(digest, kind) or b"" for digest in objects for kind in store.attachments(digest)
    }
    return objects, {each.name: each.digest for each in store.references()}, attached, collect.declared(store)


def add_named(store: Store) -> None:
    add(store, NEW, "web:2")


def add_and_move(store: Store) -> None:
    add(store, NEW, "web:1")


def add_signed(store: Store) -> None:
    attached = {"signature.a": b"of what is new", "local.added": b"by whom"}
    store.add(io.BytesIO(NEW), reference="web:2", admit=lambda *_: attached)


def add_again(store: Store) -> None:
    add(store, HELLO, "web:2")


def tag(store: Store) -> None:
    store.tag("web:1", digest_of(WORLD), "me")


def untag(store: Store) -> None:
    store.untag("web:1")


def attach(store: Store) -> None:
    store.attach(digest_of(HELLO), "signature.a", b"new")


def detach(store: Store) -> None:
    store.detach(digest_of(HELLO), "signature.a")


def declare(store: Store) -> None:
    collect.declare(store, "manager", [digest_of(WORLD)])


def collect_garbage(store: Store) -> None:
    collect.collect(store, grace=-1.0)


def import_export(store: Store) -> None:
    archive.import_from(store, io.BytesIO(exported()), "me", replace=True)


CHANGES: tuple[Callable[[Store], None], ...] = (
    add_named,
    add_and_move,
    add_signed,
    add_again,
    tag,
    untag,
    attach,
    detach,
    declare,
    collect_garbage,
    import_export,
)


def fill(store: Store) -> None:
    """What is there and acknowledged before a change."""
    add(store, HELLO, "web:1")
    store.attach(digest_of(HELLO), "signature.a", b"old")
    collect.declare(store, "codelets", [digest_of(HELLO)])
    store.attach(add(store, WORLD), "note", b"of what is collected")


def expected(tmp_path: Path, change: Callable[[Store], None]) -> tuple[Contents, Contents]:
    """What a store has before and after a change."""
    with Store.create(str(tmp_path / "expected")) as store:
        fill(store)
        before = contents(store)
        change(store)
        return before, contents(store)


def is_between(found: Contents, before: Contents, after: Contents) -> bool:
    """Whether each part of a store is as it was before a change or as it is after it, and what both have is there."""
    for had, has, now in zip(before, after, found, strict=True):
        known = {*had.items(), *has.items()}  # type: ignore[attr-defined]
        kept = {*had.items()} & {*has.items()}  # type: ignore[attr-defined]
        if not kept <= {*now.items()} <= known or not had.keys() & has.keys() <= now.keys():  # type: ignore[attr-defined]
            return False
    return True


def filled(directory: Path) -> Path:
    with Store.create(str(directory)) as store:
        fill(store)
    return directory


@pytest.mark.parametrize("change", CHANGES)
def test_a_disk_that_is_full_at_any_step_leaves_what_was_there_and_nothing_half_made(
    tmp_path: Path, change: Callable[[Store], None]
) -> None:
    before, after = expected(tmp_path, change)
    refused = set()
    for number in count(1):
        directory, disk = filled(tmp_path / f"store-{number}"), Full(number)
        with Store.open(str(directory), disk) as store:
            try:
                change(store)
            except KeepfleetError as error:
                assert error.kind is ErrorKind.NO_SPACE
                assert "No space left on device" in error.message
            if disk.count < number:
                break
            refused.add(disk.refused)
            assert list((directory / "new").iterdir()) == []
            found = contents(store)
            assert is_between(found, before, after)
            if disk.refused not in ("", "sync") and change is not import_export:
                assert found == before
            change_again(store, change)
            assert contents(store) == after, "it goes on once there is room"
    assert "sync" in refused


def killed(directory: Path, number: int, work: Callable[[Store], None], *, create: bool = False) -> bool:
    """Whether a process that does `work` was killed at its change `number`, before it had done it."""
    child = os.fork()
    if child == 0:
        try:
            opened = (Store.create if create else Store.open)(str(directory), deadly_at(number))
            work(opened)
        finally:
            os._exit(1 if sys.exc_info()[0] else 0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def age(folder: Path) -> None:
    """Has what was left in a folder have been left long ago."""
    for path in folder.iterdir():
        os.utime(path, (path.stat().st_mtime - ABANDONED_SECONDS - 1,) * 2)


@pytest.mark.parametrize("change", CHANGES)
def test_a_process_killed_at_any_step_loses_nothing_and_its_leavings_are_removed(
    tmp_path: Path, change: Callable[[Store], None]
) -> None:
    before, after = expected(tmp_path, change)
    for number in count(1):
        directory = filled(tmp_path / f"store-{number}")
        if not killed(directory, number, change):
            break
        with Store.open(str(directory)) as store:
            assert is_between(contents(store), before, after)
            age(directory / "new")
            change_again(store, change)
            assert contents(store) == after
        assert list((directory / "new").iterdir()) == []
    assert number > 1


def change_again(store: Store, change: Callable[[Store], None]) -> None:
    """The change, or what is left of it to do: what is removed need not be there any more."""
    try:
        change(store)
    except KeepfleetError as error:
        assert error.kind is ErrorKind.NOT_FOUND
    store.place.clear_abandoned()


def test_a_process_killed_while_it_makes_a_store_leaves_what_the_next_one_finishes(tmp_path: Path) -> None:
    for number in count(1):
        directory = tmp_path / f"deep-{number}" / "store"
        if not killed(directory, number, lambda store: None, create=True):
            break
        with Store.create(str(directory)) as store:
            assert contents(store) == NOTHING
            assert list((directory / "new").iterdir()) == []
    assert number > 8


def life(directory: Path, disk: Disk) -> Iterator[Contents]:
    """A store's life from its making on; what it has at each acknowledgement, and at last nothing."""
    with Store.create(str(directory), disk) as store:
        yield contents(store)
        for step in (
            lambda: add(store, HELLO, "web:1"),
            lambda: attach(store),
            lambda: add(store, WORLD, "web:1"),
            lambda: declare(store),
            lambda: collect.declare(store, "manager", []),
            lambda: add(store, NEW),
            lambda: store.tag("web:2", digest_of(NEW), "me"),
            lambda: store.untag("web:2"),
            lambda: detach(store),
            lambda: collect.collect(store, grace=-1.0, history=0),
            lambda: import_export(store),
        ):
            step()
            yield contents(store)


@pytest.mark.parametrize("model", POWER_CUTS)
def test_a_power_cut_at_any_moment_loses_nothing_that_was_acknowledged(tmp_path: Path, model: str) -> None:
    disk = Cutting(tmp_path, model, 1)
    before = NOTHING
    for number, after in enumerate(life(disk.base / "store", disk)):
        disk.cut()
        for path in disk.left:
            check_left(path / "store", before, after, made=number > 0)
        check_left(disk.left[-1] / "store", after, after, made=True)
        before = after
        disk.left.clear()
    assert number == 11


def check_left(directory: Path, before: Contents, after: Contents, *, made: bool) -> None:
    """After a power cut, the store opens where it had been made, and is what it was before the change or after it."""
    with (Store.open if made else Store.create)(str(directory)) as store:
        assert is_between(contents(store), before, after)
        assert [finding for finding in checking.findings(store) if "which is not there" not in finding] == []
