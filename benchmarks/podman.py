"""`keepctl run` and `podman run` in turns: to the first line, in processor time, and whole runs a second.

podman runs a static program from a local image, without a network, cgroups or limits of its own; nothing is sent there,
nothing checked or compiled. What either costs is read from its own processes and from those that work for it: the
service manager, which collects orphaned processes, journald, the bus, and the keep-manager.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

from benchmarks.figures import Figure, Goal, Measure
from benchmarks.host import COMMAND_SECONDS, MANAGER_UNIT, Host, example, run
from benchmarks.measuring import MS, Effort, MeasurementFailed, report, timed
from keep_client.channel import Channel
from keep_client.http import exchange
from keep_client.keep import UploadEndpoint, endpoint_of
from keep_protocol.constants import UNIT_PATTERN

PROGRAM = "/bin/busybox"
"""Debian's busybox-static: a program that needs no library."""
IMAGE = "localhost/keepfleet-floor"
CONFIGURATION = '[containers]\ndefault_sysctls = []\n[engine]\nruntime = "crun"\ncgroup_manager = "cgroupfs"\n'
"""In a container or a sandbox /proc/sys is read-only: a sysctl would fail there that a host's podman sets."""
STORAGE = '[storage]\ndriver = "{driver}"\nrunroot = "{place}/run"\ngraphroot = "{place}/graph"\n'
PLACE = "/var/lib/keepfleet-podman"
MODULE = "hello-wat"
SPARES = 4
SPARE_PROCESSES = 3
"""The loader, the upload endpoint, the runner."""
_LOOK_SECONDS = 0.2
"""Between two looks, each of which starts two commands."""
_REST_SECONDS = 0.2
"""What a spare's processes import takes a fifth of it."""
AT_ONCE = 2
"""As many as the figures are about: two cores."""
_SERVICES = ("systemd-journald.service", "dbus.service", MANAGER_UNIT)
PODMAN, COLD, SPARE, CALL = "podman", "keepctl", "keepctl, a spare", "a living client's call"


class Podman:
    """Runs the program from an image that was made of it alone. Raises MeasurementFailed where podman cannot."""

    def __init__(self) -> None:
        missing = [name for name in ("podman", "crun", PROGRAM) if shutil.which(name) is None]
        if missing:
            raise MeasurementFailed(f"cannot compare with podman: {', '.join(missing)} is not installed")
        os.makedirs(f"{PLACE}/root/bin", exist_ok=True)
        shutil.copy(PROGRAM, f"{PLACE}/root/bin")
        self.environment: dict[str, str] = {}
        errors = []
        for driver in ("overlay", "vfs"):
            self.environment = self._settings(driver)
            try:
                self._import()
                self.run()
            except MeasurementFailed as error:
                errors.append(f"{driver}: {error}")
            else:
                report(f"podman stores by {driver}")
                return
        raise MeasurementFailed(f"cannot compare with podman: {'; '.join(errors)}")

    @property
    def argv(self) -> list[str]:
        """What is typed."""
        options = ["--rm", "--network=none", "--cgroups=disabled", "--ulimit=host", "--log-driver=none"]
        return ["podman", "run", *options, IMAGE, "/bin/busybox", "echo", "Hello from podman"]

    def run(self) -> None:
        """One run. Raises MeasurementFailed."""
        typed(self.argv, self.environment)

    @staticmethod
    def _settings(driver: str) -> dict[str, str]:
        place = f"{PLACE}/{driver}"
        os.makedirs(place, exist_ok=True)
        files = {
            "CONTAINERS_CONF": CONFIGURATION,
            "CONTAINERS_STORAGE_CONF": STORAGE.format(driver=driver, place=place),
        }
        for name, text in files.items():
            with open(f"{place}/{name}", "w", encoding="utf-8") as file:
                file.write(text)
        return {**os.environ, **{name: f"{place}/{name}" for name in files}}

    def _import(self) -> None:
        with subprocess.Popen(["tar", "-C", f"{PLACE}/root", "-c", "."], stdout=subprocess.PIPE) as tar:
            done = subprocess.run(
                ["podman", "import", "-", IMAGE], stdin=tar.stdout, capture_output=True, text=True,
                timeout=COMMAND_SECONDS, check=False, env=self.environment,
            )  # fmt: skip
        if done.returncode:
            raise MeasurementFailed(f"podman import: {done.stderr.strip()}")


