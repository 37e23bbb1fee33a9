"""What is read of a module in front of its code, against what the engine says of it; and what to do about it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app_loader.check import advice
from app_loader.check.outline import ComponentOutline, CoreOutline, Unreadable, code_bytes
from app_loader.engine.compiled import Module
from app_loader.engine.component import Component
from app_loader.engine.settings import Settings, make_engine
from app_loader.limits import MAX_SECTION_HEADS
from tests.unit.app_loader.app_loader_process import wasm
from tests.unit.app_loader.guests import PRINTS
from tests.unit.app_loader.test_app_loader_checker import HEADER, leb, many_functions, section

EXAMPLES = sorted((Path(__file__).resolve().parents[3] / "examples").glob("*/*.wasm"))
EVERYTHING = wasm("""(module
  (import "m" "f" (func (param i32 i64) (result f32)))
  (import "m" "t" (table 1 2 funcref)) (import "m" "u" (table 1 externref))
  (import "m" "mem" (memory 1)) (import "m" "g" (global i32)) (import "m" "h" (global (mut v128)))
  (import "m" "e" (tag (param i32)))
  (func $f (export "given") (param v128 funcref externref) (result f64 i32) unreachable)
  (func (export "") (param exnref) unreachable)
  (export "again" (func 0)) (export "tag" (tag 0)) (export "table" (table 0)) (export "memory" (memory 0)))""")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "module.wasm"


def outline(place: Path, module: bytes) -> CoreOutline:
    """What is read of a module."""
    place.write_bytes(module)
    file = os.open(place, os.O_RDONLY)
    try:
        return CoreOutline(file)
    finally:
        os.close(file)


def code(place: Path, module: bytes, *, component: bool = False) -> int:
    """How much code there is in a file."""
    place.write_bytes(module)
    file = os.open(place, os.O_RDONLY)
    try:
        return code_bytes(file, component=component)
    finally:
        os.close(file)


@pytest.mark.parametrize("path", [path for path in EXAMPLES if path.read_bytes()[4] == 1], ids=lambda path: path.stem)
def test_an_examples_exports_are_what_the_engine_says(path: Path, place: Path) -> None:
    module = path.read_bytes()
    found, theirs = outline(place, module), Module.compile(make_engine(Settings()), module).exports()
    assert found.functions == theirs.functions
    assert {name: found.signature(name) for name in found.functions} == {
        name: theirs.signature(name) for name in theirs.functions
    }


def test_every_kind_of_import_and_export_is_read(place: Path) -> None:
    found = outline(place, EVERYTHING)
    assert found.imports == [("m", name) for name in ("f", "t", "u", "mem", "g", "h", "e")]
    assert found.functions == ["given", "", "again"]
    assert found.signature("given") == (["v128", "funcref", "externref"], ["f64", "i32"])
    assert found.signature("again") == (["i32", "i64"], ["f32"])
    assert found.signature("") == (["exnref"], [])


def test_a_components_names_are_what_the_engine_says(place: Path) -> None:
    place.write_bytes(PRINTS)
    file = os.open(place, os.O_RDONLY)
    found, theirs = ComponentOutline(file), Component.compile(make_engine(Settings(components=True)), file)
    assert (found.imports, found.exports) == (theirs.imports(), theirs.exports())
    assert found.exports
    os.close(file)


@given(st.data())
def test_no_bytes_do_more_than_be_unreadable(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    module = bytearray(data.draw(st.sampled_from([EVERYTHING, PRINTS])))
    for place, byte in data.draw(st.lists(st.tuples(st.integers(8, len(module) - 1), st.integers(0, 255)), max_size=9)):
        module[place] = byte
    path = tmp_path_factory.getbasetemp() / "mutated.wasm"
    path.write_bytes(module[: data.draw(st.integers(0, len(module)))])
    file = os.open(path, os.O_RDONLY)
    try:
        for component in (False, True):
            assert 0 <= code_bytes(file, component=component) <= path.stat().st_size
        found = CoreOutline(file)
        for name in found.functions:
            found.signature(name)
        ComponentOutline(file)
    except Unreadable:
        pass
    finally:
        os.close(file)


def test_code_is_counted_and_not_what_is_there_for_people(place: Path) -> None:
    command = many_functions(1000, b"\x10\0\x0b")
    contents = len(leb(1000)) + 1000 * 5
    assert code(place, command) == contents
    assert code(place, command + section(0, b"\4name" + b"x" * 100_000)) == contents


def test_the_code_of_a_component_is_that_of_all_modules_in_it(place: Path) -> None:
    inner = wasm("(component (core module (func nop)) (component (core module (func nop nop))))")
    assert code(place, inner, component=True) == 5 + 6


def test_what_cannot_be_walked_counts_whole(place: Path) -> None:
    for module in (b"\0asm", HEADER + b"\x0a\xff\xff\xff\xff\x0f", HEADER + b"\0\0" * (MAX_SECTION_HEADS + 1)):
        assert code(place, module) == (len(module) if len(module) > 8 else 0)


@pytest.mark.parametrize(
    ("imports", "words"),
    [
        (["wasi thread-spawn", "env memory"], "build it without threads"),
        (["gojs runtime.wasmExit"], "GOOS=wasip1, not GOOS=js"),
        (["__wbindgen_placeholder__ f"], "wasm-bindgen"),
        (["rb-js-abi-host eval-js"], "a Ruby without the js gem"),
        (["env emscripten_notify_memory_growth"], "-sSTANDALONE_WASM"),
        (["env memory"], "without --import-memory"),
        (["wasi:http/types@0.2.0", "wasi:cli/stdin@0.3.0"], "WASI 0.3"),
    ],
)
def test_an_import_that_is_known_comes_with_what_to_do(imports: list[str], words: str) -> None:
    assert words in advice.on_imports(imports)


def test_an_import_that_is_not_known_comes_without(place: Path) -> None:
    assert advice.on_imports(["acme launch"]) == advice.on_features("unexpected end") == ""
