"""What is declared is there again after a reboot: a keep, a volume with what was written, and the run that was missed.

One host is booted twice for all of it, with its configuration, units and state on disk and a boot's own number.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.system import volume_guests
from tests.system.fleet import MANAGER, Fleet
from tests.system.test_declared_jobs import history, until_run
from tests.system.test_declared_keeps import booted, declared, keepctl, write
from tests.system.test_typed_docs import ROOT, blocks, typed_inside
from tests.system.test_volumes import KEEPER, add, applied, said


@dataclass(frozen=True)
class Rebooted:
    """The host after its second boot; `web` as it was before it, and when the job was due that was missed."""

    fleet: Fleet
    web: dict[str, Any]
    due: int


@pytest.fixture(scope="module")
def rebooted(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rebooted]:
    directory = tmp_path_factory.mktemp("reboot")
    directory.chmod(0o755)
    first, after, _ = blocks("docs/how-to/reboot.md", "sh")
    assert "keepctl get web" in after
    with booted(directory, prefix) as fleet:
        fleet.install()
        fleet.host.systemctl("enable", MANAGER)
        typed_inside(fleet, [first])
        web = declared(fleet, "web")
        add(fleet, "keeper:1", volume_guests.counts("ready"))
        applied(fleet, "keeper", KEEPER)
        assert said(fleet, "keeper") == ["1 ready"]
        shutil.copy(ROOT / "examples/hello-c/hello.wasm", fleet.host.path / "module.wasm")
        keepctl(fleet, "store", "add", str(fleet.host.path / "module.wasm"), "hello:1")
        due = int(time.time()) + 5
        moment = f"{datetime.fromtimestamp(due, UTC):%Y-%m-%d %H:%M:%S} UTC"
        job = write(fleet, "report", f'module: hello:1\nschedule: "OnCalendar={moment}"\n')
        keepctl(fleet, "apply", "--wait", "-f", job)
        assert history(fleet, "report") == []  # what is due then is due while there is no manager
    with booted(directory, prefix) as fleet:
        fleet.host.systemctl("start", "multi-user.target")  # all that a sandbox leaves out of a boot
        fleet.host.systemctl("start", MANAGER)  # waits for the start under way
        yield Rebooted(fleet, web, due)


def test_a_keep_is_there_again(rebooted: Rebooted) -> None:
    fleet = rebooted.fleet
    keepctl(fleet, "apply", "--wait", "-f", str(fleet.host.path / "checkout/declared"))
    found = declared(fleet, "web")
    assert (found["state"], found["version"], found["manifest"]) == ("running", 1, rebooted.web["manifest"])
    assert found["kuuid"] != rebooted.web["kuuid"]
    assert "web" in fleet.host.run(["keepctl", "get", "web"]).stdout


def test_a_volume_is_there_with_what_was_written(rebooted: Rebooted) -> None:
    assert applied(rebooted.fleet, "keeper", KEEPER).endswith("; running\n")
    assert said(rebooted.fleet, "keeper") == ["2 ready"]


def test_a_run_that_was_missed_is_made_up_for(rebooted: Rebooted) -> None:
    (run,) = until_run(rebooted.fleet, "report", "done")
    assert run["scheduled"] == rebooted.due