@cache
def installed() -> Podman:
    """The one of this run: its image is made once. Raises MeasurementFailed."""
    return Podman()


def typed(argv: list[str], environment: Mapping[str, str] | None = None) -> tuple[float, float]:
    """Milliseconds from a command's start to its first line, and to its end. Raises MeasurementFailed."""
    began = time.perf_counter()
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        printed = time.perf_counter()
        _, errors = process.communicate(timeout=COMMAND_SECONDS)
    if process.returncode or not line:
        raise MeasurementFailed(f"{' '.join(argv)} exited {process.returncode}: {errors.strip()}")
    return MS * (printed - began), MS * (time.perf_counter() - began)


class ProcessorTime:
    """What has been used so far, in milliseconds: by the commands typed here, the service manager with all that it has
    collected, and the services that work for a run."""

    def __init__(self, host: Host) -> None:
        self._pids = [1, *(int(host.show(unit, "MainPID")) for unit in _SERVICES)]

    def __repr__(self) -> str:
        return f"ProcessorTime({self._pids})"

    def now(self) -> float:
        """The sum; a clock tick is 10 ms, so that many runs are measured together."""
        typed_here = os.times()
        used = typed_here.children_user + typed_here.children_system
        for pid in self._pids:
            with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
                fields = file.read().rpartition(")")[2].split()
            used += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
        return MS * used


def _keepctl(host: Host) -> list[str]:
    keepctl = os.path.join(os.path.dirname(sys.executable), "keepctl")
    return [keepctl, "run", "--rm", "--manager", host.endpoint.authority, example(MODULE)]


@contextmanager
def spares(host: Host) -> Iterator[None]:
    """A manager that keeps spares, for the block."""
    with open(host.configuration, encoding="utf-8") as file:
        text = file.read()
    try:
        _configured(host.configuration, f"{text}\nspare_keeps: {SPARES}\n")
        yield
    finally:
        _configured(host.configuration, text)


