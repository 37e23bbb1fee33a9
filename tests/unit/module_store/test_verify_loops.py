"""Loops whose number of turns is plain: the bound is what runs, and what only looks like one has none."""

from __future__ import annotations

import pytest
import wasmtime
from hypothesis import example, given, settings
from hypothesis import strategies as st

from module_store.verify.bodies import Budget, decode
from module_store.verify.bounds import ExportBound, export_bounds
from module_store.verify.component import parse
from module_store.verify.loops import turns
from module_store.verify.module import CoreModule

COUNT = "(global.set $turns (i32.add (i32.const 1) (global.get $turns)))"
DOWN = "(br_if $l (local.tee $i (i32.add (local.get $i) (i32.const -1))))"
HEADED = """(local.set $i (i32.const {first})) (loop $l (if ({compare} (local.get $i) (i32.const {limit}))
  (then {body} (local.set $i (i32.{move} (local.get $i) (i32.const {step}))) (br $l))))"""
COUNTED = """(local.set $i (i32.const {first})) (loop $l {body} {more}
  (br_if $l ({compare} (local.tee $i (i32.add (local.get $i) (i32.const {step}))) (i32.const {limit}))))"""


def bound(body: str) -> ExportBound:
    """Of a function with the parameter $p and the locals $i and $k."""
    text = f"""(module (import "a" "b" (func $host)) (global $turns (export "turns") (mut i32) (i32.const 0))
      (func (export "f") (param $p i32) (local $i i32) (local $k i32) {body}))"""
    module = parse(bytes(wasmtime.wat2wasm(text)))
    assert isinstance(module, CoreModule)
    [bodies] = decode((module,), Budget()).modules
    return export_bounds(module, bodies)[0]


def counted(first: int, step: int, limit: int, compare: str = "i32.ne", body: str = "", more: str = "") -> str:
    return COUNTED.format(first=first, step=step, limit=limit, compare=compare, body=body, more=more)


def headed(
    first: int, step: int, limit: int, compare: str = "i32.lt_s", body: str = "(call $host)", move: str = "add"
) -> str:
    return HEADED.format(first=first, step=step, limit=limit, compare=compare, body=body, move=move)


ZERO = "(local.set $i (i32.const 0))"


@pytest.mark.parametrize(
    ("body", "calls"),
    [
        (counted(0, 1, 10, body="(call $host)"), 10),
        (counted(0, 1, 10, "i32.lt_u", "(call $host)"), 10),
        (counted(0, 1, 10, "i32.lt_s", "(call $host)"), 10),
        (counted(-5, 2, 5, body="(call $host)"), 5),
        (counted(-5, 3, 5, "i32.lt_s", "(call $host)"), 4),
        (counted(100, -4, 0, body="(call $host)"), 25),
        (counted(7, 1, 3, "i32.lt_u", "(call $host)"), 1),
        (counted(200, 1, 1000, body="(call $host)"), 800),
        (counted(0, 1, 8, body=counted(0, 1, 4, body="(call $host)").replace("$i", "$k").replace("$l", "$m")), 32),
        (counted(0, 1, 6, body="(if (global.get $turns) (then (call $host)) (else nop))"), 6),
        (f"(local.set $i (i32.const 9)) (loop $l (call $host) {DOWN})", 9),
        (f"(local.set $i (i32.const 9)) (loop $l (call $host) {DOWN.replace('-1', '-3')})", 3),
        (counted(0, 1, 10, "i32.lt_u", "(call $host)").replace(ZERO, ""), 10),
        (counted(0, 1, 10, "i32.lt_u", "(call $host)").replace(ZERO, "(local.set $i (global.get $turns))"), 12),
        (counted(0, 1, 10, body="(call $host)").replace(ZERO, ""), 10),
    ],
)  # fmt: skip
def test_a_counted_loop_has_its_turns(body: str, calls: int) -> None:
    found = bound(body)
    assert found.none == ""
    assert found.host_calls == calls


