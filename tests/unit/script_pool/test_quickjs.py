"""The JavaScript engine: what a script sees and leaves, each way it ends, and that nothing of it stays."""

from __future__ import annotations

import json

import pytest

from script_pool.engine.held import Held
from script_pool.engine.interface import Fault, Limits, Reason, Result
from script_pool.engine.quickjs import QuickJS
from script_pool.engine.texts import depth_of, is_strict
from tests.script_runs import fault, output, ran

SHORT, PATIENT = Limits(wall_seconds=0.1), Limits(wall_seconds=20)
"""Of what never ends, and of all that is to end in its time on a busy machine."""


@pytest.fixture(scope="module")
def engine(scripts_cache: str) -> QuickJS:
    made = QuickJS(scripts_cache)
    made.begin()
    return made


def done(outcome: Result | Held) -> Result:
    assert isinstance(outcome, Result)
    return outcome


def test_the_output_is_the_sandbox_as_the_script_left_it(engine: QuickJS) -> None:
    source = "c = a + b; delete a; b++; var d = [1]; const hidden = 2; function f() {}"
    assert output(engine, source, '{"a": 1, "b": 2}') == {"b": 3, "c": 3, "d": [1]}


def test_a_strict_script_declares_what_it_leaves(engine: QuickJS) -> None:
    assert output(engine, '"use strict"; var c = a * 2', '{"a": 21}') == {"a": 21, "c": 42}
    assert fault(engine, '"use strict"; c = 1').name == "ReferenceError"


def test_promises_run_to_completion(engine: QuickJS) -> None:
    assert output(engine, "Promise.resolve(4).then(v => { a = v })", '{"a": 0}') == {"a": 4}
    assert output(engine, "a = await Promise.resolve(a + 1)", '{"a": 1}') == {"a": 2}
    assert "nothing will resolve" in fault(engine, "await new Promise(() => {})").message


def test_the_console_is_collected_and_bounded(engine: QuickJS) -> None:
    assert ran(engine, "console.log('a', {b: 1}, 2)").console == ('a {"b":1} 2',)
    lines = ran(engine, "for (;;) { console.log('x'.repeat(1000)); if (i++ > 200) break }", '{"i": 0}').console
    assert sum(map(len, lines)) <= PATIENT.console_bytes
    assert fault(engine, "console.log('before'); throw 1").console == ("before",)


def test_an_exception_has_the_scripts_own_line_numbers(engine: QuickJS) -> None:
    thrown = fault(engine, "\n\nfunction f() { null.x }\nf()")
    assert (thrown.reason, thrown.name) == (Reason.EXCEPTION, "TypeError")
    assert "script:3:" in thrown.stack[0]
    assert "script:4:" in thrown.stack[1]
    assert len(thrown.stack) == 2


def test_a_syntax_error_is_found_as_it_is_prepared(engine: QuickJS) -> None:
    for source in ("\nlet x = ;", '"use strict";\nlet x = ;', "let y;\nlet y"):
        with pytest.raises(Fault) as caught:
            engine.prepare("script", source, "js", PATIENT)
        assert caught.value.reason is Reason.SYNTAX_ERROR
        assert "script:2:" in caught.value.stack[0]


def test_nothing_of_a_script_runs_as_it_is_prepared(engine: QuickJS) -> None:
    for source in ("while (true) {}", '"use strict"; while (true) {}'):
        engine.prepare("script", source, "js", PATIENT)


@pytest.mark.parametrize(
    "source",
    [
        "while (true) {}",
        '"use strict"; for (;;);',
        "/^(a+)+$/.test('a'.repeat(40) + 'b')",
        "[3, 2, 1].sort(() => { for (;;); })",
        "'a'.replace(/a/, () => { for (;;); })",
        "x = { get y() { for (;;); } }",
        "x = { toJSON() { for (;;); } }",
        "x = new Proxy({}, { ownKeys() { for (;;); } })",
        "(function again() { Promise.resolve().then(again) })()",
        "globalThis.toJSON = () => { for (;;); }",
    ],
)
def test_what_never_ends_is_stopped(engine: QuickJS, source: str) -> None:
    assert fault(engine, source, limits=SHORT).reason is Reason.TIME_LIMIT


