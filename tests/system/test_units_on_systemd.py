"""The installed units as systemd sees them: clean, tight, in their slice, their limits in the kernel's hands."""

from __future__ import annotations

import re

import pytest

from keep_protocol.constants import slice_name
from keep_protocol.states import State
from tests.system.fleet import MANAGER, Fleet
from tests.system.host import Host, message_of
from tests.system.life import Life, example

KEEP_SCORE, MANAGER_SCORE = 0.2, 2.1
"""`systemd-analyze security`, 0 to 10. The manager's is what being root for D-Bus and for its keeps' sockets costs."""
MEMORY, TASKS = 1792 << 20, 32
MANAGER_MEMORY = 512 << 20


@pytest.fixture
def life(fleet: Fleet) -> Life:
    return Life.awaiting(fleet)


def score(host: Host, unit: str) -> float:
    """The unit's exposure."""
    said = host.run(["systemd-analyze", "security", "--no-pager", unit]).stdout
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert found is not None, said
    return float(found[1])


def kernel_s(host: Host, unit: str, controller: str, *names: str) -> int:
    """What the kernel has in the unit's control group, in cgroups v1 or v2, under the first of these names it knows."""
    group = host.show(unit, "ControlGroup")["ControlGroup"]
    places = [f"/sys/fs/cgroup{part}{group}/{name}" for part in (f"/{controller}", "") for name in names]
    text = host.run(["sh", "-c", 'for f; do [ -e "$f" ] && exec cat "$f"; done; exit 1', "-", *places]).stdout
    return int(text.split()[0])


def test_systemd_has_nothing_to_say_against_the_manager_s_unit_and_the_slice(fleet: Fleet) -> None:
    done = fleet.host.run(["systemd-analyze", "verify", "--man=no", MANAGER, "keep.slice"])
    assert done.stdout + done.stderr == ""


def test_keeps_that_come_and_go_leave_no_more_slices_loaded_than_they_needed_together(fleet: Fleet) -> None:
    def loaded() -> set[str]:
        listed = fleet.host.systemctl("list-units", "--plain", "--no-legend", "--state=active", "keep-g*.slice")
        return {line.split()[0] for line in listed.splitlines()}

    before = loaded()
    for _ in range(8):
        life = Life.create(fleet)
        assert life.show("Slice") == "keep-g00.slice", "there are fewer than 32 keeps"
        life.remove()
    assert loaded() <= before | {"keep-g00.slice"}


def test_systemd_has_nothing_to_say_against_a_live_keep_s_unit(life: Life) -> None:
    """But that the host has no such program, which is the point: it looks for it outside the unit's root."""
    done = life.host.run(["systemd-analyze", "verify", "--man=no", f"/run/systemd/transient/{life.unit}"], check=False)
    said = [
        line for line in (done.stdout + done.stderr).splitlines() if "/keepfleet/python is not executable" not in line
    ]
    assert said == []


def test_systemd_read_every_line_of_the_units_without_a_warning(fleet: Fleet) -> None:
    cursor = fleet.host.cursor()
    fleet.host.daemon_reload()
    Life.create(fleet).remove()
    said = [message_of(entry) for entry in fleet.host.journal(since_cursor=cursor, _PID="1")]
    assert [line for line in said if "keep" in line and re.search(r":[0-9]+:|nknown|gnoring|ailed", line)] == []


def test_a_keep_s_exposure_is_as_low_as_promised(life: Life) -> None:
    assert score(life.host, life.unit) <= KEEP_SCORE


def test_the_manager_s_exposure_is_as_low_as_promised(fleet: Fleet) -> None:
    assert score(fleet.host, MANAGER) <= MANAGER_SCORE


