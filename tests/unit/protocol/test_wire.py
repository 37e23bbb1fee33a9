"""What crosses process boundaries: strict JSON, frames, commands, replies, reports and keeps, there and back."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keep_protocol import strict_json
from keep_protocol.constants import (
    KUUID_BITS,
    MAX_CONTROL_FRAME,
    SLICE_GROUPS,
    control_socket_path,
    kuuid_of_unit,
    parse_kuuid,
    slice_name,
    unit_name,
)
from keep_protocol.control import (
    Command,
    CommandType,
    FrameDecoder,
    StartMessage,
    claimed_spec,
    decode_command,
    decode_reply,
    decode_start,
    encode_command,
    encode_reply,
    start,
)
from keep_protocol.errors import ErrorKind, KeepfleetError, error_from_wire
from keep_protocol.fields import parse
from keep_protocol.keep import (
    KeepInfo,
    KeepReport,
    Module,
    Outcome,
    OutcomeKind,
    Uploader,
    WorkloadSummary,
    keep_from_wire,
)
from keep_protocol.limits import Limits
from keep_protocol.reports import Report, ReportType, decode_report, encode_report
from keep_protocol.spec import KeepSpec, Kind, RestartPolicy
from keep_protocol.states import State

COUNTS = st.none() | st.integers(0, 1 << 63)
PRINTABLE = st.text("aZ 9é€", max_size=255)
SECONDS = st.none() | st.floats(0, 1e9)
OUTCOMES = st.builds(
    Outcome,
    kind=st.sampled_from(tuple(OutcomeKind)),
    text=st.text(),
    exit_code=st.none() | st.integers(0, (1 << 32) - 1),
    signal=st.none() | st.integers(0, 127),
    backtrace=st.lists(st.text()).map(tuple),
    wall_seconds=SECONDS,
    cpu_seconds=SECONDS,
    peak_bytes=COUNTS,
    output_bytes=COUNTS,
    started_at=SECONDS,
    ended_at=SECONDS,
    ended_monotonic=SECONDS,
    by=st.text(),
)
KEEPS = st.builds(
    KeepInfo,
    kuuid=st.integers(1, (1 << KUUID_BITS) - 1),
    state=st.sampled_from(tuple(State)),
    detail=st.text(),
    address=st.text(max_size=64),
    port=st.integers(0, 65535),
    fingerprint=st.text(max_size=80),
    certificate=st.text(),
    unit=st.text(max_size=64),
    isolation_failures=st.lists(st.text()).map(tuple),
    outcome=st.none() | OUTCOMES,
    name=st.text("abz09-", max_size=63),
    labels=st.dictionaries(st.text("abz09./-", min_size=1, max_size=63), PRINTABLE, max_size=16).map(
        lambda labels: tuple(sorted(labels.items()))
    ),
    owner=st.text(max_size=128),
    restarts=st.integers(0, 1 << 53),
    kind=st.sampled_from(tuple(Kind)),
    created_at=SECONDS,
    restart=st.sampled_from(tuple(RestartPolicy)),
    module=st.none() | st.builds(Module, st.just("sha256:" + "a" * 64), st.text(max_size=255), st.integers(0, 1 << 53)),
    workload=st.none() | st.builds(WorkloadSummary, st.lists(st.text()).map(tuple), stdin=st.booleans()),
    uploaders=st.lists(st.sampled_from(["*", "name:ann", "sha256:" + "b" * 64]), max_size=3).map(tuple),
    uploaded_by=st.none() | st.builds(Uploader, st.just("sha256:" + "c" * 64), st.text(max_size=128)),
)
COMMANDS = st.builds(Command, st.sampled_from(tuple(CommandType)), st.text())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"5",
        b"[]",
        b"null",
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":1,"a":2}',
        b'{"x":{"a":1,"a":2}}',
        b'{"a":1}}',
        b'{"a":"\xff"}',
        b'\xef\xbb\xbf{"a":1}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":' + b"[" * 100_000,
    ],
)
def test_json_that_is_not_strict_is_a_bad_request(data: bytes) -> None:
    with pytest.raises(KeepfleetError, match="cannot read the thing: ") as refused:
        strict_json.loads_object(data, 1 << 20, "the thing")
    assert refused.value.kind is ErrorKind.BAD_REQUEST


def test_json_over_its_limit_is_not_parsed() -> None:
    assert strict_json.loads_object(b'{"a":1}', 7, "it") == {"a": 1}
    with pytest.raises(KeepfleetError) as refused:
        strict_json.loads_object(b'{"a":1}', 6, "it")
    assert refused.value.kind is ErrorKind.TOO_LARGE


def test_what_is_no_json_is_never_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        strict_json.dumps({"a": math.inf})


@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text()))
def test_written_json_is_one_line_of_ascii_and_reads_back(value: dict[str, object]) -> None:
    line = strict_json.dumps(value)
    assert b"\n" not in line and line.isascii()
    assert strict_json.loads_object(line, len(line), "it") == value


@given(st.lists(COMMANDS, max_size=5), st.data())
def test_frames_come_out_whole_however_the_stream_is_cut(commands: list[Command], data: st.DataObject) -> None:
    separators = [data.draw(st.sampled_from([b"", b" ", b"\n", b"\r\n\t"])) for _ in commands]
    stream = b"".join(encode_command(command).strip() + gap for command, gap in zip(commands, separators, strict=True))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    decoder, frames = FrameDecoder(), list[bytes]()
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        frames += decoder.feed(stream[begin:end])
    assert [decode_command(frame) for frame in frames] == commands
    assert not decoder.waiting


@given(st.binary(max_size=200))
def test_no_bytes_do_more_to_a_decoder_than_be_refused(data: bytes) -> None:
    try:
        for frame in FrameDecoder().feed(data):
            assert frame.startswith(b"{")
    except KeepfleetError as error:
        assert error.kind is ErrorKind.BAD_REQUEST


def test_braces_and_quotes_in_strings_end_no_frame() -> None:
    frame = b'{"a":"}\\"}{\\\\"}'
    assert FrameDecoder().feed(frame + frame) == [frame, frame]


def test_a_decoder_knows_that_a_frame_has_begun() -> None:
    decoder = FrameDecoder()
    assert not decoder.waiting
    decoder.feed(b" \n{")
    assert decoder.waiting
    assert decoder.feed(b"}") == [b"{}"]
    assert not decoder.waiting


@pytest.mark.parametrize("data", [b"x", b"}", b"]", b'"', b"{}x", b"\0"])
def test_what_is_no_object_breaks_the_stream(data: bytes) -> None:
    with pytest.raises(KeepfleetError) as refused:
        FrameDecoder().feed(data)
    assert refused.value.kind is ErrorKind.BAD_REQUEST


def test_a_frame_may_be_just_as_long_as_the_limit() -> None:
    frame = b'{"a":"' + b"x" * 92 + b'"}'
    assert FrameDecoder(100).feed(frame + frame) == [frame, frame]
    with pytest.raises(KeepfleetError) as refused:
        FrameDecoder(99).feed(frame)
    assert refused.value.kind is ErrorKind.TOO_LARGE
    decoder = FrameDecoder(100)
    with pytest.raises(KeepfleetError):
        for _ in range(200):
            decoder.feed(b"{")


@given(COMMANDS)
def test_a_command_comes_back_as_it_was(command: Command) -> None:
    assert decode_command(encode_command(command)) == command


def test_the_originals_commands_are_read() -> None:
    frame = b'{"commandtype":"apploader-addr","commandcontents":"127.0.0.1"}'
    assert decode_command(frame) == Command(CommandType.ADDR, "127.0.0.1")


def test_an_unknown_command_has_its_own_kind() -> None:
    with pytest.raises(KeepfleetError) as refused:
        decode_command(b'{"commandtype":"explode"}')
    assert refused.value.kind is ErrorKind.UNKNOWN_COMMAND


@given(KEEPS)
def test_a_keep_comes_back_as_it_was(info: KeepInfo) -> None:
    assert keep_from_wire(info.to_wire()) == info


REPORTS = st.builds(
    KeepReport,
    kuuid=st.integers(1, (1 << KUUID_BITS) - 1),
    state=st.sampled_from(tuple(State)),
    phase=st.sampled_from(["", "idle", "awaiting-workload", "ended"]),
    detail=st.text(max_size=200),
    address=st.text(max_size=64),
    port=st.integers(0, 65535),
    isolation_failures=st.lists(st.text(max_size=50)).map(tuple),
    outcome=st.none() | OUTCOMES,
    restart=st.sampled_from(tuple(RestartPolicy)),
    restarts=st.integers(0, 1 << 53),
    uploaders=st.lists(st.sampled_from(["*", "name:ann"]), max_size=16).map(tuple),
    control_version=st.integers(1, 2),
)
SPECS = st.builds(
    KeepSpec,
    name=st.from_regex(r"[a-z0-9-]{0,63}", fullmatch=True),
    labels=st.dictionaries(st.from_regex(r"[a-z0-9./-]{1,63}", fullmatch=True), PRINTABLE, max_size=16).map(
        lambda labels: tuple(sorted(labels.items()))
    ),
    owner=PRINTABLE.map(lambda text: text[:128]),
    limits=st.builds(Limits, wall_seconds=st.integers(1, 1000)),
)


@given(REPORTS, SPECS)
def test_an_answer_is_read_as_the_report_and_as_what_it_claims_of_the_spec(report: KeepReport, spec: KeepSpec) -> None:
    line = encode_reply(report, spec)
    assert decode_reply(line.strip()) == report
    assert claimed_spec(line.strip()) == spec


def test_an_answer_of_version_1_is_read_by_its_old_words() -> None:
    answer = {"state": 1, "kuuid": 7, "walls": ["a wall"], "owner": "Ann Example"}
    report = decode_reply(strict_json.dumps(answer))
    assert (report.isolation_failures, report.control_version) == (("a wall",), 1)
    error = {"error": {"kind": "wall-missing", "message": "cannot", "evidence": ["a wall"]}}
    with pytest.raises(KeepfleetError) as refused:
        decode_reply(strict_json.dumps(error))
    assert (refused.value.kind, refused.value.evidence) == (ErrorKind.ISOLATION_FAILURE, ("a wall",))


@pytest.mark.parametrize("change", [{"name": "UPPER"}, {"owner": 5}, {"labels": {"a": 1}}, {"limits": {"tasks": 0}}])
def test_a_claim_of_another_shape_is_a_bad_request(change: dict[str, object]) -> None:
    with pytest.raises(KeepfleetError) as refused:
        claimed_spec(strict_json.dumps({"state": 1, "kuuid": 7, **change}))
    assert refused.value.kind is ErrorKind.BAD_REQUEST


def test_a_start_comes_back_as_it_was() -> None:
    message = StartMessage("::1", ("a.example",), ("name:ann", "*"), ("listener", "workload", "directory-15"))
    command = start(message)
    assert decode_command(encode_command(command)) == command
    assert decode_start(command.contents) == message


def test_a_keep_has_the_originals_members() -> None:
    wire = KeepInfo(kuuid=7, state=State.STARTED, address="127.0.0.1", port=3031).to_wire()
    assert {name: wire[name] for name in ("state", "kuuid", "app_loader_bind_port", "bindaddress")} == {
        "state": 2,
        "kuuid": 7,
        "app_loader_bind_port": 3031,
        "bindaddress": "127.0.0.1",
    }


@pytest.mark.parametrize(
    "change",
    [
        {"state": 4},
        {"state": True},
        {"kuuid": "7"},
        {"kuuid": 1.5},
        {"detail": 5},
        {"isolation_failures": "x"},
        {"isolation_failures": [1]},
        {"outcome": []},
        {"outcome": {"kind": "odd"}},
        {"outcome": {"kind": "exited", "text": 5}},
        {"outcome": {"kind": "exited", "exit_code": 1.5}},
        {"outcome": {"kind": "exited", "wall_seconds": "1"}},
        {"outcome": {"kind": "exited", "wall_seconds": True}},
        {"outcome": {"kind": "exited", "wall_seconds": -1}},
        {"outcome": {"kind": "exited", "wall_seconds": 10**400}},
        {"outcome": {"kind": "exited", "cpu_seconds": math.inf}},
        {"outcome": {"kind": "exited", "cpu_seconds": math.nan}},
        {"outcome": {"kind": "exited", "output_bytes": "1"}},
        {"outcome": {"kind": "exited", "started_at": -1}},
        {"outcome": {"kind": "exited", "ended_at": math.inf}},
        {"outcome": {"kind": "exited", "by": None}},
        {"outcome": {"kind": "exited", "by": 5}},
        {"name": None},
        {"labels": []},
        {"labels": {"a": 1}},
        {"owner": 5},
        {"restarts": "1"},
        {"restarts": True},
    ],
)
def test_a_keep_of_another_shape_is_a_bad_request(change: dict[str, object]) -> None:
    with pytest.raises(KeepfleetError) as refused:
        keep_from_wire({**KeepInfo(kuuid=7, state=State.LISTENING).to_wire(), **change})
    assert refused.value.kind is ErrorKind.BAD_REQUEST


@given(OUTCOMES)
def test_an_outcome_comes_back_as_it_was(outcome: Outcome) -> None:
    assert parse(Outcome, outcome.to_wire(), "outcome") == outcome


@given(st.sampled_from(tuple(ErrorKind)), st.text(), st.lists(st.text()).map(tuple))
def test_an_error_comes_back_as_it_was(kind: ErrorKind, message: str, evidence: tuple[str, ...]) -> None:
    again = error_from_wire(KeepfleetError(kind, message, evidence).to_wire())
    assert (again.kind, again.message, again.evidence) == (kind, message, evidence)
    with pytest.raises(KeepfleetError) as raised:
        decode_reply(encode_reply(again))
    assert raised.value.kind is kind


@pytest.mark.parametrize("value", [None, 5, [], {}, {"message": 5}, {"message": "x", "evidence": "y"}])
def test_an_error_of_another_shape_is_internal_and_raises_nothing(value: object) -> None:
    assert error_from_wire(value).kind is ErrorKind.INTERNAL


def test_an_error_of_a_kind_from_the_future_is_internal() -> None:
    error = error_from_wire({"kind": "made-of-cheese", "message": "cannot x: y"})
    assert (error.kind, error.message) == (ErrorKind.INTERNAL, "cannot x: y")


@given(st.sampled_from(tuple(ReportType)), st.text(max_size=50), st.none() | OUTCOMES)
def test_a_report_comes_back_as_it_was(kind: ReportType, text: str, outcome: Outcome | None) -> None:
    report = Report(kind, text, fingerprint=text, certificate=text, outcome=outcome, descriptors=("identity",))
    packet = encode_report(report)
    if len(json.dumps(report.text)) < 1000 and len(packet) <= MAX_CONTROL_FRAME:
        assert decode_report(packet) == report


def test_a_report_carries_its_error() -> None:
    report = decode_report(encode_report(Report(ReportType.FAILED, error=KeepfleetError(ErrorKind.NO_SPACE, "full"))))
    assert report.error is not None and report.error.kind is ErrorKind.NO_SPACE


def test_a_report_with_a_huge_backtrace_is_shortened_to_fit() -> None:
    outcome = Outcome(OutcomeKind.TRAPPED, "x" * 100_000, backtrace=("frame" * 1000,) * 100)
    packet = encode_report(Report(ReportType.ENDED, outcome=outcome))
    again = decode_report(packet).outcome
    assert len(packet) <= MAX_CONTROL_FRAME
    assert again is not None and (again.kind, again.backtrace) == (OutcomeKind.TRAPPED, ())


@given(st.binary(max_size=300))
def test_no_packet_does_more_than_be_refused(packet: bytes) -> None:
    with pytest.raises(KeepfleetError):
        decode_report(packet)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_no_members_of_a_report_do_more_than_be_refused(value: object) -> None:
    for name in ("report", "text", "outcome", "error", "fingerprint"):
        packet = json.dumps({"report": "ended", name: value}).encode()
        try:
            decode_report(packet)
        except KeepfleetError as error:
            assert error.kind in (ErrorKind.BAD_REQUEST, ErrorKind.TOO_LARGE)


@given(st.integers(1, (1 << KUUID_BITS) - 1))
def test_a_keeps_id_and_unit_name_go_both_ways(kuuid: int) -> None:
    assert kuuid_of_unit(unit_name(kuuid)) == kuuid
    assert parse_kuuid(str(kuuid)) == kuuid
    assert slice_name(kuuid) in {f"keep-g{group:02d}.slice" for group in range(SLICE_GROUPS)}
    assert control_socket_path("/run", kuuid) == f"/run/keepfleet/{kuuid}/control.sock"


@pytest.mark.parametrize("text", ["", "0", "-1", "07", "7.0", " 7", "7\n", "٣", "9007199254740992", "1" * 40, "a"])
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(KeepfleetError) as refused:
        parse_kuuid(text)
    assert refused.value.kind is ErrorKind.BAD_REQUEST


@pytest.mark.parametrize(
    "unit",
    [
        "keep@0.service",
        "keep@.service",
        "keep@7.socket",
        "xkeep@7.service",
        "keep@7.service\n",
        "keep@9007199254740992.service",
    ],
)
def test_a_foreign_unit_is_no_keep(unit: str) -> None:
    assert kuuid_of_unit(unit) is None


@pytest.mark.parametrize("kuuid", [0, -1, 1 << KUUID_BITS])
def test_an_id_out_of_range_names_no_unit(kuuid: int) -> None:
    with pytest.raises(KeepfleetError):
        unit_name(kuuid)


ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("text", ["{", '{"a"', "[1", '"a', '{"a":tru', '{"a":1,}', '{"a" 1}'])
def test_json_that_is_not_whole_is_refused_in_a_process_without_the_json_module(text: str) -> None:
    """The accelerator looks for its exception there."""
    code = (
        "import sys; from keep_protocol.strict_json import loads_object\n"
        "from keep_protocol.errors import KeepfleetError\n"
        "before = 'json' in sys.modules\n"  # from 3.14 on the accelerator imports it for its exception
        "try: loads_object(sys.argv[1].encode(), 100, 'it')\n"
        "except KeepfleetError as error: print(error.kind.name, before)"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code, text], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "BAD_REQUEST False\n", done.stderr