@pytest.mark.parametrize("source", ["x = {}; x.x = x", "x = 1n", "toJSON = () => undefined", "self = globalThis"])
def test_what_has_no_json_is_not_serialisable(engine: QuickJS, source: str) -> None:
    assert fault(engine, source).reason is Reason.NOT_SERIALISABLE


def test_undefined_and_functions_are_left_out(engine: QuickJS) -> None:
    assert output(engine, "a = undefined; b = () => 1; c = [undefined]") == {"c": [None]}


def test_awkward_names_and_characters_come_back_as_they_are(engine: QuickJS) -> None:
    sandbox = '{"__proto__": {"x": 1}, "constructor": 2, "s": "\\ud800\\u0000é"}'
    assert output(engine, "", sandbox) == json.loads(sandbox)
    assert b"\\u0000" in ran(engine, "", sandbox).output_text


@pytest.mark.parametrize("source", ["(" * 100_000 + ")" * 100_000, "[" * 100_000, '"use strict";' + "[" * 100_000])
def test_source_nested_too_deeply_has_its_own_reason(engine: QuickJS, source: str) -> None:
    with pytest.raises(Fault) as caught:
        engine.prepare("script", source, "js", PATIENT)
    assert caught.value.reason is Reason.NESTED_TOO_DEEPLY


def test_json_nested_too_deeply_is_refused_on_either_side(engine: QuickJS) -> None:
    deep = '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"
    assert fault(engine, "", deep).reason is Reason.NESTED_TOO_DEEPLY
    assert fault(engine, "a = []; for (let i = 0; i < 600; i++) a = [a]").reason is Reason.NESTED_TOO_DEEPLY
    assert output(engine, "n = JSON.stringify(a).length", '{"a":' + "[" * 500 + "]" * 500 + "}")["n"] == 1000


def test_a_directive_is_found_behind_comments_and_other_directives() -> None:
    for source in (b'"use strict"; x', b"// a\n/* b */ 'use strict'\nx", b'"other"; "use strict"', b'"use strict"'):
        assert is_strict(source), source
    for source in (b'x; "use strict"', b'"use strict" + 1', b"// 'use strict'", b"/* ", b""):
        assert not is_strict(source), source


def test_depth_counts_brackets_outside_of_strings() -> None:
    assert depth_of(b'{"[[[\\"[": [[1], {}]}') == 3


def test_recursion_is_an_exception_that_a_script_can_catch(engine: QuickJS) -> None:
    assert output(engine, "try { (function f() { f() })() } catch (e) { n = e.name }") == {"n": "RangeError"}


def test_a_memory_eater_meets_its_limit(engine: QuickJS) -> None:
    eater = "var a = []; while (true) a.push(new Uint8Array(1 << 20).fill(1))"
    assert fault(engine, eater, limits=PATIENT).reason is Reason.MEMORY_LIMIT


def test_too_large_an_output_is_refused(engine: QuickJS) -> None:
    limits = Limits(wall_seconds=20, output_bytes=1000)
    assert fault(engine, "a = 'x'.repeat(2000)", limits=limits).reason is Reason.OUTPUT_TOO_LARGE


@pytest.mark.parametrize("sandbox", ["[1]", "1", "null", "{", "", '{"undefined": 1}'])
def test_an_input_that_is_no_sandbox_is_refused(engine: QuickJS, sandbox: str) -> None:
    assert fault(engine, "", sandbox).reason is Reason.EXCEPTION


def test_nothing_of_one_run_is_visible_to_the_next(engine: QuickJS) -> None:
    leave = (
        "globalThis.left = 1; Object.prototype.left = 1; Array.prototype.map = null; JSON.parse = null;"
        "JSON.stringify = null; Symbol.for('left').left; kept = new WeakRef({}); Math.random = () => 4; "
        "console.log = null; s = String(left)"
    )
    look = "a = [typeof left, typeof [].map, typeof JSON.parse, typeof kept, Math.random() === 4, typeof console.log]"
    ran(engine, leave)
    assert output(engine, look) == {"a": ["undefined", "function", "function", "undefined", False, "function"]}


def test_random_numbers_differ_from_run_to_run(engine: QuickJS) -> None:
    script = engine.prepare("script", "a = Math.random()", "js", PATIENT)
    drawn = {done(engine.run(script, b"{}", PATIENT, None)).output_text for _ in range(20)}
    assert len(drawn) == 20


