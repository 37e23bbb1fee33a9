"""JavaScript's small standard library, its clock and zone, modules, and the lines of TypeScript's stacks."""

from __future__ import annotations

import json

import pytest

from script_pool import zones
from script_pool.client import Pool, ScriptError
from script_pool.engine.interface import Fault, Limits, Result, Script, World
from script_pool.engine.library import url
from script_pool.engine.quickjs import QuickJS
from script_pool.engine.typescript import compare
from tests.script_runs import output


@pytest.fixture(scope="module")
def engine(scripts_cache: str) -> QuickJS:
    made = QuickJS(scripts_cache)
    made.begin()
    return made


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("btoa('hi')", "aGk="),
        ("atob(' aGk ')", "hi"),
        ("base64.encode('é')", "w6k="),
        ("Array.from(base64.decode('_-8='))", [255, 239]),
        ("hex.encode(new Uint8Array([0, 255]))", "00ff"),
        ("Array.from(hex.decode('0aFF'))", [10, 255]),
        ("new TextDecoder().decode(new TextEncoder().encode('h€😀\\0'))", "h€😀\0"),
        ("Array.from(new TextEncoder().encode('\\ud800'))", [239, 191, 189]),
        ("new TextDecoder().decode(new Uint8Array([0xef, 0xbb, 0xbf, 65, 0xff]))", "A\ufffd"),
        ("crypto.hash('sha256', 'abc').slice(0, 16)", "ba7816bf8f01cfea"),
        ("crypto.getRandomValues(new Uint32Array(4)).length", 4),
        ("/^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab]/.test(crypto.randomUUID())", True),
        ("crypto.randomUUID() === crypto.randomUUID()", False),
        ("structuredClone(new Map([[1, {a: new Date(5)}]])).get(1).a.getTime()", 5),
        ("(() => { const o = {a: []}; o.a.push(o); const c = structuredClone(o); return c.a[0] === c })()", True),
        ("structuredClone(JSON.parse('{\"__proto__\": 1}')).hasOwnProperty('__proto__')", True),
        ("String(new URL('../x?q#f', 'https://EXAMPLE.com:443/a/b/'))", "https://example.com/a/x?q#f"),
        ("new URL('http://0x7f.1/%7Efoo/./../é').href", "http://127.0.0.1/%C3%A9"),
        ("new URL('https://[::0:1]:8080/').host", "[::1]:8080"),
        ("new URL('mailto:a@b').pathname", "a@b"),
        ("[...new URLSearchParams('a=1&b=%20+x&a=2')].join('|')", "a,1|b,  x|a,2"),
        ("new URLSearchParams({q: 'ü &'}).toString()", "q=%C3%BC+%26"),
        ("URL.canParse('http://a b/')", False),
        ("typeof setTimeout + typeof require + typeof process", "undefinedundefinedundefined"),
    ],
)  # fmt: skip
def test_the_library_does_what_its_names_say(engine: QuickJS, expression: str, value: object) -> None:
    assert output(engine, f"r = {expression}")["r"] == value


@pytest.mark.parametrize(
    ("expression", "name"),
    [
        ("atob('*')", "TypeError"),
        ("hex.decode('abc')", "TypeError"),
        ("new TextDecoder('utf-8', {fatal: true}).decode(new Uint8Array([255]))", "TypeError"),
        ("new TextDecoder('latin1')", "RangeError"),
        ("crypto.getRandomValues(new Uint8Array(70000))", "RangeError"),
        ("crypto.hash('sha3', '')", "TypeError"),
        ("structuredClone(() => 1)", "DataCloneError"),
        ("new URL('nothing')", "TypeError"),
        ("base64.encode(1)", "TypeError"),
    ],
)
def test_what_it_refuses_it_throws_with_the_scripts_own_lines(engine: QuickJS, expression: str, name: str) -> None:
    with pytest.raises(Fault) as caught:
        output(engine, f"\n{expression}")
    assert caught.value.name == name
    assert [line for line in caught.value.stack if "script:2:" in line] == list(caught.value.stack)


def test_a_url_is_taken_apart_as_the_standard_does() -> None:
    for text, base, href in (
        ("//x/y", "https://a/b", "https://x/y"),
        ("?q", "http://a/b?c#d", "http://a/b?q"),
        ("#f", "http://a/b?c#d", "http://a/b?c#f"),
        ("", "http://a/b?c#d", "http://a/b?c"),
        ("/a/../../b/", "http://x", "http://x/b/"),
        ("http:\\\\x\\y", None, "http://x/y"),
        ("  http://x/\ty\n ", None, "http://x/y"),
        ("file:///a/b", None, "file:///a/b"),
    ):
        parts = url(text, base)
        host = "" if parts["host"] is None else f"//{parts['host']}"
        assert f"{parts['protocol']}{host}{parts['pathname']}{parts['search']}{parts['hash']}" == href


