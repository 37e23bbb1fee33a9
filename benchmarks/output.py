"""What a guest writes, on its way to a client: how fast and how dear, next to podman and to a plain pipe; how late; and
what is lost.

Every way is read by the same few lines here, through a pipe, into memory that is there before; what has come is then
compared byte by byte. The writer in podman and of the plain pipe is dd(1) of busybox, which reads a file in the parts
in which the guest writes.
"""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence

from benchmarks import flood, tls_floor
from benchmarks.figures import Figure, Goal, Measure
from benchmarks.flood import FIRST, LINE, PAUSE_SECONDS, Flood
from benchmarks.host import COMMAND_SECONDS, MANAGER_UNIT, Host, example, run
from benchmarks.measuring import MB, MIB, Effort, MeasurementFailed, report
from benchmarks.podman import IMAGE, PROGRAM, Podman, installed
from keep_client.credentials import pki_directory
from keep_protocol.constants import UNIT_PATTERN

BLOCKS, SHORT = Goal(300.0, at_least=True), Goal(0.8, Measure.RATIO, at_least=True)
LATENCY, LOADER = Goal(1.0), Goal(1.0)
NOTHING = Goal(0.0, Measure.WORST)
QUIET_SECONDS, SOON_QUIET_SECONDS = 5.0, 0.5
LATENCY_PAUSE_SECONDS = 0.02
LINES, FEW_LINES = 20_000, 1000
_READ = 1024 * 1024
PIPE, PODMAN, KEEP = "a plain pipe", "podman run", "keepctl run"
_STAMP = struct.Struct("<Q")
_DD = 'echo ready; {program} sleep {pause}; exec {program} dd if="$0" bs={size} 2>/dev/null'


def used_ns(pid: int) -> int:
    """Nanoseconds of processor time that the threads of a process have used (man proc_pid_schedstat)."""
    total = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/schedstat", encoding="ascii") as file:
            total += int(file.read().split()[0])
    return total


class Received:
    """What a command writes: its first line awaited, then everything, with the time it took."""

    def __init__(self, process: subprocess.Popen[bytes], size: int) -> None:
        """size: bytes after the first line."""
        assert process.stdout is not None
        self._descriptor = process.stdout.fileno()
        self._process, self._data = process, bytearray(size + 1)
        self.seconds = 0.0

    def first(self) -> None:
        """Waits for the first line. Raises MeasurementFailed."""
        got = b""
        while len(got) < len(FIRST):
            data = os.read(self._descriptor, len(FIRST) - len(got))
            if not data:
                break
            got += data
        if got != FIRST:
            errors = self._process.stderr.read() if self._process.stderr else b""
            raise MeasurementFailed(f"{self._process.args!r} began with {got!r}: {errors.decode(errors='replace')}")

    def all(self, expected: bytes) -> None:
        """Reads the rest, from its first byte to its last one, and compares it. Raises MeasurementFailed."""
        view, at, began = memoryview(self._data), 0, 0.0
        while at < len(expected):
            size = os.readv(self._descriptor, [view[at : at + _READ]])
            began = began or time.perf_counter()
            if not size:
                break
            at += size
        self.seconds = time.perf_counter() - began
        if view[:at] != expected:
            raise MeasurementFailed(f"{self._process.args!r} wrote other bytes: {at} of {len(expected)}")


