"""What a store keeps, and what it lets go."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from keep_protocol.errors import ErrorKind, KeepfleetError
from module_store import collect
from module_store.store import Store
from tests.unit.store.conftest import HELLO, WORLD, add, digest_of, read

OTHER = b"\0asm other"


def grown_old(directory: Path) -> None:
    """Has every object have been added long ago."""
    for path in (directory / "objects").iterdir():
        os.utime(path, (1, 1))


def test_what_a_reference_its_history_or_a_user_needs_stays_and_the_rest_goes(store: Store, directory: Path) -> None:
    moved_from, named = add(store, HELLO, "web:1"), add(store, WORLD, "web:1")
    declared, used, free = (add(store, b"\0asm %d" % number) for number in range(3))
    store.attach(free, "note", b"")
    collect.declare(store, "manager", [declared])
    grown_old(directory)
    collected = collect.collect(store, lambda: [used])
    assert [each.digest for each in collected.removed] == [free]
    assert (collected.young, collected.bytes) == ((), 6)
    assert {each.digest for each in store.objects()} == {moved_from, named, declared, used}
    assert list((directory / "attachments").iterdir()) == []


def test_what_is_young_stays_and_a_dry_run_only_says_what_it_would_do(store: Store, directory: Path) -> None:
    old = add(store, HELLO)
    grown_old(directory)
    young = add(store, WORLD)
    for dry in (True, False):
        collected = collect.collect(store, dry=dry)
        assert [each.digest for each in collected.removed] == [old]
        assert [each.digest for each in collected.young] == [young]
        assert (old in {each.digest for each in store.objects()}) == dry


def test_an_object_from_a_clock_that_was_ahead_counts_as_young(store: Store, directory: Path) -> None:
    digest = add(store, HELLO)
    os.utime(directory / "objects" / digest.removeprefix("sha256:"), (1 << 33, 1 << 33))
    assert collect.collect(store).removed == ()


def test_history_that_is_not_kept_any_more_frees_what_it_needed(store: Store, directory: Path) -> None:
    digests = [add(store, data, "web:1") for data in (HELLO, WORLD, OTHER)]
    grown_old(directory)
    assert collect.collect(store, history=1).removed[0].digest == digests[0]
    assert len(store.reference("web:1").history) == 1
    assert read(store, digests[1]) == WORLD, "the last move came from it"
    assert [each.digest for each in collect.collect(store, history=0).removed] == [digests[1]]


def test_a_user_s_later_declaration_takes_the_place_of_its_earlier_one(store: Store) -> None:
    one, other = add(store, HELLO), add(store, WORLD)
    collect.declare(store, "manager", [one])
    collect.declare(store, "codelets", [other])
    collect.declare(store, "manager", [other])
    assert collect.declared(store) == {"codelets": (other,), "manager": (other,)}
    collect.declare(store, "manager", [])
    collect.declare(store, "manager", [])
    assert collect.declared(store) == {"codelets": (other,)}
    with pytest.raises(KeepfleetError, match="as a user of the store"):
        collect.declare(store, "../x", [one])


@pytest.mark.parametrize("damaged", ["references/web:1", "uses/manager"])
def test_nothing_is_removed_while_it_is_not_known_what_is_needed(store: Store, directory: Path, damaged: str) -> None:
    digest = add(store, HELLO, "web:1")
    collect.declare(store, "manager", [digest])
    free = add(store, WORLD)
    grown_old(directory)
    os.chmod(directory / damaged, 0o600)
    (directory / damaged).write_bytes(b"")
    os.chmod(directory / damaged, 0o400)
    for work in (collect.collect, lambda store: collect.remove(store, free)):
        with pytest.raises(KeepfleetError, match="what it needs is not known: tag it again, or remove it") as refused:
            work(store)
        assert refused.value.kind is ErrorKind.CONFLICT
    assert len(store.objects()) == 2


def test_an_object_is_removed_with_its_attachments_unless_something_needs_it(store: Store, directory: Path) -> None:
    used, free = add(store, HELLO, "web:1"), add(store, WORLD)
    collect.declare(store, "manager", [used])
    store.attach(free, "note", b"")
    collect.remove(store, free)
    with pytest.raises(KeepfleetError, match="it is needed by web:1, manager, which declared it"):
        collect.remove(store, used)
    with pytest.raises(KeepfleetError, match="cannot find"):
        collect.remove(store, digest_of(OTHER))
    assert [each.digest for each in store.objects()] == [used]
    assert list((directory / "attachments").iterdir()) == []


def test_a_descriptor_goes_on_when_its_object_is_removed(store: Store) -> None:
    digest = add(store, HELLO)
    with os.fdopen(store.open_object(digest), "rb") as file:
        collect.remove(store, digest)
        assert file.read() == HELLO
