"""What one more keep costs in memory that it does not share, in each state of its life."""

from __future__ import annotations

import re
import tempfile

from benchmarks import waiting
from benchmarks.figures import Figure, Goal
from benchmarks.host import Host
from benchmarks.measuring import MIB, Effort, MeasurementFailed
from keep_client.keep import endpoint_of, open_workload, received, upload_raw
from keep_protocol.keep import KeepInfo

IDLE, LISTENING, RUNNING = Goal(5.0), Goal(12.0), Goal(15.0)
"""MiB."""
_PRIVATE = re.compile(r"^Private_(?:Clean|Dirty|Hugetlb): +([0-9]+) kB$", re.MULTILINE)


def private_bytes(rollup: str) -> int:
    """The private memory in the text of a smaps_rollup (man proc_pid_smaps). Raises MeasurementFailed. Pure."""
    found = _PRIVATE.findall(rollup)
    if not found:
        raise MeasurementFailed("the kernel shows no private memory in smaps_rollup")
    return 1024 * sum(int(kilobytes) for kilobytes in found)


def of_unit(host: Host, unit: str) -> tuple[int, int]:
    """The processes of a unit and their private bytes."""
    pids = host.systemd.processes(unit)
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            total += private_bytes(file.read())
    return len(pids), total


def _look(host: Host, keeps: list[KeepInfo], processes: int) -> tuple[float, ...]:
    samples = []
    for keep in keeps:
        count, private = of_unit(host, keep.unit)
        if count != processes:
            raise MeasurementFailed(f"{keep.unit} has {count} processes, and should have {processes}")
        samples.append(private / MIB)
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
        Figure("listening: loader and app-loader", "MiB", listening, LISTENING),
        Figure("running: loader and a workload", "MiB", running, RUNNING),
    ]
