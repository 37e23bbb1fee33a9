"""The runner as it waits: what it makes of an endpoint's requests, which may be a stranger's, and of its loader's."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from app_loader.check.checking import read_result
from keep_protocol.constants import MAX_CONTROL_FRAME
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.outcome import Outcome, OutcomeKind
from keep_protocol.reports import Report, ReportType, decode_report, encode_run
from keep_protocol.workload import Workload
from tests.unit.app_loader.app_loader_process import PATIENCE, descriptors_of, wasm
from tests.unit.app_loader.test_app_loader_checker import SLOW

ENTER = """
import fcntl, os, sys
copies = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 100) for number in sys.argv[1:]]
for target, copy in enumerate(copies, 3):
    os.dup2(copy, target)
from app_loader.run.runner import run
sys.exit(run())
"""
NOTHING = wasm('(module (func (export "_start")))')
EXITS = wasm("""(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (func (export "_start") (call $exit (i32.const 7))))""")


class Runner:
    """A real runner; the test has the other ends of its sockets."""

    def __init__(self, description: int | None = None) -> None:
        self.reports, reports = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.checks, checks = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.reports.settimeout(PATIENCE)
        passed = {"checks": checks.fileno(), **({} if description is None else {"workload": description})}
        numbers = [reports.fileno(), *passed.values()]
        self.process = subprocess.Popen(
            [sys.executable, "-c", ENTER, *map(str, numbers)],
            env={"PYTHONPATH": ":".join(sys.path), "KEEPFLEET_DESCRIPTORS": ",".join(passed)},
            stdin=subprocess.DEVNULL,
            pass_fds=numbers,
        )
        reports.close()
        checks.close()

    def close(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)
        self.reports.close()
        self.checks.close()

    def ask(self, module: bytes) -> socket.socket:
        """Asks for a check of `module`; where it is answered."""
        answer, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        answer.settimeout(PATIENCE)
        with theirs, tempfile.TemporaryFile() as file:
            file.write(module)
            file.flush()
            socket.send_fds(self.checks, [b"check"], [file.fileno(), theirs.fileno()])
        return answer

    def check(self, module: bytes) -> KeepfleetError | None:
        """Why `module` is refused."""
        with self.ask(module) as answer:
            return read_result(answer.recv(65536))[0]

    def report(self) -> tuple[Report, dict[str, int]]:
        """The next report, and its descriptors by name, which the caller closes. Raises EOFError at their end."""
        packet, descriptors, _, _ = socket.recv_fds(self.reports, MAX_CONTROL_FRAME, 4)
        if not packet:
            raise EOFError
        report = decode_report(packet)
        return report, dict(zip(report.descriptors, descriptors, strict=True))

    def checked(self) -> dict[str, int]:
        """What it has found good."""
        report, named = self.report()
        assert report.type is ReportType.CHECKED
        return named

    def run(self, named: dict[str, int]) -> Outcome | None:
        """Has it run what is named, and closes that; the outcome."""
        with open(os.devnull, "wb") as out:
            both = {"stdout": out.fileno(), "stderr": out.fileno()}
            passed = {**named, **both}
            socket.send_fds(self.reports, [encode_run(tuple(passed))], list(passed.values()))
        close(named)
        while (report := self.following()).type is ReportType.RUNNING:
            continue
        return report.outcome

    def following(self) -> Report:
        report, named = self.report()
        close(named)
        return report

    def children(self) -> list[str]:
        return Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()


def close(named: dict[str, int]) -> None:
    for number in named.values():
        os.close(number)


@pytest.fixture
def runner() -> Iterator[Runner]:
    with contextlib.closing(Runner()) as started:
        yield started


def test_checks_follow_one_another_and_only_what_is_good_is_reported(runner: Runner) -> None:
    for _ in range(2):
        refusal = runner.check(b"no module")
        assert refusal is not None and refusal.kind is ErrorKind.INVALID_MODULE
    for module in (NOTHING, EXITS):
        assert runner.check(module) is None
        named = runner.checked()
        assert os.pread(named["module"], 65536, 0) == module
        assert os.pread(named["compiled"], 4, 0) == b"\x7fELF"
        for number in named.values():
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.write(number, b"x")
        close(named)
    assert runner.children() == []


def test_what_was_checked_last_runs_when_the_loader_says_so(runner: Runner) -> None:
    assert runner.check(EXITS) is None
    named = runner.checked()
    os.close(named.pop("module"))
    outcome = runner.run(named)
    assert outcome is not None and outcome.exit_code == 7
    assert runner.process.wait(PATIENCE) == 7


def test_a_check_without_a_client_is_ended_and_the_next_is_made(runner: Runner) -> None:
    answer = runner.ask(SLOW)
    while not (checkers := runner.children()):
        assert runner.process.poll() is None
    checker = os.pidfd_open(int(checkers[0]))
    answer.close()
    assert select.select([checker], [], [], PATIENCE)[0]
    os.close(checker)
    assert runner.check(NOTHING) is None
    close(runner.checked())


def test_a_run_that_comes_as_a_check_is_made_ends_the_check(runner: Runner) -> None:
    assert runner.check(EXITS) is None
    named = runner.checked()
    os.close(named.pop("module"))
    with runner.ask(SLOW) as answer:
        while not runner.children():
            assert runner.process.poll() is None
        outcome = runner.run(named)
        assert outcome is not None and outcome.exit_code == 7
        assert answer.recv(65536) == b""


@pytest.mark.parametrize("checking", [False, True])
def test_a_runner_whose_loader_has_gone_ends(runner: Runner, checking: bool) -> None:
    checker = -1
    if checking:
        runner.ask(SLOW).detach()
        while not (checkers := runner.children()):
            assert runner.process.poll() is None
        checker = os.pidfd_open(int(checkers[0]))
    runner.reports.close()
    assert runner.process.wait(PATIENCE) == 0
    if checking:
        assert select.select([checker], [], [], PATIENCE)[0]
        os.close(checker)


def test_a_runner_whose_endpoint_has_gone_still_runs_what_its_loader_has(runner: Runner) -> None:
    assert runner.check(EXITS) is None
    named = runner.checked()
    os.close(named.pop("module"))
    runner.checks.close()
    outcome = runner.run(named)
    assert outcome is not None and outcome.exit_code == 7


def test_an_endpoint_that_goes_as_the_runner_makes_its_engine_ready_leaves_it_waiting() -> None:
    with contextlib.closing(Runner()) as runner:
        runner.checks.close()
        runner.reports.settimeout(0.0)
        with pytest.raises(BlockingIOError):
            runner.report()
        runner.reports.close()
        assert runner.process.wait(PATIENCE) == 0


def test_packets_that_are_no_request_are_dropped_with_all_that_came_with_them(runner: Runner, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "module").write_bytes(NOTHING)
    with contextlib.ExitStack() as stack:

        def opened(path: str | Path, flags: int = os.O_RDONLY) -> int:
            number = os.open(path, flags)
            stack.callback(os.close, number)
            return number

        module, directory, null = opened(tmp_path / "module"), opened(tmp_path), opened("/dev/null")
        fifo = opened(tmp_path / "fifo", os.O_RDWR)
        named = opened(tmp_path / "fifo", os.O_PATH)
        answer, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stack.enter_context(answer)
        stack.enter_context(theirs)
        socket_ = theirs.fileno()
        hostile: list[tuple[bytes, Sequence[int]]] = [
            (b"check", []),
            (b"check", [module]),
            (b"check", [module, module]),
            (b"check", [socket_, module]),
            (b"check", [module, socket_, module]),
            (b"check", [module] * 200),
            (b"check ", [module, socket_]),
            (b"x" * 60_000, [module, socket_]),
            *((b"check", [number, socket_]) for number in (directory, null, fifo, named, socket_)),
            (b"", [module, socket_]),
        ]
        for packet, descriptors in hostile:
            if descriptors:
                socket.send_fds(runner.checks, [packet], list(descriptors))
            else:
                runner.checks.send(packet)
        assert runner.check(NOTHING) is None
        close(runner.checked())
        theirs.close()
        answer.settimeout(PATIENCE)
        assert answer.recv(1) == b"", "all of its copies are closed"
    assert not [name for name in descriptors_of(runner.process.pid).values() if str(tmp_path) in name]


def test_a_flood_of_requests_waits_in_the_socket_and_is_served_one_after_the_other(runner: Runner) -> None:
    runner.checks.setblocking(False)
    answers = []
    with contextlib.suppress(BlockingIOError):
        for _ in range(100):
            answers.append(runner.ask(b"no module"))
    assert len(runner.children()) <= 1
    for answer in answers:
        refusal, _ = read_result(answer.recv(65536))
        assert refusal is not None and refusal.kind is ErrorKind.INVALID_MODULE
        answer.close()


def test_a_module_that_is_cut_off_meanwhile_ends_its_checker_alone(runner: Runner) -> None:
    answer, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with answer, theirs, tempfile.TemporaryFile() as file:
        file.write(SLOW)
        file.flush()
        socket.send_fds(runner.checks, [b"check"], [file.fileno(), theirs.fileno()])
        while not runner.children():
            assert runner.process.poll() is None
        file.truncate(0)
        assert answer.recv(65536)[:1] in (b"+", b"-")
    refusal = runner.check(b"no module")
    assert refusal is not None


def test_a_module_is_checked_against_what_the_loader_said_of_the_workload(tmp_path: Path) -> None:
    (tmp_path / "workload").write_bytes(Workload(export="launch").to_json())
    description = os.open(tmp_path / "workload", os.O_RDONLY)
    with contextlib.closing(Runner(description)) as runner:
        os.close(description)
        refusal = runner.check(NOTHING)
        assert refusal is not None and "launch" in refusal.message


@pytest.mark.parametrize(
    ("packet", "why"),
    [
        (b"{}", "cannot read what is to be run"),
        (b"not JSON", "cannot read what is to be run"),
        (b'{"run": ["compiled", "module"]}', "2 descriptors are named and 1 came"),
        (b'{"run": ["cabbage"]}', "the unknown name 'cabbage'"),
    ],
)
def test_what_cannot_be_run_is_reported_with_the_reason(runner: Runner, packet: bytes, why: str) -> None:
    with tempfile.TemporaryFile() as file:
        socket.send_fds(runner.reports, [packet], [file.fileno()])
    report = runner.following()
    assert report.type is ReportType.FAILED and report.error is not None and why in report.error.message
    assert runner.process.wait(PATIENCE) == 1


def test_a_compiled_module_that_does_not_fit_and_came_alone_is_lost_with_the_reason(runner: Runner) -> None:
    with tempfile.TemporaryFile() as file:
        outcome = runner.run({"compiled": os.dup(file.fileno())})
    assert outcome is not None and outcome.kind is OutcomeKind.LOST
    assert "cannot load the compiled module" in outcome.text
