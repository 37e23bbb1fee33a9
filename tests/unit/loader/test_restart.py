"""Workloads that are started again: by systemd, from what it keeps of them, and not for ever."""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keep_loader.outcome import MAX_RERUNS, RERUN_SECONDS, recent, resume_from, too_often, wanted
from keep_protocol.control import CommandType
from keep_protocol.errors import KeepfleetError
from keep_protocol.keep import KeepReport, Outcome, OutcomeKind
from keep_protocol.limits import Limits
from keep_protocol.outcome import RUN_AGAIN, TRAP
from keep_protocol.record import KeepRecord, Private, decode_record
from keep_protocol.ring import STDOUT
from keep_protocol.spec import RestartPolicy
from keep_protocol.states import STATE_OF, Event, Phase, State
from keep_protocol.workload import Directory, Workload
from tests.fakes.loader_process import ARTIFACTS, DEADLINE, Endpoint, LoaderProcess, Stub
from tests.unit.loader.test_output import journald_reading

NOW = 1_800_000_000.0
UID = 61200
EXITED = {code: Outcome(OutcomeKind.EXITED, f"exited {code}", code) for code in (0, 1)}
GRANTED = ("workload", "stdin", "directory-0")
KEPT = frozenset(("compiled", "module", *GRANTED))
WHOLE = KEPT | {"output", "journal"}
NO, ON_FAILURE, ALWAYS = RestartPolicy


def saved(phase: Phase, restart: RestartPolicy = NO, outcome: Outcome | None = None, **private: Any) -> KeepRecord:
    report = KeepReport(kuuid=7, state=STATE_OF[phase], phase=phase.value, restart=restart, outcome=outcome)
    return KeepRecord(report, Private(granted=GRANTED, **private))


@pytest.mark.parametrize(
    ("policy", "outcome", "again"),
    [
        *((NO, Outcome(kind, "x", 1), False) for kind in OutcomeKind),
        *((policy, Outcome(OutcomeKind.STOPPED, "x"), False) for policy in RestartPolicy),
        *((policy, Outcome(OutcomeKind.REFUSED, "x"), False) for policy in RestartPolicy),
        (ON_FAILURE, EXITED[0], False),
        (ALWAYS, EXITED[0], True),
        *((policy, EXITED[1], True) for policy in (ON_FAILURE, ALWAYS)),
        *(
            (policy, Outcome(kind, "x"), True)
            for policy in (ON_FAILURE, ALWAYS)
            for kind in (OutcomeKind.TRAPPED, OutcomeKind.LIMITED, OutcomeKind.KILLED, OutcomeKind.LOST)
        ),
    ],
)
def test_a_policy_decides_by_the_outcome(policy: RestartPolicy, outcome: Outcome, again: bool) -> None:
    assert wanted(policy, outcome) is again


def test_only_lately_counts_for_too_often() -> None:
    lately = tuple(100.0 + number for number in range(MAX_RERUNS))
    assert too_often(lately, 110.0) == "gave it up after starting it again 4 times within 60 s"
    assert too_often(lately[1:], 110.0) is None
    assert too_often(lately, 100.0 + RERUN_SECONDS) is None
    assert recent((50.0, 100.0, 200.0), 150.0) == (100.0,)  # a moment ahead of the clock is of another boot


@given(st.lists(st.floats(0, 300), max_size=20).map(sorted))
def test_no_minute_ever_has_more_starts_than_systemd_allows(ends: list[float]) -> None:
    reruns: tuple[float, ...] = ()
    started: list[float] = []
    for now in ends:
        if too_often(reruns, now) is None:
            reruns = (*recent(reruns, now), now)
            started.append(now)
    for first in started:
        assert sum(first <= moment < first + RERUN_SECONDS for moment in started) <= MAX_RERUNS


