"""One keep's life against the cost of a unit: every round starts each kind of unit once, in a drawn order."""

from __future__ import annotations

import random
import time
from collections import defaultdict

from benchmarks.bus import simple_service, slice_of
from benchmarks.figures import Figure, Goal, Measure
from benchmarks.host import BEFORE_ROOTS, NOTIFYING, SLEEPING, Host, KeptConnection, example
from benchmarks.measuring import Effort, MeasurementFailed, timed
from keep_client.keep import endpoint_of, open_workload, received, upload_raw
from keep_protocol.constants import KUUID_BITS, slice_name
from keep_protocol.keep import KeepInfo

CREATION = Goal(1.5, Measure.RATIO)
CREATED, UPLOADED = Goal(1.0, Measure.RATIO), Goal(0.7, Measure.RATIO)
LISTENING = Goal(100.0)
WORKLOAD, ITS_LINE = "hello-wat", "Hello from WAT"
BARE, BEFORE, SLEEP, READY, KEPT, FRESH, WHOLE = "bare", "before", "sleep", "ready", "kept", "fresh", "whole"
_TEMPLATES = {BEFORE: BEFORE_ROOTS, SLEEP: SLEEPING, READY: NOTIFYING}
START, ANSWER, LINE = "start", "answer", "line"


class Lifecycle:
    """Rounds of unit starts and keeps' lives; `samples` holds milliseconds by what was done."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._draw = random.Random(0)  # noqa: S311 - the same order in each run
        self._module = example(WORKLOAD)
        self._client = host.client
        self._start: dict[str, object] = {}
        self._keep: KeepInfo | None = None
        self.samples: dict[str, list[float]] = defaultdict(list)

    def _unit(self, kind: str) -> float:
        number = self._draw.getrandbits(KUUID_BITS - 1) + 1
        place = slice_of(slice_name(number))
        if kind == BARE:
            program = simple_service("/bin/sleep", "infinity")
            return self._host.systemd.start(f"floor-bare-{number}.service", [*program, place])
        return self._host.systemd.start(f"{_TEMPLATES[kind]}@{number}.service", [place])

    def _create(self, kind: str, kept: KeptConnection) -> float:
        with timed() as watch:
            if kind == KEPT:
                self._keep = kept.new_keep()
            elif kind == WHOLE:
                self._client.create(start=self._start)
            else:
                self._host.client.legacy({"command": "new-keep", "keep-arch": "wasi"})
        return watch.milliseconds

    def round(self) -> None:
        """Starts everything once, sends one keep a module, and removes all again."""
        steps = [BARE, BEFORE, SLEEP, READY, KEPT, FRESH, WHOLE]
        self._draw.shuffle(steps)
        with self._host.connection() as kept, self._host.client as self._client:
            kept.command(command="list-keeps")
            self._start = self._client.starting("127.0.0.1")  # connects
            for step in steps:
                took = self._create(step, kept) if step in (KEPT, FRESH, WHOLE) else self._unit(step)
                self.samples[step].append(took)
            self._live(kept)
        self._host.clear()

    def _live(self, kept: KeptConnection) -> None:
        if self._keep is None:
            raise MeasurementFailed("there is no keep to start")
        with timed() as watch:
            keep = kept.start_keep(self._keep.kuuid)
        self.samples[START].append(watch.milliseconds)
        endpoint = endpoint_of(keep, self._host.endpoint.host)
        with open_workload(self._module) as file:
            began = time.time_ns()
            with timed() as watch:
                reply = upload_raw(endpoint, self._host.keep_context, file)
            received(reply, file)
        self.samples[ANSWER].append(watch.milliseconds)
        line = self._host.first_line(keep.unit, ITS_LINE)
        self.samples[LINE].append(line / 1000 - began / 1e6)


def measure(host: Host, effort: Effort) -> list[Figure]:
    """The figures of a keep's life."""
    life = Lifecycle(host)
    for _ in range(effort.warm_up):
        life.round()
    life.samples.clear()
    for _ in range(effort.rounds):
        life.round()

    def figure(key: str, name: str, floor: Figure | None, goal: Goal | None = None) -> Figure:
        return Figure(name, "ms", tuple(life.samples[key]), goal, floor)

    floor = figure(BEFORE, "floor: sleep in a keep's unit of before it had a root of its own", None)
    return [
        figure(BARE, "a bare unit that sleeps", floor),
        floor,
        figure(SLEEP, "sleep with the keep's hardening of today", floor),
        figure(READY, "the same, with a Python that says READY", floor),
        figure(KEPT, "new-keep → reply", floor, CREATION),
        figure(FRESH, "new-keep → reply, with a new connection", floor),
        figure(START, "start-keep → listening, certificate made", floor, LISTENING),
        figure(WHOLE, "create → listening, in one request", floor, CREATED),
        figure(ANSWER, "upload of a small module → answer 200", floor),
        figure(LINE, "upload of a small module → its first journal line", floor, UPLOADED),
    ]
