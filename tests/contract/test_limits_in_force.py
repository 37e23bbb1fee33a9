"""A keep's own limits on a real systemd: what systemd says it holds, and what the kernel has been set to."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from keep_manager.systemd.units import SystemdUnits
from keep_protocol.limits import MIB, OVERHEAD_BYTES, Limits
from keep_protocol.spec import KeepSpec, encode_spec
from tests.contract.conftest import systemd_units
from tests.fakes.real_systemd import DROP_IN, RealSystemd

ENOUGH = 20.0
LIMITS = Limits(
    memory_bytes=64 * MIB,
    compile_memory_bytes=256 * MIB,
    tasks=20,
    cpu_percent=50,
    io_weight=55,
    log_lines_per_second=77,
)
ASKED = KeepSpec(name="web", owner="alice", limits=LIMITS)
MEMORY = 256 * MIB + OVERHEAD_BYTES
"""Of what compiling may have, which is more than the guest may."""


@pytest.fixture
async def units(systemd: RealSystemd) -> AsyncIterator[SystemdUnits]:
    async with systemd_units(systemd) as made:
        yield made
    systemd.install()
    systemd.clear()


def shown(systemd: RealSystemd, kuuid: int, *names: str) -> dict[str, str]:
    lines = systemd.run("systemctl", "show", f"keep@{kuuid}.service", f"--property={','.join(names)}").splitlines()
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def kernel(systemd: RealSystemd, kuuid: int, *files: str) -> str:
    """The content of the first of `files` there is in the keep's control group, v2's name before v1's."""
    for file in files:
        command = f"cat $(find /sys/fs/cgroup -path '*/keep@{kuuid}.service/{file}') </dev/null"
        if found := systemd.run("sh", "-c", command).strip():
            return found
    raise AssertionError(f"the control group of keep {kuuid} has none of {files}")


def skip_without(systemd: RealSystemd, controller: str) -> None:
    """Skips where the kernel's controller is not in the hierarchy that this systemd uses: from 258 on it uses version 2
    alone, and a machine that has the controller in version 1 has it in no other."""
    find = "ls -d /sys/fs/cgroup/*/ | tr /, '\\n'; cat /sys/fs/cgroup/cgroup.controllers"
    if controller not in systemd.run("sh", "-c", f"({find}) 2>/dev/null; true").split():
        pytest.skip(f"this systemd has no controller for {controller}: the machine has it in control groups version 1")


def exist_anywhere(systemd: RealSystemd, *files: str) -> bool:
    """Whether any control group has one of `files`."""
    names = [word for file in files for word in ("-o", "-name", file)][1:]
    return bool(systemd.run("find", "/sys/fs/cgroup", "(", *names, ")", "-print", "-quit"))


async def test_systemd_holds_a_keep_to_the_limits_it_was_made_with(systemd: RealSystemd, units: SystemdUnits) -> None:
    await units.start(3001, ENOUGH, ASKED)
    names = ("MemoryMax", "TasksMax", "CPUQuotaPerSecUSec", "IOWeight", "LogRateLimitBurst", "Environment")
    assert shown(systemd, 3001, *names) == {
        "MemoryMax": str(MEMORY),
        "TasksMax": "20",
        "CPUQuotaPerSecUSec": "500ms",
        "IOWeight": "55",
        "LogRateLimitBurst": "218",
        "Environment": f"KEEPFLEET_SPEC={encode_spec(ASKED)}",
    }


async def test_the_kernel_holds_a_keep_to_its_memory(systemd: RealSystemd, units: SystemdUnits) -> None:
    skip_without(systemd, "memory")
    await units.start(3002, ENOUGH, ASKED)
    assert kernel(systemd, 3002, "memory.max", "memory.limit_in_bytes") == str(MEMORY)


async def test_the_kernel_holds_a_keep_to_its_tasks(systemd: RealSystemd, units: SystemdUnits) -> None:
    skip_without(systemd, "pids")
    await units.start(3003, ENOUGH, ASKED)
    assert kernel(systemd, 3003, "pids.max") == "20"


async def test_the_kernel_holds_a_keep_to_its_processor_time(systemd: RealSystemd, units: SystemdUnits) -> None:
    skip_without(systemd, "cpu")
    await units.start(3004, ENOUGH, ASKED)
    assert kernel(systemd, 3004, "cpu.max", "cpu.cfs_quota_us") in ("50000 100000", "50000")


async def test_the_kernel_weighs_the_input_and_output_of_a_keep(systemd: RealSystemd, units: SystemdUnits) -> None:
    files = ("io.bfq.weight", "io.weight", "blkio.bfq.weight", "blkio.weight")
    if not exist_anywhere(systemd, *files):
        pytest.skip("this kernel weighs no one's input and output: it was built without BFQ and without io.cost")
    await units.start(3005, ENOUGH, ASKED)
    await units.start(3006, ENOUGH, KeepSpec(limits=Limits(io_weight=200)))
    light, heavy = (int(kernel(systemd, kuuid, *files).split()[-1]) for kuuid in (3005, 3006))
    assert light < heavy


async def test_what_stands_in_a_drop_in_has_the_last_word(systemd: RealSystemd, units: SystemdUnits) -> None:
    own = DROP_IN.replace("10-test", "50-local")
    systemd.run("tee", own, text="[Service]\nTasksMax=18\n")
    systemd.run("systemctl", "daemon-reload")
    try:
        await units.start(3007, ENOUGH, ASKED)
        assert shown(systemd, 3007, "TasksMax") == {"TasksMax": "18"}
    finally:
        systemd.run("rm", own)


async def test_two_keeps_have_limits_of_their_own(systemd: RealSystemd, units: SystemdUnits) -> None:
    await units.start(3008, ENOUGH, KeepSpec(limits=Limits(tasks=16)))
    await units.start(3009, ENOUGH, KeepSpec(limits=Limits(tasks=17)))
    assert [shown(systemd, kuuid, "TasksMax")["TasksMax"] for kuuid in (3008, 3009)] == ["16", "17"]
