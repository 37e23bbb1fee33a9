"""The loader's pure parts: outcomes, resumption, records, status lines, settings, and the loop's order."""

from __future__ import annotations

import importlib
import itertools
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keep_loader import isolation
from keep_loader.loop import READABLE, Loop, plain
from keep_loader.outcome import MAX_LINES_TOTAL, believe, event_of, plain_lines, resume_from
from keep_loader.running import memory_kills
from keep_loader.settings import ENTRIES, read_settings
from keep_loader.start import summary_of
from keep_loader.state import ENDPOINT_NAMES, OUTPUT_NAMES, RecordFile, status_text
from keep_protocol.constants import MAX_CONTROL_FRAME
from keep_protocol.control import Description, claimed_spec, decode_reply, encode_reply
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import MAX_SHOWN_ARGUMENTS, KeepReport, Module, Outcome, OutcomeKind, Uploader
from keep_protocol.limits import Limits
from keep_protocol.record import MAX_RECORD, KeepRecord, Private, decode_record
from keep_protocol.sdnotify import Notifier
from keep_protocol.spec import MAX_LABEL_VALUE, MAX_LABELS, MAX_UPLOADERS, KeepSpec, Kind, RestartPolicy, encode_spec
from keep_protocol.states import STATE_OF, TRANSITIONS, Event, Phase, State
from keep_protocol.workload import Workload

NOW = 1_800_000_000.0
UID = 61200
WHOLE_ENDPOINT = frozenset((*ENDPOINT_NAMES, *OUTPUT_NAMES))
EXITED_0 = Outcome(OutcomeKind.EXITED, "exited 0", exit_code=0)
WIDEST = "\U0001f512"
"""Printable, and twelve bytes in JSON."""


def saved(phase: Phase, **report: Any) -> KeepRecord:
    return KeepRecord(KeepReport(kuuid=7, state=STATE_OF[phase], phase=phase.value, **report))


@pytest.mark.parametrize("kind", list(OutcomeKind))
def test_every_outcome_moves_a_running_keep(kind: OutcomeKind) -> None:
    assert (Phase.RUNNING, event_of(Outcome(kind, "x"))) in TRANSITIONS


def test_a_workload_cannot_say_that_it_was_stopped() -> None:
    assert believe(Outcome(OutcomeKind.STOPPED, "x")) is None


@pytest.mark.parametrize("code", [None, -1, 1 << 32, 10**300])
def test_an_impossible_exit_code_is_not_believed(code: int | None) -> None:
    assert believe(Outcome(OutcomeKind.EXITED, "x", exit_code=code)) is None


@given(st.text(), st.lists(st.text(), max_size=200))
def test_what_is_believed_always_fits_an_answer_and_can_be_printed(text: str, lines: list[str]) -> None:
    trapped = Outcome(OutcomeKind.TRAPPED, text * 50, signal=5, backtrace=tuple(line * 30 for line in lines))
    outcome = believe(trapped)
    assert outcome is not None and outcome.signal is None
    assert outcome.text.isprintable() and outcome.text
    assert all(line.isprintable() for line in outcome.backtrace)
    info = KeepReport(kuuid=1, state=State.ERROR, detail=outcome.text[:200], certificate="x" * 8192, outcome=outcome)
    assert decode_reply(encode_reply(info)) == info


def longest(**more: Any) -> KeepReport:
    outcome = believe(Outcome(OutcomeKind.TRAPPED, WIDEST * 9999, backtrace=(WIDEST * 9999,) * 99))
    assert outcome is not None and sum(map(len, outcome.backtrace)) <= MAX_LINES_TOTAL
    return KeepReport(
        kuuid=1,
        state=State.ERROR,
        detail=WIDEST * 200,
        certificate="\n" * 8192,
        outcome=outcome,
        module=Module("sha256:" + "0" * 64, WIDEST * 255, 1 << 28),
        uploaded_by=Uploader("sha256:" + "0" * 64, WIDEST * 128, "f" * 64),
        uploaders=("name:" + "n" * 64,) * MAX_UPLOADERS,
        **more,
    )


