"""Workloads from upload to outcome, in real processes: what runs, what is printed, how it ended, what is left."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from keep_protocol.keep import OutcomeKind
from keep_protocol.reports import ReportType
from keep_protocol.workload import Workload
from tests.fakes.pki import Authority
from tests.unit.app_loader.app_loader_process import (
    AppLoaderProcess,
    as_root,
    ask,
    granted,
    listening,
    post,
    put,
    run,
    wasm,
)

WASI = "wasi_snapshot_preview1"


def command(body: str, memory: str = '(memory (export "memory") 1)', more: str = "") -> bytes:
    """A command with the WASI functions these tests use; `$print` writes `len` bytes at `at` to descriptor `fd`."""
    return wasm(f"""(module
      (import "{WASI}" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
      (import "{WASI}" "proc_exit" (func $exit (param i32)))
      (import "{WASI}" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
      (import "{WASI}" "args_sizes_get" (func $args (param i32 i32) (result i32)))
      (import "{WASI}" "environ_sizes_get" (func $environ (param i32 i32) (result i32)))
      (import "{WASI}" "fd_prestat_get" (func $prestat (param i32 i32) (result i32)))
      (import "{WASI}" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
      {memory} {more}
      (func $print (param $fd i32) (param $at i32) (param $len i32)
        (i32.store (i32.const 0) (local.get $at)) (i32.store (i32.const 4) (local.get $len))
        (drop (call $write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 16))))
      (func $sleep (param $nanoseconds i64)
        (i64.store (i32.const 24) (i64.const 0)) (i32.store (i32.const 48) (i32.const 1))
        (i64.store (i32.const 56) (local.get $nanoseconds))
        (drop (call $poll (i32.const 32) (i32.const 512) (i32.const 1) (i32.const 200))))
      (func (export "_start") {body}))""")


PUTS = f"""(import "{WASI}" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1) (data (i32.const 0) "\\10\\00\\00\\00\\05\\00\\00\\00") (data (i32.const 16) "once\\n")
  (func $puts (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))"""
SAYS = '(data (i32.const 64) "hello from the keep\\n")'
HELLO = command("(call $print (i32.const 1) (i32.const 64) (i32.const 20))", more=SAYS)
SLEEPS = command("(call $sleep (i64.const 600000000000))")


def test_a_raw_upload_runs_and_its_output_is_the_processs_own(process: AppLoaderProcess, client: Path) -> None:
    outcome = run(process, client, HELLO)
    assert (outcome.kind, outcome.exit_code, outcome.text) == (OutcomeKind.EXITED, 0, "exited 0")
    assert outcome.peak_bytes is not None and outcome.peak_bytes > 1 << 20
    assert outcome.wall_seconds is not None and outcome.cpu_seconds is not None
    assert process.end() == 0
    assert process.output == b"hello from the keep\n"


def test_the_originals_upload_is_answered_in_its_words_and_its_value_printed(
    process: AppLoaderProcess, client: Path
) -> None:
    answer = ask(process, client, post(wasm('(module (func (export "") (result i32) i32.const 1))')))
    assert (answer.status, answer.body) == (200, b"Payload received")
    process.expect(ReportType.RECEIVING, ReportType.ACCEPTED)
    assert process.outcome().exit_code == 0
    process.end()
    assert process.output == b"returned: [1]\n"


def test_several_returned_values_are_printed_in_order(process: AppLoaderProcess, client: Path) -> None:
    run(process, client, wasm('(module (func (export "") (result i32 f64) i32.const -1 f64.const 0.5))'))
    process.end()
    assert process.output == b"returned: [-1, 0.5]\n"


def test_a_reactor_is_initialized_before_its_default_export_is_called(process: AppLoaderProcess, client: Path) -> None:
    module = wasm("""(module (global $n (mut i32) (i32.const 1))
      (func (export "_initialize") (global.set $n (i32.const 42)))
      (func (export "") (result i32) (global.get $n)))""")
    run(process, client, module)
    process.end()
    assert process.output == b"returned: [42]\n"


def test_a_reactors_initialize_that_is_called_by_name_runs_once(
    tmp_path: Path, authority: Authority, client: Path
) -> None:
    module = wasm(f"""(module {PUTS} (func (export "_initialize") (call $puts)))""")
    with granted(tmp_path, authority, Workload(export="_initialize")) as process:
        assert run(process, client, module).exit_code == 0
        process.end()
        assert process.output == b"once\n"


@pytest.mark.parametrize(("code", "shown"), [(0, 0), (3, 3), (125, 125), (200, 125), (4294967295, 125)])
def test_an_exit_code_is_reported_whole(process: AppLoaderProcess, client: Path, code: int, shown: int) -> None:
    outcome = run(process, client, command(f"(call $exit (i32.const {code}))"))
    assert (outcome.kind, outcome.exit_code, outcome.text) == (OutcomeKind.EXITED, code, f"exited {code}")
    assert process.end() == shown


def test_text_without_a_newline_is_not_lost_at_exit(process: AppLoaderProcess, client: Path) -> None:
    body = """(call $print (i32.const 1) (i32.const 64) (i32.const 5))
      (call $print (i32.const 2) (i32.const 64) (i32.const 5)) (call $exit (i32.const 7))"""
    assert run(process, client, command(body, more=SAYS)).exit_code == 7
    process.end()
    assert process.output == b"hellohello"


def test_output_arrives_as_it_is_written_even_without_a_newline(
    tmp_path: Path, authority: Authority, client: Path
) -> None:
    body = """(call $print (i32.const 1) (i32.const 64) (i32.const 5))
      (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 16)))"""
    ours, theirs = socket.socketpair()
    with ours, theirs, granted(tmp_path, authority, Workload(stdin=True), [theirs.fileno()]) as process:
        assert ask(process, client, put(command(body, more=SAYS))).status == 200
        process.expect(ReportType.RECEIVING, ReportType.ACCEPTED, ReportType.RUNNING)
        process.hear(b"hello")
        ours.shutdown(socket.SHUT_WR)
        process.expect(ReportType.ENDED)


def test_a_trap_is_reported_with_its_reason_and_its_functions(process: AppLoaderProcess, client: Path) -> None:
    more = "(func $reach_too_far (drop (i32.load (i32.const 7000000))))"
    outcome = run(process, client, command("(call $reach_too_far)", more=more))
    assert (outcome.kind, outcome.text) == (OutcomeKind.TRAPPED, "trapped: out of bounds memory access")
    assert outcome.exit_code is None
    assert outcome.backtrace[0].startswith("0: reach_too_far at 0x")
    assert len(outcome.backtrace) == 2
    assert process.end() == 1


@pytest.mark.parametrize(
    ("body", "more", "reason"),
    [
        ("unreachable", "", "wasm `unreachable` instruction executed"),
        ("(call $deeper)", "(func $deeper (call $deeper))", "call stack exhausted"),
        ("(drop (i32.div_u (i32.const 1) (i32.const 0)))", "", "integer divide by zero"),
    ],
)
def test_traps_are_caught_after_the_lock(
    process: AppLoaderProcess, client: Path, body: str, more: str, reason: str
) -> None:
    assert run(process, client, command(body, more=more)).text == f"trapped: {reason}"


def test_a_start_section_runs_and_its_trap_is_an_outcome(process: AppLoaderProcess, client: Path) -> None:
    module = wasm('(module (func $start unreachable) (start $start) (func (export "_start")))')
    outcome = run(process, client, module)
    assert outcome.kind is OutcomeKind.TRAPPED
    assert outcome.backtrace[0].startswith("0: start at")


def test_memory_grows_up_to_the_limit_and_not_beyond(process: AppLoaderProcess, client: Path) -> None:
    module = wasm("""(module (memory (export "memory") 1)
      (func (export "") (result i32 i32) (memory.grow (i32.const 4000)) (memory.grow (i32.const 4000))))""")
    run(process, client, module)
    process.end()
    assert process.output == b"returned: [1, -1]\n"


def test_a_module_that_needs_more_memory_at_its_start_than_it_may_have_is_refused_in_words(
    process: AppLoaderProcess, client: Path
) -> None:
    outcome = run(process, client, wasm('(module (memory 8000) (func (export "_start")))'))
    assert (outcome.kind, outcome.text) == (OutcomeKind.LIMITED, "over its memory limit of 256 MiB")


def test_a_workload_sleeps_after_the_lock(process: AppLoaderProcess, client: Path) -> None:
    body = "(call $sleep (i64.const 1000000)) (call $print (i32.const 1) (i32.const 64) (i32.const 20))"
    assert run(process, client, command(body, more=SAYS)).exit_code == 0
    process.end()
    assert process.output == b"hello from the keep\n"


def test_a_workload_has_one_argument_no_environment_no_directory_and_no_input(
    process: AppLoaderProcess, client: Path
) -> None:
    body = """(drop (call $args (i32.const 128) (i32.const 132)))
      (drop (call $environ (i32.const 136) (i32.const 140)))
      (i32.store (i32.const 0) (i32.const 256)) (i32.store (i32.const 4) (i32.const 16))
      (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 16)))
      (call $exit (i32.add (i32.add (i32.load (i32.const 128)) (i32.mul (i32.const 10) (i32.load (i32.const 136))))
        (i32.add (i32.mul (i32.const 100) (i32.load (i32.const 16)))
          (i32.mul (i32.const 1000) (i32.eqz (call $prestat (i32.const 3) (i32.const 200)))))))"""
    assert run(process, client, command(body)).exit_code == 1


@as_root
def test_a_running_workload_has_the_report_socket_and_nothing_of_the_endpoint(
    process: AppLoaderProcess, client: Path
) -> None:
    assert ask(process, client, put(SLEEPS)).status == 200
    process.expect(ReportType.RECEIVING, ReportType.ACCEPTED, ReportType.RUNNING)
    opened = process.descriptors()
    # By what they are and not by their numbers: that of the report just received may still be a second one of 3.
    assert {name for name in opened.values() if name.startswith("socket:")} <= {opened[number] for number in (1, 2, 3)}
    assert not [name for name in opened.values() if "revoked" in name or "ca.pem" in name]
    unnamed = [number for number, name in opened.items() if "(deleted)" in name]
    assert len(unnamed) <= 1, "wasmtime keeps the module it has mapped; the identity and the upload are closed"
    for number in unnamed:
        flags = Path(f"/proc/{process.pid}/fdinfo/{number}").read_text().split("flags:")[1].split()[0]
        assert int(flags, 8) & os.O_ACCMODE == os.O_RDONLY
    status = Path(f"/proc/{process.pid}/status").read_text()
    assert "Seccomp:\t2" in status and "NoNewPrivs:\t1" in status


def test_the_key_is_gone_before_the_workload_runs(process: AppLoaderProcess, client: Path) -> None:
    assert process.identity is not None and os.fstat(process.identity).st_size > 0
    run(process, client, HELLO)
    assert os.fstat(process.identity).st_size == 0


def test_a_new_endpoint_on_the_old_identity_has_the_same_certificate(
    tmp_path: Path, authority: Authority, client: Path
) -> None:
    with listening(tmp_path, authority) as process:
        first = process.fingerprint
        process.kill()
        process.spawn()
        process.expect(ReportType.LISTENING)
        assert process.fingerprint == first
        assert run(process, client, HELLO).exit_code == 0


def test_a_endpoint_without_its_loader_ends(process: AppLoaderProcess) -> None:
    process.forget()
    assert process.end() == 0


def test_a_endpoint_in_the_middle_of_an_upload_ends_with_its_loader(process: AppLoaderProcess, client: Path) -> None:
    with process.connect(client) as connection:
        connection.sendall(put(HELLO)[:-5])
        process.expect(ReportType.RECEIVING)
        process.forget()
        assert process.end() == 0


def test_a_wiped_identity_is_an_error_in_words(process: AppLoaderProcess) -> None:
    assert process.identity is not None
    process.kill()
    os.ftruncate(process.identity, 0)
    process.spawn()
    report = process.expect(ReportType.FAILED)
    assert report.error is not None and "no key and certificate" in report.error.message
    assert process.end() == 1


def test_a_runtime_directory_that_is_not_there_is_an_error_in_words(tmp_path: Path, authority: Authority) -> None:
    with AppLoaderProcess(tmp_path, authority, {"KEEPFLEET_RUNTIME_DIRECTORY": "/nowhere/7"}) as process:
        report = process.expect(ReportType.FAILED)
        assert report.error is not None and "cannot store the keep's key in /nowhere/7" in report.error.message
        assert process.end() == 1
