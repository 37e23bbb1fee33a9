"""The parser of the binary format: it describes what the engine takes as the engine does, and refuses what it does."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keep_protocol.errors import ErrorKind
from module_store.verify import binary
from module_store.verify.binary import Reader, Unreadable, repeated
from module_store.verify.bodies import Budget, OverBudget, decode
from module_store.verify.component import MAX_DEPTH, Component, parse
from module_store.verify.core import MAX_NAMED
from module_store.verify.module import CoreModule, Segments, Size
from tests.fakes import engine_opinion
from tests.unit.module_store.modules import (
    COMPONENT,
    COMPONENT_HEAD,
    FULL,
    HEAD,
    MALFORMED,
    MALFORMED_COMPONENTS,
    number,
    section,
    wasm,
)

EXAMPLES = sorted((Path(__file__).resolve().parents[3] / "examples").glob("*/*.wasm"))
SEEDS = (
    FULL,
    wasm("(module (tag (param i32)) (func (try_table (catch_all 0) (throw 0 (i32.const 1)))))"),
    *(path.read_bytes() for path in EXAMPLES if path.stat().st_size < 20_000),
)


def core(data: bytes) -> CoreModule:
    parsed = parse(data)
    assert isinstance(parsed, CoreModule)
    return parsed


def component(data: bytes) -> Component:
    parsed = parse(data)
    assert isinstance(parsed, Component)
    return parsed


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_described_as_the_engine_describes_it(path: Path) -> None:
    data = path.read_bytes()
    assert engine_opinion.described_by_us(core(data)) == engine_opinion.described_by_engine(data)


def test_every_section_is_described() -> None:
    module = core(FULL)
    assert engine_opinion.is_valid(FULL)
    assert [(each.module, each.name, each.kind) for each in module.imports] == [
        ("wasi_snapshot_preview1", "proc_exit", "func"),
        ("env", "size", "global"),
        ("env", "count", "global"),
        ("env", "callbacks", "table"),
    ]
    assert module.imports[2].of == "mut i32" and module.imports[3].of == Size(1, 20, 1)
    assert module.tables == (Size(1, 20, 1), Size(2, 10, 1)) and module.memories == (Size(1, 3, 1),)
    assert (module.globals, module.start) == (2, 1)
    assert [(each.name, each.kind, each.place) for each in module.exports][-2:] == [
        ("vectors", "func", 3),
        ("bulk", "func", 4),
    ]
    assert module.signature(0) == (("i32", "i64"), ("f32", "f64"))
    assert module.signature(1) == (("v128", "funcref"), ())
    assert module.elements == Segments(3, 5) and module.data_segments == Segments(2, 12)
    assert module.code.number == 4 and [name for name, _ in module.custom] == ["producers", "name"]
    assert module.code.largest == max(body.left for body in module.bodies())


EXCEPTIONS = wasm("""(module
  (type $carried (func (param i32 i64)))
  (import "env" "theirs" (tag (type $carried)))
  (import "env" "last" (global (mut exnref)))
  (tag $own (export "own") (param f32))
  (table 1 exnref)
  (elem (table 0) (i32.const 0) exnref (ref.null exn))
  (global nullexnref (ref.null noexn))
  (export "theirs" (tag 0))
  (func (export "all") (param exnref) (result (ref exn)) (local exnref)
    (block $ref (result exnref) (block $whole (result f32 exnref) (block $nothing
      (try_table (catch_ref $own $whole) (catch_all $nothing) (catch_all_ref $ref)
        (throw $own (f32.const 1)))
      unreachable) unreachable) throw_ref) unreachable))""")
"""A core module with everything of exceptions: tags, references to them, and each clause that catches but one."""


def test_exceptions_are_described_as_the_engine_describes_them() -> None:
    assert engine_opinion.agree(EXCEPTIONS)
    module = core(EXCEPTIONS)
    assert [(each.name, each.kind, each.of) for each in module.imports] == [
        ("theirs", "tag", 0),
        ("last", "global", "mut exnref"),
    ]
    tags = wasm('(module (import "env" "theirs" (tag (param i32))) (tag (export "own") (param externref)))')
    assert engine_opinion.described_by_us(core(tags)) == engine_opinion.described_by_engine(tags)
    assert [module.signature(of)[0] for of in module.tags] == [("i32", "i64"), ("f32",)]
    assert [(each.name, each.kind, each.place) for each in module.exports][:2] == [
        ("own", "tag", 1),
        ("theirs", "tag", 0),
    ]
    assert module.signature(module.functions[0]) == (("exnref",), ("(ref exn)",))
    assert decode((module,), Budget()).nesting == 4


def test_every_body_is_decoded() -> None:
    bodies = decode((core(FULL),), Budget())
    (begin, pair, vectors, bulk) = bodies.modules[0]
    assert (begin.locals, begin.nesting, begin.grows_memory) == (3, 2, True)
    assert "loop" in begin.unbounded
    assert (pair.locals, pair.instructions, vectors.instructions, bulk.instructions) == (1, 2, 2, 12)


def test_a_component_is_described_with_its_modules_and_the_functions_of_its_imports() -> None:
    found = component(COMPONENT)
    assert engine_opinion.component_by_us(found) == engine_opinion.component_by_engine(COMPONENT)
    assert [(each.name, each.kind, each.functions) for each in found.imports] == [
        ("wasi:io/poll@0.2.6", "instance", ("poll",)),
        ("wasi:cli/exit@0.2.6", "instance", ("exit",)),
        ("log", "func", ()),
    ]
    assert found.exports == (("answer", "func"),)
    assert [module.memories for module in found.modules] == [(Size(2, 4, 1),), (Size(1, None, 0),)]
    assert (found.instances, found.components, found.depth) == ((0, 1), 1, 1)


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_module_is_refused_and_the_engine_refuses_it_too(name: str) -> None:
    with pytest.raises(Unreadable) as caught:
        parse(MALFORMED[name])
    assert caught.value.kind is ErrorKind.INVALID_MODULE
    assert not engine_opinion.is_valid(MALFORMED[name])


@pytest.mark.parametrize("name", MALFORMED_COMPONENTS)
def test_a_malformed_component_is_refused_and_the_engine_refuses_it_too(name: str) -> None:
    with pytest.raises(Unreadable) as caught:
        parse(MALFORMED_COMPONENTS[name])
    assert caught.value.kind is ErrorKind.INVALID_MODULE
    assert not engine_opinion.is_valid_component(MALFORMED_COMPONENTS[name])


def test_text_is_distinguished_and_the_place_of_a_fault_is_named() -> None:
    with pytest.raises(Unreadable, match="compile the text first"):
        parse(b"(module)")
    with pytest.raises(Unreadable, match=r"there is no section 14 .* \(at byte 10\)"):
        parse(MALFORMED["an unknown section"])


@pytest.mark.parametrize("seed", range(len(SEEDS)))
def test_every_beginning_of_a_module_is_refused_or_whole(seed: int) -> None:
    data = SEEDS[seed][:400]
    for end in range(len(data)):
        engine_opinion.agree(data[:end])


@given(st.data())
def test_changed_modules_are_read_as_the_engine_reads_them(data: st.DataObject) -> None:
    changed = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed) - 1))
        change = data.draw(st.sampled_from(("set", "flip", "insert", "remove", "copy")))
        if change == "set":
            changed[at] = data.draw(st.integers(0, 255))
        elif change == "flip":
            changed[at] ^= 1 << data.draw(st.integers(0, 7))
        elif change == "insert":
            changed[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        elif change == "remove":
            del changed[at : at + data.draw(st.integers(1, 8))]
        else:
            changed[at:at] = changed[at : at + data.draw(st.integers(1, 64))]
        if not changed:
            return
    engine_opinion.agree(bytes(changed))


@given(st.data())
def test_changed_components_are_read_as_the_engine_reads_them(data: st.DataObject) -> None:
    changed = bytearray(COMPONENT)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(8, len(changed) - 1))
        changed[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    engine_opinion.agree_on_component(bytes(changed))


@given(st.binary(max_size=200), st.sampled_from((HEAD, COMPONENT_HEAD)))
def test_noise_behind_a_head_raises_nothing_but_its_own_error(noise: bytes, head: bytes) -> None:
    try:
        parsed = parse(head + noise)
    except Unreadable:
        return
    modules = (parsed,) if isinstance(parsed, CoreModule) else parsed.modules
    try:
        decode(modules, Budget())
    except (Unreadable, OverBudget):
        return


@given(st.lists(st.integers(0, (1 << 32) - 1)))
def test_numbers_are_read_as_they_were_written(values: list[int]) -> None:
    data = b"".join(map(number, values))
    reader = Reader(data, 0, len(data))
    assert [reader.u32() for _ in values] == values and not reader.left


def test_many_items_are_passed_over_in_few_steps_and_each_is_checked() -> None:
    patterns = repeated(rb"\x01\x02")
    reader = Reader(b"\1\2" * 10_000, 0, 20_000)
    reader.skip_items(10_000, patterns, "an item")
    assert not reader.left
    wrong = Reader(b"\1\2" * 5000 + b"\1\3" + b"\1\2" * 4999, 0, 20_000)
    with pytest.raises(Unreadable, match="an item is malformed"):
        wrong.skip_items(10_000, patterns, "an item")


def test_components_nested_too_deep_are_over_the_budget_and_not_malformed() -> None:
    def nested(levels: int) -> bytes:
        data = COMPONENT_HEAD
        for _ in range(levels):
            data = COMPONENT_HEAD + section(4, data)
        return data

    assert component(nested(MAX_DEPTH)).depth == MAX_DEPTH
    with pytest.raises(Unreadable) as caught:
        parse(nested(MAX_DEPTH + 1))
    assert caught.value.kind is ErrorKind.TOO_COMPLEX


def test_types_nested_without_end_are_over_the_budget() -> None:
    with pytest.raises(Unreadable) as caught:
        parse(COMPONENT_HEAD + section(7, b"\1" + b"\x42\1\1" * 5000 + b"\x42\0"))
    assert caught.value.kind is ErrorKind.TOO_COMPLEX


def test_more_names_than_are_described_are_over_the_budget() -> None:
    exports = b"".join(number(4) + f"{n:04x}"[-4:].encode() + b"\2\0" for n in range(MAX_NAMED + 1))
    with pytest.raises(Unreadable) as caught:
        parse(HEAD + section(7, number(MAX_NAMED + 1) + exports))
    assert caught.value.kind is ErrorKind.TOO_COMPLEX


HOSTILE: dict[str, Callable[[int], bytes]] = {
    "custom sections": lambda each: HEAD + b"\0\1\0" * (15_000 * each),
    "empty sections of a component": lambda each: COMPONENT_HEAD + section(7, b"\0") * (15_000 * each),
    "elements": lambda each: HEAD + section(9, b"\1\0\x41\0\x0b" + number(1_050_000 * each) + bytes(1_050_000 * each)),
    "parameters": lambda each: (
        HEAD + section(1, number(2000 * each) + (b"\x60" + number(999) + b"\x64\x70" * 999 + b"\0") * (2000 * each))
    ),
    "members of types": lambda each: (
        COMPONENT_HEAD + section(7, number(1000 * each) + (b"\x6f" + number(200) + b"\x7f" * 200) * (1000 * each))
    ),
    "modules with many sections": lambda each: COMPONENT_HEAD + section(1, HEAD + b"\0\1\0" * (2500 * each)) * 10,
}
"""Each is well formed, and would take minutes or gigabytes if it were read to its end at many times the size."""


@pytest.mark.parametrize("each", [1, pytest.param(20, marks=pytest.mark.heavy)])
@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_only_long_is_over_the_budget_of_entries(name: str, each: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a twentieth of the entries that are read at most, and of all of them."""
    monkeypatch.setattr(binary.Allowance.__init__, "__defaults__", (binary.MAX_ENTRIES * each // 20,))
    with pytest.raises(Unreadable, match="more than 2,000,000 entries") as caught:
        parse(HOSTILE[name](each))
    assert caught.value.kind is ErrorKind.TOO_COMPLEX


def test_a_hundred_thousand_functions_take_memory_by_the_file_and_not_by_the_function() -> None:
    count = 100_000
    data = (
        HEAD
        + section(1, b"\1\x60\0\0")
        + section(3, number(count) + bytes(count))
        + section(10, number(count) + b"\2\0\x0b" * count)
    )
    tracemalloc.start()
    module = core(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert module.code.number == count
    assert peak < 6 * len(data)
    with pytest.raises(OverBudget, match=r"100,000 functions, and 50,000 are decoded"):
        decode((module,), Budget())


def test_bodies_over_the_budget_are_not_decoded() -> None:
    module = core(wasm(f"(module (func {'nop ' * 500}))"))
    assert decode((module,), Budget(instructions=500)).instructions == 500
    with pytest.raises(OverBudget, match="more than 499 instructions"):
        decode((module,), Budget(instructions=499))
    with pytest.raises(OverBudget, match="502 bytes of code"):
        decode((module,), Budget(code_bytes=501))


@pytest.mark.parametrize(
    "body",
    [
        b"\0",  # no end
        b"\0\x0b\x0b",  # an instruction behind the end
        b"\0\x05\x0b",  # an else without an if
        b"\0\x0c\1\x0b",  # a branch out of its function
        b"\0\x06\x40\x0b\x0b",  # try, of a proposal
        b"\0\xfc\x12\x0b",  # no such instruction
        b"\0\xfd\x80\x02\x0b",  # relaxed SIMD
        b"\0\x41\x80\x0b",  # a number cut off by the end
        b"\x01\xd1\x86\x03\x7f\x0b",  # 50,001 locals
        b"\x05\x0b",  # more groups of locals than bytes
    ],
)
def test_a_malformed_body_is_refused_and_the_engine_refuses_it_too(body: bytes) -> None:
    code = section(10, b"\1" + number(len(body)) + body)
    data = HEAD + section(1, b"\1\x60\0\0") + section(3, b"\1\0") + code
    module = core(data)
    with pytest.raises(Unreadable):
        decode((module,), Budget())
    assert not engine_opinion.is_valid(data)