@pytest.mark.parametrize("phase", [Phase.RUNNING, Phase.RESTARTING])
@pytest.mark.parametrize("policy", [ON_FAILURE, ALWAYS])
def test_what_systemd_kept_whole_is_run_again(phase: Phase, policy: RestartPolicy) -> None:
    outcome = EXITED[1] if phase is Phase.RESTARTING else None
    record = saved(phase, policy, outcome, started_at=NOW - 5)
    resumption = resume_from(record, WHOLE, NOW, (), UID)
    assert resumption.event is Event.RERUN
    assert resumption.outcome is not None
    assert resumption.outcome.kind is (OutcomeKind.EXITED if outcome else OutcomeKind.LOST)
    for missing in WHOLE:
        resumption = resume_from(record, WHOLE - {missing}, NOW, (), UID)
        assert (resumption.event, missing in resumption.why) == (Event.FAIL, True)
        assert resumption.outcome is not None


def test_nothing_is_run_again_where_the_isolation_check_fails_now() -> None:
    record = saved(Phase.RESTARTING, ALWAYS, EXITED[1], started_at=NOW - 5)
    resumption = resume_from(record, WHOLE, NOW, ("new privileges can be gained",), UID)
    assert (resumption.event, resumption.outcome) == (Event.FAIL, EXITED[1])
    assert "new privileges can be gained" in resumption.why


def test_nothing_is_run_again_for_another_user_than_its_directories_were_made_for() -> None:
    record = saved(Phase.RESTARTING, ALWAYS, EXITED[1], started_at=NOW - 5, user=UID + 1)
    resumption = resume_from(record, WHOLE, NOW, (), UID)
    assert (resumption.event, resumption.outcome) == (Event.FAIL, EXITED[1])
    assert f"was user {UID + 1}" in resumption.why
    assert f"is now {UID}" in resumption.why
    assert resume_from(record, WHOLE, NOW, (), UID + 1).event is Event.RERUN
    without = KeepRecord(record.report, record.private.replace(granted=("workload", "stdin")))
    assert resume_from(without, WHOLE, NOW, (), UID).event is Event.RERUN


def test_a_workload_without_a_policy_is_lost_with_its_times() -> None:
    resumption = resume_from(saved(Phase.RUNNING, started_at=NOW - 5), WHOLE, NOW, (), UID)
    assert resumption.event is Event.FAIL
    assert resumption.outcome is not None
    assert (resumption.outcome.started_at, resumption.outcome.ended_at) == (NOW - 5, NOW)


def test_no_workload_is_lost_before_it_started_though_the_clock_was_set_back() -> None:
    resumption = resume_from(saved(Phase.RUNNING, started_at=NOW + 3600), WHOLE, NOW, (), UID)
    assert resumption.outcome is not None
    assert resumption.outcome.ended_at == resumption.outcome.started_at == NOW + 3600


@pytest.mark.parametrize(
    "change",
    [
        {"granted": "workload"},
        {"granted": ["listener"]},
        {"granted": [["workload"]]},
        {"reruns": {}},
        {"reruns": ["1"]},
        {"reruns": [-1]},
        {"reruns": [1e300]},
        {"started_at": "now"},
        {"started_at": True},
        {"names": ["a b"]},
        {"description": {"labels": {"a": 1}}},
        {"description": []},
    ],
)
def test_a_record_with_a_private_part_of_another_shape_is_refused(change: dict[str, object]) -> None:
    refuses("private", change)


@pytest.mark.parametrize(
    "change",
    [
        {"restart": "sometimes"},
        {"restart": None},
        {"restarts": -1},
        {"restarts": True},
        {"restarts": "1"},
        {"phase": ""},
        {"phase": "gone"},
        {"uploaders": ["anyone"]},
    ],
)
def test_a_record_with_a_report_of_another_shape_is_refused(change: dict[str, object]) -> None:
    refuses("report", change)


