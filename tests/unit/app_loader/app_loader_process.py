"""The test's side of a real upload endpoint and runner: it plays the keep-loader and the client, over real TLS on
loopback."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import select
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import pytest
import wasmtime

import app_loader
import keep_isolation
import keep_protocol
from keep_protocol import tls
from keep_protocol.constants import MAX_CONTROL_FRAME
from keep_protocol.keep import Outcome
from keep_protocol.reports import READY_PACKET, Report, ReportType, decode_report, encode_run
from keep_protocol.spec import RestartPolicy
from keep_protocol.workload import Workload
from tests.fakes.pki import Authority

ENDPOINT, RUNNER = "app_loader.receive.service:serve", "app_loader.run.runner:run"
ENTER = """
import importlib, os, sys
sys.path.append(os.path.dirname(os.path.abspath(__file__)))
module, _, function = sys.argv[1].partition(":")
sys.exit(getattr(importlib.import_module(module), function)())
"""
PATIENCE = 120.0
"""Seconds a test waits for an event that must come; nothing is measured with it."""


def installed(directory: Path, changed: Mapping[str, object]) -> Path:
    """A directory as an installation leaves it: our packages and wasmtime, limits of the app-loader `changed` so that a
    test need not wait for the real ones. Returns the way in, a program that calls what it is given as a fork of the
    loader does."""
    for package in (app_loader, keep_isolation, keep_protocol, wasmtime):
        source = Path(next(iter(package.__path__)))
        (directory / source.name).symlink_to(source)
    if changed:
        for name, constants in (("app_loader", "limits.py"), ("keep_protocol", "tls_server.py")):
            source = Path((directory / name).readlink())
            (directory / name).unlink()
            (directory / name).mkdir()
            for file in source.iterdir():
                (directory / name / file.name).symlink_to(file)
            lines = "".join(f"{key} = {value!r}\n" for key, value in changed.items())
            (directory / name / constants).unlink()
            (directory / name / constants).write_text((source / constants).read_text() + lines)
    (directory / "enter.py").write_text(ENTER)
    return directory / "enter.py"


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="a locked process shows its descriptors to root alone")


def descriptors_of(pid: int) -> dict[int, str]:
    """What a process has open, by number."""
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[int(entry.name)] = str(entry.readlink())
    return found


class Part:
    """One of the two processes: the endpoint or the runner."""

    def __init__(self, pid: int, reports: socket.socket) -> None:
        self.pid, self.reports = pid, reports
        self.code: int | None = None
        self.cpu_seconds = 0.0

    def end(self) -> int:
        """Waits for it to end of itself; its exit code."""
        if self.code is None:
            waiter = os.pidfd_open(self.pid)
            assert select.select([waiter], [], [], PATIENCE)[0], "it did not end"
            os.close(waiter)
            _, status, usage = os.wait4(self.pid, 0)
            self.code = os.waitstatus_to_exitcode(status)
            self.cpu_seconds = usage.ru_utime + usage.ru_stime
        return self.code


class AppLoaderProcess:
    """An upload endpoint, its runner, and everything that is passed to them. A thread plays the keep-loader: it starts
    the runner when the endpoint has a client, and has it run what the endpoint accepted."""

    def __init__(
        self,
        directory: Path,
        authority: Authority,
        environment: Mapping[str, str] | None = None,
        limits: Mapping[str, object] | None = None,
        workload: Workload | None = None,
        grants: Sequence[int] = (),
        before: Sequence[str] = (),
        stray: int | None = None,
    ) -> None:
        """`grants` are descriptors, in the order of `workload.grant_names`; the caller closes them. `before` is a
        command that becomes the one that follows it, as what a unit does before its process. `stray` is a descriptor
        that each process finds open at the numbers behind those that are passed to it."""
        self.directory, self.authority = directory, authority
        self.site = directory / "site"
        self.site.mkdir()
        self._entry = installed(self.site, limits or {})
        (directory / "ca.pem").write_bytes(authority.pem)
        self.revoked = directory / "revoked"
        self.revoked.touch()
        self.environment = dict(environment or {})
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self.listener.getsockname()[1]
        self.identity: int | None = None
        self.fingerprint = ""
        self.given: dict[str, int] = {}
        self._before = list(before)
        self._again = workload is not None and workload.restart is not RestartPolicy.NO
        self.parked: dict[str, int] = {}
        self.stray = stray
        if workload is not None:
            (directory / "workload.json").write_bytes(workload.to_json())
            description = os.open(directory / "workload.json", os.O_RDONLY)
            names = ("workload", *workload.grant_names)
            self.given = dict(zip(names, (description, *(os.dup(grant) for grant in grants)), strict=False))
        self._output: list[bytes] = []
        self._said = threading.Condition()
        self._threads: list[threading.Thread] = []
        self.endpoint: Part | None = None
        self.runner: Part | None = None
        self._reports: queue.Queue[Report | None] = queue.Queue()
        self._checks: socket.socket | None = None
        self.spawn()

    def spawn(self) -> None:
        """Starts the endpoint as the keep-loader does; again, on the identity of the last, after it has ended."""
        opened = [os.open(self.directory / name, os.O_RDONLY) for name in ("ca.pem", "revoked")]
        passed = dict(zip(("listener", "client-ca", "revoked"), (self.listener.fileno(), *opened), strict=True))
        if self.identity is not None:
            passed["identity"] = self.identity
        theirs, self._checks = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {
            "PATH": "/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "KEEPFLEET_KUUID": "4711",
            "KEEPFLEET_ADDRESS": "127.0.0.1",
            "KEEPFLEET_PORT": str(self.port),
            "KEEPFLEET_NAMES": "keep.example,10.1.2.3",
            "KEEPFLEET_UPLOADERS": "*",
            "KEEPFLEET_RUNTIME_DIRECTORY": str(self.directory),
        }
        self.runner, self._runs = None, False
        self.endpoint = self._start(ENDPOINT, {**passed, "checks": theirs.fileno()}, environment)
        self._play_loader()
        for descriptor in opened:
            os.close(descriptor)
        theirs.close()

    def run_again(self) -> None:
        """Starts a runner as the keep-loader does for a workload whose compiled module it has parked."""
        self.endpoint, self._checks = None, None
        self._start_runner()
        self._run({**self.parked, **self.given})
        self._play_loader()

    def _start_runner(self) -> Part:
        passed = {} if self._checks is None else {"checks": self._checks.fileno()}
        if "workload" in self.given:
            passed["workload"] = self.given["workload"]
        environment = {"LANG": "C.UTF-8", "KEEPFLEET_RUNTIME_DIRECTORY": str(self.directory)}
        self.runner = self._start(RUNNER, passed, environment)
        return self.runner

    def _run(self, passed: Mapping[str, int]) -> None:
        assert self.runner is not None
        self._runs = True
        ours, out = os.pipe()
        self._collect_from(ours)
        passed = {**passed, "stdout": out, "stderr": out}
        try:
            socket.send_fds(self.runner.reports, [encode_run(tuple(passed))], list(passed.values()))
        finally:
            os.close(out)

    def _start(self, entry: str, passed: Mapping[str, int], environment: Mapping[str, str]) -> Part:
        variables = {**environment, "KEEPFLEET_DESCRIPTORS": ",".join(passed), **self.environment}
        reports, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours, out = os.pipe()  # for its own words
        null = os.open("/dev/null", os.O_RDONLY)
        placed = dict(enumerate([null, out, out, theirs.fileno(), *passed.values()]))
        if self.stray is not None:
            placed |= dict.fromkeys(range(len(placed), len(placed) + 6), self.stray)
        base = 100
        actions: list[tuple[int, int, int] | tuple[int, int]] = []
        actions += [(os.POSIX_SPAWN_DUP2, source, base + i) for i, source in enumerate(placed.values())]
        actions += [(os.POSIX_SPAWN_DUP2, base + i, target) for i, target in enumerate(placed)]
        actions += [(os.POSIX_SPAWN_CLOSE, base + i) for i in range(len(placed))]
        command = [*self._before, sys.executable, "-I", "-S", str(self._entry), entry]
        pid = os.posix_spawn(command[0], command, variables, file_actions=actions)
        os.close(null)
        theirs.close()
        os.close(out)
        self._collect_from(ours)
        return Part(pid, reports)

    def _collect_from(self, pipe: int) -> None:
        self._threads.append(threading.Thread(target=self._collect, args=(pipe,)))
        self._threads[-1].start()

    def _collect(self, pipe: int) -> None:
        while data := os.read(pipe, 65536):
            with self._said:
                self._output.append(data)
                self._said.notify_all()
        os.close(pipe)

    def _play_loader(self) -> None:
        self._reports = queue.Queue()
        self._threads.append(threading.Thread(target=self._obey_reports))
        self._threads[-1].start()

    def _obey_reports(self) -> None:
        """Reads both until both have hung up, and does what the keep-loader does; the rest is for the test."""
        self._heard = [part for part in (self.endpoint, self.runner) if part is not None]
        self._checked: dict[str, int] = {}
        while self._heard:
            ready, _, _ = select.select([part.reports for part in self._heard], [], [])
            for part in [part for part in self._heard if part.reports in ready]:
                self._obey(part)
        self._reports.put(None)

    def _obey(self, part: Part) -> None:
        """Takes one report, or the end of them."""
        try:
            packet, descriptors, _, _ = socket.recv_fds(part.reports, MAX_CONTROL_FRAME, 4)
        except ConnectionResetError:  # it ended with something of ours unread: that comes before what it said
            packet, descriptors, _, _ = socket.recv_fds(part.reports, MAX_CONTROL_FRAME, 4)
        if not packet:
            self._heard.remove(part)
            return
        report = decode_report(packet)
        named = dict(zip(report.descriptors, descriptors, strict=True))
        if report.type is ReportType.CONNECTED:
            self._heard.append(self._start_runner())
            with contextlib.suppress(OSError):  # the endpoint has ended meanwhile
                part.reports.send(READY_PACKET)
        elif report.type is ReportType.CHECKED:
            self._checked = named
        else:
            if report.type is ReportType.LISTENING:
                if self.identity is not None:
                    os.close(self.identity)
                self.identity, self.fingerprint = named["identity"], report.fingerprint
            elif report.type is ReportType.ACCEPTED:
                self._accept()
            elif report.type is ReportType.RUNNING:
                os.close(named["status"])
            self._reports.put(report)

    def _accept(self) -> None:
        """Has the runner run what it has checked, which it said before the endpoint knew."""
        while not self._checked:
            assert self.runner is not None
            self._obey(self.runner)
        kept = dict(self._checked)
        if not self._again:
            os.close(kept.pop("module"))
        with contextlib.suppress(OSError):  # the runner has ended meanwhile
            self._run({**kept, **self.given})
        if self._again:
            self.parked = kept
        else:
            os.close(kept.pop("compiled"))

    @property
    def output(self) -> bytes:
        """Everything on standard output and error so far; all of it after `end`."""
        return b"".join(self._output)

    def hear(self, words: bytes) -> None:
        """Waits until the process has said `words`."""
        with self._said:
            assert self._said.wait_for(lambda: words in self.output, PATIENCE), self.output

    @property
    def pid(self) -> int:
        """The endpoint, and once there is a workload the runner."""
        part = self.runner if self.endpoint is None or self.endpoint.code is not None else self.endpoint
        assert part is not None
        return part.pid

    @property
    def cpu_seconds(self) -> float:
        """What the runner and the checkers have used, once it has ended."""
        assert self.runner is not None
        return self.runner.cpu_seconds

    @property
    def ended(self) -> bool:
        """Whether the endpoint has ended."""
        assert self.endpoint is not None
        return Path(f"/proc/{self.endpoint.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"

    def report(self) -> Report:
        """The next report of either. Raises EOFError when both have ended."""
        report = self._reports.get(timeout=PATIENCE)
        if report is None:
            raise EOFError(f"the app-loader has ended: {self.output!r}")
        if report.type is ReportType.RUNNING and self.endpoint is not None:
            assert self.endpoint.end() == 0
        return report

    def expect(self, *kinds: ReportType) -> Report:
        """The next reports, which must be of these kinds; the last of them."""
        for kind in kinds:
            report = self.report()
            assert report.type is kind, (report, self.output)
        return report

    def outcome(self) -> Outcome:
        """How the workload, which has been accepted, ended."""
        outcome = self.expect(ReportType.RUNNING, ReportType.ENDED).outcome
        assert outcome is not None
        return outcome

    def end(self) -> int:
        """Waits for the endpoint to end of itself, and for the runner, if it runs something; the last one's exit code.

        A runner that waits is ended, as the keep-loader does when its endpoint has gone.
        """
        code = 0
        if self.endpoint is not None:
            code = self.endpoint.end()
        if self.runner is not None:
            if self._runs:
                code = self.runner.end()
            elif self.runner.code is None:
                os.kill(self.runner.pid, signal.SIGKILL)
                self.runner.end()
        for thread in self._threads:
            thread.join(PATIENCE)
        self._threads.clear()
        for part in (self.endpoint, self.runner):
            if part is not None:
                part.reports.close()
        if self._checks is not None:
            self._checks.close()
            self._checks = None
        return code

    def kill(self) -> None:
        """SIGKILL, as the kernel does it."""
        for part in (self.endpoint, self.runner):
            if part is not None and part.code is None:
                os.kill(part.pid, signal.SIGKILL)
        self.end()

    def descriptors(self) -> dict[int, str]:
        """What the process has open."""
        return descriptors_of(self.pid)

    def used_seconds(self) -> float:
        """The processor time of the process and of those it has started and waited for, as it runs."""
        words = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, words[11:15])) / os.sysconf("SC_CLK_TCK")

    def forget(self) -> None:
        """The keep-loader dies: its ends of the report sockets close."""
        for part in (self.endpoint, self.runner):
            if part is not None:
                part.reports.shutdown(socket.SHUT_RDWR)

    def children(self) -> set[int]:
        """The processes that the endpoint and the runner have started."""
        found: set[int] = set()
        for part in (self.endpoint, self.runner):
            if part is not None:
                words = Path(f"/proc/{part.pid}/task/{part.pid}/children").read_text().split()
                found |= set(map(int, words))
        return found

    def close(self) -> None:
        self.kill()
        self.listener.close()
        for descriptor in (self.identity, *self.parked.values(), *self.given.values()):
            if descriptor is not None:
                os.close(descriptor)
        self.identity, self.parked, self.given = None, {}, {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def context(self, certificate: Path | None) -> ssl.SSLContext:
        """A client's context: the keep is known by its fingerprint."""
        if certificate is not None:
            return tls.pinned_client_context(str(certificate), None)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context

    def connect(self, certificate: Path | None) -> ssl.SSLSocket:
        """A TLS connection, pinned."""
        plain = socket.create_connection(("127.0.0.1", self.port), PATIENCE)
        try:
            secure = self.context(certificate).wrap_socket(plain)
        except OSError:
            plain.close()
            raise
        tls.check_pin(secure.getpeercert(binary_form=True), self.fingerprint)
        return secure