BERLIN = World(clock=1.8e12, zone=zones.table("Europe/Berlin").encode())


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("Math.floor(Date.now() / 60000)", 30000000),  # it goes on from there
        ("new Date().getTimezoneOffset()", -60),
        ("new Date(2026, 6, 1).toISOString()", "2026-06-30T22:00:00.000Z"),
        ("new Date('2026-07-01T12:00').getTime() - Date.UTC(2026, 6, 1, 10)", 0),
        ("new Date('2026-07-01').getTime() - Date.UTC(2026, 6, 1)", 0),
        ("(() => { const d = new Date(2026, 0, 31, 5); d.setMonth(6); return d.getHours() })()", 5),
        ("String(new Date(2026, 9, 25, 1, 30))", "Sun Oct 25 2026 01:30:00 GMT+0200"),
        ("new Date(NaN).toString()", "Invalid Date"),
        ("(() => { class D extends Date {} return new D(5) instanceof D && new D(5).getTime() })()", 5),
        ("new Date(new Date(7)).getTime() + typeof Date()", "7string"),
    ],
)  # fmt: skip
def test_dates_are_in_the_zone_and_at_the_time_that_the_caller_sets(
    engine: QuickJS, expression: str, value: object
) -> None:
    assert output(engine, f"r = {expression}", world=BERLIN)["r"] == value


def test_a_zone_is_a_name_or_a_distance() -> None:
    assert json.loads(zones.table("-02:30")) == [[0, -150]]
    assert [1774746000, 120] in json.loads(zones.table("Europe/Berlin"))
    assert json.loads(zones.table("UTC")) == [[0, 0]]
    for wrong in ("Nowhere/None", "../../etc/passwd", "", "/etc/localtime"):
        with pytest.raises(ValueError, match="is no time zone"):
            zones.table(wrong)


def modules(engine: QuickJS, **sources: str) -> tuple[Script, World]:
    made = {name: engine.prepare(name, source, "js", Limits(wall_seconds=20)) for name, source in sources.items()}
    return made["main"], World(modules=made)


def test_modules_are_linked_by_name_and_fresh_in_each_run(engine: QuickJS) -> None:
    main, world = modules(
        engine,
        main="import f, { n } from './lib';\nimport * as deep from 'deep';\nr = f(r); globalThis.c = [n(), deep.x]",
        lib="import { x } from 'deep';\nlet n = 0; export { up as n };"
        "const up = () => ++n + x; export default (v) => v * 2",
        deep="export const x = 10; import 'lib'",
    )
    assert main.imports == ("lib", "deep")
    for r in (1, 2):
        ran = engine.run(main, b'{"r":%d}' % r, Limits(wall_seconds=20), None, world)
        assert isinstance(ran, Result)
        assert json.loads(ran.output_text) == {"r": 2 * r, "c": [11, 10]}


def test_a_modules_stack_names_it_with_its_own_lines(engine: QuickJS) -> None:
    main, world = modules(engine, main="import { f } from 'lib';\nf()", lib="export function f() { null.x }")
    with pytest.raises(Fault) as caught:
        engine.run(main, b"{}", Limits(wall_seconds=20), None, world)
    assert "lib:1:2" in caught.value.stack[0]
    assert "script:2:1" in caught.value.stack[1]
    main, world = modules(engine, main="import { missing } from 'lib'", lib="export const other = 1")
    with pytest.raises(Fault, match="missing"):
        engine.run(main, b"{}", Limits(wall_seconds=20), None, world)


async def test_what_a_module_imports_is_what_its_name_stands_for(scripts_cache: str) -> None:
    async with Pool(options=(f"--cache={scripts_cache}", "--deadline=60")) as pool:
        await pool.add("main", "import { area } from 'geometry'; r = area(r)")
        with pytest.raises(ScriptError, match="main imports geometry"):
            await pool.run("main", {"r": 1})
        await pool.add("geometry", "export const area = (r) => 3 * r * r")
        assert await pool.run("main", {"r": 2}) == {"r": 12}
        await pool.add("geometry", "export const area = (r: number): number => 4 * r", "ts")
        assert await pool.run("main", {"r": 2}) == {"r": 8}
        await pool.remove("geometry")
        with pytest.raises(ScriptError, match="no such script"):
            await pool.run("main", {"r": 1})


def test_the_stack_of_typescript_has_its_sources_lines(engine: QuickJS) -> None:
    source = (
        "interface Order {\n  total: number;\n}\n\n// a comment\nfunction check(order: Order): number {\n"
        "  if (order.total > 1) {\n    throw new TypeError('too much' as string);\n  }\n  return order.total;\n}\n\n"
        "type Unused = { check: Order };\n\nr = check(order);\n"
    )
    with pytest.raises(Fault) as caught:
        output(engine, source, '{"order":{"total":2}}', language="ts")
    assert ["script:8:" in caught.value.stack[0], "script:15:" in caught.value.stack[1]] == [True, True]


def test_words_are_found_again_where_they_were() -> None:
    changed = compare(b"let a: number = 1\n\nlet b: string = 'x'\n", b'let a = 1;\nlet b = "x";\n')
    assert (2, 1, 3, 1) in changed.map
    assert (2, 9, 3, 17) in changed.map
