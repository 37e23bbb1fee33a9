"""How long a guest outlives its deadline: a tight loop in a keep with one second, by the loader's own clock."""

from __future__ import annotations

from benchmarks.figures import Figure, Goal, Measure
from benchmarks.host import Host, example
from benchmarks.measuring import MS, Effort, MeasurementFailed
from keep_client.keep import endpoint_of, open_workload, received, upload_raw

LIMIT_SECONDS = 1
WORKLOAD = "spin-wat"
GOAL = Goal(50.0, Measure.WORST)
"""The worst of a few dozen stands for the 99th percentile."""


def _overrun(host: Host) -> float:
    """Milliseconds from one guest's deadline to its end. Raises MeasurementFailed where something else ended it."""
    keep = host.client.create(limits={"wall_seconds": LIMIT_SECONDS})
    keep = host.client.start(keep.kuuid, host.endpoint.host, None)
    with open_workload(example(WORKLOAD)) as file:
        received(upload_raw(endpoint_of(keep, host.endpoint.host), host.keep_context, file), file)
    outcome = host.client.ended(keep.kuuid).outcome
    host.client.remove(keep.kuuid)
    if outcome is None or outcome.wall_seconds is None or "over its time limit" not in outcome.text:
        raise MeasurementFailed(f"a tight loop with {LIMIT_SECONDS} s ended otherwise: {outcome}")
    return MS * (outcome.wall_seconds - LIMIT_SECONDS)


def measure(host: Host, effort: Effort) -> list[Figure]:
    """The figure of deadlines."""
    samples = tuple(_overrun(host) for _ in range(effort.batch_keeps))
    return [Figure("a tight loop: its deadline → its end", "ms", samples, GOAL, None)]