class Answer:
    """A response as the client saw it."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def error(self) -> dict[str, object]:
        """The error object of a refusal."""
        assert self.headers["Connection"] == "close"
        error = json.loads(self.body)["error"]
        assert set(error) == {"kind", "message", "evidence"}
        assert isinstance(error, dict)
        return error

    def __repr__(self) -> str:
        return f"Answer({self.status}, {self.body[:300]!r})"


def read_answer(connection: ssl.SSLSocket, method: str = "PUT") -> Answer:
    """The next response on `connection`, to a request by `method`; the connection is then closed."""
    with connection, contextlib.closing(http.client.HTTPResponse(connection, method=method)) as response:
        response.begin()
        return Answer(response)


def request(method: str, path: str, headers: Mapping[str, object], body: bytes = b"") -> bytes:
    """The bytes of a request, exactly as given."""
    lines = [f"{method} {path} HTTP/1.1", "Host: keep", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def put(module: bytes) -> bytes:
    """A raw upload."""
    return request("PUT", "/workload", {"Content-Type": "application/wasm", "Content-Length": len(module)}, module)


def post(module: bytes) -> bytes:
    """An upload as the original sends it."""
    body = json.dumps({"encoding": "wasm", "contents": list(module)}, separators=(",", ":")).encode()
    return request("POST", "/payload", {"Content-Type": "application/json", "Content-Length": len(body)}, body)


def ask(process: AppLoaderProcess, certificate: Path, data: bytes) -> Answer:
    """Sends `data` on a connection of its own and reads the answer."""
    connection = process.connect(certificate)
    with contextlib.suppress(ConnectionError, ssl.SSLError):  # it may be answered before it has said everything
        connection.sendall(data)
    return read_answer(connection, "HEAD" if data.startswith(b"HEAD") else "PUT")


@contextlib.contextmanager
def listening(
    directory: Path, authority: Authority, environment: Mapping[str, str] | None = None, **limits: object
) -> Iterator[AppLoaderProcess]:
    """An app-loader that listens, some of its limits changed."""
    with AppLoaderProcess(directory, authority, environment, limits) as process:
        process.expect(ReportType.LISTENING)
        yield process


@contextlib.contextmanager
def granted(
    directory: Path,
    authority: Authority,
    workload: Workload,
    grants: Sequence[int] = (),
    before: Sequence[str] = (),
    stray: int | None = None,
) -> Iterator[AppLoaderProcess]:
    """An app-loader that listens for a workload that gets something."""
    with AppLoaderProcess(
        directory, authority, workload=workload, grants=grants, before=before, stray=stray
    ) as process:
        process.expect(ReportType.LISTENING)
        yield process


def run(process: AppLoaderProcess, client: Path, module: bytes) -> Outcome:
    """Uploads `module` and lets it run to its end."""
    answer = ask(process, client, put(module))
    assert answer.status == 200, answer
    process.expect(ReportType.RECEIVING, ReportType.ACCEPTED)
    return process.outcome()


def wasm(text: str) -> bytes:
    """A module from its text."""
    return bytes(wasmtime.wat2wasm(text))