LONGEST_SPEC = KeepSpec(
    name="n" * 63,
    labels=tuple((f"{number:063}", WIDEST * MAX_LABEL_VALUE) for number in range(MAX_LABELS)),
    owner=WIDEST * 128,
)


def test_the_longest_outcome_and_the_longest_labels_fit_an_answer() -> None:
    line = encode_reply(longest(), LONGEST_SPEC)
    assert len(line) <= MAX_CONTROL_FRAME
    assert claimed_spec(line).labels == LONGEST_SPEC.labels


def test_an_answer_that_would_be_too_long_loses_the_summary_of_its_workload() -> None:
    shown = summary_of(Workload((WIDEST * 100_000,)))
    line = encode_reply(longest(workload=shown), LONGEST_SPEC)
    assert len(line) <= MAX_CONTROL_FRAME
    assert decode_reply(line) == longest()
    assert decode_reply(encode_reply(longest(workload=shown))).workload == shown


@given(st.lists(st.text(max_size=3000), max_size=20), st.lists(st.just(""), max_size=6000))
def test_of_arguments_so_many_characters_are_shown_and_no_more(long: list[str], empty: list[str]) -> None:
    arguments = tuple(text.replace("\0", "") for text in (*long, *empty))
    try:
        shown = summary_of(Workload(arguments)).arguments
    except KeepfleetError:
        return  # no Unicode
    assert sum(len(text) + 1 for text in shown) <= MAX_SHOWN_ARGUMENTS
    if sum(len(text) + 1 for text in arguments) <= MAX_SHOWN_ARGUMENTS:
        assert shown == arguments
    assert all(whole.startswith(text) for whole, text in zip(arguments, shown, strict=False))


def test_evidence_keeps_its_first_lines() -> None:
    assert plain_lines(("a\tb", "\x1b[0m", "c")) == ("a b", "[0m", "c")
    assert len(plain_lines(("x",) * 1000)) == 64


@given(st.text(), st.integers(0, 50))
def test_plain_text_is_one_printable_line_of_its_length(text: str, limit: int) -> None:
    assert len(plain(text, limit)) <= limit
    assert plain(text, limit).isprintable()


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("stored", [frozenset[str](), WHOLE_ENDPOINT, WHOLE_ENDPOINT - {"identity"}])
def test_every_record_leads_somewhere_a_booting_keep_may_go(phase: Phase, stored: frozenset[str]) -> None:
    assert (Phase.BOOTING, resume_from(saved(phase), stored, NOW, (), UID).event) in TRANSITIONS


@pytest.mark.parametrize("missing", ENDPOINT_NAMES)
def test_an_endpoint_is_opened_again_only_with_all_it_had(missing: str) -> None:
    assert resume_from(saved(Phase.AWAITING), WHOLE_ENDPOINT, NOW, (), UID).event is Event.RESUME
    assert resume_from(saved(Phase.REOPENING), WHOLE_ENDPOINT, NOW, (), UID).event is Event.RESUME
    resumption = resume_from(saved(Phase.AWAITING), WHOLE_ENDPOINT - {missing}, NOW, (), UID)
    assert (resumption.event, missing in resumption.why) == (Event.FAIL, True)


OUTCOMES = st.none() | st.builds(
    Outcome, st.sampled_from(tuple(OutcomeKind)), st.text(), st.none() | st.integers(0, 255)
)


