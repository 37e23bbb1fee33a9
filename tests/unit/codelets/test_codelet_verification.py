"""Which modules may be codelets of a hook, and what is said of their run time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codelets.interface import HelperType, HookType, Interface
from codelets.verification import examine
from tests.unit.codelets.application import COUNTER, codelet, function, wasm

HOOK = HookType("h", 16)
DATA = HookType("d", 16, data_bytes=100)
HELPERS = (HelperType("now", (), "i64"), HelperType("note", ("i32", "bytes"), ""))
INTERFACE = Interface((HOOK, DATA), HELPERS)
LOOKUP = "(param i32 i32) (result i32)"
TWICE = function("map:array:4:8:1", "a.lookup", LOOKUP) + function("map:array:4:8:2", "a.update", LOOKUP)
ENTRY = '(func (export "codelet_main") (param i32) (result i64) (i64.const 0))'


def test_a_loop_free_codelet_has_a_worst_number_of_instructions() -> None:
    found = examine(COUNTER, HOOK, INTERFACE)
    assert found.report.passed
    assert found.instructions == 16
    assert found.bound == "run time: at most 16 instructions, and what maps and helpers take"


def test_a_codelet_with_a_loop_is_bounded_by_fuel_alone() -> None:
    found = examine(codelet("(loop $l (br_if $l (i32.const 1))) (i64.const 0)"), HOOK, INTERFACE)
    assert found.report.passed
    assert found.instructions is None
    assert found.bound.startswith("run time: by fuel alone, ")
    assert "loop" in found.bound


def test_a_codelet_that_counts_to_a_constant_has_a_worst_number_of_instructions() -> None:
    count = "(br_if $l (i32.ne (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 10)))"
    body = f"(local $i i32) (local.set $i (i32.const 0)) (loop $l nop {count}) (i64.const 0)"
    found = examine(codelet(body), HOOK, INTERFACE)
    assert found.bound == f"run time: at most {2 + 1 + 10 * 8 + 1} instructions, and what maps and helpers take"


@pytest.mark.parametrize(
    ("module", "rule"),
    [
        (wasm('(module (import "env" "memory" (memory 1)))'), "entry"),
        (codelet("(i64.const 0)", parameters="(param i64)"), "entry"),
        (codelet("(i64.const 0)", parameters="(param i32 i32 i32)"), "entry"),
        (wasm(f'(module (memory 1) {ENTRY})'), "memory"),
        (wasm(f'(module (import "a" "b" (memory 1)) {ENTRY})'), "memory"),
        (wasm(f'(module (import "env" "memory" (memory 5)) {ENTRY})'), "memory"),
        (wasm(f'(module (import "env" "memory" (memory 1 1)) {ENTRY})'), "memory"),
        (codelet("(i64.const 0)", rest="(func $s) (start $s)"), "start"),
        (codelet("(i64.const 0)", rest="(memory 1)"), "memories"),
        (codelet("(i64.const 0)", '(import "helper" "now" (global i32))'), "codelet-imports"),
        (codelet("(i64.const 0)", function("helper", "missing", "")), "codelet-imports"),
        (codelet("(i64.const 0)", function("helper", "now", "(result i32)")), "codelet-imports"),
        (codelet("(i64.const 0)", function("helper", "note", "(param i32)")), "codelet-imports"),
        (codelet("(i64.const 0)", function("wasi_snapshot_preview1", "fd_write", "(param i32)")), "codelet-imports"),
        (codelet("(i64.const 0)", function("map:array:4:8:1", "a.remove", "")), "codelet-imports"),
        (codelet("(i64.const 0)", function("map:array:4:8:1", "a.lookup", "(param i32)")), "codelet-imports"),
        (codelet("(i64.const 0)", function("map:array:8:8:1", "a.lookup", LOOKUP)), "codelet-imports"),
        (codelet("(i64.const 0)", TWICE), "codelet-imports"),
        (codelet("(i64.const 0)", function("output:8:4", "a.receive", LOOKUP)), "codelet-imports"),
        (b"", "readable"),
        (b"\0asm\x0d\0\1\0", "kinds"),
    ],
)  # fmt: skip
def test_what_may_not_be_a_codelet_is_refused_by_rule(module: bytes, rule: str) -> None:
    report = examine(module, HOOK, INTERFACE).report
    assert not report.passed
    assert rule in [finding.rule for finding in report.failures]


def test_helpers_maps_and_channels_are_listed() -> None:
    imports = (
        function("helper", "note", "(param i32 i32 i32)")
        + function("map:hashmap:4:8:16", "flows.lookup", LOOKUP)
        + function("output:64:128", "samples.send", LOOKUP)
    )
    found = examine(codelet("(i64.const 0)", imports), HOOK, INTERFACE)
    assert found.report.passed
    assert [(name, str(what)) for name, what in found.declarations] == [
        ("flows", "map:hashmap:4:8:16"),
        ("samples", "output:64:128"),
    ]
    [finding] = [each for each in found.report.findings if each.rule == "codelet-imports"]
    assert finding.found == "flows (map:hashmap:4:8:16), samples (output:64:128); helpers note"


def test_the_entry_of_a_hook_with_data_takes_three_numbers() -> None:
    three = codelet("(i64.const 0)", parameters="(param i32 i32 i32)")
    assert examine(three, DATA, INTERFACE).report.passed
    assert not examine(three, HOOK, INTERFACE).report.passed


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_no_bytes_make_verification_fail(data: st.DataObject) -> None:
    whole = bytearray(COUNTER)
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(8, len(whole) - 1))] = data.draw(st.integers(0, 255))
    examine(bytes(whole[: data.draw(st.integers(0, len(whole)))]), HOOK, INTERFACE)
    examine(bytes(whole), HOOK, INTERFACE)
