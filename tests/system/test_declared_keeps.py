"""Declared keeps on a real host: over the manager's death and a reboot, replaced and rolled back as how-tos say."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from keep_manager.failpoints import Failpoint
from tests.system import modules
from tests.system.fixtures import INSTALLED
from tests.system.fleet import MANAGER, Fleet, free_port
from tests.system.host import Host, layout, until
from tests.system.life import Life
from tests.system.test_typed_docs import ROOT, blocks, typed_inside
from tools.sandbox.sandbox import Sandbox

STORE = "/var/lib/keepfleet/store"
BOOT_ID = "/proc/sys/kernel/random/boot_id"
SLEEPER = "module: web:1.0\nrestart: always\nready_seconds: 0\n"


def keepctl(fleet: Fleet, *words: str, check: bool = True) -> str:
    """What it prints."""
    done = fleet.keepctl(*words, check=check)
    return done.stdout + ("" if check else done.stderr)


def declared(fleet: Fleet, name: str) -> dict[str, Any]:
    """A declared keep as `keepctl get` shows it."""
    (found,) = json.loads(keepctl(fleet, "get", "-o", "json", name))
    assert isinstance(found, dict)
    return found


def write(fleet: Fleet, name: str, text: str) -> str:
    """A manifest on the host; its path."""
    path = fleet.host.path / f"{name}.yaml"
    path.write_text(text)
    return str(path)


@pytest.fixture
def web(fleet: Fleet) -> Iterator[str]:
    """Modules in the store, and the path of a manifest for the first one."""
    for example, reference in (("sleep-wat/sleep", "web:1.0"), ("exit-3/exit-3", "web:1.1")):
        shutil.copy(ROOT / f"examples/{example}.wasm", fleet.host.path / "module.wasm")
        keepctl(fleet, "store", "add", str(fleet.host.path / "module.wasm"), reference)
    yield write(fleet, "web", SLEEPER)
    for each in json.loads(keepctl(fleet, "get", "-o", "json")):
        keepctl(fleet, "delete", each["name"])
    fleet.clear()
    fleet.host.run(["rm", "-rf", STORE])


def test_it_is_adopted_by_the_manager_that_follows_one_that_was_killed(fleet: Fleet, web: str) -> None:
    keepctl(fleet, "apply", "--wait", "-f", web)
    before = declared(fleet, "web")
    unit, cursor = fleet.keep_units(), fleet.host.cursor()
    fleet.kill()
    fleet.host.wait_journal(f"module store {STORE}: no signature is required", MANAGER, cursor)
    until(lambda: declared(fleet, "web")["state"] == "running", lambda: declared(fleet, "web"))
    assert keepctl(fleet, "apply", "--wait", "-f", web) == "web: unchanged, version 1; running\n"
    assert declared(fleet, "web")["kuuid"] == before["kuuid"]
    assert fleet.keep_units() == unit


def test_a_second_manager_ends_before_it_touches_what_is_declared(fleet: Fleet, web: str) -> None:
    keepctl(fleet, "apply", "--wait", "-f", web)
    Life(fleet, declared(fleet, "web")["kuuid"]).shown("running the workload")  # its detail changes no more
    before = declared(fleet, "web")
    second = ["keep-manager", "--config", "/etc/keepfleet/manager.yaml", "--port", str(free_port())]
    done = fleet.host.run(second, check=False)
    assert done.returncode == 2
    assert "cannot work for what is declared in /var/lib/keepfleet/declared: another manager does so" in done.stderr
    assert declared(fleet, "web") == before


def test_one_that_cannot_be_met_says_why_and_the_others_go_on(fleet: Fleet, web: str) -> None:
    late = write(fleet, "late", "module: late:1\n")
    said = keepctl(fleet, "apply", "--wait", "-f", late, "-f", web, check=False)
    assert "late: declared, version 1; unmet: cannot find the reference late:1" in said
    assert "web: declared, version 1; running\n" in said
    keepctl(fleet, "store", "tag", "web:1.0", "late:1")
    assert keepctl(fleet, "apply", "--wait", "-f", late).endswith("; running\n")


def test_a_reference_that_moved_is_a_change_when_it_is_applied_again(fleet: Fleet, web: str) -> None:
    keepctl(fleet, "apply", "--wait", "-f", web)
    before = declared(fleet, "web")
    keepctl(fleet, "store", "tag", "web:1.1", "web:1.0")
    fleet.kill()
    assert declared(fleet, "web")["digest"] == before["digest"]
    cursor = fleet.host.cursor()
    keepctl(fleet, "apply", "-f", web)
    assert declared(fleet, "web")["digest"] != before["digest"]
    fleet.host.wait_journal("declared keep web: made keep ", MANAGER, cursor)  # or it would be during the next test


DAMAGES = {"cut": "truncate -s -1 {}", "changed": "printf M | dd of={} bs=1 seek=60 conv=notrunc"}


def test_a_damaged_specification_leaves_its_keep_and_the_others_alone(fleet: Fleet, web: str) -> None:
    files = [write(fleet, name, SLEEPER) for name in (*DAMAGES, "other")]
    applying = ["apply", "--wait", *(word for file in files for word in ("-f", file))]
    keepctl(fleet, *applying)
    units = fleet.keep_units()
    for name, damage in DAMAGES.items():
        fleet.host.run(["sh", "-ec", damage.format(f"/var/lib/keepfleet/declared/{name}.yaml")])
    fleet.kill()
    assert {name: declared(fleet, name)["state"] for name in DAMAGES} == dict.fromkeys(DAMAGES, "unreadable")
    until(lambda: declared(fleet, "other")["state"] == "running", lambda: declared(fleet, "other"))
    assert fleet.keep_units() == units
    assert keepctl(fleet, *applying).count("; running\n") == len(files)


def test_a_full_disk_refuses_an_apply_and_leaves_what_was_declared(fleet: Fleet, web: str) -> None:
    keepctl(fleet, "apply", "--wait", "-f", web)
    place = "/var/lib/keepfleet/declared"
    with fleet.small_disk(place, "size=64k,mode=700") as sees:
        written = [
            *sees,
            "sh",
            "-c",
            f"cd {place}; find . -type f ! -name full ! -name '*.new' -print -exec cat {{}} + | sort",
        ]
        before = fleet.host.run(written).stdout
        fleet.host.run([*sees, "sh", "-c", f"cat /dev/zero >{place}/full"], check=False)
        said = keepctl(fleet, "apply", "-f", write(fleet, "web", SLEEPER + "# again\n"), check=False)
        assert "cannot keep the specification web: No space left on device" in said
        assert declared(fleet, "web")["version"] == 1
        assert "web.yaml" in before and fleet.host.run(written).stdout == before, "as the next manager finds it"
        fleet.host.run([*sees, "rm", f"{place}/full"])
        assert keepctl(fleet, "apply", "--wait", "-f", web) == "web: changed, version 2; running\n"
    fleet.restart()  # with what is declared on the host's own disk


POINTS = (
    Failpoint.DECLARE_AFTER_HISTORY,
    Failpoint.DECLARE_AFTER_WRITE,
    Failpoint.RECONCILE_BEFORE_CREATE,
    Failpoint.RECONCILE_AFTER_CREATE,
    Failpoint.RECONCILE_AFTER_REMOVE,
)


def test_a_manager_that_is_killed_while_it_applies_is_followed_by_one_that_goes_on(fleet: Fleet, web: str) -> None:
    """At each point, of a declared keep of its own; what came of all of them another manager then finds."""
    names = {point: point.value for point in POINTS}
    kuuids: dict[str, int] = {}
    for point, name in names.items():
        keepctl(fleet, "apply", "--wait", "-f", write(fleet, name, SLEEPER))
        changed = write(fleet, name, SLEEPER + "environment: {A: b}\n")
        with fleet.killed_at(point):
            keepctl(fleet, "apply", "--wait", "-f", changed, check=False)
        assert keepctl(fleet, "apply", "--wait", "-f", changed).endswith("version 2; running\n"), point
        kuuids[name] = declared(fleet, name)["kuuid"]
        Life(fleet, kuuids[name]).shown("running the workload")
    fleet.restart()
    found = [(info.name, info.kuuid) for info in fleet.client().keeps()]
    assert sorted(found) == sorted(kuuids.items())


def test_a_manager_that_is_killed_as_it_deletes_is_followed_by_one_that_ends_what_is_declared_no_more(
    fleet: Fleet, web: str
) -> None:
    keepctl(fleet, "apply", "--wait", "-f", web)
    with fleet.killed_at(Failpoint.DECLARE_AFTER_REMOVE):
        keepctl(fleet, "delete", "web", check=False)
    assert json.loads(keepctl(fleet, "get", "-o", "json")) == []
    until(lambda: not fleet.keep_units(), fleet.keep_units)


def test_a_manager_that_is_killed_as_it_rolls_back_is_followed_by_one_that_has_what_ran(fleet: Fleet, web: str) -> None:
    keepctl(fleet, "apply", "--wait", "-f", web)
    before = declared(fleet, "web")
    ends = write(fleet, "web", SLEEPER.replace("web:1.0", "web:1.1").replace("ready_seconds: 0", "ready_seconds: 9"))
    with fleet.killed_at(Failpoint.RECONCILE_AFTER_ROLL_BACK):
        keepctl(fleet, "apply", "--wait", "-f", ends, check=False)
    found = declared(fleet, "web")
    assert (found["version"], found["module"], found["kuuid"]) == (3, "web:1.0", before["kuuid"])
    assert "version 2 was rolled back to version 1: it was not ready: exited 3" in found["note"]
    until(lambda: len(fleet.keep_units()) == 1, fleet.keep_units)  # what had failed goes


def test_a_keep_with_a_probe_is_ready_when_its_output_says_so_and_rolled_back_when_it_does_not(
    fleet: Fleet, web: str
) -> None:
    for reference, text in (("says:1", b"listening on 80\n"), ("says:2", b"no such thing\n")):
        (fleet.host.path / "module.wasm").write_bytes(modules.says(text, pause_ms=3_600_000))
        keepctl(fleet, "store", "add", str(fleet.host.path / "module.wasm"), reference)
    probed = SLEEPER + "probe: {output: listening on, within: 1s}\n"
    said = SLEEPER.replace("web:1.0", "says:1") + "probe: {output: listening on, within: 60s}\n"
    keepctl(fleet, "apply", "--wait", "-f", write(fleet, "web", said))
    ready = declared(fleet, "web")
    assert ready["state"] == "running"
    silent = write(fleet, "web", probed.replace("web:1.0", "says:2"))
    after = keepctl(fleet, "apply", "--wait", "-f", silent, check=False)
    why = "it was not ready: its output had no line that says it is ready within 1 s"
    assert f"version 2 was rolled back to version 1: {why}" in after
    assert (declared(fleet, "web")["kuuid"], why in declared(fleet, "web")["note"]) == (ready["kuuid"], True)
    first = keepctl(fleet, "apply", "--wait", "-f", write(fleet, "first", probed), check=False)
    assert "; unready: its output had no line" in first
    kept = declared(fleet, "first")
    fleet.kill()  # the next manager reads the output from its beginning, and asks what was ready no more
    keepctl(fleet, "apply", "--wait", "-f", write(fleet, "first", probed), check=False)
    until(lambda: declared(fleet, "web")["state"] == "running", lambda: declared(fleet, "web"))
    found = {name: declared(fleet, name) for name in ("web", "first")}
    assert [found[name]["state"] for name in ("web", "first")] == ["running", "unready"]
    assert [found[name]["kuuid"] for name in ("web", "first")] == [ready["kuuid"], kept["kuuid"]]


@pytest.mark.parametrize("page", ["reboot", "rollout"])
def test_its_how_to_can_be_typed_from_its_first_to_its_last_line(fleet: Fleet, page: str) -> None:
    output = typed_inside(fleet, blocks(f"docs/how-to/{page}.md", "sh"))
    promised = {
        "reboot": ("web: declared, version 1; running", "web: declared no more"),
        "rollout": (
            "+module: web:1.1",
            "this will change",
            "web: changed, version 2; running",
            "version 2 was rolled back to version 1: it was asked for",
            "it was not ready",
            "version 4 was rolled back to version 3: it was not ready: exited 3",
            "another keep takes its place, version 6; running",
        ),
    }
    for text in promised[page]:
        assert text in output, f"{page}.md promises {text!r}; it printed:\n{output}"
    fleet.clear()
    fleet.host.run(["rm", "-rf", STORE])


@contextmanager
def booted(directory: Path, prefix: Path) -> Iterator[Fleet]:
    """A host whose configuration, units and state are in `directory`, in a boot of its own."""
    boot = directory / "boot_id"
    boot.write_text(f"{uuid.uuid4()}\n")
    port = directory / "port"
    if not port.exists():
        port.write_text(str(free_port()))
    kept = {"configuration": "/etc/keepfleet", "units": "/etc/systemd/system", "state": "/var/lib/keepfleet"}
    for name in (*kept, "shared"):
        (directory / name).mkdir(exist_ok=True)
    binds = (
        (str(prefix), INSTALLED, True),
        *((str(directory / name), place, False) for name, place in kept.items()),
        (str(directory / "shared"), str(directory / "shared"), False),
        (str(boot), BOOT_ID, True),
    )
    with Sandbox(f"reboots-{os.getpid()}", layout(binds)) as sandbox, sandbox.network():
        fleet = Fleet(Host(sandbox, directory / "shared"), directory / "configuration")
        fleet.port = int(port.read_text())
        yield fleet