def refuses(part: str, change: dict[str, object]) -> None:
    members = json.loads(saved(Phase.RUNNING).encode())
    assert decode_record(json.dumps(members).encode()) == saved(Phase.RUNNING)
    members[part] |= change
    with pytest.raises(KeepfleetError, match="cannot read the keep's record"):
        decode_record(json.dumps(members).encode())


class Repeated:
    """A keep whose workload is to be started again, with the test in systemd's place."""

    def __init__(self, loader: LoaderProcess, passed: Endpoint, place: Path, policy: RestartPolicy) -> None:
        self.loader, self.passed = loader, passed
        workload = Workload(stdin=True, directories=(Directory("/d"),), restart=policy)
        (place / "w").write_bytes(workload.to_json())
        (place / "in").write_bytes(b"one line\n")
        self.descriptors = [os.open(place / name, os.O_RDONLY) for name in ("w", "in", ".")]
        peer = loader.peer()
        peer.start({**passed.named, **dict(zip(GRANTED, self.descriptors, strict=True))})
        self.stub = loader.stub()
        self.stub.listen()
        peer.answer()

    def accept(self) -> None:
        self.stub.accept()
        self.loader.systemd.wait_for("STATUS", "started: running")

    def exit(self, code: int) -> None:
        self.stub.report("ended", outcome={"kind": "exited", "text": f"exited {code}", "exit_code": code})
        self.stub.order("exit", code=code)

    def again(self) -> Stub:
        """The loader has exited for it: systemd starts it again, and it the workload."""
        assert self.loader.process is not None
        assert self.loader.process.wait(DEADLINE) == RUN_AGAIN
        self.loader.systemd.drain()
        self.loader.start()
        return self.run()

    def run(self) -> Stub:
        """The runner that the loader forks when it starts."""
        self.stub = self.loader.stub()
        self.stub.given = json.loads(self.stub.do("run"))
        return self.stub

    def info(self) -> KeepReport:
        return self.loader.peer().ask(CommandType.INFO)

    def end(self) -> KeepReport:
        return self.loader.ended(self.passed)


@contextmanager
def begun(loader: LoaderProcess, passed: Endpoint, place: Path, policy: RestartPolicy) -> Iterator[Repeated]:
    """A keep whose workload runs."""
    with ExitStack() as stack:
        made = Repeated(loader, passed, place, policy)
        for descriptor in made.descriptors:
            stack.callback(os.close, descriptor)
        made.accept()
        yield made


@pytest.fixture
def repeated(
    request: pytest.FixtureRequest, loader: LoaderProcess, passed: Endpoint, place: Path
) -> Iterator[Repeated]:
    with begun(loader, passed, place.parent, getattr(request, "param", RestartPolicy.ON_FAILURE)) as made:
        yield made


ALWAYS_REPEATED = pytest.mark.parametrize("repeated", [RestartPolicy.ALWAYS], indirect=True)


def test_a_running_workload_keeps_its_module_and_grants_with_systemd(repeated: Repeated) -> None:
    repeated.loader.systemd.drain()
    assert repeated.loader.systemd.parked == KEPT
    for name, text in ARTIFACTS.items():
        assert os.pread(repeated.loader.systemd.stored[name], 100, 0) == text.encode()


def test_a_workload_that_failed_is_run_again_with_all_it_had(repeated: Repeated) -> None:
    assert os.read(repeated.descriptors[1], 100) == b"one line\n"  # as its first run did: the offset is shared
    repeated.exit(1)
    stub = repeated.again()
    assert stub.role == "runner"
    assert stub.environment == {
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "KEEPFLEET_RUNTIME_DIRECTORY": str(repeated.loader.directory),
        "KEEPFLEET_LIMITS": Limits().to_text(),
        "KEEPFLEET_DESCRIPTORS": "workload",
    }
    assert set(stub.descriptors) == set(range(5))
    assert list(stub.given) == ["compiled", "module", *GRANTED]
    given = [os.readlink(f"/proc/self/fd/{number}") for number in repeated.descriptors]
    assert [stub.given[name] for name in GRANTED] == given
    assert os.read(repeated.descriptors[1], 100) == b"one line\n"  # from its beginning
    info = repeated.info()
    assert (info.state, info.restarts, info.outcome) == (State.STARTED, 1, None)
    assert "running the workload again: exited 1" in repeated.loader.log_text()
    repeated.loader.systemd.wait_for("STATUS", "started: running a workload (started again once)")
    repeated.exit(0)
    info = repeated.end()
    assert (info.state, info.detail, info.restarts) == (State.COMPLETE, "exited 0", 1)
    assert info.outcome is not None
    assert info.outcome.peak_bytes is not None and info.outcome.peak_bytes > 1_000_000
    repeated.loader.systemd.drain()
    assert repeated.loader.systemd.parked == set()


