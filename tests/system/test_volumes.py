"""Volumes of declared keeps on a real host: they last, hold their limits against their guest, and are one keep's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from keep_manager.failpoints import Failpoint
from tests.system import volume_guests
from tests.system.fleet import Fleet
from tests.system.host import until
from tests.system.test_declared_jobs import until_run
from tests.system.test_declared_keeps import STORE, declared, keepctl, write
from tests.system.test_typed_docs import blocks, typed_inside

PLACE = "/var/lib/keepfleet/volumes"
VOLUME = "volume: {name: data, size: 16M, guest: /data, inodes: 100}\n"
KEEPER = "module: keeper:1\nrestart: always\nready_seconds: 0\nprobe: {output: ready}\n" + VOLUME


def add(fleet: Fleet, reference: str, module: bytes) -> None:
    """Puts a module into the store."""
    (fleet.host.path / "module.wasm").write_bytes(module)
    keepctl(fleet, "store", "add", str(fleet.host.path / "module.wasm"), reference)


def applied(fleet: Fleet, name: str, text: str) -> str:
    """What `keepctl apply --wait` says of the manifest."""
    return keepctl(fleet, "apply", "--wait", "-f", write(fleet, name, text), check=False)


def said(fleet: Fleet, name: str) -> list[str]:
    """The lines of the keep that counts, which runs and may not have written the first one yet."""
    kuuid = str(declared(fleet, name)["kuuid"])

    def lines() -> list[str]:
        return keepctl(fleet, "logs", kuuid).splitlines()

    until(lines, lambda: f"{name} has written nothing")
    return lines()


def volumes(fleet: Fleet) -> dict[str, dict[str, Any]]:
    """What `keepctl volume ls` shows, by name."""
    return {each["name"]: each for each in json.loads(keepctl(fleet, "volume", "ls", "-o", "json"))}


def until_unused(fleet: Fleet) -> None:
    """Waits until no keep has a volume: one that has ended gives it up a moment later."""
    until(lambda: not any(each["in_use"] for each in volumes(fleet).values()), lambda: volumes(fleet))


@pytest.fixture(scope="module")
def guests(installed_fleet: Fleet) -> Iterator[Fleet]:
    """A store with guests that use a volume."""
    add(installed_fleet, "keeper:1", volume_guests.counts("ready"))
    add(installed_fleet, "keeper:2", volume_guests.counts("never"))
    add(installed_fleet, "keeper:3", volume_guests.counts("ready", ends=3))
    add(installed_fleet, "filler:1", volume_guests.fills_bytes())
    add(installed_fleet, "filler:2", volume_guests.fills_inodes())
    yield installed_fleet
    installed_fleet.host.run(["rm", "-rf", STORE])


@pytest.fixture
def keeping(guests: Fleet, fleet: Fleet) -> Iterator[Fleet]:
    """A fleet with those, without a volume."""
    yield fleet
    for each in json.loads(keepctl(fleet, "get", "-o", "json")):
        keepctl(fleet, "delete", each["name"])
    fleet.clear()
    fleet.host.run(["sh", "-c", f"rm -rf {PLACE}/* {PLACE}/.??*"])


def test_what_is_written_is_there_after_a_restart_a_replacement_and_a_kill_of_the_manager(keeping: Fleet) -> None:
    assert applied(keeping, "web", KEEPER).endswith("; running\n")
    assert said(keeping, "web") == ["1 ready"]
    shown = volumes(keeping)["data"]
    assert (shown["owner"], shown["size_bytes"], shown["declared"], shown["in_use"]) == (
        "admin",
        1 << 24,
        ["web"],
        True,
    )
    keepctl(keeping, "restart", "--wait", "web")
    assert said(keeping, "web") == ["2 ready"]
    keeping.kill()
    assert applied(keeping, "web", KEEPER + "environment: {A: b}\n").endswith("; running\n")
    assert said(keeping, "web") == ["3 ready"]
    assert applied(keeping, "web", KEEPER.replace("16M", "32M")).endswith("; running\n")
    assert (said(keeping, "web"), volumes(keeping)["data"]["size_bytes"]) == (["4 ready"], 1 << 25)
    refused = applied(keeping, "web", KEEPER.replace("16M", "1024G"))
    assert "rolled back to version 4: cannot make volume data: admin would have 1099511627776 bytes" in refused
    assert (said(keeping, "web"), volumes(keeping)["data"]["size_bytes"]) == (["5 ready"], 1 << 25)
    assert len(keeping.keep_units()) == 1


def test_one_that_is_not_ready_is_rolled_back_to_what_was_with_the_same_volume(keeping: Fleet) -> None:
    applied(keeping, "web", KEEPER)
    silent = KEEPER.replace("keeper:1", "keeper:2").replace("{output: ready}", "{output: ready, within: 1s}")
    after = applied(keeping, "web", silent)
    assert "version 2 was rolled back to version 1: it was not ready: its output had no line" in after
    found = declared(keeping, "web")
    assert (found["state"], found["module"]) == ("running", "keeper:1")
    assert said(keeping, "web") == ["3 ready"]
    after = applied(keeping, "web", KEEPER.replace("keeper:1", "keeper:3").replace("ready}", "no such line}"))
    assert "rolled back to version 3: it was not ready: exited 3" in after


@pytest.mark.parametrize(("module", "found"), [("filler:1", "exited 51"), ("filler:2", "exited 51")])
def test_a_full_volume_is_an_error_of_its_guest_alone(keeping: Fleet, module: str, found: str) -> None:
    text = f"module: {module}\n{VOLUME}limits: {{memory: 256M}}\n"
    before = keeping.host.run(["df", "--output=avail", PLACE]).stdout
    assert found in applied(keeping, "filler", text)
    applied(keeping, "web", KEEPER.replace("name: data", "name: other"))
    assert said(keeping, "web") == ["1 ready"]
    assert keeping.host.run(["df", "--output=avail", PLACE]).stdout <= before
    image = f"{PLACE}/data/image"
    assert keeping.host.run(["stat", "--format=%s %a %u", image]).stdout.split() == [str(1 << 24), "600", "0"]
    keeping.host.run(["/sbin/e2fsck", "-fn", image])


def test_one_keep_has_it_at_a_time(keeping: Fleet) -> None:
    applied(keeping, "web", KEEPER)
    assert "another keep has it" in applied(keeping, "other", KEEPER)
    assert declared(keeping, "web")["state"] == "running"
    keepctl(keeping, "delete", "web")
    assert applied(keeping, "other", KEEPER).endswith("; running\n")
    assert said(keeping, "other") == ["2 ready"]


def test_each_run_of_a_job_finds_what_the_one_before_it_wrote(keeping: Fleet) -> None:
    add(keeping, "counter:1", volume_guests.counts("runs", ends=0))
    assert "; scheduled" in applied(keeping, "counter", f'module: counter:1\nschedule: "OnCalendar=monthly"\n{VOLUME}')
    for number in (1, 2):
        keepctl(keeping, "restart", "counter")
        lines = [run["lines"] for run in until_run(keeping, "counter", "done", number)]
        assert lines == [[f"{each} runs"] for each in range(1, number + 1)]
    until_unused(keeping)
    assert "overlap: one keep has a volume at a time" in applied(
        keeping, "counter", f'module: counter:1\nschedule: "OnCalendar=monthly"\noverlap: allow\n{VOLUME}'
    )


def test_it_stays_when_nothing_is_declared_and_goes_when_it_is_removed(keeping: Fleet) -> None:
    applied(keeping, "web", KEEPER)
    assert "declared keep web has it" in keepctl(keeping, "volume", "rm", "data", check=False)
    keepctl(keeping, "delete", "web")
    keeping.restart()
    until_unused(keeping)
    assert keepctl(keeping, "volume", "rm", "data") == "data: removed\n"
    assert (volumes(keeping), keeping.host.run(["ls", "-A", PLACE]).stdout) == ({}, "")
    assert applied(keeping, "web", KEEPER).endswith("; running\n")
    assert said(keeping, "web") == ["1 ready"]


DAMAGES = (
    ("chown 1000 {0}", "not the manager's alone"),
    ("mv {0} moved; ln -s moved {0}", "no directory"),
    ("rm {0}/image; ln -s /etc/shadow {0}/image", "a symbolic link stands in its place"),
    ("truncate -s 0 {0}/image", "cannot be mounted"),
    ("rm {0}/volume.json", "No such file"),
)


def test_what_is_no_volume_is_refused_and_says_why(keeping: Fleet) -> None:
    names = [f"web-{number}" for number in range(len(DAMAGES))]
    files = [write(keeping, name, KEEPER.replace("name: data", f"name: {name}")) for name in names]
    applying = ["apply", "--wait", *(word for file in files for word in ("-f", file))]
    assert keepctl(keeping, *applying).count("; running\n") == len(names)
    for name in names:
        keepctl(keeping, "delete", name)
    keeping.restart()
    until_unused(keeping)  # nor is one of them taken for what is declared again
    for name, (damage, _) in zip(names, DAMAGES, strict=True):
        keeping.host.run(["sh", "-ec", f"cd {PLACE}; {damage.format(name)}"])
    refused = keepctl(keeping, *applying, check=False).splitlines()
    for name, (damage, why) in zip(names, DAMAGES, strict=True):
        (line,) = [line for line in refused if line.startswith(f"{name}: ")]
        assert "; unmet: " in line and why in line, (damage, line)


@pytest.mark.parametrize(
    "point",
    [
        Failpoint.VOLUME_AFTER_RESERVE,
        Failpoint.VOLUME_AFTER_FORMAT,
        Failpoint.VOLUME_AFTER_RENAME,
        Failpoint.RECONCILE_AFTER_CREATE,
        Failpoint.RECONCILE_AFTER_PROVE,
    ],
    ids=lambda point: str(point.value),
)
def test_a_manager_that_is_killed_while_it_makes_one_is_followed_by_one_that_goes_on(
    keeping: Fleet, point: Failpoint
) -> None:
    text = write(keeping, "web", KEEPER)
    with keeping.killed_at(point):
        keepctl(keeping, "apply", "--wait", "-f", text, check=False)
    assert keepctl(keeping, "apply", "--wait", "-f", text).endswith("; running\n")
    assert said(keeping, "web")[-1].endswith("ready")
    assert keeping.host.run(["ls", "-A", PLACE]).stdout == "data\n"


def test_a_manager_that_is_killed_as_it_removes_one_is_followed_by_one_that_has_it_no_more(keeping: Fleet) -> None:
    applied(keeping, "counter", f"module: keeper:3\n{VOLUME}")
    keepctl(keeping, "delete", "counter")
    until_unused(keeping)
    with keeping.killed_at(Failpoint.VOLUME_AFTER_GONE):
        keepctl(keeping, "volume", "rm", "data", check=False)
    assert (volumes(keeping), keeping.host.run(["ls", "-A", PLACE]).stdout) == ({}, "")


def test_its_how_to_can_be_typed_from_its_first_to_its_last_line(fleet: Fleet) -> None:
    output = typed_inside(fleet, blocks("docs/how-to/volumes.md", "sh"))
    for line in ("first: declared, version 1; done", "second: declared, version 1; done", "it is used"):
        assert line in output, f"volumes.md promises {line!r}; it printed:\n{output}"
    assert "reports: removed" in output
    fleet.clear()
    fleet.host.run(["rm", "-rf", STORE])
