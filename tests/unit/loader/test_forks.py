"""The loader's two forks: what each begins with, who is forked when, and what follows the death of either."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from keep_loader.forks import MAX_RESPAWNS
from keep_protocol.control import CommandType
from keep_protocol.errors import KeepfleetError
from keep_protocol.keep import OutcomeKind
from keep_protocol.states import State
from tests.fakes.loader_process import DEADLINE, MODULE, UPLOAD, Endpoint, LoaderProcess, Stub, opened


def gone(pid: int) -> bool:
    """Waits until a process that is not ours has ended."""
    try:
        watch = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([watch], [], [], DEADLINE)[0])
    finally:
        os.close(watch)


def connected(loader: LoaderProcess, passed: Endpoint) -> tuple[Stub, Stub]:
    """An endpoint that has its first client, and the runner that waits next to it."""
    _, endpoint = opened(loader, passed)
    return endpoint, endpoint.connect()


FORKS = """
import gc, json, os, signal, socket, sys
from keep_protocol import forking

class Held:
    def __del__(self):
        os.write(2, b"finalised")

def begin():
    # A library may keep its own file open (libffi from 3.5 on does): neither a parent's, nor passed. The listing's own
    # descriptor has gone again.
    files = {int(name): os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")}
    found = sorted(n for n, file in files.items() if not file.endswith(f"/fd/{n}") and ".so" not in file)
    print(json.dumps({
        "descriptors": found,
        "passed": os.pread(4, 9, 0).decode(),
        "input": os.readlink("/proc/self/fd/0"),
        "environment": {name: text for name, text in os.environ.items() if name != "LC_CTYPE"},
        "name": open("/proc/self/comm").read().strip(),
        "group": os.getpgid(0) == os.getpid(),
        "signals": [signal.getsignal(number) == signal.SIG_DFL for number in (signal.SIGTERM, signal.SIGINT)],
        "blocked": [str(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
    }), flush=True)
    held = Held()
    held.itself = held
    %(then)s

read, write = os.pipe()
os.set_blocking(write, False)
signal.set_wakeup_fd(write)
signal.signal(signal.SIGTERM, lambda *_: None)
given = os.memfd_create("given")
os.write(given, b"for a fork")
reports, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
here = Held()
pid = forking.fork(begin, "keep-test", {"module": given}, {"A": "b"}, reports=theirs.fileno())
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
Held.__del__ = lambda self: None
print(status, flush=True)
"""


def forked(then: str) -> tuple[dict[str, object], int, str]:
    """What a fork found that at last does `then`, its exit status, and what it wrote to standard error."""
    program = [sys.executable, "-I", "-c", f"import sys; sys.path[:] = {sys.path!r}\n" + FORKS % {"then": then}]
    done = subprocess.run(program, capture_output=True, text=True, check=True, timeout=DEADLINE)
    first, last = done.stdout.splitlines()
    return json.loads(first), int(last), done.stderr


def test_a_fork_has_what_is_passed_and_nothing_of_its_parents() -> None:
    found, status, said = forked("return 5")
    assert found == {
        "descriptors": [0, 1, 2, 3, 4],
        "passed": "for a for",
        "input": "/dev/null",
        "environment": {"A": "b", "KEEPFLEET_DESCRIPTORS": "module"},
        "name": "keep-test",
        "group": True,
        "signals": [True, True],
        "blocked": [],
    }
    assert (status, said) == (5, "")


@pytest.mark.parametrize("then", ["raise ValueError('a fault')", "sys.exit(0)", "raise KeyboardInterrupt"])
def test_a_fork_that_fails_says_why_and_never_finalises(then: str) -> None:
    _, status, said = forked(then)
    assert status == 1
    assert "Traceback" in said and "finalised" not in said


def test_a_signal_ends_a_fork_though_its_parent_takes_notice_of_it_otherwise() -> None:
    _, status, _ = forked("os.kill(os.getpid(), signal.SIGTERM)")
    assert status == -signal.SIGTERM


def test_a_runner_is_forked_with_the_first_connection_and_the_endpoint_waits_for_it(
    loader: LoaderProcess, passed: Endpoint
) -> None:
    _, endpoint = opened(loader, passed)
    assert loader.process is not None
    children = Path(f"/proc/{loader.process.pid}/task/{loader.process.pid}/children")
    assert children.read_text().split() == [str(endpoint.pid)]
    runner = endpoint.connect()
    assert endpoint.do("hear") == "ready"
    assert children.read_text().split() == [str(endpoint.pid), str(runner.pid)]
    assert runner.names == ["checks"]
    assert set(runner.descriptors) == set(range(5))
    assert os.readlink(f"/proc/self/fd/{passed.listener.fileno()}") not in runner.descriptors.values()


def test_a_start_may_have_its_runner_forked_when_it_listens_before_any_client_comes(
    loader: LoaderProcess, passed: Endpoint
) -> None:
    peer = loader.peer()
    peer.start(passed.named, warm=True)
    endpoint = loader.stub()
    endpoint.listen()
    assert peer.answer().state is State.STARTED
    runner = loader.stub()
    endpoint.report("connected")
    assert endpoint.do("hear") == "ready"
    endpoint.runner = runner
    endpoint.accept()
    loader.systemd.wait_for("STATUS", "started: running")


def test_an_endpoint_that_dies_as_it_opens_brings_no_runner(loader: LoaderProcess, passed: Endpoint) -> None:
    peer = loader.peer()
    peer.start(passed.named, warm=True)
    loader.stub().order("exit", code=3)
    with pytest.raises(KeepfleetError, match="the app-loader exited 3"):
        peer.answer()
    assert peer.ask(CommandType.INFO).state is State.LISTENING
    peer.start(passed.named)
    endpoint = loader.stub()
    endpoint.listen()
    assert peer.answer().state is State.STARTED
    assert endpoint.connect().names == ["checks"]


def test_an_endpoint_that_dies_takes_a_runner_along_that_had_no_client_yet(
    loader: LoaderProcess, passed: Endpoint
) -> None:
    peer = loader.peer()
    peer.start(passed.named, warm=True)
    endpoint = loader.stub()
    endpoint.listen()
    runner = loader.stub()
    endpoint.order("exit", code=3)
    again = loader.stub()
    assert gone(runner.pid)
    again.listen()
    assert again.connect().names == ["checks"]


def test_an_endpoint_that_reports_connections_again_and_again_brings_one_runner(
    loader: LoaderProcess, passed: Endpoint
) -> None:
    peer, endpoint = opened(loader, passed)
    endpoint.connect()
    endpoint.do("flood", text=json.dumps({"report": "connected"}), count=2000)
    assert peer.ask(CommandType.INFO).state is State.STARTED
    assert loader.process is not None
    children = Path(f"/proc/{loader.process.pid}/task/{loader.process.pid}/children").read_text().split()
    assert len(children) == 2
    assert "cannot reach" not in loader.log_text()


def test_a_runner_that_dies_as_it_waits_is_replaced_and_the_endpoint_goes_on(
    loader: LoaderProcess, passed: Endpoint
) -> None:
    endpoint, runner = connected(loader, passed)
    os.kill(runner.pid, signal.SIGKILL)
    endpoint.runner = loader.stub()
    assert endpoint.runner.descriptors[4] == runner.descriptors[4], "the same requests"
    endpoint.accept()
    loader.systemd.wait_for("STATUS", "started: running")
    assert "starting the runner again: the runner was killed by SIGKILL" in loader.log_text()


def test_a_runner_that_fails_is_replaced_for_the_reason_that_it_gives(loader: LoaderProcess, passed: Endpoint) -> None:
    _, runner = connected(loader, passed)
    runner.order("report", report={"report": "failed", "error": {"kind": "internal", "message": "no\x1b engine"}})
    loader.stub()
    assert "starting the runner again: no  engine" in loader.log_text()


def test_a_runner_that_hangs_up_is_replaced(loader: LoaderProcess, passed: Endpoint) -> None:
    _, runner = connected(loader, passed)
    runner.order("hang-up")
    assert loader.stub().role == "runner"
    assert gone(runner.pid)


def test_a_runner_that_dies_too_often_is_given_up_with_the_reason(loader: LoaderProcess, passed: Endpoint) -> None:
    endpoint, runner = connected(loader, passed)
    for _ in range(MAX_RESPAWNS):
        os.kill(runner.pid, signal.SIGSEGV)
        runner = loader.stub()
    os.kill(runner.pid, signal.SIGSEGV)
    info = loader.ended(passed)
    loader.systemd.drain()
    assert info.detail == "gave the runner up after starting it again 5 times: the runner was killed by SIGSEGV"
    assert info.outcome is not None and info.outcome.kind is OutcomeKind.LOST
    assert endpoint.is_gone()
    assert loader.systemd.parked == set()


def test_a_module_that_a_dead_runner_had_checked_is_run_by_the_next(loader: LoaderProcess, passed: Endpoint) -> None:
    endpoint, runner = connected(loader, passed)
    runner.report("checked", {"compiled": "machine code", "module": "the module"})
    os.kill(runner.pid, signal.SIGKILL)
    following = loader.stub()
    endpoint.report("accepted", upload=UPLOAD, module=MODULE)
    assert list(json.loads(following.do("run"))) == ["compiled"]
    loader.systemd.wait_for("STATUS", "started: running")


def test_an_endpoint_that_dies_takes_its_runner_along(loader: LoaderProcess, passed: Endpoint) -> None:
    endpoint, runner = connected(loader, passed)
    runner.report("checked", {"compiled": "machine code", "module": "the module"})
    os.kill(endpoint.pid, signal.SIGKILL)
    again = loader.stub()
    assert again.role == "endpoint"
    assert gone(runner.pid)
    again.listen()
    loader.systemd.wait_for("STATUS", "started: awaiting")
    again.order("report", report={"report": "accepted"})  # nothing that the one before had checked is taken for its own
    loader.systemd.wait_for("STATUS", "error: cannot run the workload: the app-loader accepted a module that was not")


def test_what_an_endpoint_passes_is_never_run(loader: LoaderProcess, passed: Endpoint) -> None:
    endpoint, runner = connected(loader, passed)
    runner.report("checked", {"compiled": "machine code", "module": "the module"})
    endpoint.report("accepted", {"compiled": "an attacker's"}, upload=UPLOAD, module=MODULE)
    assert "an attacker's" not in runner.do("run-text")
    loader.systemd.wait_for("STATUS", "started: running")


def test_an_endpoint_that_stays_after_it_has_accepted_is_killed(unstarted: LoaderProcess, passed: Endpoint) -> None:
    unstarted.start(environment={"FAKE_CONSTANTS": "keep_loader.forks:HANDOVER_SECONDS=0.1"})
    endpoint, runner = connected(unstarted, passed)
    runner.report("checked", {"compiled": "machine code", "module": "the module"})
    assert unstarted.process is not None
    unstarted.process.send_signal(signal.SIGSTOP)  # its tenth of a second begins once all of this was sent
    endpoint.report("accepted", upload=UPLOAD, module=MODULE)
    endpoint.report("failed")  # it is heard no more
    unstarted.process.send_signal(signal.SIGCONT)
    runner.do("run")
    assert endpoint.is_gone()
    assert unstarted.peer().ask(CommandType.INFO).phase == "running"


def test_a_stop_ends_the_runner_that_waits_too(loader: LoaderProcess, passed: Endpoint) -> None:
    endpoint, runner = connected(loader, passed)
    for stub in (endpoint, runner):
        stub.do("ignore-term")
    assert loader.peer().ask(CommandType.STOP, "alice").detail == "stopped by alice"
    assert gone(runner.pid) and gone(endpoint.pid)


def test_the_end_of_the_unit_ends_both(loader: LoaderProcess, passed: Endpoint) -> None:
    endpoint, runner = connected(loader, passed)
    assert loader.end(signal.SIGTERM) == 0
    assert gone(runner.pid) and gone(endpoint.pid)


def test_a_stop_in_the_moment_of_an_acceptance_ends_what_was_accepted(loader: LoaderProcess, passed: Endpoint) -> None:
    endpoint, runner = connected(loader, passed)
    runner.report("checked", {"compiled": "machine code", "module": "the module"})
    peer = loader.peer()
    peer.ask(CommandType.INFO)
    assert loader.process is not None
    loader.process.send_signal(signal.SIGSTOP)
    endpoint.order("report", report={"report": "accepted"})
    peer.send(CommandType.STOP, "alice")
    loader.process.send_signal(signal.SIGCONT)
    assert peer.answer().detail == "stopped by alice"
    assert gone(runner.pid) and gone(endpoint.pid)


@pytest.mark.parametrize("who", ["endpoint", "runner"])
def test_hostile_packets_before_an_acceptance_change_nothing(loader: LoaderProcess, passed: Endpoint, who: str) -> None:
    endpoint, runner = connected(loader, passed)
    peer = loader.peer()
    peer.ask(CommandType.INFO)
    before = loader.open_descriptors()
    speaker = {"endpoint": endpoint, "runner": runner}[who]
    other = {"endpoint": ["checked", "running", "ended"], "runner": ["listening", "accepted", "receiving"]}[who]
    for kind in (*other, "no such"):
        speaker.do("raw", text=json.dumps({"report": kind, "descriptors": ["compiled", "module"]}), files=["a", "b"])
    speaker.do("raw", text="not JSON", files=["a"])
    assert loader.comes_back_to(before, peer)
    endpoint.accept()
    loader.systemd.wait_for("STATUS", "started: running")
