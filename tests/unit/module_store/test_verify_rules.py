"""Verification: each rule passes what it allows and refuses what it does not, with what it found; bounds hold."""

from __future__ import annotations

import json

import pytest
import wasmtime

from app_loader.engine.settings import Settings, make_engine
from app_loader.engine.store import Linker, Store
from app_loader.engine.validity import why_invalid
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import parse
from keep_protocol.wasi import PREVIEW_1, PREVIEW_1_FUNCTIONS
from module_store.verify.bodies import INDIRECT, LOOPS, Budget
from module_store.verify.bounds import MOST, RECURSION
from module_store.verify.policy import KEEP, Kind, Policy
from module_store.verify.report import MAX_DETAILS, Finding, Report
from module_store.verify.verification import refuse, verify
from tests.unit.module_store.modules import COMPONENT, FULL, HEAD, MALFORMED, section, wasm

ANY = Policy(name="any", imports=None, memory_initial=None, table_initial=None, size=None)


def finding(data: bytes, rule: str, **policy: object) -> Finding:
    """What one rule found, by a policy that allows everything else."""
    report = verify(data, ANY.replace(**policy), why_invalid)
    assert parse(Report, json.loads(json.dumps(report.to_wire())), "report", strict=True) == report
    (found,) = [each for each in report.findings if each.rule == rule]
    assert report.passed == found.passed
    return found


@pytest.mark.parametrize(
    ("rule", "has"),
    [
        ("size", len(FULL)),
        ("memories", 1),
        ("memory_initial", 65536),
        ("memory_maximum", 3 * 65536),
        ("tables", 1),
        ("table_initial", 2),
        ("table_maximum", 10),
        ("tags", 0),
        ("functions", 4),
        ("data_segments", 2),
        ("data_bytes", 12),
        ("element_segments", 3),
        ("elements", 5),
        ("locals", 3),
        ("nesting", 2),
        ("modules", 1),
        ("depth", 0),
    ],
)
def test_a_number_passes_up_to_its_limit_and_not_above(rule: str, has: int) -> None:
    found = finding(FULL, rule, **{rule: has})
    assert (found.passed, found.value, found.limit) == (True, has, has)
    assert finding(FULL, rule, **{rule: None}).passed
    if has:
        assert not finding(FULL, rule, **{rule: has - 1}).passed


def test_sizes_of_functions_and_custom_sections_are_measured() -> None:
    data = wasm("(module (func nop nop) (func))") + section(0, b"\1xabc")
    assert finding(data, "function_bytes", function_bytes=4).passed
    assert not finding(data, "function_bytes", function_bytes=3).passed
    assert finding(data, "custom_bytes", custom_bytes=5).value == 5
    assert not finding(data, "custom_bytes", custom_bytes=4).passed


def test_a_memory_without_a_maximum_counts_as_the_most_that_one_can_have() -> None:
    data = wasm("(module (memory 1) (table 1 funcref))")
    assert finding(data, "memory_maximum", memory_maximum=1 << 32).value == 1 << 32
    assert not finding(data, "memory_maximum", memory_maximum=(1 << 32) - 1).passed
    assert finding(data, "table_maximum", table_maximum=None).value == (1 << 32) - 1


def test_the_kind_is_a_rule() -> None:
    assert finding(FULL, "kinds", kinds=(Kind.MODULE,)).passed
    refused = finding(COMPONENT, "kinds", kinds=(Kind.MODULE,))
    assert (refused.passed, refused.found, refused.allowed) == (False, "component", "module")


def test_imports_are_compared_by_interface_and_function() -> None:
    env = {"env": ("size", "count", "callbacks")}
    exact = (("wasi_snapshot_preview1", ("proc_exit",)), *env.items())
    assert finding(FULL, "imports", imports=exact).passed
    assert finding(FULL, "imports", imports=(("wasi_snapshot_preview1", None), ("env", None))).passed
    refused = finding(FULL, "imports", imports=(("wasi_snapshot_preview1", ("fd_write",)), ("env", ("size",))))
    assert refused.details == ("wasi_snapshot_preview1 proc_exit", "env count", "env callbacks")
    assert not finding(FULL, "imports", imports=()).passed
    assert finding(HEAD, "imports", imports=()).passed


@pytest.mark.parametrize("version", ["", "@0", "@0.2", "@0.2.6"])
def test_an_interface_may_be_allowed_whatever_its_version(version: str) -> None:
    allowed = ((f"wasi:io/poll{version}", ("poll",)), (f"wasi:cli/exit{version}", None), ("log", ()))
    assert finding(COMPONENT, "imports", imports=allowed).passed


def test_a_components_functions_and_versions_are_refused_where_they_are_not_listed() -> None:
    allowed = (("wasi:io/poll@0.2", ("other",)), ("wasi:cli/exit@0.3", None))
    assert finding(COMPONENT, "imports", imports=allowed).details == (
        "wasi:io/poll@0.2.6 poll",
        "wasi:cli/exit@0.2.6 exit",
        "log",
    )


