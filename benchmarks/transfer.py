"""A large module through the raw upload: how fast, against a server that throws it away, and in how much memory."""

from __future__ import annotations

import os
import re
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO

from benchmarks.figures import Figure, Goal, Measure
from benchmarks.host import Host, example
from benchmarks.measuring import MB, MIB, MS, Effort, MeasurementFailed
from benchmarks.modules import padded
from keep_client.credentials import pki_directory
from keep_client.http import Body, Reply
from keep_client.keep import (
    WORKLOAD_PATH,
    UploadEndpoint,
    endpoint_at,
    endpoint_of,
    open_workload,
    raw_body,
    received,
    upload,
)
from keep_protocol.tls import fingerprint_of

THROUGHPUT = Goal(200.0, at_least=True)
FLAT = Goal(1.0, Measure.WORST)
"""MiB that may come and go with the allocator's mood."""
WARM_UP = 16_000_000
"""Bytes sent before the time is taken: more than the sockets' buffers hold (tcp_wmem and tcp_rmem, 4 and 6 MB), so that
from here on no byte can be sent without another having been received."""
MARKS = 10
FILLER = os.urandom(64 * 1024)
_PEAK = re.compile(r"^VmHWM:\s+([0-9]+) kB$", re.MULTILINE)


def peak_bytes(status: str) -> int:
    """The most memory a process has had, in the text of its status (man proc_pid_status). Pure."""
    found = _PEAK.search(status)
    if found is None:
        raise MeasurementFailed("the kernel shows no VmHWM")
    return 1024 * int(found[1])


def peak_of(pid: int) -> int:
    """The most memory a process has had so far."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        return peak_bytes(file.read())


class Pace:
    """The clock of one upload: when the warm-up was over, when the last byte was written, and what `probe` saw at
    each of MARKS equal steps on the way."""

    def __init__(self, size: int, probe: Callable[[], int] = lambda: 0) -> None:
        self._size, self._probe = size, probe
        self._warm_up = min(WARM_UP, size // 4)
        self._warm: tuple[float, int] | None = None
        self.sent_at = 0.0
        self.seen: list[int] = []

    def over(self, parts: Iterator[bytes]) -> Iterator[bytes]:
        """The parts, watched on their way."""
        sent = 0
        for part in parts:
            yield part
            sent += len(part)
            if self._warm is None and sent >= self._warm_up:
                self._warm = (time.perf_counter(), sent)
            if sent >= self._size * (len(self.seen) + 1) // MARKS:
                self.seen.append(self._probe())
        self.sent_at = time.perf_counter()

    @property
    def rate(self) -> float:
        """Megabytes a second, between warm-up and end."""
        if self._warm is None or not self.sent_at:
            raise MeasurementFailed("the upload was not sent to its end")
        at, sent = self._warm
        return (self._size - sent) / MB / (self.sent_at - at)


def send(endpoint: UploadEndpoint, context: ssl.SSLContext, file: FileIO, pace: Pace) -> tuple[Reply, float]:
    """The reply to an upload, and when it came."""
    body = raw_body(file)
    watched = Body(body.type, body.length, pace.over(iter(body.parts)))
    reply = upload(endpoint, context, "PUT", WORKLOAD_PATH, watched)
    return reply, time.perf_counter()


@contextmanager
def sink() -> Iterator[UploadEndpoint]:
    """A server that throws uploads away, in a process of its own with the manager's certificate."""
    paths = [os.path.join(pki_directory(), name) for name in ("ca.crt", "manager.crt", "manager.key")]
    with open(paths[1], encoding="ascii") as file:
        fingerprint = fingerprint_of(ssl.PEM_cert_to_DER_cert(file.read()))
    argv = [sys.executable, "-m", "benchmarks.sink", *paths]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            port = process.stdout.readline() if process.stdout else ""
            if not port.strip().isdecimal():
                raise MeasurementFailed("the server that throws uploads away does not start")
            yield endpoint_at("127.0.0.1", int(port), fingerprint)
        finally:
            process.kill()


class Transfers:
    """Uploads to a keep and to the sink, in turns."""

    def __init__(self, host: Host, file: FileIO) -> None:
        self._host, self._file = host, file
        self._size = os.fstat(file.fileno()).st_size
        self.floor: list[float] = []
        self.rate: list[float] = []
        self.whole: list[float] = []
        self.checked: list[float] = []
        self.growth: list[float] = []
        self.peak: list[float] = []

    def to_sink(self, endpoint: UploadEndpoint) -> None:
        """One upload that is not kept."""
        pace = Pace(self._size)
        reply, _ = send(endpoint, self._host.keep_context, self._file, pace)
        if reply.status != 200:
            raise MeasurementFailed(f"the sink answered {reply.status}")
        self.floor.append(pace.rate)

    def to_keep(self) -> None:
        """One upload into a new keep."""
        client = self._host.client
        keep = client.create()
        keep = client.start(keep.kuuid, "127.0.0.1", None)
        loader = int(self._host.show(keep.unit, "MainPID"))
        endpoints = [pid for pid in self._host.systemd.processes(keep.unit) if pid != loader]
        if len(endpoints) != 1:
            raise MeasurementFailed(f"{keep.unit} has {len(endpoints)} app-loaders")
        pace = Pace(self._size, lambda: peak_of(endpoints[0]))
        endpoint = endpoint_of(keep, self._host.endpoint.host)
        began = time.perf_counter()
        reply, answered = send(endpoint, self._host.keep_context, self._file, pace)
        received(reply, self._file)
        self.rate.append(pace.rate)
        self.whole.append(self._size / MB / (answered - began))
        self.checked.append(MS * (answered - pace.sent_at))
        self.growth.append((pace.seen[-1] - pace.seen[0]) / MIB)
        self.peak.append(pace.seen[-1] / MIB)
        client.remove(keep.kuuid)


def measure(host: Host, effort: Effort) -> list[Figure]:
    """The uploads' figures."""
    with open(example("hello-wat"), "rb") as file:
        small = file.read()
    with tempfile.NamedTemporaryFile(suffix=".wasm") as large:
        large.writelines(padded(small, effort.upload_bytes, FILLER))
        large.flush()
        with open_workload(large.name) as module, sink() as nowhere:
            transfers = Transfers(host, module)
            for _ in range(effort.uploads):
                transfers.to_sink(nowhere)
                transfers.to_keep()
    size = f"{effort.upload_bytes / MB:.0f} MB"
    floor = Figure(f"floor: {size} over TLS, thrown away", "MB/s", tuple(transfers.floor), rates=True)
    return [
        floor,
        Figure(f"{size} raw upload, the body", "MB/s", tuple(transfers.rate), THROUGHPUT, floor, rates=True),
        Figure("the whole call: connect, send, check, answer", "MB/s", tuple(transfers.whole), floor=floor, rates=True),
        Figure("last byte sent → answer 200", "ms", tuple(transfers.checked)),
        Figure("app-loader's peak, from a tenth of the body to its end: growth", "MiB", tuple(transfers.growth), FLAT),
        Figure("app-loader's peak (resident, shared libraries included)", "MiB", tuple(transfers.peak)),
    ]
