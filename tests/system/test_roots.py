"""The keeps' root on a real systemd: made again when it is gone or damaged, or the host is upgraded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.states import State
from tests.system import modules
from tests.system.fixtures import module_s_fleet
from tests.system.fleet import MANAGER, Fleet
from tests.system.life import Life

TREES = "/var/lib/keepfleet"
fleet = pytest.fixture(scope="module")(module_s_fleet)


def names(fleet: Fleet) -> set[str]:
    """The trees there are."""
    return {name for name in fleet.host.run(["ls", TREES]).stdout.split() if name.startswith("root-")}


def root_of(life: Life) -> str:
    return life.show("RootDirectory")


def works(life: Life) -> None:
    """The keep does its job."""
    assert life.info.isolation_failures == ()
    life.start()
    assert life.upload(modules.says(b"done\n")).status == 200
    life.until(State.STARTED, State.COMPLETE)
    assert "done" in life.output()


@contextlib.contextmanager
def another_library(fleet: Fleet) -> Iterator[None]:
    """The host's libffi is another file for the manager, as after an upgrade, until the block ends."""
    (path,) = fleet.host.run(["sh", "-c", "readlink -f /usr/lib/*/libffi.so.8"]).stdout.split()
    inside = ["nsenter", f"--mount=/proc/{fleet.manager_pid}/ns/mnt"]
    fleet.host.run(["cp", path, "/opt/libffi"])
    fleet.host.run([*inside, "mount", "--bind", "/opt/libffi", path])
    try:
        yield
    finally:
        fleet.host.run([*inside, "umount", path])


@pytest.fixture(scope="module")
def tree(fleet: Fleet) -> str:
    """The root of all keeps that are made here, as long as its files are the same."""
    return root_of(Life.create(fleet))


@pytest.mark.parametrize(
    "damage",
    [
        "rm -r $(dirname {tree})",
        "rm -r {tree}",
        "rm {tree}/keepfleet/python",
        "cp {tree}/keepfleet/python {tree}/new; mv {tree}/new {tree}/keepfleet/python",
        "rm {tree}/../record.json; rm {tree}/keepfleet/packages/keep_loader/__main__.py",
    ],
)
def test_a_root_that_is_deleted_replaced_or_half_there_is_made_again_for_the_next_keep(
    fleet: Fleet, tree: str, damage: str
) -> None:
    fleet.host.run(["sh", "-ec", damage.format(tree=tree)])
    life = Life.create(fleet)
    assert root_of(life) == tree, "of the same files"
    works(life)
    assert fleet.host.run(["keepctl", "doctor"]).stdout == "all is well\n"


def test_what_is_wrong_with_another_file_the_next_manager_finds_and_makes_right(fleet: Fleet, tree: str) -> None:
    file = f"{tree}/keepfleet/packages/app_loader/limits.py"
    fleet.host.run(["sh", "-c", f"rm {file}; echo 'raise SystemExit' >{file}"])
    assert fleet.host.run(["keepctl", "doctor"], check=False).stdout == f"{file} is not as it was made\n"
    cursor = fleet.host.cursor()
    fleet.restart()
    fleet.host.wait_journal(f"damaged, and is made again: {file} is not as it was made", MANAGER, cursor)
    life = Life.create(fleet)
    works(life)
    assert root_of(life) == tree


def test_after_an_upgrade_of_the_host_new_keeps_have_a_new_root_and_the_old_one_goes_with_its_last_keep(
    fleet: Fleet,
) -> None:
    fleet.clear()
    before = Life.awaiting(fleet)
    old = root_of(before).split("/")[-2]
    with another_library(fleet):
        after = Life.create(fleet)
        assert root_of(after) != root_of(before)
        works(after)
        before.kill_loader()
        before.becomes(State.STARTED)
        assert before.upload(modules.says(b"done\n")).status == 200, "in the root it was made with"
        fleet.host.run(["touch", "--date=2 hours ago", f"{TREES}/{old}"])
        assert old in names(fleet)
        cursor = fleet.host.cursor()
        before.remove()
        fleet.host.wait_journal(f"removed {old}, which no keep has any more", MANAGER, cursor)
        assert old not in names(fleet)
        Life.create(fleet).kill_loader()
    fleet.clear()
    works(Life.create(fleet))


def test_a_disk_that_is_full_is_said_and_no_keep_is_made(fleet: Fleet) -> None:
    fleet.clear()
    with fleet.small_disk(TREES, "size=1m,mode=755", empty=True) as sees:
        with pytest.raises(KeepfleetError, match=f"cannot build the keeps' root in {TREES}: No space left") as refused:
            fleet.client().create()
        assert fleet.keep_units() == []
        assert "root-" not in fleet.host.run([*sees, "ls", TREES]).stdout
    assert refused.value.kind is ErrorKind.NO_SPACE
    works(Life.create(fleet))
