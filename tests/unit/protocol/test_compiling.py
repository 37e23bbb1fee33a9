"""What a compilation is asked for, what it reports, and what its end means."""

from __future__ import annotations

import json
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keep_protocol.compiling import (
    MAX_EVIDENCE_LINE,
    MAX_EVIDENCE_LINES,
    MAX_MESSAGE,
    VARIABLE,
    End,
    Job,
    encode_report,
    read_job,
    read_report,
    refusal_of_end,
)
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.spec import Compiler, Profile

JOB = Job(seconds=7, memory_bytes=300 << 20)


@pytest.mark.parametrize("job", [Job(), JOB, Job(profile=Profile.STRICT), Job(compiler=Compiler.FAST)])
def test_a_job_is_read_as_it_was_written_in_safe_characters_alone(job: Job) -> None:
    text = job.to_text()
    assert set(text) <= set("abcdefghijklmnopqrstuvwxyz0123456789=,_")
    assert read_job({VARIABLE: text}) == job


@pytest.mark.parametrize(
    "text",
    ["", "seconds", "seconds=0", "seconds=x", "hours=1", "profile=lax", "seconds=1,", "seconds=1;x=2", "seconds=1\n"],
)
def test_what_is_no_job_is_refused(text: str) -> None:
    with pytest.raises(KeepfleetError) as caught:
        read_job({VARIABLE: text})
    assert caught.value.kind is ErrorKind.BAD_REQUEST


def test_a_job_that_no_engine_can_do_is_refused() -> None:
    with pytest.raises(KeepfleetError, match="leave one of them out"):
        Job(profile=Profile.STRICT, compiler=Compiler.FAST)


def test_a_report_is_read_as_it_was_written() -> None:
    assert read_report(encode_report("it imports wasi:sockets")) == "it imports wasi:sockets"
    found = read_report(
        b"thread panicked\n" + encode_report(KeepfleetError(ErrorKind.INVALID_MODULE, "no", ("a", "b")))
    )
    assert isinstance(found, KeepfleetError)
    assert (found.kind, found.message, found.evidence) == (ErrorKind.INVALID_MODULE, "no", ("a", "b"))


@pytest.mark.parametrize("kind", ["forbidden", "certificate", "internal", "no-such", 7, None])
def test_a_report_of_another_kind_is_a_fault_and_not_what_it_says(kind: object) -> None:
    found = read_report(json.dumps({"error": {"kind": kind, "message": "x", "evidence": []}}).encode())
    assert isinstance(found, KeepfleetError)
    assert found.kind is ErrorKind.INTERNAL


def test_a_report_is_bounded_and_printable_whatever_it_says() -> None:
    hostile = {"error": {"kind": "too-complex", "message": "\x1b[31m" + "a" * 5000, "evidence": ["\n" * 300] * 99}}
    found = read_report(json.dumps(hostile).encode())
    assert isinstance(found, KeepfleetError)
    assert len(found.message) == MAX_MESSAGE
    assert found.message.startswith("?[31m")
    assert len(found.evidence) == MAX_EVIDENCE_LINES
    assert set(map(len, found.evidence)) == {MAX_EVIDENCE_LINE}


@given(st.binary(max_size=300))
def test_bytes_that_are_no_report_are_none(data: bytes) -> None:
    found = read_report(data)
    assert found is None or isinstance(found, (str, KeepfleetError))


@pytest.mark.parametrize(
    ("end", "status", "kind", "words"),
    [
        (End.KILLED, signal.SIGXCPU, ErrorKind.TOO_COMPLEX, "takes more than 7 s of processor time"),
        (End.KILLED, signal.SIGABRT, ErrorKind.TOO_COMPLEX, "takes more than 300 MiB of memory (it ended by SIGABRT)"),
        (End.KILLED, signal.SIGSEGV, ErrorKind.TOO_COMPLEX, "it ended by SIGSEGV"),
        (End.MEMORY, signal.SIGKILL, ErrorKind.TOO_COMPLEX, "takes more than 300 MiB of memory"),
        (End.KILLED, signal.SIGKILL, ErrorKind.UNAVAILABLE, "says nothing of the module"),
        (End.TIMEOUT, 0, ErrorKind.UNAVAILABLE, "not done after 81 s"),
        (End.EXITED, 203, ErrorKind.INTERNAL, "ended with 203"),
        (End.EXITED, 0, ErrorKind.INTERNAL, "ended with 0"),
    ],
)
def test_each_end_without_a_result_says_whether_it_was_the_module_s(
    end: End, status: int, kind: ErrorKind, words: str
) -> None:
    error = refusal_of_end(end, status, JOB, b"memory allocation of 9 bytes failed\n")
    assert error.kind is kind
    assert words in error.message


def test_a_fault_of_the_compiler_s_own_is_said_to_be_one_with_its_words() -> None:
    said = b"\nthread (7) panicked at crates/a.rs:243:14:\ninvalid adapter: multiple memories\nstack backtrace:\n"
    error = refusal_of_end(End.KILLED, signal.SIGABRT, JOB, said)
    assert error.kind is ErrorKind.INVALID_MODULE
    assert error.message.endswith("a fault of wasmtime's: invalid adapter: multiple memories")


def test_a_compiler_that_panics_for_want_of_memory_was_asked_for_too_much() -> None:
    said = b"thread (7) panicked at map.rs:402:55:\nunhandled out-of-memory error: failed to allocate 9 bytes\n"
    assert refusal_of_end(End.KILLED, signal.SIGABRT, JOB, said).kind is ErrorKind.TOO_COMPLEX
