"""What the private systemd's tool computes without one: requests, users, cgroups, layouts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tools.sandbox import accounts, cgroups, channel, layout
from tools.sandbox.channel import Request

MOUNTS = """tmpfs /sys/fs/cgroup tmpfs rw 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpuacct,cpu 0 0
cgroup /sys/fs/cgroup/systemd cgroup rw,xattr,name=systemd 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,nsdelegate 0 0
cgroup /elsewhere cgroup rw,memory 0 0
"""
V1 = cgroups.Hierarchy("/sys/fs/cgroup/memory", "memory")
V2 = cgroups.Hierarchy("/sys/fs/cgroup/unified", None)


@pytest.fixture
def etc(tmp_path: Path) -> str:
    (tmp_path / "passwd").write_text("root:x:0:0:root:/root:/bin/bash\nada:x:1000:1000::/home/ada:/bin/sh\nbroken\n")
    (tmp_path / "group").write_text("root:x:0:\njournal:x:101:ada,root\nother:x:102:bob\nada:x:1000:\n")
    return str(tmp_path)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_request_arrives_as_it_was_sent(terminal: bool) -> None:
    words = ["printf", "", "line\nand\ttab", os.fsdecode(b"\xff\xfe"), "x" * 3_000_000]
    environment = {"EMPTY": "", "EQUALS": "a=b", "BYTES": os.fsdecode(b"\x80")}
    arrived = channel.from_file(Request(words, "ada", "/some where", environment, terminal).to_file())
    assert vars(arrived) == vars(Request(words, "ada", "/some where", environment, terminal))


def test_a_request_without_arguments_or_environment_arrives_too() -> None:
    arrived = channel.from_file(Request(["true"], "0", "/", {}).to_file())
    assert (arrived.words, arrived.environment, arrived.terminal) == (["true"], {}, False)


@pytest.mark.parametrize("user", ["ada", "1000"])
def test_a_user_is_found_by_name_and_number_with_all_its_groups(etc: str, user: str) -> None:
    found = accounts.find(user, etc)
    assert found == accounts.Account(1000, 1000, [101, 1000], "ada", "/home/ada")
    assert found.environment() == {"HOME": "/home/ada", "USER": "ada", "LOGNAME": "ada"}


def test_a_number_without_an_entry_is_a_user_without_a_name(etc: str) -> None:
    found = accounts.find("4711", etc)
    assert (found.uid, found.gid, found.groups, found.environment()) == (4711, 4711, [4711], {})


def test_a_name_without_an_entry_is_refused(etc: str) -> None:
    with pytest.raises(LookupError, match="there is no user bob"):
        accounts.find("bob", etc)
    assert accounts.group("other", etc) == 102
    with pytest.raises(LookupError, match="there is no group ghosts"):
        accounts.group("ghosts", etc)


def test_hierarchies_are_those_below_the_usual_place_each_once() -> None:
    found = cgroups.parse_mounts(MOUNTS + MOUNTS, frozenset({"cpu", "cpuacct", "memory"}))
    assert [(each.directory, each.options) for each in found] == [
        ("/sys/fs/cgroup/cpu,cpuacct", "cpu,cpuacct"),
        ("/sys/fs/cgroup/systemd", "none,name=systemd"),
        ("/sys/fs/cgroup/unified", None),
    ]


def test_systemd_s_version_is_read_from_what_it_prints() -> None:
    assert cgroups.version_of("systemd 257 (257.7-1)\n+PAM") == 257
    with pytest.raises(ValueError, match="cannot find a version in 'nonsense'"):
        cgroups.version_of("nonsense")


def test_a_systemd_that_knows_cgroup_v1_is_shown_what_the_machine_has() -> None:
    assert cgroups.shown_to(257, [V1, V2]) == [V1, V2]


def test_a_systemd_without_cgroup_v1_is_shown_v2_alone_where_it_looks_for_it() -> None:
    (shown,) = cgroups.shown_to(258, [V1, V2])
    assert (shown.directory, shown.options) == (cgroups.ROOT, None)


def test_a_systemd_without_cgroup_v1_is_refused_where_the_machine_has_nothing_else() -> None:
    with pytest.raises(ValueError, match="systemd 258 knows cgroup v2 alone, and none is mounted here; run: mkdir"):
        cgroups.shown_to(258, [V1])


def test_a_layout_arrives_as_it_was_written() -> None:
    wanted = layout.Layout((("/a", "/opt/b", True),), ("/etc/c",), "/roots/d")
    assert repr(layout.from_json(wanted.to_json())) == repr(wanted)
    assert layout.from_json(layout.Layout().to_json()).root is None


@pytest.mark.parametrize("root", ["relative", "/", "/a/.."])
def test_a_root_that_is_not_a_plain_path_is_refused(root: str) -> None:
    with pytest.raises(ValueError, match="must be an absolute path"):
        layout.Layout(root=root)
