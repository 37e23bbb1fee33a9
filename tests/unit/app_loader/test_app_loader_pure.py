"""The decisions that need no process: settings, requests, outcomes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app_loader.receive.http1 import Head
from app_loader.receive.requests import STATUS_OF, Request, Route, error_answer, read_request
from app_loader.run import outcome
from app_loader.settings import read_settings
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import Outcome, OutcomeKind
from keep_protocol.limits import DEFAULT_LIMITS

GOOD = {
    "KEEPFLEET_KUUID": "7",
    "KEEPFLEET_ADDRESS": "127.0.0.1",
    "KEEPFLEET_PORT": "3031",
    "KEEPFLEET_NAMES": "Keep.example,10.0.0.1,::1,keep.example",
    "KEEPFLEET_RUNTIME_DIRECTORY": "/run/keepfleet/7",
}
USAGE = outcome.Usage(1.0, 0.5, 4096)


def test_settings_are_read_with_their_defaults() -> None:
    settings = read_settings(GOOD)
    assert (settings.kuuid, settings.port, settings.uploaders) == (7, 3031, ())
    assert settings.max_workload == 256 << 20


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KEEPFLEET_KUUID", "0x7"),
        ("KEEPFLEET_KUUID", ""),
        ("KEEPFLEET_ADDRESS", "localhost"),
        ("KEEPFLEET_ADDRESS", ""),
        ("KEEPFLEET_PORT", "0"),
        ("KEEPFLEET_PORT", "65536"),
        ("KEEPFLEET_PORT", "٣"),
        ("KEEPFLEET_NAMES", "a,DNS:b"),
        ("KEEPFLEET_NAMES", "a\nb"),
        ("KEEPFLEET_NAMES", ",".join("abcdefghijklmnopq")),
        ("KEEPFLEET_UPLOADERS", "alice"),
        ("KEEPFLEET_UPLOADERS", ",".join(f"name:{n}" for n in range(17))),
        ("KEEPFLEET_RUNTIME_DIRECTORY", "run"),
        ("KEEPFLEET_MAX_WORKLOAD", "-1"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(name: str, value: str) -> None:
    with pytest.raises(KeepfleetError):
        read_settings({**GOOD, name: value})


@given(
    st.one_of(st.binary(max_size=20), st.sampled_from([b"GET", b"POST", b"PUT"])),
    st.one_of(st.binary(max_size=20), st.sampled_from([b"/", b"/payload", b"/workload"])),
    st.lists(
        st.tuples(st.sampled_from([b"content-type", b"content-encoding", b"x-module-name"]), st.binary()), max_size=5
    ),
    st.one_of(st.none(), st.integers(0, 1 << 60)),
    st.booleans(),
)
def test_any_request_is_decided_or_refused(
    method: bytes, target: bytes, headers: list[tuple[bytes, bytes]], length: int | None, chunked: bool
) -> None:
    try:
        read_request(Head(method, target, tuple(headers), length, chunked), 1000)
    except KeepfleetError as error:
        assert 400 <= error_answer(error).status < 500


WASM = ((b"content-type", b"application/wasm"),)


@pytest.mark.parametrize(
    ("head", "route"),
    [
        (Head(b"GET", b"/"), Route.BANNER),
        (Head(b"GET", b"/", length=0), Route.BANNER),
        (Head(b"POST", b"/payload", length=5000), Route.PAYLOAD),
        (Head(b"POST", b"/payload", ((b"content-type", b"application/json; charset=utf-8"),), 1), Route.PAYLOAD),
        (Head(b"PUT", b"/workload", ((b"content-type", b"Application/WASM"),), chunked=True), Route.WORKLOAD),
        (Head(b"PUT", b"/workload", WASM, 1000), Route.WORKLOAD),
    ],
)
def test_the_three_requests_are_understood(head: Head, route: Route) -> None:
    assert read_request(head, 1000) == Request(route)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (Head(b"PUT", b"/workload", WASM, 1001), 413),
        (Head(b"PUT", b"/workload", WASM), 411),
        (Head(b"PUT", b"/workload", WASM * 2, 3), 400),
        (Head(b"GET", b"/", length=1), 400),
        (Head(b"GET", b"/", chunked=True), 400),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_with_its_status(head: Head, status: int) -> None:
    with pytest.raises(KeepfleetError) as caught:
        read_request(head, 1000)
    assert error_answer(caught.value).status == status


def test_every_other_kind_of_error_is_the_keeps_own_fault() -> None:
    for kind in set(ErrorKind) - set(STATUS_OF):
        assert error_answer(KeepfleetError(kind, "cannot")).status == 500


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            "error while executing\n\nCaused by:\n    0: memory fault\n    1: wasm trap: out of bounds memory access",
            "out of bounds memory access",
        ),
        ("wasm trap: integer overflow", "integer overflow"),
        ("something else", "something else"),
        ("", "the engine gave no reason"),
    ],
)
def test_a_traps_reason_is_found_in_its_message(message: str, reason: str) -> None:
    assert outcome.trapped(message, [], USAGE).text == f"trapped: {reason}"


def test_a_backtrace_is_bounded_and_printable() -> None:
    lines = outcome.backtrace([("evil\n\x1b[2J" + "x" * 5000, 1, 0x10), (None, 7, 0x20), *[("f", 2, 3)] * 100])
    assert all(line.isprintable() and len(line) < 400 for line in lines)
    assert lines[1] == "1: function 7 at 0x20"
    assert len(lines) == 21


def test_a_frame_without_an_offset_names_none() -> None:
    assert outcome.backtrace([("deeper", 0, (1 << 64) - 1), ("deeper", 0, 0x30)]) == ("0: deeper", "1: deeper at 0x30")


@pytest.mark.parametrize(("code", "process"), [(0, 0), (1, 1), (125, 125), (126, 125), (2**32 - 1, 125)])
def test_the_process_repeats_codes_up_to_125(code: int, process: int) -> None:
    ended = outcome.exited(code, USAGE)
    assert (ended.kind, ended.exit_code, outcome.process_code(ended)) == (OutcomeKind.EXITED, code, process)


@pytest.mark.parametrize(
    "ended",
    [outcome.lost("x", USAGE), outcome.not_started("x", DEFAULT_LIMITS, USAGE), outcome.trapped("x", [], USAGE)],
)
def test_every_other_end_is_code_1(ended: Outcome) -> None:
    assert outcome.process_code(ended) == 1