@given(
    st.builds(
        KeepReport,
        kuuid=st.integers(1, 1 << 50),
        state=st.sampled_from(tuple(State)),
        phase=st.sampled_from([phase.value for phase in Phase]),
        address=st.text(max_size=64),
        port=st.integers(0, 65535),
        detail=st.text(),
        outcome=OUTCOMES,
        restart=st.sampled_from(tuple(RestartPolicy)),
        restarts=st.integers(0, 1 << 53),
        uploaders=st.lists(st.sampled_from(["*", "name:alice"]), max_size=16).map(tuple),
    ),
    st.builds(
        Private,
        names=st.lists(st.sampled_from(["a.example", "::1"]), max_size=16).map(tuple),
        granted=st.lists(st.sampled_from(["workload", "stdin", "directory-0", "secret-15"]), max_size=48).map(tuple),
        reruns=st.lists(st.floats(0, 1e9), max_size=9).map(tuple),
        started_at=st.none() | st.floats(0, 1e9),
        description=st.none() | st.builds(Description, name=st.sampled_from(["", "web"]), owner=st.just("Ann Example")),
    ),
)
def test_a_record_comes_back_as_it_was(report: KeepReport, private: Private) -> None:
    record = KeepRecord(report, private)
    assert decode_record(record.encode()) == record


@given(st.binary(max_size=300))
def test_no_bytes_in_a_record_do_more_than_be_refused(data: bytes) -> None:
    with pytest.raises(KeepfleetError):
        decode_record(data)


@given(st.integers(0, 1200), st.integers(0, 255))
def test_no_flipped_byte_in_a_record_does_more_than_be_refused(place: int, byte: int) -> None:
    data = bytearray(saved(Phase.AWAITING, address="127.0.0.1", port=3031, outcome=EXITED_0).encode())
    data[place % len(data)] = byte
    try:
        decode_record(bytes(data))
    except KeepfleetError as error:
        assert error.kind is ErrorKind.BAD_REQUEST


def test_a_record_comes_back_as_it_was_written_last_and_has_no_name(tmp_path: Path) -> None:
    file = RecordFile(str(tmp_path), Notifier({}), None)
    assert file.read() is None
    for phase in (Phase.OPENING, Phase.AWAITING, Phase.RUNNING, Phase.ENDED, Phase.FAILED):
        file.write(saved(phase, certificate="x" * (10_000 - 1000 * phase.value.count("e"))))
        record = file.read()
        assert record is not None and record.phase is phase
    assert list(tmp_path.iterdir()) == []
    file.forget()
    assert file.read() is None


class Parking(Notifier):
    """What systemd's store holds of the record, as it would be read by the loader that follows."""

    def __init__(self) -> None:
        super().__init__({})
        self.parked: list[int] = []

    def store(self, name: str, descriptor: int) -> bool:
        self.parked = [os.fstat(descriptor).st_size]
        return True

    def unstore(self, name: str) -> bool:
        self.parked = []
        return True


def test_no_record_is_parked_before_there_is_something_in_it(tmp_path: Path) -> None:
    """A loader that is killed between a start and its first move is followed by one that finds none."""
    systemd = Parking()
    file = RecordFile(str(tmp_path), systemd, None)
    file.write(saved(Phase.OPENING))
    assert systemd.parked[0] > 0
    file.move_to(os.open(tmp_path / "record", os.O_RDWR | os.O_CREAT))
    assert systemd.parked == []
    file.write(saved(Phase.OPENING))
    assert systemd.parked[0] > 0
    file.leave()
    file.write(saved(Phase.ENDED))
    assert systemd.parked == []
    file.forget()


@given(st.integers(0, 1200))
def test_a_writing_that_was_cut_off_leaves_the_one_before_it(cut: int) -> None:
    with tempfile.TemporaryFile() as raw:
        file = RecordFile("/nowhere", Notifier({}), os.dup(raw.fileno()))
        for phase in (Phase.OPENING, Phase.AWAITING, Phase.REOPENING):
            file.write(saved(phase))
        newest = os.pread(raw.fileno(), 4096, MAX_RECORD)
        older = b"1\n" + saved(Phase.OPENING).encode() + b"\n1\n"
        torn = newest[: cut % newest.index(b"\n3\n")] + older[cut % newest.index(b"\n3\n") :]
        os.pwrite(raw.fileno(), torn.ljust(len(newest), b" "), MAX_RECORD)
        file.forget()
        record = RecordFile("/nowhere", Notifier({}), raw.fileno()).read()
        assert record is not None and record.phase is Phase.AWAITING