def test_an_imported_component_is_allowed_with_all_it_has_alone() -> None:
    data = wasm('(component (import "plug" (component)) (import "module" (core module)))')
    assert not finding(data, "imports", imports=(("plug", ("f",)), ("module", ("f",)))).passed
    assert finding(data, "imports", imports=(("plug", None), ("module", None))).passed


def test_what_is_not_allowed_is_listed_in_ascii_and_not_without_end() -> None:
    imports = "".join(f'(import "\\1b[31m" "f{n}" (func))' for n in range(MAX_DETAILS + 30))
    details = finding(wasm(f"(module {imports})"), "imports", imports=()).details
    assert details[0] == "\\x1b[31m f0" and details[-1] == "… and 30 more" and len(details) == MAX_DETAILS + 1


def test_a_start_function_may_be_forbidden() -> None:
    assert finding(FULL, "start", start=True).passed
    assert not finding(FULL, "start", start=False).passed
    assert finding(HEAD, "start", start=False).passed
    assert finding(COMPONENT, "start", start=False).passed
    begins = wasm("(component (core module (func $f) (start $f)))")
    assert not finding(begins, "start", start=False).passed


def test_custom_sections_may_be_allowed_by_name() -> None:
    assert finding(FULL, "custom_sections", custom_sections=("producers", "name")).passed
    assert finding(FULL, "custom_sections", custom_sections=("name",)).details == ("producers",)


def test_validity_is_the_engines_opinion_and_without_one_it_is_not_known() -> None:
    invalid = wasm("(module (func (result i32)))")
    assert "type mismatch" in finding(invalid, "valid").details[0]
    assert finding(COMPONENT, "valid").passed
    unasked = verify(HEAD, ANY)
    assert not unasked.passed and "no engine" in unasked.failures[0].found
    assert verify(HEAD, ANY.replace(valid=False)).passed


def test_a_module_in_a_component_is_asked_for_too() -> None:
    data = wasm("(component (core module (func (result i32))))")
    assert not finding(data, "valid").passed


def test_a_file_that_cannot_be_read_is_refused_with_the_place() -> None:
    report = verify(MALFORMED["a section cut off"], KEEP, why_invalid)
    assert (report.passed, report.kind, [each.rule for each in report.findings]) == (False, None, ["readable"])
    assert "at byte 9" in report.lines()[3]
    with pytest.raises(KeepfleetError, match="does not pass the policy keep: readable") as caught:
        refuse(report)
    assert caught.value.kind is ErrorKind.INVALID_MODULE


def test_a_rule_on_bodies_fails_where_the_budget_is_used_up_and_says_so() -> None:
    report = verify(FULL, ANY.replace(nesting=100), why_invalid, Budget(instructions=3))
    (failed,) = report.failures
    assert failed.rule == "nesting" and "more than 3 instructions" in failed.found
    assert report.work.exhausted and report.work.instructions_budget == 3
    assert verify(FULL, ANY, why_invalid, Budget(instructions=3)).passed  # nothing asked for bodies


def test_the_default_policy_takes_what_a_keep_takes() -> None:
    assert verify(wasm('(module (import "wasi_snapshot_preview1" "fd_write" (func)))'), KEEP, why_invalid).passed
    failed = verify(wasm('(module (import "env" "f" (func)) (memory 4097))'), KEEP, why_invalid).failures
    assert [each.rule for each in failed] == ["imports", "memory_initial"]


def test_every_function_of_preview_1_that_is_listed_is_one_that_the_engine_has() -> None:
    engine = make_engine(Settings())
    linker, store = Linker(engine), Store(engine)
    assert [name for name in PREVIEW_1_FUNCTIONS if not linker.has(store, PREVIEW_1, name)] == []
    assert not linker.has(store, PREVIEW_1, "fd_dup")


# --- bounds ---------------------------------------------------------------------------------------------------------


def bounds(text: str) -> dict[str, tuple[int | None, int | None] | str]:
    """Each exported function's bound, or why it has none."""
    report = verify(wasm(text), ANY, why_invalid)
    assert report.passed, report.failures
    return {each.name: each.reason or (each.instructions, each.host_calls) for each in report.bounds.exports}


def test_a_straight_function_is_bounded_by_its_instructions() -> None:
    assert bounds('(module (func (export "f") (drop (i32.add (i32.const 1) (i32.const 2)))))') == {"f": (4, 0)}


def test_of_an_if_the_longer_arm_counts() -> None:
    text = '(module (func (export "f") (if (i32.const 1) (then nop nop nop) (else nop))))'
    assert bounds(text) == {"f": (1 + 1 + 3, 0)}
    nested = (
        '(module (func (export "f") (if (i32.const 1) (then (if (i32.const 0) (then) (else nop nop))) (else nop))))'
    )
    assert bounds(nested) == {"f": (1 + 1 + 1 + 1 + 2, 0)}


