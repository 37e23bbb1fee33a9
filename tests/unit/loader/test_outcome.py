"""How a workload's end is reported: by whom, in which words, and with figures that are its own."""

from __future__ import annotations

import math
import os
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keep_loader.loop import Action, Loop
from keep_loader.outcome import PEAK_SLACK_BYTES, Death, Usage, believe, event_of, outcome_of
from keep_loader.process import Child, Exit, Process, own_processor_seconds
from keep_loader.running import Meter, Running, next_look
from keep_loader.state import Keep, RecordFile
from keep_protocol.control import CommandType
from keep_protocol.keep import KeepReport, Outcome, OutcomeKind
from keep_protocol.limits import MIB, Limits
from keep_protocol.reports import Report, ReportType
from keep_protocol.sdnotify import Notifier
from keep_protocol.spec import KeepSpec
from keep_protocol.states import Event, Phase, State
from tests.fakes.loader_process import Endpoint, LoaderProcess, Peer, Stub, opened

LIMITS = Limits(wall_seconds=10, cpu_seconds=5, memory_bytes=64 * MIB)
USED = Usage(1.5, 0.25, 7 * MIB, started_at=100.0, ended_at=101.5)
FOR_MEMORY = Usage(1.5, 0.25, None, for_memory=True)
NARROWED = FOR_MEMORY.replace(memory_limit=192 * MIB)
EXITED_0 = Outcome(OutcomeKind.EXITED, "exited 0", exit_code=0)
OUT_OF_TIME = "over its time limit of 10 s"
OUT_OF_MEMORY = "killed by the kernel for memory (the keep's limit is 320 MiB)"
OUT_OF_PROCESSOR = "over its processor time limit of 5 s"


@dataclass
class Case:
    """What is known of a death, and what must be reported of it."""

    death: Death
    kind: OutcomeKind
    text: str
    event: Event
    used: Usage = USED


KILL = Exit(None, signal.SIGKILL)
CASES = [
    Case(Death(Exit(0, None), EXITED_0), OutcomeKind.EXITED, "exited 0", Event.FINISH),
    Case(Death(Exit(None, 15), EXITED_0, "alice"), OutcomeKind.EXITED, "exited 0", Event.FINISH),
    Case(Death(KILL, EXITED_0, None, OUT_OF_TIME), OutcomeKind.EXITED, "exited 0", Event.FINISH),
    Case(Death(Exit(None, 15), None, "alice"), OutcomeKind.STOPPED, "stopped by alice", Event.STOP),
    Case(Death(Exit(0, None), None, "alice"), OutcomeKind.STOPPED, "stopped by alice", Event.STOP),
    Case(Death(KILL, None, "alice", OUT_OF_TIME), OutcomeKind.STOPPED, "stopped by alice", Event.STOP),
    Case(Death(KILL, None, None, OUT_OF_TIME), OutcomeKind.LIMITED, OUT_OF_TIME, Event.FAIL),
    Case(Death(KILL), OutcomeKind.LIMITED, OUT_OF_MEMORY, Event.FAIL, FOR_MEMORY),
    Case(Death(KILL), OutcomeKind.LIMITED, OUT_OF_MEMORY.replace("320", "192"), Event.FAIL, NARROWED),
    Case(Death(Exit(None, signal.SIGXCPU, 5.0)), OutcomeKind.LIMITED, OUT_OF_PROCESSOR, Event.FAIL),
    Case(Death(Exit(None, signal.SIGKILL, 6.0)), OutcomeKind.LIMITED, OUT_OF_PROCESSOR, Event.FAIL),
    Case(Death(Exit(None, signal.SIGKILL, 4.9)), OutcomeKind.KILLED, "killed by SIGKILL", Event.FAIL),
    Case(Death(Exit(None, signal.SIGSEGV, 6.0)), OutcomeKind.KILLED, "killed by SIGSEGV", Event.FAIL),
    Case(Death(Exit(None, 40)), OutcomeKind.KILLED, "killed by signal 40", Event.FAIL),
    Case(Death(Exit(7, None)), OutcomeKind.LOST, "the process exited 7 without a report", Event.FAIL),
]


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_the_end_of_a_workload_is_reported_from_the_best_evidence(case: Case) -> None:
    outcome = outcome_of(case.death, case.used, LIMITS)
    assert (outcome.kind, outcome.text, event_of(outcome)) == (case.kind, case.text, case.event)
    assert outcome.by == ("alice" if case.kind is OutcomeKind.STOPPED else "")