def shown(phase: Phase, **more: Any) -> str:
    return status_text(KeepReport(kuuid=1, state=STATE_OF[phase], phase=phase.value, **more))


def test_status_lines_read_well() -> None:
    place = {"address": "::1", "port": 3031, "fingerprint": "sha256:" + "ab" * 32}
    assert shown(Phase.AWAITING, detail="awaiting workload", **place) == (
        "started: awaiting workload on [::1]:3031, sha256:abababababab…"
    )
    assert shown(Phase.OPENING, detail="opening the upload endpoint", address="10.0.0.1", port=1) == (
        "listening: opening the upload endpoint on 10.0.0.1:1"
    )
    outcome = Outcome(OutcomeKind.EXITED, "exited 3", 3, wall_seconds=0.25, peak_bytes=12_000_000)
    assert shown(Phase.ENDED, detail="exited 3", outcome=outcome, **place) == "complete: exited 3 (0.25 s, 12 MB)"
    assert shown(Phase.FAILED, detail="the loader was killed") == "error: the loader was killed"


ENVIRONMENT = {"RUNTIME_DIRECTORY": "/run/keepfleet/7:/other", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": ""}


def test_settings_come_from_the_unit() -> None:
    settings = read_settings(["7"], {**ENVIRONMENT, "KEEPFLEET_MAX_WORKLOAD": "1000"})
    assert (settings.kuuid, settings.directory, settings.watchdog_seconds) == (7, "/run/keepfleet/7", 30.0)
    assert settings.max_workload == 1000
    assert (settings.spec, settings.has_spec) == (KeepSpec(), False)
    assert settings.entries is ENTRIES[Kind.UPLOAD]
    assert read_settings([], {**ENVIRONMENT, "KEEPFLEET_KUUID": "8"}).kuuid == 8


@pytest.mark.parametrize("kind", Kind)
def test_what_each_kind_s_forks_call_is_there(kind: Kind) -> None:
    for entry in filter(None, (ENTRIES[kind].endpoint, ENTRIES[kind].runner)):
        module, _, function = entry.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_the_spec_of_the_unit_counts_and_not_its_limits() -> None:
    spec = KeepSpec(name="web", owner="alice", limits=Limits(wall_seconds=7), restart=RestartPolicy.ALWAYS)
    variables = {"KEEPFLEET_SPEC": encode_spec(spec), "KEEPFLEET_LIMITS": Limits(wall_seconds=9).to_text()}
    settings = read_settings(["7"], {**ENVIRONMENT, **variables})
    assert (settings.spec, settings.has_spec) == (spec, True)
    old = read_settings(["7"], {**ENVIRONMENT, "KEEPFLEET_LIMITS": variables["KEEPFLEET_LIMITS"]})
    assert (old.spec.limits.wall_seconds, old.has_spec) == (9, False)


def test_a_watchdog_of_another_process_is_not_ours() -> None:
    assert read_settings(["7"], {**ENVIRONMENT, "WATCHDOG_PID": "1"}).watchdog_seconds == 0
    assert read_settings(["7"], {**ENVIRONMENT, "WATCHDOG_PID": str(os.getpid())}).watchdog_seconds == 30


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        ([], ENVIRONMENT),
        (["0"], ENVIRONMENT),
        (["7", "8"], ENVIRONMENT),
        (["7"], {}),
        (["7"], {"RUNTIME_DIRECTORY": "relative"}),
        (["7"], {"RUNTIME_DIRECTORY": "/" + "x" * 100}),
        (["7"], {**ENVIRONMENT, "WATCHDOG_USEC": "-1"}),
        (["7"], {**ENVIRONMENT, "KEEPFLEET_LIMITS": "wall_seconds=0"}),
        (["7"], {**ENVIRONMENT, "KEEPFLEET_LIMITS": "speed=1"}),
        (["7"], {**ENVIRONMENT, "KEEPFLEET_MAX_WORKLOAD": "9" * 40}),
        (["7"], {**ENVIRONMENT, "KEEPFLEET_SPEC": ""}),
        (["7"], {**ENVIRONMENT, "KEEPFLEET_SPEC": "{}"}),
    ],
)
def test_a_wrong_start_is_one_clear_error(arguments: list[str], environment: dict[str, str]) -> None:
    with pytest.raises(KeepfleetError, match=r"cannot |invalid "):
        read_settings(arguments, environment)


