"""keepfleet on a newer Debian than the machine's: its systemd, booted from a root directory, and its Python."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rare.hosts import ROOT, Release
from tests.system.fixtures import INSTALLED
from tools.sandbox.layout import Layout
from tools.sandbox.sandbox import Sandbox

TRIXIE, FORKY = Release("trixie"), Release("forky")
DIFFERENT = (
    "test_units_on_systemd.py",
    "test_isolation.py",
    "test_profiles.py::test_no_memory_becomes_executable_in_a_strict_unit_from_its_first_instruction_on",
    "test_profiles.py::test_nothing_executable_is_in_a_strict_keep_that_is_not_of_a_file_and_read_only",
    "test_profiles.py::test_a_strict_keep_whose_unit_was_changed_takes_no_workload",
    "test_workload_life.py::test_a_workload_that_the_kernel_ends_for_memory_says_so_and_its_loader_lives",
    "test_main_job.py::test_systemctl_status_says_each_state_in_a_sentence",
    "test_main_job.py::test_a_workload_cannot_choose_its_lines_priority_unit_or_keep",
    "test_main_job.py::test_each_keep_has_a_user_a_control_group_and_a_certificate_of_its_own",
    "test_main_job.py::test_a_removed_keep_leaves_nothing_in_whatever_state_it_was",
)
"""What another systemd, control groups of another version or another Python may change; the demo does the main job
there."""
ALL_OF_THEM = (
    "test_units_on_systemd.py",
    "test_isolation.py",
    "test_main_job.py",
    "test_workload_life.py",
    "test_profiles.py",
    "test_granted_directories.py",
    "test_user_manager.py",
    "test_user_grants.py",
)
"""The files of these and like them; `./run test --hosts` runs all system tests there."""
SECONDS = 300.0
"""For what takes some seconds on a quiet machine."""
EXPECTED = "Hello from C, inside a keep!"


@pytest.fixture(scope="module")
def root() -> str:
    return TRIXIE.root()


@pytest.fixture(scope="module")
def prefix(root: str) -> Path:
    return TRIXIE.prefix()


def test_the_demo_checks_every_step(root: str, prefix: Path) -> None:
    binds = tuple((str(ROOT / name), f"/opt/{name}", True) for name in ("tools", "examples"))
    layout = Layout(((str(prefix), INSTALLED, True), *binds), root=root)
    with Sandbox(f"newer-{os.getpid()}", layout) as sandbox:
        assert sandbox.exec(["cat", "/etc/debian_version"]).stdout.startswith("13")
        demo = [f"{INSTALLED}/bin/python", "-P", "/opt/tools/demo/__main__.py", "--expect", EXPECTED]
        done = sandbox.exec([*demo, "/opt/examples/hello-c/hello.wasm"], timeout=SECONDS)
        assert (done.returncode, done.stdout[-24:]) == (0, "Every step was checked.\n"), done.stdout + done.stderr


@pytest.mark.parametrize(
    "proved", [DIFFERENT, pytest.param(ALL_OF_THEM, marks=pytest.mark.heavy)], ids=["different", "all"]
)
def test_what_is_proved_of_units_and_isolation_holds_there_too(
    root: str, prefix: Path, proved: tuple[str, ...]
) -> None:
    environment = {**os.environ, "KEEPFLEET_TEST_ROOT": root, "KEEPFLEET_TEST_PREFIX": str(prefix)}
    files = [f"tests/system/{name}" for name in proved]
    lane = ["-m", "not heavy", "-p", "no:xdist", "-p", "no:cov"]
    command = [sys.executable, "-m", "pytest", "--quiet", "--tb=short", "-p", "no:cacheprovider", *lane, *files]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_systemd_without_cgroup_v1_boots_and_puts_units_into_cgroups() -> None:
    with Sandbox(f"newest-{os.getpid()}", Layout(root=FORKY.root())) as sandbox:
        version = int(sandbox.exec(["systemctl", "--version"]).stdout.split()[1])
        assert version >= 258
        assert sandbox.exec(["systemctl", "is-system-running"]).stdout == "running\n"
        assert sandbox.exec(["stat", "--file-system", "--format=%T", "/sys/fs/cgroup"]).stdout == "cgroup2fs\n"
        shown = sandbox.exec(["systemd-run", "--wait", "--pipe", "--quiet", "cat", "/proc/self/cgroup"]).stdout
        assert "\n0::/system.slice/run-" in f"\n{shown}"


def test_a_root_without_systemd_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.sandbox", "boot", "--root", str(tmp_path), "bare"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, f"it needs systemd, dbus in {tmp_path}" in done.stderr) == (1, True)