class Streams:
    """The same bytes by each way, in turns; rates in MB/s, processor time in ms per MB."""

    def __init__(self, host: Host, podman: Podman | None, place: str) -> None:
        self._host, self._podman, self._place = host, podman, place
        self._draw = random.Random(0)  # noqa: S311 - the same order in each run
        self.rates: dict[tuple[str, str], list[float]] = defaultdict(list)
        self.used: dict[tuple[str, str], list[float]] = defaultdict(list)
        self.quiet: dict[str, list[float]] = defaultdict(list)
        self.floors: list[tuple[float, float, float]] = []

    def round(self, of: Flood) -> None:
        """Each way once, in an order drawn each time."""
        written = of.written()
        file = os.path.join(self._place, "data")
        with open(file, "wb") as data:
            data.write(written)
        ways = [PIPE, KEEP] + [PODMAN] * (self._podman is not None)
        for way in self._draw.sample(ways, len(ways)):
            if way == KEEP:
                self._keep(of, written)
            else:
                self._command(way, of, file, written)

    def _command(self, way: str, of: Flood, file: str, written: bytes) -> None:
        script = _DD.format(program=PROGRAM, pause=PAUSE_SECONDS, size=len(of.part))
        argv, environment = [PROGRAM, "sh", "-c", script, file], None
        if way == PODMAN and self._podman is not None:
            options = ["--rm", "--network=none", "--cgroups=disabled", "--ulimit=host", "--log-driver=none"]
            argv = ["podman", "run", *options, f"--volume={self._place}:{self._place}:ro", IMAGE, *argv]
            environment = self._podman.environment
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
            received = Received(process, len(written))
            received.first()
            received.all(written)
        self.rates[way, of.name].append(len(written) / MB / received.seconds)

    def _keep(self, of: Flood, written: bytes) -> None:
        module = os.path.join(self._place, "flood.wasm")
        with open(module, "wb") as file:
            file.write(of.module())
        with subprocess.Popen(keepctl(self._host, module), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            try:
                received = Received(process, len(written))
                received.first()
                pids = self._pids(process.pid)
                time.sleep(PAUSE_SECONDS / 2)
                before = {name: used_ns(pid) for name, pid in pids.items()}
                received.all(written)
                time.sleep(PAUSE_SECONDS)
                for name, pid in pids.items():
                    used = (used_ns(pid) - before[name]) / 1e6
                    self.used[name, of.name].append(used / (len(written) / MB))
            finally:
                process.send_signal(signal.SIGINT)
                process.communicate(timeout=COMMAND_SECONDS)
        self.rates[KEEP, of.name].append(len(written) / MB / received.seconds)

    def _pids(self, client: int) -> dict[str, int]:
        units = [unit for unit in self._host.systemd.units(UNIT_PATTERN) if self._host.show(unit, "MainPID") != "0"]
        if len(units) != 1:
            raise MeasurementFailed(f"there are {len(units)} keeps, and should be one")
        loader, manager = (int(self._host.show(unit, "MainPID")) for unit in (units[0], MANAGER_UNIT))
        guest, *others = (pid for pid in self._host.systemd.processes(units[0]) if pid != loader)
        if others:
            raise MeasurementFailed(f"{units[0]} has {len(others) + 2} processes, and should have two")
        return {"guest": guest, "loader": loader, "manager": manager, "keepctl": client}

    def over_tls(self, size: int) -> None:
        """As many bytes from one process to another over TLS."""
        certificate, key = (os.path.join(pki_directory(), f"manager.{end}") for end in ("crt", "key"))
        self.floors.append(tls_floor.measure(certificate, key, size))

    def stay_quiet(self, seconds: float) -> None:
        """What a keep costs whose guest writes nothing after its first line, with a reader; ms a second."""
        module = os.path.join(self._place, "quiet.wasm")
        with open(module, "wb") as file:
            file.write(flood.clock(1, 3600))
        with subprocess.Popen(keepctl(self._host, module), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            try:
                Received(process, 0).first()
                pids = self._pids(process.pid)
                time.sleep(PAUSE_SECONDS)
                before = {name: used_ns(pid) for name, pid in pids.items()}
                time.sleep(seconds)
                for name, pid in pids.items():
                    self.quiet[name].append((used_ns(pid) - before[name]) / 1e6 / seconds)
            finally:
                process.send_signal(signal.SIGINT)
                process.communicate(timeout=COMMAND_SECONDS)


def keepctl(host: Host, module: str, *options: str) -> list[str]:
    """What is typed."""
    program = os.path.join(os.path.dirname(sys.executable), "keepctl")
    return [program, "run", "--rm", "--manager", host.endpoint.authority, *options, module]


def latencies(host: Host, place: str, count: int) -> tuple[float, ...]:
    """Milliseconds from the guest's look at the clock to the reader's. Raises MeasurementFailed."""
    module = os.path.join(place, "clock.wasm")
    with open(module, "wb") as file:
        file.write(flood.clock(count, LATENCY_PAUSE_SECONDS))
    samples = []
    with subprocess.Popen(keepctl(host, module), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        Received(process, 0).first()
        assert process.stdout is not None
        for _ in range(count):
            data = b""
            while len(data) < _STAMP.size and (more := os.read(process.stdout.fileno(), _STAMP.size - len(data))):
                data += more  # a stamp with a newline in it may come in two
            now = time.time_ns()
            if len(data) != _STAMP.size:
                raise MeasurementFailed(f"a guest's clock came as {data!r}")
            samples.append((now - _STAMP.unpack(data)[0]) / 1e6)
        process.communicate(timeout=COMMAND_SECONDS)
    return tuple(samples)


def lost_lines(host: Host, place: str, count: int) -> tuple[float, float]:
    """Of so many lines printed in one burst, how many are missing in what a client got, and in the journal."""
    of = Flood("", LINE * count, 1)
    module = os.path.join(place, "lines.wasm")
    with open(module, "wb") as file:
        file.write(of.module(0))
    done = subprocess.run(
        keepctl(host, module, "--name", "lines"), capture_output=True, timeout=COMMAND_SECONDS, check=False
    )
    if done.returncode:
        raise MeasurementFailed(f"{module} exited {done.returncode}: {done.stderr.decode(errors='replace')}")
    run("journalctl", "--sync")
    match = ("KEEP_NAME=lines", "KEEP_STREAM=stdout")
    entries = run("journalctl", "--output=json", "--all", "--output-fields=MESSAGE", *match)
    messages = [json.loads(entry)["MESSAGE"] for entry in entries.splitlines()]
    whole = "\n".join(str(message).removesuffix("\n") for message in messages)
    its = LINE.decode().rstrip("\n")
    return count - done.stdout.count(LINE), count - whole.splitlines().count(its)


def after_its_end(host: Host) -> tuple[float, float]:
    """The processes and the memory, in MiB, of a keep that has ended and is kept."""
    argv = [part for part in keepctl(host, example("exit-3"), "--name", "ended") if part != "--rm"]
    subprocess.run(argv, capture_output=True, timeout=COMMAND_SECONDS, check=False)
    (keep,) = [keep for keep in host.client.keeps() if keep.name == "ended"]
    processes = host.systemd.processes(keep.unit)
    memory = host.show(keep.unit, "MemoryCurrent")
    host.client.remove(keep.kuuid)
    return len(processes), int(memory) / MIB if memory.isdecimal() else 0.0


def _rates(streams: Streams, floods: Sequence[Flood]) -> list[Figure]:
    figures = []
    for of in floods:
        size = f"{len(of.part) * of.count / MB:.0f} MB {of.name}"
        goal = BLOCKS if "blocks" in of.name else None
        pipe = Figure(f"{size}: {PIPE}", "MB/s", tuple(streams.rates[PIPE, of.name]), rates=True)
        figures.append(pipe)
        floor = pipe
        if streams.rates[PODMAN, of.name]:
            floor = Figure(f"the same: {PODMAN}", "MB/s", tuple(streams.rates[PODMAN, of.name]), rates=True)
            figures.append(floor)
            goal = goal or SHORT
        figures.append(
            Figure(f"the same: {KEEP}", "MB/s", tuple(streams.rates[KEEP, of.name]), goal, floor, rates=True)
        )
        for name in ("guest", "loader", "manager", "keepctl"):
            limit = LOADER if name == "loader" and "blocks" in of.name else None
            figures.append(Figure(f"its processor time, {name}", "ms/MB", tuple(streams.used[name, of.name]), limit))
    return figures


def measure(host: Host, effort: Effort) -> list[Figure]:
    """The figures; without those of podman, and the reason said, where it cannot run here."""
    podman: Podman | None = None
    try:
        podman = installed()
    except MeasurementFailed as error:
        report(str(error))
    size, lines = effort.upload_bytes, FEW_LINES if effort.quick else LINES
    floods = [flood.in_blocks(size), flood.in_lines(size), flood.line_by_line(size)]
    with tempfile.TemporaryDirectory() as place:
        streams = Streams(host, podman, place)
        for _ in range(effort.uploads):
            for of in floods:
                streams.round(of)
            streams.over_tls(size)
        streams.stay_quiet(SOON_QUIET_SECONDS if effort.quick else QUIET_SECONDS)
        late = latencies(host, place, effort.rounds * 10)
        in_output, in_journal = lost_lines(host, place, lines)
    processes, memory = after_its_end(host)
    rates, sent, received = (tuple(samples) for samples in zip(*streams.floors, strict=True))
    return [
        *_rates(streams, floods),
        Figure(f"{size / MB:.0f} MB over TLS alone, from one process to another", "MB/s", rates, rates=True),
        Figure("its processor time, sender", "ms/MB", sent),
        Figure("its processor time, receiver", "ms/MB", received),
        Figure("a guest's write → keepctl's reader", "ms", late, LATENCY),
        *(
            Figure(f"a keep that writes nothing, with a reader: {name}'s processor time", "ms/s", tuple(samples))
            for name, samples in streams.quiet.items()
        ),
        Figure(f"{lines} lines printed together: lost on the way to a client", "lines", (in_output,), NOTHING),
        Figure("the same: lost on the way to the journal", "lines", (in_journal,), NOTHING),
        Figure("an ended keep: processes", "", (processes,), NOTHING),
        Figure("an ended keep: memory", "MiB", (memory,), NOTHING),
    ]
