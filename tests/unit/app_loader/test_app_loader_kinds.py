"""The kinds of workload, known by their bytes: exports with typed arguments, and WASI 0.2 command components."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app_loader.check.imports import in_words, values
from app_loader.engine.component import Component, ComponentLinker
from app_loader.engine.foreign import EngineError
from app_loader.engine.settings import Settings, make_engine
from app_loader.engine.store import Store
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import OutcomeKind
from keep_protocol.reports import ReportType
from keep_protocol.wasi import INTERFACES
from keep_protocol.workload import Workload
from tests.fakes.pki import Authority
from tests.unit.app_loader.app_loader_process import AppLoaderProcess, ask, granted, put, run, wasm
from tests.unit.app_loader.guests import PRINTS, component

EXPORTS = wasm("""(module (global $n (mut i32) (i32.const 0))
  (func (export "_initialize") (global.set $n (i32.const 100)))
  (func (export "add") (param i32 i32) (result i32)
    (i32.add (global.get $n) (i32.add (local.get 0) (local.get 1))))
  (func (export "all") (param i32 i64 f32 f64) (result i32 i64 f32 f64)
    local.get 0 local.get 1 local.get 2 local.get 3)
  (func (export "quiet"))
  (func (export "vector") (param v128))
  (func (export "opaque") (result funcref) ref.null func)
  (memory (export "memory") 1))""")


def refusal(
    directory: Path, authority: Authority, client: Path, module: bytes, workload: Workload
) -> dict[str, object]:
    """What the upload of `module` is refused with."""
    with granted(directory, authority, workload) as process:
        answer = ask(process, client, put(module))
        assert answer.status == 422, answer
        assert answer.error["kind"] == "invalid-module"
        return answer.error


@pytest.mark.parametrize(
    ("export", "arguments", "printed"),
    [
        ("add", ("1", "-2"), b"returned: [99]\n"),
        ("add", ("0xffffffff", "4294967295"), b"returned: [98]\n"),
        ("all", ("7", "-9223372036854775808", "0.5", "1e300"), b"returned: [7, -9223372036854775808, 0.5, 1e+300]\n"),
        ("all", ("-1", "0xffffffffffffffff", "inf", "-inf"), b"returned: [-1, -1, inf, -inf]\n"),
        ("quiet", (), b""),
    ],
)
def test_an_export_is_called_with_typed_arguments_and_its_results_are_printed(
    tmp_path: Path, authority: Authority, client: Path, export: str, arguments: tuple[str, ...], printed: bytes
) -> None:
    with granted(tmp_path, authority, Workload(export=export, export_arguments=arguments)) as process:
        assert run(process, client, EXPORTS).text == "exited 0"
        process.end()
        assert process.output == printed


@pytest.mark.parametrize(
    ("export", "arguments", "words"),
    [
        ("add", ("1",), "cannot call add(i32, i32) -> i32: it takes 2 arguments, 1 given"),
        ("add", ("1", "x"), "cannot call add(i32, i32) -> i32: argument 2, 'x', is no i32: it is no whole number"),
        ("add", ("1", "4294967296"), "is no i32: it does not fit 32 bits"),
        ("quiet", ("1",), "cannot call quiet(): it takes 0 arguments, 1 given"),
        ("vector", ("1",), "cannot call vector(v128): a value of type v128 cannot be given as text"),
        ("opaque", (), "a value of type funcref cannot be shown"),
        ("memory", (), "it exports no function 'memory'"),
        ("mul", (), "it exports no function 'mul'"),
        ("", (), "it exports nothing to run"),
    ],
)
def test_a_call_that_does_not_fit_is_refused_at_upload_with_the_signature(
    tmp_path: Path, authority: Authority, client: Path, export: str, arguments: tuple[str, ...], words: str
) -> None:
    workload = Workload(export=export, export_arguments=arguments)
    error = refusal(tmp_path, authority, client, EXPORTS, workload)
    assert words in str(error["message"])
    if "exports no" in words:
        assert "exports 'add'" in list(error["evidence"])  # type: ignore[call-overload]


def test_a_command_takes_its_arguments_as_argv(tmp_path: Path, authority: Authority, client: Path) -> None:
    module = wasm('(module (func (export "_start")))')
    error = refusal(tmp_path, authority, client, module, Workload(export_arguments=("1",)))
    assert "cannot call _start(): it takes no arguments; a command's arguments are its argv" in str(error["message"])


@pytest.mark.parametrize(
    ("param", "text"),
    [
        *(("i32", text) for text in ("", " 1", "1 ", "1.0", "1e3", "0x", "0b1", "1_000", "٣", "--1", "-0x80000001")),
        *(("i64", text) for text in ("18446744073709551616", "-9223372036854775809", "9" * 400)),
        *(("f32", text) for text in ("", "1e39", "1,5", "0x1p3", "infinity", "1_0", "nan(4)", ".")),
        *(("f64", text) for text in ("1e309", "-1e999", "²", "1e", "e1")),
        ("v128", "1"),
        ("externref", "1"),
    ],
)
def test_text_that_is_no_such_number_is_refused(param: str, text: str) -> None:
    with pytest.raises(KeepfleetError) as caught:
        values("f(…)", [param], (text,))
    assert caught.value.kind is ErrorKind.INVALID_MODULE


@given(st.integers(-(1 << 63), (1 << 64) - 1))
def test_any_integer_of_64_bits_is_the_signed_number_with_its_bits(number: int) -> None:
    (signed,) = values("f(i64)", ["i64"], (str(number),))
    assert isinstance(signed, int) and -(1 << 63) <= signed < 1 << 63
    assert (signed - number) % (1 << 64) == 0


@given(st.floats())
def test_any_float_is_read_as_python_writes_it(number: float) -> None:
    (found,) = values("f(f64)", ["f64"], (repr(number),))
    assert found == number or (math.isnan(found) and math.isnan(number))


def test_a_signature_is_printable_whatever_the_export_is_called() -> None:
    assert in_words("ü\u202e", ["i32"], []) == "\\xfc\\u202e(i32)"
    assert in_words("", [], ["i32", "i64"]) == '""() -> i32, i64'


def test_a_component_runs_and_its_output_is_the_processs_own(process: AppLoaderProcess, client: Path) -> None:
    outcome = run(process, client, PRINTS)
    assert (outcome.kind, outcome.exit_code) == (OutcomeKind.EXITED, 0)
    process.end()
    assert process.output == b"hello from a component\n"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("(i32.const 0)", 0),
        ("(i32.const 1)", 1),
        ("(call $exit (i32.const 0)) (i32.const 1)", 0),
        ("(call $exit (i32.const 1)) (i32.const 0)", 1),
    ],
)
def test_a_component_returns_ok_or_not(process: AppLoaderProcess, client: Path, body: str, code: int) -> None:
    outcome = run(process, client, component(body))
    assert (outcome.kind, outcome.exit_code, outcome.text) == (OutcomeKind.EXITED, code, f"exited {code}")
    assert process.end() == code


def test_a_component_leaves_with_any_code_by_exit_with_code(process: AppLoaderProcess, client: Path) -> None:
    module = wasm("""(component
      (import "wasi:cli/exit@0.2.0" (instance $exit (export "exit-with-code" (func (param "status-code" u8)))))
      (core func $exit (canon lower (func $exit "exit-with-code")))
      (core module $m (import "e" "exit" (func $exit (param i32)))
        (func (export "run") (result i32) (call $exit (i32.const 42)) (i32.const 0)))
      (core instance $i (instantiate $m (with "e" (instance (export "exit" (func $exit))))))
      (func $run (result (result)) (canon lift (core func $i "run")))
      (instance $r (export "run" (func $run)))
      (export "wasi:cli/run@0.2.0" (instance $r)))""")
    outcome = run(process, client, module)
    assert (outcome.kind, outcome.exit_code, outcome.text) == (OutcomeKind.EXITED, 42, "exited 42")


def test_a_component_that_has_run_and_returns_an_invalid_result_is_trapped_and_not_refused(
    process: AppLoaderProcess, client: Path
) -> None:
    outcome = run(process, client, component("(i32.const 2)"))
    assert outcome.kind is OutcomeKind.TRAPPED
    assert outcome.text == "trapped: the engine cannot take its result: discriminant 2 out of range [0..2)"


@pytest.mark.parametrize(
    ("body", "memory", "reason"),
    [
        ("unreachable", "", "wasm `unreachable` instruction executed"),
        ("(drop (i32.load (i32.const 9999999))) (i32.const 0)", "(memory 1)", "out of bounds memory access"),
        ("(call $go)", "", "call stack exhausted"),
    ],
)
def test_a_components_trap_is_reported_with_its_functions(
    process: AppLoaderProcess, client: Path, body: str, memory: str, reason: str
) -> None:
    outcome = run(process, client, component(body, memory=memory))
    assert (outcome.kind, outcome.text) == (OutcomeKind.TRAPPED, f"trapped: {reason}")
    assert outcome.backtrace[0].startswith("0: m!go at ")
    assert len(outcome.backtrace) <= 21


def test_a_component_over_its_memory_limit_at_its_start_says_so(process: AppLoaderProcess, client: Path) -> None:
    outcome = run(process, client, component("(i32.const 0)", memory="(memory 8000)"))
    assert (outcome.kind, outcome.text) == (OutcomeKind.LIMITED, "over its memory limit of 256 MiB")


@pytest.mark.parametrize(
    ("module", "words", "evidence"),
    [
        (
            wasm("""(component (import "wasi:http/types@0.2.0" (instance)) (import "acme:launch/codes" (instance)))"""),
            "imports what a keep does not have: 'wasi:http/types@0.2.0', 'acme:launch/codes'; this version gives a "
            "guest no network",
            ["'wasi:http/types@0.2.0'", "'acme:launch/codes'"],
        ),
        (wasm('(component (import "f" (func)))'), "imports what a keep does not have: 'f'", ["'f'"]),
        (wasm("(component)"), "does not export wasi:cli/run@0.2", []),
        (
            wasm("""(component (import "wasi:cli/exit@0.2.0" (instance (export "leave" (func))))
              (core module $m (func (export "r") (result i32) i32.const 0)) (core instance $i (instantiate $m))
              (func $run (result (result)) (canon lift (core func $i "r"))) (instance $e (export "run" (func $run)))
              (export "wasi:cli/run@0.2.0" (instance $e)))"""),
            "wasi:cli/exit@0.2.0",
            None,
        ),
        (
            wasm("""(component (core module $m (func (export "h"))) (core instance $i (instantiate $m))
              (func $h (canon lift (core func $i "h"))) (instance $e (export "handle" (func $h)))
              (export "wasi:http/incoming-handler@0.2.0" (instance $e)))"""),
            "it is a web handler, and this version gives a guest no network",
            ["exports 'wasi:http/incoming-handler@0.2.0'"],
        ),
        (
            wasm("""(component (core module $m (func (export "r") (result i32) i32.const 0))
              (core instance $i (instantiate $m)) (func $run (result u32) (canon lift (core func $i "r")))
              (instance $e (export "run" (func $run))) (export "wasi:cli/run@0.2.0" (instance $e)))"""),
            "its wasi:cli/run@0.2.0 has no function run, the entry of a command",
            None,
        ),
        (
            wasm(
                """(component (import "wasi:cli/stdout@0.3.0" (instance)) (import "wasi:cli/exit@0.2.0" (instance)))"""
            ),
            "it is built for WASI 0.3, and a keep has WASI 0.2: build it for wasm32-wasip2",
            ["'wasi:cli/stdout@0.3.0'"],
        ),
        (
            wasm('(component (import "wasi:cli/exit@0.2.0" (instance)) (export "wasi:cli/run@0.3.0" (instance 0)))'),
            "it is built for WASI 0.3",
            ["exports 'wasi:cli/run@0.3.0'"],
        ),
        (
            wasm("""(component (core module $m (func (export "r") (result i32) i32.const 0))
              (core instance $i (instantiate $m)) (type $s (stream u8))
              (func $run (result (result)) (canon lift (core func $i "r"))) (instance $e (export "run" (func $run)))
              (export "wasi:cli/run@0.2.0" (instance $e)))"""),
            "it is built for WASI 0.3",
            None,
        ),
        (PRINTS[:-20], "cannot take the module", None),
    ],
    ids=("imports", "function", "empty", "wrong-type", "web", "no-run", "0.3-in", "0.3-out", "async", "cut"),
)
def test_a_component_that_cannot_run_is_answered_422_with_what_it_lacks(
    tmp_path: Path, authority: Authority, client: Path, module: bytes, words: str, evidence: list[str] | None
) -> None:
    error = refusal(tmp_path, authority, client, module, Workload())
    assert words in str(error["message"])
    if evidence is not None:
        assert error["evidence"] == evidence


def test_an_export_of_a_component_cannot_be_called_by_name(tmp_path: Path, authority: Authority, client: Path) -> None:
    error = refusal(tmp_path, authority, client, PRINTS, Workload(export="run"))
    assert "only of a core module" in str(error["message"])


def test_a_component_that_imports_sockets_is_refused_since_there_is_no_network(
    process: AppLoaderProcess, client: Path
) -> None:
    sockets = '(import "wasi:sockets/network@0.2.0" (instance (export "network" (type (sub resource)))))'
    assert ask(process, client, put(component("(i32.const 0)", imports=sockets))).status == 200
    report = process.expect(ReportType.RECEIVING, ReportType.ACCEPTED)
    assert "it imports wasi:sockets, and this version gives a guest no network" in report.text
    assert process.outcome().exit_code == 0
    process.end()
    assert b"gives a guest no network" in process.output


def test_every_interface_said_to_be_there_is_there() -> None:
    engine = make_engine(Settings(components=True))
    linker = ComponentLinker(engine)
    for package, names in INTERFACES.items():
        for name in names:
            text = f'(component (import "{package}/{name}@0.2.0" (instance (export "no-such" (func)))))'
            with pytest.raises(EngineError) as caught:
                linker.instantiate(Store(engine), Component.compile(engine, wasm(text)))
            assert f"`{package}/{name}@0.2.0`" in str(caught.value)
