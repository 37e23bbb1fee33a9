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
COUNTED = """(local.set $i (i32.const {first})) (loop $l {body} {more}
  (br_if $l ({compare} (local.tee $i (i32.add (local.get $i) (i32.const {step}))) (i32.const {limit}))))"""


def bound(body: str, parameters: str = "") -> ExportBound:
    """Of a function with the local $i."""
    text = f"""(module (import "a" "b" (func $host)) (global $turns (export "turns") (mut i32) (i32.const 0))
      (func (export "f") {parameters} (local $i i32) (local $k i32) {body}))"""
    module = parse(bytes(wasmtime.wat2wasm(text)))
    assert isinstance(module, CoreModule)
    [bodies] = decode((module,), Budget()).modules
    return export_bounds(module, bodies)[0]


def counted(first: int, step: int, limit: int, compare: str = "i32.ne", body: str = "", more: str = "") -> str:
    return COUNTED.format(first=first, step=step, limit=limit, compare=compare, body=body, more=more)


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
        (counted(0, 1, 10, "i32.lt_u", "(call $host)").replace("(local.set $i (i32.const 0))", ""), 12),
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
        counted(0, 1, 10).replace("(local.set $i (i32.const 0))", ""),
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


@settings(max_examples=150, deadline=None)
@example(-1, 1, 0, "i32.lt_u")
@given(
    st.integers(-300, 300) | st.sampled_from([-(2**31), 2**31 - 5, 2**31 - 1, -1]),
    st.integers(-9, 9),
    st.integers(-300, 300) | st.sampled_from([2**31 - 1, -(2**31), -2]),
    st.sampled_from(["i32.ne", "i32.lt_u", "i32.lt_s"]),
)
def test_the_bound_is_what_the_engine_counts(first: int, step: int, limit: int, compare: str) -> None:
    body = counted(first, step, limit, compare, body="(call $host)")
    found = bound(body)
    if found.none or (found.host_calls or 0) > 1000:
        return
    text = f"""(module (global $turns (export "turns") (mut i32) (i32.const 0))
      (func (export "f") (local $i i32) {body.replace("(call $host)", COUNT)}))"""
    store = wasmtime.Store()
    exports = wasmtime.Instance(store, wasmtime.Module(store.engine, text), []).exports(store)
    run, count = exports["f"], exports["turns"]
    assert isinstance(run, wasmtime.Func) and isinstance(count, wasmtime.Global)
    run(store)
    assert count.value(store) <= (found.host_calls or 0)
    if compare != "i32.lt_u" or first >= 0:  # one that passes the largest number has a turn to spare
        assert count.value(store) == found.host_calls