def test_an_outcome_says_when_and_how_long() -> None:
    outcome = outcome_of(Death(KILL), USED, LIMITS)
    assert (outcome.wall_seconds, outcome.started_at, outcome.ended_at) == (1.5, 100.0, 101.5)
    assert (outcome.cpu_seconds, outcome.peak_bytes, outcome.output_bytes) == (0.25, 7 * MIB, None)


@pytest.mark.parametrize(("own", "shown"), [(None, 0.25), (0.1, 0.1), (1.01, 1.01), (1.1, 0.25), (1e9, 0.25)])
def test_processor_time_is_the_runners_own_where_the_kernel_saw_as_much(own: float | None, shown: float) -> None:
    reported = Outcome(OutcomeKind.EXITED, "exited 0", 0, cpu_seconds=own)
    assert outcome_of(Death(Exit(0, None, 1.0, 9 * MIB), reported), USED, LIMITS).cpu_seconds == shown


@pytest.mark.parametrize(
    ("own", "shown"),
    [(None, 7), (3, 3), (9, 9), (9 + PEAK_SLACK_BYTES // MIB, 13), (14, 7), (0, 7), (-1, 7), (1 << 60, 7)],
)
def test_peak_memory_is_the_runners_own_where_the_kernel_saw_as_much(own: int | None, shown: int) -> None:
    peak = None if own is None else own * MIB
    reported = Outcome(OutcomeKind.EXITED, "exited 0", 0, peak_bytes=peak)
    assert outcome_of(Death(Exit(0, None, 1.0, 9 * MIB), reported), USED, LIMITS).peak_bytes == shown * MIB


@given(st.floats(0, 1e12), st.integers(), st.integers())
def test_no_figure_a_workload_reports_can_do_more_than_be_ignored(cpu: float, peak: int, written: int) -> None:
    reported = believe(
        Outcome(OutcomeKind.EXITED, "x", 0, cpu_seconds=cpu, peak_bytes=peak, output_bytes=written, by="root")
    )
    outcome = outcome_of(Death(Exit(0, None, 1.0, MIB), reported), USED, LIMITS)
    assert outcome.cpu_seconds is not None and 0 <= outcome.cpu_seconds <= 1.02
    assert outcome.peak_bytes is not None and 0 < outcome.peak_bytes <= 7 * MIB
    assert outcome.by == ""


def burn(seconds: float) -> None:
    """Uses that much processor time."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def started(program: str) -> Child:
    """A process of its own, as one that was forked is owned."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        ours.setblocking(False)
        return Child(os.posix_spawn(program, [program], {}, setpgroup=0), ours)


def test_what_a_process_said_is_read_though_it_ended_with_something_unread() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    child = Child(os.getpid(), ours)
    child.send(b"run", [])
    with theirs:
        theirs.send(b"why it cannot")
    assert child.receive() == (b"why it cannot", [])
    with pytest.raises(EOFError):
        child.receive()
    os.close(child.pidfd)
    ours.close()


def test_the_meter_leaves_out_what_was_used_before() -> None:
    pid = os.getpid()
    burn(0.1)
    meter = Meter(pid, fresh=False)
    burn(0.1)
    meter.begin(os.open("/proc/self/status", os.O_RDONLY))
    burn(0.05)
    meter.look()
    used = meter.usage(Exit(None, signal.SIGKILL, time.process_time(), 1 << 40))
    assert used.cpu_seconds is not None and 0.03 <= used.cpu_seconds <= 0.2
    assert used.peak_bytes is not None and MIB < used.peak_bytes < 1 << 40
    assert used.ended_at >= used.started_at > 1e9


@pytest.mark.parametrize("set_by", [-400 * 86400.0, -3600.0, 3600.0, 400 * 86400.0])
def test_a_clock_that_is_set_meanwhile_changes_no_duration(set_by: float, monkeypatch: pytest.MonkeyPatch) -> None:
    meter, clock = Meter(os.getpid(), fresh=False), time.time
    monkeypatch.setattr(time, "time", lambda: clock() + set_by)
    used = meter.usage(Exit(0, None))
    assert 0 <= used.wall_seconds < 3600
    assert used.ended_at - used.started_at == pytest.approx(used.wall_seconds, abs=0.001)


def test_a_runner_that_has_had_no_children_has_the_kernels_peak() -> None:
    child = started("/bin/true")
    meter = Meter(child.pid, fresh=True)
    os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
    end = child.reap()
    used = meter.usage(end)
    assert (used.peak_bytes, used.for_memory) == (end.peak_bytes, False)
    assert used.cpu_seconds is not None and used.cpu_seconds <= end.cpu_seconds


def test_what_cannot_be_seen_is_not_measured() -> None:
    assert own_processor_seconds(1 << 30) is None
    meter = Meter(1 << 30, fresh=False)
    meter.look()
    used = meter.usage(Exit(None, signal.SIGSEGV, 1.0, MIB))
    assert (used.cpu_seconds, used.peak_bytes) == (None, None)


def limited(loader: LoaderProcess, passed: Endpoint, limits: Limits) -> tuple[Peer, Stub]:
    """A keep with `limits` whose workload has been accepted."""
    loader.start(environment={"KEEPFLEET_LIMITS": limits.to_text()})
    peer, stub = opened(loader, passed)
    stub.accept()
    loader.systemd.wait_for("STATUS", "started: running")
    peer.hears_that_it_runs()
    return peer, stub


def ended(loader: LoaderProcess, passed: Endpoint) -> tuple[KeepReport, Outcome]:
    info = loader.ended(passed)
    assert info.outcome is not None
    return info, info.outcome


def test_a_workload_over_its_time_is_killed_and_the_limit_named(unstarted: LoaderProcess, passed: Endpoint) -> None:
    unstarted.start(environment={"KEEPFLEET_LIMITS": Limits(wall_seconds=1).to_text()})
    _, stub = opened(unstarted, passed)
    stub.connect().do("ignore-term")
    stub.accept()
    info, outcome = ended(unstarted, passed)
    assert (info.state, info.detail) == (State.ERROR, "over its time limit of 1 s")
    assert (outcome.kind, outcome.signal) == (OutcomeKind.LIMITED, signal.SIGKILL)
    assert outcome.wall_seconds is not None and outcome.wall_seconds >= 1.0
    assert outcome.peak_bytes is not None and outcome.peak_bytes > MIB
    assert stub.is_gone()


def test_a_workload_over_its_processor_time_names_that_limit(unstarted: LoaderProcess, passed: Endpoint) -> None:
    _, stub = limited(unstarted, passed, Limits(cpu_seconds=7))
    os.kill(stub.pid, signal.SIGXCPU)
    info, outcome = ended(unstarted, passed)
    assert (info.state, info.detail) == (State.ERROR, "over its processor time limit of 7 s")
    assert outcome.kind is OutcomeKind.LIMITED


def test_the_loader_ends_a_workload_at_its_processor_time_and_not_at_the_next_whole_second_of_its_process(
    unstarted: LoaderProcess, passed: Endpoint
) -> None:
    unstarted.start(environment={"KEEPFLEET_LIMITS": Limits(cpu_seconds=1).to_text()})
    _, stub = opened(unstarted, passed)
    stub.connect().do("burn", seconds=0.4)  # as it waits: no part of the workload's
    stub.accept()
    stub.order("burn", seconds=1.2)  # more than it may have, and no second whole second: then it waits for its end
    info, outcome = ended(unstarted, passed)
    assert (info.detail, outcome.kind) == ("over its processor time limit of 1 s", OutcomeKind.LIMITED)
    assert outcome.signal == signal.SIGKILL
    assert outcome.cpu_seconds is not None and 0.98 <= outcome.cpu_seconds < 1.4


@given(st.integers(1, 10_000), st.floats(0.01, 1))
def test_a_workload_is_ended_within_a_tenth_of_its_processor_time(limit: int, share: float) -> None:
    used, looks = 0.0, 0
    while (seconds := next_look(limit, used, 100)) is not None:
        used += seconds * share
        looks += 1
    assert used >= limit
    assert used <= limit * 1.1 + 0.1
    assert looks < 20 * math.log(limit + 1) / share + 100


def test_a_workload_that_sleeps_is_looked_at_seldom() -> None:
    assert next_look(3600, 0, 100) == 3780.05
    assert next_look(3600, 3780, 100) == 1.0
    assert next_look(3600, 0, 400) == 945.0125


def test_a_workload_may_say_which_of_its_limits_it_met(unstarted: LoaderProcess, passed: Endpoint) -> None:
    _, stub = limited(unstarted, passed, Limits())
    stub.report("ended", outcome={"kind": "limited", "text": "over its memory limit of 64 MiB"})
    stub.order("exit", code=1)
    info, outcome = ended(unstarted, passed)
    assert (info.detail, outcome.kind) == ("over its memory limit of 64 MiB", OutcomeKind.LIMITED)


def test_what_the_runner_used_as_it_waited_is_not_the_workloads(unstarted: LoaderProcess, passed: Endpoint) -> None:
    unstarted.start()
    _, stub = opened(unstarted, passed)
    stub.connect().do("burn", seconds=0.3)
    stub.accept()
    unstarted.systemd.wait_for("STATUS", "started: running")
    os.kill(stub.pid, signal.SIGSEGV)
    _, outcome = ended(unstarted, passed)
    assert outcome.cpu_seconds is not None and outcome.cpu_seconds < 0.2
    assert outcome.peak_bytes is None  # its memory was gone before anybody could look
    assert outcome.started_at is not None and outcome.ended_at is not None
    assert 0 <= outcome.ended_at - outcome.started_at < 15
    assert outcome.ended_monotonic is not None and 0 < outcome.ended_monotonic <= time.monotonic()


def test_a_stop_says_by_whom_and_when(unstarted: LoaderProcess, passed: Endpoint) -> None:
    peer, _ = limited(unstarted, passed, Limits())
    before = time.time()
    outcome = peer.ask(CommandType.STOP, "alice").outcome
    assert outcome is not None and (outcome.kind, outcome.by) == (OutcomeKind.STOPPED, "alice")
    assert outcome.ended_at is not None and before - 1 <= outcome.ended_at <= time.time() + 1
    assert outcome.peak_bytes is not None and outcome.peak_bytes > MIB


class Deadlines(Loop):
    """A loop whose deadlines can be read: seconds by name."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = {}

    def after(self, name: str, seconds: float, action: Action) -> None:
        self.seconds[name] = seconds
        super().after(name, seconds, action)


def test_time_that_a_runner_takes_to_compile_again_is_not_the_workloads(tmp_path: Path) -> None:
    loop, child = Deadlines(), started("/bin/cat")
    keep = Keep(7, KeepSpec(), (), RecordFile(str(tmp_path), Notifier({}), None), lambda: None)
    keep.report = keep.report.replace(phase=Phase.RUNNING.value)
    process = Process(loop, child, "runner", lambda report, descriptors: None, lambda end: None)
    running = Running(keep, loop, process, fresh=True)
    assert loop.seconds["workload's time"] == 3800.0
    running.take(Report(ReportType.RUNNING), [])
    assert loop.seconds["workload's time"] == 3600.0
    loop.seconds.clear()
    running.take(Report(ReportType.RUNNING), [])  # of a guest that has broken out: it begins nothing again
    assert "workload's time" not in loop.seconds
    running.ended(process.finish(), None)