@pytest.mark.parametrize(
    "body",
    [
        counted(0, 3, 10),  # passes its end, and comes again after 2³² steps
        counted(5, 1, 5),  # is there, and comes again likewise
        counted(0, 0, 10),
        counted(0, 1, 10, "i32.eq"),
        counted(0, -1, 10, "i32.lt_u"),
        counted(0, 5, -3, "i32.lt_u"),  # wraps
        counted(0, 2, 2147483647, "i32.lt_s"),
        counted(0, 1, 10, more="(local.set $i (i32.const 0))"),
        counted(0, 1, 10, more="(drop (local.tee $i (i32.const 0)))"),
        counted(0, 1, 10, more="(br_if $l (global.get $turns))"),
        counted(0, 1, 10, body="(block (br_table 0 1 (global.get $turns)))"),
        f"(local.set $i (i32.const 4)) (block {counted(0, 1, 10).replace(ZERO, '')})",
        f"(loop $o {counted(0, 1, 10).replace(ZERO, '')} (br_if $o (global.get $turns)))",
        counted(0, 1, 10).replace(ZERO, "").replace("$i", "$p"),
        headed(0, 1, 10).replace(ZERO, "").replace("$i", "$p"),
        headed(0, 0, 10),
        headed(0, -1, 10),
        headed(0, 1, 2147483647, "i32.le_s"),
        headed(0, 3, 10, "i32.ne"),
        headed(0, 1, 10, "i32.eq"),
        headed(0, 1, 10, body="(local.set $i (i32.const 0))"),
        headed(0, 1, 10, body="(br_if $l (global.get $turns))"),
        headed(0, 1, 10, body="nop") .replace("(then", "(then nop) (else"),
        headed(0, 1, 10).replace("(loop $l", "(loop $l (drop (global.get $turns))"),
        headed(0, 1, 10).replace("(br $l)", "(if (global.get $turns) (then (br $l)))"),
        f"{ZERO} (loop $l (if (i32.lt_s (local.get $i) (i32.const 10)) (then nop)) (if (global.get $turns) (then"
        " (local.set $i (i32.add (local.get $i) (i32.const 1))) (br $l))))",
        headed(0, 1, 10).replace("(local.get $i) (i32.const 10)", "(local.get $k) (i32.const 10)"),
        f"(local.set $i (global.get $turns)) (loop $l {DOWN})",
        f"(local.set $i (i32.const 9)) (local.set $i (global.get $turns)) (loop $l {DOWN})",
        f"(local.set $i (i32.const 9)) (block) (loop $l {DOWN})",
        f"(local.set $i (i32.const 9)) (loop $l {DOWN} {DOWN})",
        f"(local.set $i (i32.const 9)) (loop $l {DOWN.replace('get $i', 'get $k')})",
        f"(local.set $i (i32.const 9)) (loop $l {DOWN.replace('tee $i', 'tee $k')})",
        f"(local.set $i (i32.const 9)) (loop $l {DOWN.replace('add', 'sub')})",
    ],
)  # fmt: skip
def test_what_only_looks_like_one_has_no_bound(body: str) -> None:
    assert "loop" in bound(body).none


@pytest.mark.parametrize("number", [b"\x01", b"\x81\x00", b"\x81\x80\x00", b"\x81\x80\x80\x80\x00"])
def test_an_assignment_is_seen_in_whatever_length_its_number_is_written(number: bytes) -> None:
    before = [b"\x41\x00", b"\x21\x01"]
    tail = [b"\x20\x01", b"\x41\x01", b"\x6a", b"\x22\x01", b"\x41\x0a", b"\x47"]
    assert turns(before, tail, b"".join(tail)) == 10
    assert turns(before, tail, b"\x41\x07\x21" + number + b"".join(tail)) is None
    assert turns([*before[:1], b"\x21" + number], tail, b"".join(tail)) == 10


@pytest.mark.parametrize(
    ("body", "turns"),
    [
        (headed(0, 1, 10), 11),
        (headed(0, 1, 10).replace(ZERO, ""), 11),
        (headed(3, 2, 64, "i32.lt_u"), 32),
        (headed(5, 1, 0, "i32.gt_s", move="sub"), 6),
        (headed(5, -1, 0, "i32.ge_s"), 7),
        (headed(0, 2, 10, "i32.ne"), 6),
        (headed(0, 1, 10, "i32.le_u"), 12),
        (headed(20, 1, 10), 1),
    ],
)
def test_a_loop_that_begins_with_its_test_runs_its_head_once_more(body: str, turns: int) -> None:
    assert (bound(body).host_calls, bound(body).none) == (turns, "")


NUMBERS = st.integers(-300, 300) | st.sampled_from([-(2**31), 2**31 - 5, 2**31 - 1, -1])
COMPARED = ["i32.ne", "i32.lt_u", "i32.lt_s", "i32.gt_s", "i32.le_s", "i32.le_u", "i32.ge_s", "i32.gt_u", "i32.ge_u"]


def counts(body: str) -> int:
    """How often the engine runs the body."""
    text = f"""(module (global $turns (export "turns") (mut i32) (i32.const 0))
      (func (export "f") (local $i i32) {body.replace("(call $host)", COUNT)}))"""
    store = wasmtime.Store()
    exports = wasmtime.Instance(store, wasmtime.Module(store.engine, text), []).exports(store)
    run, count = exports["f"], exports["turns"]
    assert isinstance(run, wasmtime.Func) and isinstance(count, wasmtime.Global)
    run(store)
    found: int = count.value(store)
    return found


@settings(max_examples=150, deadline=None)
@example(-1, 1, 0, "i32.lt_u")
@given(NUMBERS, st.integers(-9, 9), NUMBERS, st.sampled_from(COMPARED[:3]))
def test_the_bound_is_what_the_engine_counts(first: int, step: int, limit: int, compare: str) -> None:
    body = counted(first, step, limit, compare, body="(call $host)")
    found = bound(body)
    if found.none or (found.host_calls or 0) > 1000:
        return
    counted_by_engine = counts(body)
    assert counted_by_engine <= (found.host_calls or 0)
    if compare != "i32.lt_u" or first >= 0:  # one that passes the largest number has a turn to spare
        assert counted_by_engine == found.host_calls


@settings(max_examples=150, deadline=None)
@given(NUMBERS, st.integers(-9, 9), NUMBERS, st.sampled_from(COMPARED), st.sampled_from(["add", "sub"]))
def test_the_bound_of_one_that_begins_with_its_test_is_too(
    first: int, step: int, limit: int, compare: str, move: str
) -> None:
    body = headed(first, step, limit, compare, move=move)
    found = bound(body)
    if not found.none and (found.host_calls or 0) <= 1000:
        assert counts(body) == (found.host_calls or 0) - 1