def test_a_finer_clock_is_not_there(engine: QuickJS) -> None:
    assert output(engine, "a = [typeof performance, typeof SharedArrayBuffer, Date.now() % 10]") == {
        "a": ["undefined", "undefined", 0]
    }


def test_a_damaged_image_is_refused(engine: QuickJS) -> None:
    script = engine.prepare("script", "a = 1", "js", PATIENT)
    for image in (b"", script.image[:20], script.image[:-1], b"\0" + b"\xff" * 40):
        damaged = type(script)(script.name, script.language, image, script.digest)
        with pytest.raises(Fault) as caught:
            engine.run(damaged, b"{}", PATIENT, None)
        assert caught.value.reason in (Reason.CRASHED, Reason.MEMORY_LIMIT)


@pytest.mark.parametrize(
    ("source", "left"),
    [
        (
            "interface Order { total: number }\nfunction f(o: Order): number { return o.total }\nr = f(order)",
            3,
        ),
        ("enum Kind { A, B }; r = Kind.B", 1),
        ("const x: number = 1; r = x", 1),
        ("r = order.total", 3),
        ("r = order!.total satisfies number", 3),
        ("class A<T> { constructor(private x: T) {} get(): T { return this.x } }; r = new A<number>(4).get()", 4),
    ],
)
def test_typescript_runs_without_its_types(engine: QuickJS, source: str, left: int) -> None:
    script = engine.prepare("script", source, "ts", PATIENT)
    ran = done(engine.run(script, b'{"order":{"total":3}}', PATIENT, None))
    assert json.loads(ran.output_text)["r"] == left


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("let x: = 3", Reason.SYNTAX_ERROR),
        ("(" * 100_000, Reason.NESTED_TOO_DEEPLY),
        ("export const x: number = ", Reason.SYNTAX_ERROR),
    ],
)
def test_typescript_that_is_none_says_so(engine: QuickJS, source: str, reason: Reason) -> None:
    with pytest.raises(Fault) as caught:
        engine.prepare("script", source, "ts", PATIENT)
    assert caught.value.reason is reason


def test_types_are_taken_away_within_the_time_limit(engine: QuickJS) -> None:
    with pytest.raises(Fault) as caught:
        engine.prepare("script", "x = [" + "a as number," * 200_000 + "]", "ts", Limits(wall_seconds=0.01))
    assert caught.value.reason is Reason.TIME_LIMIT


@pytest.mark.parametrize("part", [b"[[[[1]]]],", b"[],", b'{"a":[0]},'])
def test_five_mebibytes_of_small_arrays_come_back_or_meet_a_limit(engine: QuickJS, part: bytes) -> None:
    limits = Limits(wall_seconds=20, memory_bytes=64 << 20)
    text = b'{"a":[' + part * ((limits.input_bytes - 20) // len(part)) + b"0]}"
    script = engine.prepare("script", "n = a.length", "js", limits)
    try:
        left = json.loads(done(engine.run(script, text, limits, None)).output_text)
    except Fault as stopped:
        assert stopped.reason in (Reason.MEMORY_LIMIT, Reason.OUTPUT_TOO_LARGE)
    else:
        assert left["n"] == len(left["a"])


def test_a_call_whose_arguments_nest_too_deeply_ends_its_run(engine: QuickJS) -> None:
    script = engine.prepare(
        "script", "let a = []; for (let i = 0; i < 600; i++) a = [a]; await f(a)", "js", PATIENT, ("f",)
    )
    with pytest.raises(Fault) as caught:
        engine.run(script, b"{}", PATIENT, None)
    assert caught.value.reason is Reason.NESTED_TOO_DEEPLY


@pytest.mark.parametrize(
    "given", ["1n", "(() => { const a = {}; a.a = a; return a })()", "{ toJSON() { throw new Error('x') } }"]
)
def test_arguments_without_json_reject_the_call(engine: QuickJS, given: str) -> None:
    script = engine.prepare(
        "script", f"var e; try {{ await f({given}) }} catch (x) {{ e = x.name }}", "js", PATIENT, ("f",)
    )
    assert json.loads(done(engine.run(script, b"{}", PATIENT, None)).output_text)["e"] in ("TypeError", "Error")