def _configured(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    run("systemctl", "restart", MANAGER_UNIT)


def until_spares_are_there(host: Host) -> None:
    """Until systemd lists SPARES of them, each with its endpoint and its runner, and all have come to rest: a keep that
    is being removed is a unit like theirs."""
    deadline = time.monotonic() + COMMAND_SECONDS
    while _ready_spares() < SPARES:
        if time.monotonic() > deadline:
            raise MeasurementFailed(f"the manager never had {SPARES} spares")
        time.sleep(_LOOK_SECONDS)
    time.sleep(_REST_SECONDS)


def _ready_spares() -> int:
    listed = run("systemctl", "list-units", "--plain", "--no-legend", "--state=active", UNIT_PATTERN)
    units = [line.split()[0] for line in listed.splitlines() if "Spare keep" in line]
    tasks = run("systemctl", "show", "--property=TasksCurrent", "--value", *units) if units else ""
    return sum(int(count) >= SPARE_PROCESSES for count in tasks.split())


def _whole_runs(argv: list[str], environment: Mapping[str, str] | None, count: int) -> float:
    """Runs a second, AT_ONCE of them at a time."""
    began = time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for done in [pool.submit(typed, argv, environment) for _ in range(count)]:
            done.result()
    return count / (time.perf_counter() - began)


class Turns:
    """Samples of each way of running, by its name, taken in turns."""

    def __init__(self, host: Host, podman: Podman) -> None:
        self._host, self._podman = host, podman
        self._ways: dict[str, tuple[list[str], Mapping[str, str] | None]] = {
            PODMAN: (podman.argv, podman.environment),
            COLD: (_keepctl(host), None),
        }
        self._listening: UploadEndpoint | None = None
        self._context = host.keep_context
        self._draw = random.Random(0)  # noqa: S311 - the same order in each run
        self.lines: dict[str, list[float]] = defaultdict(list)
        self.processor: dict[str, list[float]] = defaultdict(list)
        self.rates: dict[str, list[float]] = defaultdict(list)

    def first_lines(self, rounds: int, names: Mapping[str, str]) -> None:
        """Rounds of one run each, in an order drawn each time. `names`: what a way is called here."""
        for _ in range(rounds):
            for way in self._draw.sample(list(names), len(names)):
                if names[way] == SPARE:
                    until_spares_are_there(self._host)
                if way == CALL:
                    self.lines[CALL].append(self._call())
                else:
                    self.lines[names[way]].append(typed(*self._ways[way])[0])

    def _call(self) -> float:
        """Milliseconds of one request to the keep that listens, on a new connection, by a client that runs already."""
        if self._listening is None:
            start = self._host.client.starting("127.0.0.1")
            self._listening = endpoint_of(self._host.client.create(start=start), self._host.endpoint.host)
        known = self._listening
        with (
            timed() as watch,
            Channel.open(known.endpoint, self._context, COMMAND_SECONDS, known.fingerprint) as channel,
        ):
            reply = exchange(channel, known.endpoint, "GET", "/")
        if reply.status != 200:
            raise MeasurementFailed(f"{known.endpoint} answered {reply.status}")
        return watch.milliseconds

    def batches(self, batches: int, runs: int) -> None:
        """Processor time and rate of `runs` runs together."""
        clock = ProcessorTime(self._host)
        for _ in range(batches):
            for way in self._draw.sample(list(self._ways), len(self._ways)):
                before = clock.now()
                self.rates[way].append(_whole_runs(*self._ways[way], runs))
                self.processor[way].append((clock.now() - before) / runs)


def measure(host: Host, effort: Effort) -> list[Figure]:
    """The figures, each with podman's of the same run; none, with the reason said, where podman cannot run here."""
    try:
        podman = installed()
    except MeasurementFailed as error:
        report(str(error))
        return []
    turns = Turns(host, podman)
    names = {PODMAN: PODMAN, COLD: COLD, CALL: CALL}
    turns.first_lines(effort.warm_up, names)
    turns.lines.clear()
    turns.first_lines(effort.rounds_of(4), names)
    host.clear()
    turns.batches(max(effort.batches, 1), effort.batch_keeps)
    with spares(host):
        turns.first_lines(effort.rounds_of(4), {PODMAN: "podman again", COLD: SPARE})
    return [*_lines(turns), *_others(turns)]


def _lines(turns: Turns) -> list[Figure]:
    lines = turns.lines
    floor = Figure("podman run: typed → its first line", "ms", tuple(lines[PODMAN]))
    again = Figure("podman run, again", "ms", tuple(lines["podman again"]))
    return [
        floor,
        Figure("keepctl run, 276 bytes: typed → its first line", "ms", tuple(lines[COLD]),
               Goal(1.6, Measure.RATIO), floor),
        Figure("a living client's call to a listening keep, on a new connection", "ms", tuple(lines[CALL]),
               Goal(1 / 40, Measure.RATIO), floor),
        again,
        Figure("the same with spares", "ms", tuple(lines[SPARE]), Goal(0.75, Measure.RATIO), again),
    ]  # fmt: skip


def _others(turns: Turns) -> list[Figure]:
    processor = Figure("podman run: processor time", "ms", tuple(turns.processor[PODMAN]))
    rate = Figure(f"podman run: whole runs, {AT_ONCE} concurrently", "/s", tuple(turns.rates[PODMAN]), rates=True)
    return [
        processor,
        Figure("keepctl run: processor time", "ms", tuple(turns.processor[COLD]), Goal(1.3, Measure.RATIO), processor),
        rate,
        Figure(f"keepctl run: whole runs, {AT_ONCE} concurrently", "/s", tuple(turns.rates[COLD]),
               Goal(1.0, Measure.RATIO, at_least=True), rate, rates=True),
    ]  # fmt: skip
