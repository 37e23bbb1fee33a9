"""The module store on a host: a disk that is really full, and users who each have their own."""

from __future__ import annotations

import json

import pytest

from tests.system.fleet import Fleet

FULL = "/run/full"
SIZE = 1 << 20
"""Of the disk; two modules of a third of it and a large one do not fit."""


@pytest.fixture
def small_disk(fleet: Fleet) -> Fleet:
    """A host with a file system of 1 MiB, on which a store has one module."""
    host = fleet.host
    host.run(["mkdir", "-m", "700", "-p", FULL])
    host.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=700", "tmpfs", FULL])
    host.run(["sh", "-ec", f"head -c {SIZE // 3} /dev/urandom >/run/third; head -c {SIZE} /dev/urandom >/run/large"])
    host.run(["keepctl", "store", "add", "/run/third", "kept:1", "--store", f"{FULL}/store"])
    return fleet


def test_a_disk_that_is_full_keeps_what_it_had_and_goes_on_when_there_is_room(small_disk: Fleet) -> None:
    host, store = small_disk.host, ["--store", f"{FULL}/store"]
    try:
        files = host.run(["find", FULL, "-type", "f"]).stdout
        refused = host.run(["keepctl", "store", "add", "/run/large", "kept:1", *store], check=False)
        assert refused.returncode == 1
        assert refused.stderr == (
            f"keepctl: cannot add to the module store {FULL}/store: No space left on device; "
            "`keepctl store gc` may help\n"
        )
        assert host.run(["find", FULL, "-type", "f"]).stdout == files
        host.run(["keepctl", "store", "verify", *store])
        host.run(["sh", "-c", f"head -c {SIZE} /dev/zero >{FULL}/filler"], check=False)
        for words in (["tag", "kept:1", "kept:2"], ["add", "/run/third", "kept:3"]):
            assert host.run(["keepctl", "store", *words, *store], check=False).returncode == 1
        host.run(["rm", f"{FULL}/filler"])
        host.run(["keepctl", "store", "tag", "kept:1", "kept:2", *store])
        listed = json.loads(host.run(["keepctl", "store", "ls", "-o", "json", *store]).stdout)
        assert [each["name"] for each in listed["references"]] == ["kept:1", "kept:2"]
        assert host.run(["find", f"{FULL}/store/new", "-type", "f"]).stdout == ""
    finally:
        host.run(["umount", FULL])


def test_each_user_has_a_store_of_their_own_and_cannot_enter_the_system_s(fleet: Fleet) -> None:
    host = fleet.host
    host.run(["sh", "-c", "id storekeeper || useradd --create-home storekeeper"])
    as_user = ["runuser", "-u", "storekeeper", "--", "env", "HOME=/home/storekeeper", "XDG_DATA_HOME="]
    host.run(["sh", "-ec", "echo module >/run/module; chmod 644 /run/module"])
    host.run(["keepctl", "store", "add", "/run/module", "system:1"])
    host.run([*as_user, "keepctl", "store", "add", "/run/module", "mine:1"])
    listed = json.loads(host.run([*as_user, "keepctl", "store", "ls", "-o", "json"]).stdout)
    assert [each["name"] for each in listed["references"]] == ["mine:1"]
    assert (
        host.run(["stat", "-c", "%a %U", "/home/storekeeper/.local/share/keepfleet/store"]).stdout
        == "700 storekeeper\n"
    )
    refused = host.run([*as_user, "keepctl", "store", "ls", "--store", "/var/lib/keepfleet/store"], check=False)
    assert refused.stderr == (
        "keepctl: cannot use /var/lib/keepfleet/store for modules: it belongs to user 0; go on as that user\n"
    )
    other_way = host.run(
        ["keepctl", "store", "ls", "--store", "/home/storekeeper/.local/share/keepfleet/store"], check=False
    )
    assert "for modules: it belongs to user " in other_way.stderr
    host.run(["rm", "-r", "/var/lib/keepfleet/store"])
