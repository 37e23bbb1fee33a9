"""`keepctl top`: figures out of systemctl's words, and next to each keep's limits."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from keep_protocol.keep import KeepInfo, Outcome, OutcomeKind
from keep_protocol.states import State
from keepctl.commands import top
from keepctl.commands.top import NOTHING, Usage
from tests.fakes.manager_in_memory import FIRST_ID, ManagerInMemory
from tests.unit.keepctl.conftest import Run

SHOWN = """\
MemoryCurrent=5242880
CPUUsageNSec=1500000000
TasksCurrent=3
Id=keep@1.service
LoadState=loaded

MemoryCurrent=[not set]
CPUUsageNSec=18446744073709551615
TasksCurrent=[not set]
Id=keep@2.service
LoadState=loaded

MemoryCurrent=1
Id=keep@3.service
LoadState=not-found
"""


def test_processor_time_that_systemd_does_not_count_is_that_of_the_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unset = "Id=keep@1.service\nLoadState=loaded\nCPUUsageNSec=[not set]\nControlGroup=/keep.slice/keep@1.service\n"
    groups = top.control_groups(f"{unset}\nId=keep@2.service\nCPUUsageNSec=5\nControlGroup=/keep.slice/b\n")
    assert groups == {"keep@1.service": "/keep.slice/keep@1.service"}
    group = tmp_path / "cgroup/systemd/keep.slice/keep@1.service"
    group.mkdir(parents=True)
    (group / "cgroup.procs").write_text("41\n42\n43\n")
    ticks = os.sysconf("SC_CLK_TCK")
    for process, name in (("41", "a b) S"), ("42", "c")):
        (tmp_path / process).mkdir()
        times = f"{ticks} {ticks // 2} {ticks} 0"
        (tmp_path / process / "stat").write_text(f"{process} ({name}) R 1 2 3 4 5 6 7 8 9 10 {times} 20 0 1\n")
    monkeypatch.setattr(top, "CGROUPS", str(tmp_path / "cgroup"))
    monkeypatch.setattr(top, "PROC", str(tmp_path))
    assert top.cpu_of_processes(groups["keep@1.service"]) == 5.0, "and the third one has just ended"
    assert top.cpu_of_processes("/nowhere") is None


def test_figures_are_read_and_those_not_counted_are_none() -> None:
    assert top.parse(SHOWN) == {"keep@1.service": Usage(5 << 20, 1.5, 3), "keep@2.service": NOTHING}
    assert top.parse("") == {}


def test_processors_in_use_are_the_difference_over_time() -> None:
    keep = KeepInfo(7, State.STARTED, name="web")
    line = top.row(keep, Usage(5 << 20, 3.0, 4), Usage(cpu_seconds=2.0), 2.0)
    assert line == ("7", "web", "2 started", "50 %", "3 s", "100 %", "5 MiB", "256 MiB", "4", "0")
    assert top.row(keep, NOTHING)[3:] == ("", "", "100 %", "", "256 MiB", "", "0")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    unit = f"keep@{FIRST_ID}.service"
    monkeypatch.setattr(top, "measure", lambda units: {unit: Usage(1 << 20, 0.5, 2)} if unit in set(units) else {})


@pytest.mark.usefixtures("measured")
def test_running_keeps_are_shown_and_ended_ones_when_asked(run: Run, manager: ManagerInMemory) -> None:
    run("create", "--name", "web")
    run("create", "--name", "old")
    outcome = Outcome(OutcomeKind.EXITED, "exited 0", exit_code=0, peak_bytes=2 << 20, cpu_seconds=9.0)
    manager.change(FIRST_ID + 1, state=State.COMPLETE, outcome=outcome)
    lines = run("top").output.splitlines()
    assert len(lines) == 2
    assert "0.50 s" in lines[1] and "1 MiB" in lines[1]
    assert "2 MiB" in run("top", "--all").output.splitlines()[2]
    (web,) = json.loads(run("top", "-o", "json").output)
    assert (web["name"], web["memory_bytes"], web["limits"]["tasks"]) == ("web", 1 << 20, 32)


@pytest.mark.usefixtures("measured")
def test_watching_goes_on_until_ctrl_c(run: Run, manager: ManagerInMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    run("create")
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) >= 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("keepctl.commands.top.time.sleep", pause)
    result = run("top", "-w", "--interval", "0.5")
    assert (pauses, result.exit_code, result.stderr) == ([0.5, 0.5, 0.5], 130, "")
    assert result.output.count("GUEST MAY") == 3
    assert "0 %" in result.output.splitlines()[3]


def test_a_host_without_systemd_has_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert top.measure(["keep@1.service", ""]) == {}