def test_the_loop_calls_no_handler_of_a_descriptor_that_was_closed_meanwhile() -> None:
    loop, calls = Loop(), list[str]()
    pairs = [socket.socketpair() for _ in range(2)]

    def first_wins(name: str, other: socket.socket) -> None:
        calls.append(name)
        loop.forget(other.fileno())
        loop.stop()

    loop.watch(pairs[0][0].fileno(), READABLE, lambda _: first_wins("a", pairs[1][0]))
    loop.watch(pairs[1][0].fileno(), READABLE, lambda _: first_wins("b", pairs[0][0]))
    for _, writer in pairs:
        writer.send(b"x")
    loop.run()
    assert len(calls) == 1
    for sock in itertools.chain.from_iterable(pairs):
        sock.close()


def test_deadlines_come_in_time_can_be_moved_and_can_be_dropped() -> None:
    loop, calls = Loop(), list[str]()
    loop.after("dropped", 0, lambda: calls.append("dropped"))
    loop.cancel("dropped")
    loop.after("moved", 0, lambda: calls.append("early"))
    loop.after("moved", 0.02, lambda: calls.append("late"))
    loop.after("end", 0.04, loop.stop)
    began = time.monotonic()
    loop.run()
    assert calls == ["late"]
    assert 0.04 <= time.monotonic() - began < 5
    assert not loop.is_set("end")


def test_of_several_deadlines_that_have_passed_the_earlier_one_comes_first() -> None:
    loop, calls = Loop(), list[str]()
    loop.after("later", -1.0, lambda: calls.append("later"))
    loop.after("earlier", -2.0, lambda: calls.append("earlier"))
    loop.after("end", 0.0, loop.stop)
    loop.run()
    assert calls == ["earlier", "later"]


def test_a_deadline_may_lie_years_ahead() -> None:
    loop = Loop()
    reader, writer = os.pipe()
    loop.after("far", 10 * 365 * 86400.0, loop.stop)
    loop.watch(reader, READABLE, lambda _: loop.stop())
    os.write(writer, b"x")
    loop.run()
    assert loop.is_set("far")
    for descriptor in (reader, writer):
        os.close(descriptor)


def test_the_probe_names_every_isolation_failure_of_an_ordinary_process(tmp_path: Path) -> None:
    missing = isolation.isolation_failures(str(tmp_path))
    assert "a socket of AF_INET can be made" in missing
    assert "system calls are not filtered" in missing or "new privileges can be gained" in missing
    assert any(line.startswith("programs in ") for line in missing)
    strict = isolation.isolation_failures(str(tmp_path), strict=True)
    words = "memory can be made that is both writable and executable (MemoryDenyWriteExecute=)"
    assert set(strict) - set(missing) == {words}


def test_a_bus_that_can_be_connected_to_is_an_isolation_failure(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bus:
        bus.bind(str(place / "bus"))
        bus.listen()
        found = isolation._buses((str(place / "bus"), str(place / "none")))
    assert found == [f"{place}/bus can be connected to"]


def test_the_kernels_memory_counter_can_be_read_or_is_zero() -> None:
    assert memory_kills() >= 0
