"""Limits that end a workload and policies that start it again, on a real systemd: what is reported and what is left."""

from __future__ import annotations

import signal
import socket
import threading
from pathlib import Path

import pytest
import wasmtime

from keep_client.keep import endpoint_of, open_workload, upload_raw
from keep_protocol.constants import unit_name
from keep_protocol.keep import KeepInfo, Outcome, OutcomeKind
from keep_protocol.limits import Limits
from keep_protocol.outcome import TRAP
from keep_protocol.states import State
from tests.system.fleet import Fleet, free_port
from tests.system.host import until
from tests.system.life import Life

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MEMORY = "/run/systemd/system/keep@.service.d/50-memory.conf"
GREEDY = """(module (memory (export "memory") 8000) (func (export "_start") (local $at i32)
  (loop $next
    (i32.store (local.get $at) (i32.const 1))
    (local.set $at (i32.add (local.get $at) (i32.const 4096)))
    (br_if $next (i32.lt_u (local.get $at) (i32.const 524000000))))))"""
"""Writes to every page of 500 MiB."""
DEADLINE = 30
"""Seconds until a test gives a keep up; each of them ends in two."""
LATE_SECONDS = 20
"""What a loader may be late on a busy host; a loop that it did not end would go on for ever."""


def example(stem: str) -> Path:
    """The module of that name among the examples."""
    (path,) = EXAMPLES.glob(f"*/{stem}.wasm")
    return path


def began(fleet: Fleet, module: Path, restart: str = "no", **limits: int) -> KeepInfo:
    """A keep that runs a module."""
    client = fleet.client()
    keep = client.create(limits=limits)
    keep = client.start(keep.kuuid, "127.0.0.1", free_port(), workload={"restart": restart})
    with open_workload(str(module)) as file:
        reply = upload_raw(endpoint_of(keep, "127.0.0.1"), fleet.credentials().keep_context(), file)
    assert reply.status == 200, reply
    return keep


def ended(fleet: Fleet, keep: KeepInfo) -> tuple[KeepInfo, Outcome]:
    """The keep once it has ended; it is given up, by removing it, after DEADLINE."""
    alarm = threading.Timer(DEADLINE, fleet.client().remove, (keep.kuuid,))
    alarm.start()
    try:
        info = fleet.client().ended(keep.kuuid)
    finally:
        alarm.cancel()
    assert info.outcome is not None, info.detail
    return info, info.outcome


def stored(fleet: Fleet, keep: KeepInfo) -> int:
    """How many descriptors systemd keeps for the unit."""
    return int(fleet.host.show(unit_name(keep.kuuid), "NFileDescriptorStore")["NFileDescriptorStore"])


def test_a_tight_loop_ends_at_its_time_limit(fleet: Fleet) -> None:
    info, outcome = ended(fleet, began(fleet, example("spin"), wall_seconds=1))
    assert (info.state, outcome.kind, outcome.text) == (State.ERROR, OutcomeKind.LIMITED, "over its time limit of 1 s")
    assert outcome.wall_seconds is not None and 1 <= outcome.wall_seconds < 1 + LATE_SECONDS
    assert outcome.cpu_seconds is not None and 0 < outcome.cpu_seconds <= outcome.wall_seconds + 0.1
    assert outcome.peak_bytes is not None and outcome.peak_bytes > 1_000_000
    assert info.limits == Limits(wall_seconds=1)


def test_a_tight_loop_ends_at_its_processor_time_limit(fleet: Fleet) -> None:
    _, outcome = ended(fleet, began(fleet, example("spin"), cpu_seconds=1))
    assert (outcome.kind, outcome.text) == (OutcomeKind.LIMITED, "over its processor time limit of 1 s")
    # The kernel ends it by its own ticks, of which the first may have been another's.
    assert outcome.cpu_seconds is not None and 0.9 < outcome.cpu_seconds < 3


def test_a_workload_that_the_kernel_ends_for_memory_says_so_and_its_loader_lives(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "greedy.wasm").write_bytes(wasmtime.wat2wasm(GREEDY))
    fleet.host.run(["mkdir", "-p", MEMORY.rpartition("/")[0]])
    # As if the guest had broken out of its engine: less than the engine's own limit, which it never reaches.
    fleet.host.run(["tee", MEMORY], input="[Service]\nMemoryMax=256M\n")
    fleet.host.daemon_reload()
    try:
        _, outcome = ended(fleet, began(fleet, tmp_path / "greedy.wasm", memory_bytes=1 << 30))
    finally:
        fleet.host.run(["rm", MEMORY])
        fleet.host.daemon_reload()
    assert (outcome.kind, outcome.signal) == (OutcomeKind.LIMITED, signal.SIGKILL)
    assert outcome.text.startswith("killed by the kernel for memory")


@pytest.mark.rare
def test_a_workload_that_fails_is_started_again_and_then_given_up_with_its_reason(fleet: Fleet) -> None:
    keep = began(fleet, example("trap"), "on-failure")
    info, outcome = ended(fleet, keep)  # and was not taken for it between two loaders
    assert (info.state, info.restarts, outcome.kind) == (State.ERROR, 4, OutcomeKind.TRAPPED)
    assert info.detail.startswith("gave it up after starting it again 4 times within 60 s: trapped: out of bounds")
    assert any("read_past_the_end" in line for line in outcome.backtrace)
    Life(fleet, keep.kuuid).without_process()
    shown = fleet.host.show(unit_name(keep.kuuid), "ActiveState", "ExecMainStatus", "NRestarts")
    assert shown == {"ActiveState": "failed", "ExecMainStatus": str(TRAP), "NRestarts": "4"}


def test_a_workload_that_does_its_job_is_not_started_again(fleet: Fleet) -> None:
    info, outcome = ended(fleet, began(fleet, example("return-1"), "on-failure"))
    assert (info.restarts, outcome.kind, outcome.exit_code) == (0, OutcomeKind.EXITED, 0)


def test_a_workload_that_must_always_run_survives_its_loader_and_is_stopped_permanently(fleet: Fleet) -> None:
    keep = began(fleet, example("spin"), "always")
    unit = unit_name(keep.kuuid)
    fleet.host.wait_journal("spinning until stopped", unit)
    # The record, output and journal, the module compiled and as it was sent, the description, and the two pipes, once
    # systemd has come to the messages.
    until(lambda: stored(fleet, keep) == 8, lambda: stored(fleet, keep))
    cursor = fleet.host.cursor()
    fleet.host.systemctl("kill", "--kill-whom=main", f"--signal={int(signal.SIGKILL)}", unit)
    fleet.host.wait_journal("spinning until stopped", unit, cursor)
    again = Life(fleet, keep.kuuid)
    until(lambda: again.look().restarts, lambda: again.info)  # the manager hears of it later than journald
    assert (again.info.state, again.info.restarts, again.info.fingerprint) == (State.STARTED, 1, keep.fingerprint)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", keep.port))
    stopped = fleet.client().stop(keep.kuuid)
    assert stopped.outcome is not None
    assert (stopped.state, stopped.outcome.kind, stopped.outcome.by) == (State.COMPLETE, OutcomeKind.STOPPED, "admin")
    Life(fleet, keep.kuuid).without_process()
    shown = fleet.host.show(unit, "ActiveState", "SubState", "NRestarts")
    assert shown == {"ActiveState": "active", "SubState": "exited", "NRestarts": "1"}
    fleet.client().remove(keep.kuuid)
    assert fleet.left_over() == []
