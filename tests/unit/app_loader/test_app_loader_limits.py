"""The limits inside a keep, each reached in a real process and named in words; and what compiling may cost."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app_loader.check.checking import over, wall_seconds
from app_loader.check.compiler import budget
from app_loader.engine.settings import Settings
from app_loader.run import outcome as outcomes
from keep_protocol.errors import KeepfleetError
from keep_protocol.keep import OutcomeKind
from keep_protocol.limits import BOUNDS, DEFAULT_LIMITS, MIB, Limits
from keep_protocol.reports import ReportType
from keep_protocol.workload import Workload
from tests.fakes.pki import Authority
from tests.unit.app_loader.app_loader_process import AppLoaderProcess, ask, listening, put, run, wasm
from tests.unit.app_loader.guests import component
from tests.unit.app_loader.test_app_loader_checker import many_functions

GROWS = wasm("""(module (memory (export "memory") 1) (table 1 funcref)
  (func (export "") (result i32 i32 i32 i32)
    (memory.grow (i32.const 15)) (memory.grow (i32.const 1))
    (table.grow 0 (ref.null func) (i32.const 9)) (table.grow 0 (ref.null func) (i32.const 1))))""")
DEEP = wasm("""(module (func $deep (param i32) (result i32)
    (if (result i32) (local.get 0)
      (then (i32.add (i32.const 1) (call $deep (i32.sub (local.get 0) (i32.const 1))))) (else (i32.const 0))))
  (func (export "") (result i32) (call $deep (i32.const 60000))))""")
SPINS = wasm("""(module
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1) (data (i32.const 0) "\\10\\00\\00\\00\\01\\00\\00\\00")
  (func (export "_start")
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
    (loop (br 0))))""")
"""Reads a byte, and never ends."""


def limited(**values: int) -> dict[str, str]:
    """The environment of an app-loader with these limits."""
    return {"KEEPFLEET_LIMITS": Limits(**values).to_text()}


def test_memory_and_tables_grow_to_their_limits_and_not_beyond(
    tmp_path: Path, authority: Authority, client: Path
) -> None:
    with listening(tmp_path, authority, limited(memory_bytes=MIB, table_elements=10)) as process:
        run(process, client, GROWS)
        process.end()
        assert process.output == b"returned: [1, -1, 1, -1]\n"


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (wasm('(module (memory 17) (func (export "_start")))'), "over its memory limit of 1 MiB"),
        (wasm('(module (table 11 funcref) (func (export "_start")))'), "over its limit of 10 table elements"),
        (component("(i32.const 0)", memory="(memory 17)"), "over its memory limit of 1 MiB"),
    ],
)
def test_a_guest_that_starts_over_a_limit_is_refused_with_its_name(
    tmp_path: Path, authority: Authority, client: Path, module: bytes, text: str
) -> None:
    with listening(tmp_path, authority, limited(memory_bytes=MIB, table_elements=10)) as process:
        outcome = run(process, client, module)
        assert (outcome.kind, outcome.text) == (OutcomeKind.LIMITED, text)
        assert process.end() == 1


@pytest.mark.parametrize("stack", [64 * 1024, 8 * MIB])
def test_the_stack_is_as_deep_as_the_limit_allows(
    tmp_path: Path, authority: Authority, client: Path, stack: int
) -> None:
    with listening(tmp_path, authority, limited(stack_bytes=stack)) as process:
        outcome = run(process, client, DEEP)
        process.end()
        if stack == 8 * MIB:
            assert (outcome.text, process.output) == ("exited 0", b"returned: [60000]\n")
        else:
            assert outcome.text == "trapped: call stack exhausted"


@pytest.mark.parametrize("guest", ["core", "component"])
def test_the_largest_stack_overflows_into_a_trap_and_not_into_the_process(
    tmp_path: Path, authority: Authority, client: Path, guest: str
) -> None:
    core = wasm('(module (func $deep (call $deep)) (func (export "_start") (call $deep)))')
    module = core if guest == "core" else component("(call $go)")
    with listening(tmp_path, authority, limited(stack_bytes=8 * MIB)) as process:
        assert run(process, client, module).text == "trapped: call stack exhausted"


def test_a_stack_no_keep_may_have_is_refused_before_an_engine_is_built() -> None:
    with pytest.raises(KeepfleetError, match="field 'stack_bytes' must be"):
        Settings(9_000_000)


def test_a_loop_ends_by_sigxcpu_when_its_processor_time_is_over(
    tmp_path: Path, authority: Authority, client: Path
) -> None:
    ours, theirs = socket.socketpair()
    workload, grants = Workload(stdin=True), [theirs.fileno()]
    with ours, theirs, AppLoaderProcess(tmp_path, authority, limited(cpu_seconds=1), None, workload, grants) as process:
        process.expect(ReportType.LISTENING)
        assert ask(process, client, put(SPINS)).status == 200
        process.expect(ReportType.RECEIVING, ReportType.ACCEPTED, ReportType.RUNNING)
        before = process.used_seconds()  # it waits for its input
        ours.send(b"x")
        assert process.end() == -signal.SIGXCPU
        assert 0.9 < process.cpu_seconds - before < 1.1, "its own second, to the tick of the kernel's clock"


def test_all_output_arrives_and_times_are_counted(process: AppLoaderProcess, client: Path) -> None:
    module = wasm("""(module (import "wasi_snapshot_preview1" "fd_write"
        (func $write (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1) (data (i32.const 0) "\\10\\00\\00\\00\\e8\\03\\00\\00")
      (func (export "_start") (local $n i32)
        (loop (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
          (br_if 0 (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 50))))))""")
    outcome = run(process, client, module)
    process.end()
    assert len(process.output) == 50_000
    assert outcome.started_at is not None and outcome.ended_at is not None and outcome.wall_seconds is not None
    assert outcome.ended_at - outcome.started_at == pytest.approx(outcome.wall_seconds, abs=0.001)


def test_compiling_stays_within_its_memory(tmp_path: Path, authority: Authority, client: Path) -> None:
    with listening(tmp_path, authority, limited(compile_memory_bytes=256 * MIB)) as process:
        answer = ask(process, client, put(many_functions(1_000_000, b"\x0b")))
        assert (answer.status, answer.error["kind"]) == (422, "too-complex")
        assert "takes more memory than compile_memory_bytes=268435456 gives" in str(answer.error["message"])
        process.expect(ReportType.RECEIVING, ReportType.AWAITING)
        assert run(process, client, wasm('(module (func (export "_start")))')).exit_code == 0


def test_a_limit_that_is_none_is_an_error_in_words(tmp_path: Path, authority: Authority) -> None:
    with AppLoaderProcess(tmp_path, authority, {"KEEPFLEET_LIMITS": "memory_bytes=1"}) as process:
        report = process.expect(ReportType.FAILED)
        assert report.error is not None and "field 'memory_bytes' must be" in report.error.message


@given(st.integers(0, 1 << 40), st.integers(*BOUNDS["compile_seconds"]), st.integers(*BOUNDS["compile_memory_bytes"]))
def test_a_budget_grows_with_the_code_and_with_its_limits_and_stays_within_them(
    code: int, seconds: int, memory: int
) -> None:
    limits = Limits(compile_seconds=seconds, compile_memory_bytes=memory)
    found, larger = budget(code, limits), budget(code + MIB, limits)
    assert 1 <= found.cpu_seconds <= larger.cpu_seconds <= seconds
    assert 64 * MIB <= found.data_bytes <= larger.data_bytes <= memory < limits.unit_memory_bytes
    assert seconds < wall_seconds(limits)
    doubled = Limits(compile_seconds=min(3600, 2 * seconds), compile_memory_bytes=min(16384 * MIB, 2 * memory))
    assert found.cpu_seconds <= budget(code, doubled).cpu_seconds
    assert found.data_bytes <= budget(code, doubled).data_bytes


@pytest.mark.parametrize(("code", "seconds", "mib"), [(0, 30, 384), (3 * MIB, 30, 1152), (16 * MIB, 120, 1536)])
def test_more_code_has_more_time_and_memory_to_be_compiled(code: int, seconds: int, mib: int) -> None:
    found = budget(code, DEFAULT_LIMITS)
    assert (found.cpu_seconds, found.data_bytes >> 20) == (seconds, mib)


def test_a_unit_with_a_tenth_of_a_processor_may_take_ten_times_as_long() -> None:
    assert (
        wall_seconds(Limits(cpu_percent=10))
        == 10 * wall_seconds(Limits())
        == 10 * wall_seconds(Limits(cpu_percent=400))
    )


def test_a_limit_that_cannot_be_raised_is_not_said_to_be() -> None:
    assert "raise it, to compile_seconds=3600" in over("compile_seconds", Limits(compile_seconds=2000))
    assert over("compile_seconds", Limits(compile_seconds=3600)).endswith("which is the most there is")


@pytest.mark.parametrize(
    ("number", "words"), [(64 * MIB, "64 MiB"), (1 << 30, "1 GiB"), (65536, "64 KiB"), (1025, "1025 bytes")]
)
def test_bytes_are_written_in_the_largest_whole_unit(number: int, words: str) -> None:
    assert outcomes.in_bytes(number) == words


HOARDS = wasm("""(module (tag $error (param i64 i64 i64 i64)) (table $held 100000 exnref)
  (global $n (mut i32) (i32.const 0))
  (func (export "_start") (local $caught exnref)
    (loop $more
      (block $thrown (result i64 i64 i64 i64 exnref)
        (try_table (catch_ref $error $thrown)
          (throw $error (i64.const 1) (i64.const 2) (i64.const 3) (i64.const 4)))
        unreachable)
      (local.set $caught) drop drop drop drop
      (table.set $held (global.get $n) (local.get $caught))
      (global.set $n (i32.add (global.get $n) (i32.const 1)))
      (br_if $more (i32.lt_u (global.get $n) (i32.const 100000))))))""")
"""Keeps 100,000 exceptions, some 6 MiB."""


@pytest.mark.parametrize(
    ("mib", "text"), [(1, "over its memory limit of 1 MiB, with its exceptions"), (64, "exited 0")]
)
def test_exceptions_that_a_guest_keeps_count_as_memory(
    tmp_path: Path, authority: Authority, client: Path, mib: int, text: str
) -> None:
    with listening(tmp_path, authority, limited(memory_bytes=mib * MIB)) as process:
        assert run(process, client, HOARDS).text == text


def test_an_exception_that_is_not_caught_is_a_trap(process: AppLoaderProcess, client: Path) -> None:
    module = wasm('(module (tag $error) (func $throws (export "_start") (throw $error)))')
    outcome = run(process, client, module)
    assert (outcome.kind, outcome.text) == (OutcomeKind.TRAPPED, "trapped: uncaught exception")
    assert outcome.backtrace[0].startswith("0: throws at ")