def test_one_ring_and_one_count_of_entries_go_on_over_all_runs(
    loader: LoaderProcess, unread: Endpoint, place: Path
) -> None:
    with (
        journald_reading(unread) as entries,
        begun(loader, unread, place.parent, RestartPolicy.ON_FAILURE) as repeated,
    ):
        repeated.stub.do("write", to=1, text="first\nhalf")
        repeated.exit(1)
        stub = repeated.again()
        stub.do("write", to=1, text="second\n")
        repeated.exit(0)
        outcome = repeated.end().outcome
    assert unread.written(STDOUT) == b"first\nhalfsecond\n"
    assert any(line.endswith("running the workload again: exited 1") for line in unread.lines)
    assert outcome is not None and (outcome.output_bytes, outcome.lost_bytes) == (7, 0)
    assert [(entry["MESSAGE"], entry["KEEP_SEQ"]) for entry in entries] == [
        (b"first", b"0"),
        (b"half", b"1"),
        (b"second", b"2"),
    ]


def test_a_workload_that_did_its_job_is_not_run_again(repeated: Repeated) -> None:
    repeated.exit(0)
    assert repeated.end().state is State.COMPLETE
    repeated.loader.systemd.drain()
    assert repeated.loader.systemd.parked == set()


@ALWAYS_REPEATED
def test_a_workload_that_must_always_run_is_run_again_after_its_job(repeated: Repeated) -> None:
    repeated.exit(0)
    repeated.again()
    assert repeated.info().restarts == 1


@ALWAYS_REPEATED
def test_a_stop_is_permanent(repeated: Repeated) -> None:
    assert repeated.loader.peer().ask(CommandType.STOP, "alice").detail == "stopped by alice"
    repeated.loader.systemd.drain()
    assert repeated.loader.systemd.parked == set()
    assert repeated.end().detail == "stopped by alice"
    assert repeated.loader.end() == 0


def test_a_stop_between_a_workloads_report_and_its_exit_is_permanent(
    unstarted: LoaderProcess, passed: Endpoint, place: Path
) -> None:
    patient = "keep_loader.process:TERM_SECONDS=60,keep_loader.running:LINGER_SECONDS=60"  # its exit is to end it
    unstarted.start(environment={"FAKE_CONSTANTS": patient})
    with begun(unstarted, passed, place.parent, RestartPolicy.ALWAYS) as repeated:
        repeated.stub.report("ended", outcome={"kind": "exited", "text": "exited 1", "exit_code": 1})
        peer = repeated.loader.peer()
        repeated.stub.do("ignore-term")  # its exit comes after the stop
        peer.send(CommandType.STOP, "alice")
        assert repeated.info().phase == "running"
        repeated.stub.order("exit", code=1)
        info = peer.answer()
        assert (info.phase, info.detail, info.restarts) == ("ended", "exited 1", 0)
        repeated.loader.systemd.drain()
        assert repeated.loader.systemd.parked == set()