def test_the_manager_s_memory_is_limited_by_the_kernel(fleet: Fleet) -> None:
    assert kernel_s(fleet.host, MANAGER, "memory", "memory.limit_in_bytes", "memory.max") == MANAGER_MEMORY
    assert fleet.host.show(MANAGER, "MemoryHigh", "OOMPolicy") == {
        "MemoryHigh": str(384 << 20),
        "OOMPolicy": "continue",
    }


def test_a_keep_s_limits_are_in_force_in_the_kernel(life: Life) -> None:
    assert kernel_s(life.host, life.unit, "memory", "memory.limit_in_bytes", "memory.max") == MEMORY
    assert kernel_s(life.host, life.unit, "pids", "pids.max") == TASKS
    quota = kernel_s(life.host, life.unit, "cpu", "cpu.cfs_quota_us", "cpu.max")
    assert quota == 100_000
    limits = life.host.run(["prlimit", "--pid", str(life.loader_pid), "--noheadings", "--output", "RESOURCE,HARD"])
    hard = dict(line.split() for line in limits.stdout.splitlines())
    assert (hard["NOFILE"], hard["CORE"]) == ("256", "0")


def test_a_keep_lives_in_the_slice_of_its_group_below_all_keeps(life: Life) -> None:
    assert life.show("Slice") == slice_name(life.kuuid)
    assert life.show("ControlGroup") == f"/keep.slice/{slice_name(life.kuuid)}/{life.unit}"
    shown = life.host.show("keep.slice", "CPUWeight", "TasksMax")
    assert shown["CPUWeight"] == "50"
    assert shown["TasksMax"] not in ("infinity", "")


def test_a_keep_s_unit_is_called_by_its_id_and_its_owner(life: Life) -> None:
    assert life.show("Description") == f"Keep {life.kuuid} of admin"


def test_a_keep_s_lines_bear_its_id_and_its_name(life: Life) -> None:
    found = life.entries()
    assert {entry["KEEP_ID"] for entry in found} == {str(life.kuuid)}
    assert {entry["SYSLOG_IDENTIFIER"] for entry in found} == {f"keep-{life.kuuid}"}


def test_the_status_line_reads_well_from_the_start_to_the_end(fleet: Fleet) -> None:
    life = Life.create(fleet)
    assert life.show("StatusText") == "listening: ready for a start"
    life.start()
    place, pin = f"127.0.0.1:{life.info.port}", life.info.fingerprint[:19]
    assert life.host.wait_status(life.unit, "started") == f"started: awaiting workload on {place}, {pin}…"
    assert life.upload(example("exit-3/exit-3")).status == 200
    life.until(State.STARTED, State.COMPLETE)
    assert re.fullmatch(r"complete: exited 3 \(.* s, .* MB\)", life.host.wait_status(life.unit, "complete"))
    life.without_process()
    assert "complete: exited 3" in life.host.systemctl("status", life.unit, check=False)


def test_a_drop_in_of_the_operator_s_changes_a_limit(fleet: Fleet) -> None:
    host, place = fleet.host, "/etc/systemd/system/keep@.service.d/50-local.conf"
    host.run(["tee", place], input="[Service]\nMemoryMax=300M\n")
    host.daemon_reload()
    try:
        life = Life.create(fleet)
        assert kernel_s(life.host, life.unit, "memory", "memory.limit_in_bytes", "memory.max") == 300 << 20
    finally:
        host.run(["rm", place])
        host.daemon_reload()


def test_without_the_drop_in_no_keep_starts_at_all_and_the_reason_says_what_to_do(fleet: Fleet) -> None:
    host, place = fleet.host, "/etc/systemd/system/keep@.service.d"
    host.run(["mv", place, f"{host.path}/away"])
    host.daemon_reload()
    try:
        refused = fleet.client().legacy({"command": "new-keep", "keep-arch": "wasi"})
        assert refused.status == 500
        assert "keepctl install" in refused.error().message
        assert fleet.left_over() == []
    finally:
        host.run(["mv", f"{host.path}/away", place])
        host.daemon_reload()
    Life.create(fleet).remove()