def test_calls_cost_what_is_called_and_the_hosts_are_counted_apart() -> None:
    text = """(module (import "env" "host" (func $host))
      (func $twice (call $host) (call $host))
      (func (export "f") (call $twice) nop (call $twice)))"""
    assert bounds(text) == {"f": (3 + 2 * 2, 4)}


EXCEPTIONS = """(module (tag (import "env" "theirs")) (tag $own (param i32))
  (func $throws (throw $own (i32.const 1)))
  (func (export "caught") (result i32)
    (block $handler (result i32) (try_table (catch $own $handler) (call $throws)) (i32.const 0)))
  (func (export "again") (loop $more (try_table (catch_all $more) (call $throws)))))"""


def test_tags_are_counted_and_may_be_forbidden() -> None:
    found = finding(wasm(EXCEPTIONS), "tags", tags=0)
    assert (found.passed, found.value, found.found) == (False, 1, "1 tags of exceptions"), "imported ones are another's"


def test_an_exception_that_is_caught_behind_is_bounded_and_one_that_goes_back_is_a_loop() -> None:
    assert bounds(EXCEPTIONS) == {"caught": (6, 0), "again": LOOPS}


def test_loops_recursion_and_tables_have_no_bound() -> None:
    found = bounds("""(module (table 1 funcref) (type $t (func))
      (func (export "loop") (loop (br 0)))
      (func (export "straight") (loop nop))
      (func $a (export "recursion") (call $b)) (func $b (call $a))
      (func (export "table") (call_indirect (type $t) (i32.const 0)))
      (func (export "loops by a call") (call 0)))""")
    assert "loop" in str(found["loop"]) and "loop" in str(found["loops by a call"])
    assert found["straight"] == (2, 0)
    assert found["recursion"] == RECURSION
    assert found["table"] == INDIRECT


def test_a_bound_that_doubles_with_each_function_ends_at_the_most_that_is_counted() -> None:
    doubling = "".join(f"(func $f{n} (call $f{n + 1}) (call $f{n + 1}))" for n in range(3000))
    found = bounds(f'(module (export "f" (func $f0)) {doubling} (func $f3000 nop))')
    assert found == {"f": f"it may run more than {MOST:,} instructions"}


def test_a_long_chain_of_calls_needs_no_stack() -> None:
    chain = "".join(f"(func $f{n} (call $f{n + 1}))" for n in range(20_000))
    assert bounds(f'(module (export "f" (func $f0)) {chain} (func $f20000))') == {"f": (20_000, 0)}


def test_the_bound_holds_for_what_the_engine_runs() -> None:
    text = """(module (func $leaf (param i32) (result i32)
        (if (result i32) (local.get 0) (then (i32.const 1) (drop) (i32.const 2)) (else (i32.const 3))))
      (func (export "f") (param i32) (result i32) (i32.add (call $leaf (local.get 0)) (call $leaf (i32.const 0)))))"""
    bound = bounds(text)["f"]
    assert isinstance(bound, tuple) and bound[0] is not None
    config = wasmtime.Config()
    config.consume_fuel = True
    store = wasmtime.Store(wasmtime.Engine(config))
    instance = wasmtime.Instance(store, wasmtime.Module(store.engine, wasm(text)), [])
    function = instance.exports(store)["f"]
    assert isinstance(function, wasmtime.Func)
    for argument in (0, 1):
        store.set_fuel(1000)
        function(store, argument)
        assert 1000 - store.get_fuel() <= bound[0] + 3  # of each call, the engine counts its entry too


def test_an_export_may_have_to_be_bounded() -> None:
    data = wasm('(module (func (export "f") nop nop) (func (export "g") (loop (br 0))))')
    refused = finding(data, "instructions", instructions=2)
    assert refused.details == ("g: there is a loop on its way",)
    assert finding(wasm('(module (func (export "f") nop nop))'), "instructions", instructions=2).passed
    assert not finding(wasm('(module (func (export "f") nop nop))'), "instructions", instructions=1).passed
    assert not finding(COMPONENT, "instructions", instructions=1000).passed


def test_memory_is_bounded_by_its_maximum_or_by_what_it_has_where_nothing_grows_it() -> None:
    def memory(data: bytes) -> int | None:
        return verify(data, ANY, why_invalid).bounds.memory_bytes

    grows = "(module (memory 1 8) (func (drop (memory.grow (i32.const 1)))))"
    assert memory(wasm(grows)) == 8 * 65536
    assert memory(wasm("(module (memory 1 8) (func))")) == 65536
    assert memory(wasm(grows.replace("1 8", "1"))) == 1 << 32
    assert verify(FULL, ANY, why_invalid).bounds.table_elements == 10
    assert memory(COMPONENT) == 2 * 65536 + 65536
    inner = wasm("(component (component (core module (memory 1))))")
    report = verify(inner, ANY, why_invalid)
    assert report.bounds.memory_bytes is None and "any number of times" in report.bounds.memory_reason