@ALWAYS_REPEATED
def test_a_stop_in_the_moment_of_a_restart_is_permanent(repeated: Repeated) -> None:
    """The loader finds the end of the process and the stop in one turn of its loop, in this order."""
    peer = repeated.loader.peer()
    peer.ask(CommandType.INFO)
    assert repeated.loader.process is not None
    repeated.loader.process.send_signal(signal.SIGSTOP)
    ended = os.pidfd_open(repeated.stub.pid)
    repeated.exit(1)
    assert select.select([ended], [], [], DEADLINE)[0]
    os.close(ended)
    peer.send(CommandType.STOP, "alice")
    repeated.loader.process.send_signal(signal.SIGCONT)
    info = peer.answer()
    assert (info.phase, info.detail, info.restarts) == ("ended", "stopped by alice", 0)
    assert repeated.end() == info
    repeated.loader.systemd.drain()
    assert repeated.loader.systemd.parked == set()
    assert repeated.loader.end() == 0


@ALWAYS_REPEATED
def test_the_end_of_the_unit_is_permanent(repeated: Repeated) -> None:
    assert repeated.loader.end(signal.SIGTERM) == 0
    assert "stopped by the end of its unit" in repeated.loader.log_text()


@ALWAYS_REPEATED
def test_a_crash_loop_ends_with_its_reason_before_systemd_ends_it(repeated: Repeated) -> None:
    for _ in range(MAX_RERUNS):
        repeated.exit(1)
        repeated.again()
    outcome = {"kind": "trapped", "text": "trapped: unreachable", "backtrace": ["0: f"]}
    repeated.stub.report("ended", outcome=outcome)
    repeated.stub.order("exit", code=1)
    info = repeated.end()
    assert (info.state, info.restarts) == (State.ERROR, MAX_RERUNS)
    assert info.detail == "gave it up after starting it again 4 times within 60 s: trapped: unreachable"
    assert info.outcome is not None
    assert (info.outcome.kind, info.outcome.backtrace) == (OutcomeKind.TRAPPED, ("0: f",))
    repeated.loader.systemd.drain()
    assert repeated.loader.systemd.stored == {}
    assert repeated.loader.end() == TRAP


def test_a_loader_that_is_killed_runs_the_workload_again(repeated: Repeated) -> None:
    repeated.loader.end(signal.SIGKILL)
    os.kill(repeated.stub.pid, signal.SIGKILL)
    repeated.loader.systemd.drain()
    repeated.loader.start()
    repeated.run()
    info = repeated.info()
    assert (info.state, info.restarts) == (State.STARTED, 1)
    assert "running the workload again: the loader was killed while the workload ran" in repeated.loader.log_text()


def test_a_module_that_systemd_did_not_keep_is_not_run_again(repeated: Repeated) -> None:
    repeated.exit(3)
    assert repeated.loader.process is not None
    repeated.loader.process.wait(DEADLINE)
    repeated.loader.systemd.drain()
    os.close(repeated.loader.systemd.stored.pop("compiled"))
    repeated.loader.start()
    info = repeated.end()
    assert (info.state, info.detail) == (
        State.ERROR,
        "cannot run the workload again: systemd did not keep its compiled",
    )
    assert info.outcome is not None and info.outcome.exit_code == 3


@pytest.mark.parametrize("names", [(), ("compiled",), ("module",), ("module", "compiled"), ("compiled", "other")])
def test_an_endpoint_that_accepts_what_no_runner_has_checked_ends_the_keep(
    loader: LoaderProcess, passed: Endpoint, place: Path, names: tuple[str, ...]
) -> None:
    made = Repeated(loader, passed, place.parent, RestartPolicy.ALWAYS)
    runner = made.stub.connect()
    runner.report("checked", dict.fromkeys(names, "x"))
    made.stub.order("report", report={"report": "accepted"}, files=ARTIFACTS)  # it may be killed before it said "done"
    info = made.end()
    assert (info.state, "accepted a module that was not checked" in info.detail) == (State.ERROR, True)
    for descriptor in made.descriptors:
        os.close(descriptor)
