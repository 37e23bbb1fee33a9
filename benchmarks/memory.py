"""What one more keep costs in memory of its own, in each state of its life.

Anonymous memory, each page once: what its processes, forks of one another, share is counted in parts that add up to one
(Pss_Anon). The sum of what each has for itself alone would count such pages not at all, and those of a library's file,
which every keep of a host shares, wherever only one keep runs.
"""

from __future__ import annotations

import re
import tempfile
import time

from benchmarks import waiting
from benchmarks.figures import Figure, Goal
from benchmarks.host import Host
from benchmarks.measuring import MIB, Effort, MeasurementFailed
from keep_client.keep import endpoint_of, open_workload, received, upload_raw
from keep_protocol.keep import KeepInfo

IDLE, LISTENING, RUNNING = Goal(5.0), Goal(12.0), Goal(13.0)
"""MiB."""
HANDOVER_SECONDS = 10.0
"""An endpoint that has accepted gives its last answers for a second at most."""
_OWN = re.compile(r"^Pss_Anon: +([0-9]+) kB$", re.MULTILINE)


def own_bytes(rollup: str) -> int:
    """The anonymous memory in the text of a smaps_rollup, its share of what is shared (man proc_pid_smaps).

    Raises MeasurementFailed. Pure.
    """
    found = _OWN.findall(rollup)
    if len(found) != 1:
        raise MeasurementFailed("the kernel shows no Pss_Anon in smaps_rollup")
    return 1024 * int(found[0])


def of_unit(host: Host, unit: str) -> tuple[int, int]:
    """The processes of a unit and their own bytes."""
    pids = host.systemd.processes(unit)
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            total += own_bytes(file.read())
    return len(pids), total


def _look(host: Host, keeps: list[KeepInfo], processes: int) -> tuple[float, ...]:
    samples = []
    deadline = time.monotonic() + HANDOVER_SECONDS
    for keep in keeps:
        while len(host.systemd.processes(keep.unit)) != processes and time.monotonic() < deadline:
            time.sleep(0.05)
        count, own = of_unit(host, keep.unit)
        if count != processes:
            raise MeasurementFailed(f"{keep.unit} has {count} processes, and should have {processes}")
        samples.append(own / MIB)
    return tuple(samples)


def measure(host: Host, effort: Effort) -> list[Figure]:
    """All keeps go through their life together, so that what can be shared is shared, as on a host with many."""
    client = host.client
    keeps = [client.create() for _ in range(effort.memory_keeps)]
    idle = _look(host, keeps, 1)
    keeps = [client.start(keep.kuuid, "127.0.0.1", None) for keep in keeps]
    listening = _look(host, keeps, 2)
    with tempfile.NamedTemporaryFile(suffix=".wasm") as workload:
        workload.write(waiting.module())
        workload.flush()
        with open_workload(workload.name) as file:
            for keep in keeps:
                received(upload_raw(endpoint_of(keep, host.endpoint.host), host.keep_context, file), file)
    for keep in keeps:
        host.first_line(keep.unit, waiting.ITS_LINE)
    running = _look(host, keeps, 2)
    host.clear()
    return [
        Figure("idle: the loader", "MiB", idle, IDLE),
        Figure("listening: loader and upload endpoint", "MiB", listening, LISTENING),
        Figure("running: loader and a workload", "MiB", running, RUNNING),
    ]
